"""What `driffusion-trt build` does, once its options are known to fit together."""

from __future__ import annotations

import argparse
import shutil
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .._errors import InputError, ModelError
from .._manifest import CALIBRATION, MANIFEST
from ..engines.flavours import check_precision, get_flavour
from ..engines.lock import lock_folder
from ..engines.manifest import ModelFolder
from ..engines.plans import (
    Cost,
    PlanRequest,
    build_plans,
    current_hashes,
    plan_cost,
    plan_requests,
)
from ..engines.store import Plan, PlanStore
from ..models import ModelSpec
from ..sampling.schedule import Schedule
from ._building_job import BYTES, Job, read_job
from ._building_output import Meter, say_plans, say_stale, size, summary
from ._console import Console
from ._targets import profile_of

if TYPE_CHECKING:
    from ..export.plan import Export


def build(args: argparse.Namespace, console: Console) -> None:
    """Run the command; raises InputError for misuse before anything is loaded or written."""
    start = time.perf_counter()
    with console.warnings():
        job = read_job(args, console)
        try:
            with lock_folder(job.output):
                did, plans = _build(job, console)
        except KeyboardInterrupt:
            console.note("stopped; what is done is kept, and the same command goes on from there")
            raise
    seconds = time.perf_counter() - start
    folder = ModelFolder.open(job.output)
    if not did:
        console.note(f"nothing to do: {job.output} is up to date ({seconds:.1f} s)")
    elif not console.quiet:
        console.note(f"done in {seconds:.0f} s")
    if args.json:
        console.out_json(summary(folder, plans, seconds=seconds, did=did))
    else:
        console.out(str(job.output))


class _Altered(ModelError):
    """A network is not the one that was exported."""

    def __init__(self, network: str, message: str) -> None:
        super().__init__(message)
        self.network = network


def _build(job: Job, console: Console) -> tuple[list[str], list[Plan]]:
    """What was done, in words, and the plans of all targets."""
    if job.damaged:
        _forget(job.output, MANIFEST)
    try:
        return _build_once(job, console)
    except _Altered as error:
        if job.checkpoint is None:
            raise
        console.warn(f"{error}: it is exported again")
        _forget(job.output, error.network)
    return _build_once(job, console)


def _forget(output: Path, name: str) -> None:
    """So that the next export makes it anew."""
    from ..export.record import Record

    Record.load(output).drop([name])


def _build_once(job: Job, console: Console) -> tuple[list[str], list[Plan]]:
    export = _plan_export(job)
    if export is not None:
        _check_scheduler(export, job.spec, console)
    estimates = _planned(job, export)
    _check_room(job, export, estimates)
    meter = Meter([export.estimate.seconds if export else 0.0, *(cost.seconds for _, cost in estimates)])
    did: list[str] = []
    with console.progress(Meter.TOTAL) as tick:
        meter.tick = tick
        if export is not None and not export.finished:
            _say_estimate(export, estimates, console)
            from ..export.build import run_export

            run_export(export, meter.export)
            did += [f"export {name}" for name in (*export.make, *(f"check of {n}" for n in export.check))]
        elif export is None and job.checkpoint is None and not (job.output / MANIFEST).exists():
            _copy_bundled(job.spec.family, job.output)
            did.append("copy of the bundled model")
        folder = ModelFolder.open(job.output)
        if did:
            _say_networks(folder, console)
            say_stale(folder, console)
        plans, built = _build_plans(job, folder, meter, console)
    return did + built, plans


def _plan_export(job: Job) -> Export | None:
    if job.checkpoint is None:
        return None
    from ..export.plan import plan_export

    args = job.args
    paths = args.lora_path or []
    return plan_export(
        job.spec.family,
        job.checkpoint,
        job.output,
        precision=job.precision,
        verify=not args.no_verify,
        lora=list(zip(paths, args.lora_weight or [1.0] * len(paths), strict=True)),
        allow_pickle=args.allow_pickle,
        skip=args.skip or [],
    )


def _check_scheduler(export: Export, spec: ModelSpec, console: Console) -> None:
    """Warn now of a scheduler that no picture could be made with; `run --scheduler` can choose another."""
    path = export.checkpoint.scheduler
    try:
        Schedule.from_config(path, spec.steps)
    except InputError as error:
        console.warn(f"{path}: {error}; the networks are built all the same")


def _planned(job: Job, export: Export | None) -> list[tuple[str, Cost]]:
    """The plans that may have to be built and their costs, before the networks themselves are there."""
    if export is None or export.finished:
        if not (job.output / MANIFEST).exists():
            return []
        folder = ModelFolder.open(job.output)
        missing = _missing(job, folder, PlanStore(job.output))[1]
        for request in missing:
            platform, precision = request.key.platform, folder.manifest.precision.partition(",")[0]
            flavour = get_flavour(platform.flavour)
            check_precision(flavour, platform.targets, request.key.network, _multiplied_in(precision))
        return [(request.name, request.cost) for request in missing]
    planned = []
    for target in job.targets:
        for network in export.networks:
            precision = export.precision_of(network)
            onnx_bytes = export.parameters(network) * BYTES[precision]
            cost = plan_cost(network, onnx_bytes, target.flavour.name)
            if cost is not None:
                check_precision(target.flavour, target.architectures, network, precision)
                planned.append((f"{network} for {target}", cost))
    return planned


def _multiplied_in(precision: str) -> str:
    """The demo's networks store their weights smaller than they are multiplied."""
    return precision if precision in BYTES else "fp32"


def _check_room(job: Job, export: Export | None, planned: Sequence[tuple[str, Cost]]) -> None:
    """Raise ModelError where the disk would not do for everything, or memory for a plan."""
    from ..export.estimate import available_memory_bytes, free_disk_bytes

    there, free = free_disk_bytes(job.output)
    networks = 0 if export is None or export.finished else export.estimate.disk_bytes
    needed = networks + sum(cost.disk_bytes for _, cost in planned)
    if needed > free:
        what = " and ".join(name for name, some in (("networks", networks), ("plans", planned)) if some)
        raise ModelError(
            f"the {what} need {size(needed)} of disk, and {there} has {size(free)} free; make room, or name "
            "an --output on another disk"
        )
    memory = available_memory_bytes()
    for name, cost in planned:
        if memory is not None and cost.memory_bytes > memory:
            raise ModelError(
                f"the plan of {name} needs about {size(cost.memory_bytes)} of memory, and {size(memory)} are "
                "free; close other programs, build on a larger machine, or stop at ONNX with --target cpu"
            )


def _say_estimate(export: Export, planned: Sequence[tuple[str, Cost]], console: Console) -> None:
    from ..export.estimate import duration

    seconds = export.estimate.seconds + sum(cost.seconds for _, cost in planned)
    disk = export.estimate.disk_bytes + sum(cost.disk_bytes for _, cost in planned)
    memory = max([export.estimate.memory_bytes, *(cost.memory_bytes for _, cost in planned)])
    console.note(
        f"{export.checkpoint.spec.family} from {export.checkpoint.folder} in {export.precision}: "
        f"{duration(seconds)}, {size(disk)} of disk, {size(memory)} of memory"
    )


def _say_networks(folder: ModelFolder, console: Console) -> None:
    for name in folder.networks:
        figure = folder.manifest.parity.get(name)
        checked = "not compared with torch" if figure is None else f"relative L2 against torch {figure:.1e}"
        console.note(f"{name}: {checked}")


def _copy_bundled(family: str, output: Path) -> None:
    """The bundled model as a folder of its own; its manifest last, as after every build."""
    source = ModelFolder.open(family, verify=True)
    calibrated = [CALIBRATION] if (source.path / CALIBRATION).exists() else []  # it is the same network
    for name in [*source.manifest.files, *calibrated, MANIFEST]:
        (output / name).parent.mkdir(parents=True, exist_ok=True)
        partial = output / f"{name}.partial"
        shutil.copyfile(source.path / name, partial)
        partial.replace(output / name)


def _missing(job: Job, folder: ModelFolder, store: PlanStore) -> tuple[list[PlanRequest], list[PlanRequest]]:
    """All plans that are asked for, and those that are not there."""
    _, height, width = folder.shape("picture")
    profile = profile_of(job.args, folder.spec, (height, width))
    requests = [
        request
        for target in job.targets
        for request in plan_requests(
            folder,
            profile,
            target.flavour,
            target.version,
            targets=target.architectures,
            gpu=target.gpu,
            optimization_level=job.args.optimization_level,
            verify=not job.args.no_verify,
        )
    ]
    # GPUs of one architecture share plans that are not bound to a model of GPU.
    requests = list({request.key.stem: request for request in reversed(requests)}.values())[::-1]
    missing = []
    for request in requests:
        there = store.find(request.key)
        if there is None:
            missing.append(request)
        elif request.gpu and request.verify and "inputs" in there.facts and "parity" not in there.facts:
            missing.append(replace(request, built=there))  # it came from elsewhere, or with --no-verify
    return requests, missing


def _build_plans(
    job: Job, folder: ModelFolder, meter: Meter, console: Console
) -> tuple[list[Plan], list[str]]:
    from ..export.estimate import available_memory_bytes

    store = PlanStore(job.output)
    removed = store.sweep(current_hashes(folder))
    if removed:
        console.note(f"removed {len(removed)} files of plans that no run could use", detail=True)
    requests, missing = _missing(job, folder, store)
    if missing:
        for network in dict.fromkeys(request.key.network for request in missing):
            try:
                folder.verify(network)  # the plan would be as wrong as its ONNX file, and its key not show it
            except ModelError as error:
                raise _Altered(network, str(error)) from error
        say_plans(missing, console)
        meter.plans([request.name for request in missing], [request.cost.seconds for request in missing])

    def on_done(request: PlanRequest, plan: Plan) -> None:
        meter.plan_done(request)
        seconds: Any = plan.facts["seconds"]
        console.note(f"plan of {request.name}: {size(plan.size_bytes)} in {seconds:.0f} s")
        for text in plan.facts["warnings"]:
            console.note(f"{request.key.network}: {text}", detail=True)

    built = build_plans(
        store,
        missing,
        jobs=job.args.jobs or 2,
        memory_bytes=available_memory_bytes(),
        on_phase=meter.phase,
        on_done=on_done,
    )
    wanted = {request.key.stem for request in requests}
    plans = [plan for plan in store.plans() if plan.path.stem in wanted]
    return plans, [f"plan {plan.path.stem}" for plan in built]
