"""What `driffusion-trt build` does, once its options are known to fit together."""

from __future__ import annotations

import argparse
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .._errors import InputError, ModelError
from .._manifest import MANIFEST, Manifest, read_manifest
from ..engines.lock import lock_folder
from ..engines.manifest import BUNDLED, ModelFolder
from ..engines.plans import Cost, PlanRequest, build_plans, current_hashes, plan_cost, plan_requests
from ..engines.store import Plan, PlanStore
from ..models import MODELS, ModelSpec, get_spec
from ..sampling.schedule import Schedule
from ._building_output import Meter, say_plans, size, summary
from ._console import Console
from ._targets import Target, profile_of, targets_of

if TYPE_CHECKING:
    from ..export.plan import Export

_BYTES = {"fp32": 4, "fp16": 2, "bf16": 2}
_EXPORTING = ("precision", "lora_path", "skip")


@dataclass(frozen=True, slots=True)
class _Job:
    """One call of the command. `checkpoint` is None where the folder's ONNX files are taken as they are."""

    args: argparse.Namespace
    spec: ModelSpec
    output: Path
    checkpoint: str | None
    precision: str
    targets: list[Target]


def build(args: argparse.Namespace, console: Console) -> None:
    """Run the command; raises InputError for misuse before anything is loaded or written."""
    start = time.perf_counter()
    with console.warnings():
        job = _checked(args, console)
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


def _checked(args: argparse.Namespace, console: Console) -> _Job:
    if args.jobs is not None and args.jobs < 1:
        raise InputError(f"--jobs {args.jobs} was asked; it must be at least 1")
    paths, weights = args.lora_path or [], args.lora_weight or []
    if weights and len(weights) != len(paths):
        raise InputError(f"{len(paths)} LoRAs were given with {len(weights)} weights; give one for each")
    level = args.optimization_level
    if level is not None and not 0 <= level <= 5:
        raise InputError(f"--optimization-level {level} was asked; it must be from 0 to 5")
    if args.output is None and args.model is None:
        raise InputError(f"give --model, one of {', '.join(MODELS)}, and --checkpoint")
    output = Path(args.output if args.output is not None else f"models/{args.model}")
    there = read_manifest(output) if (output / MANIFEST).exists() else None
    if args.model is None and there is None:
        raise InputError(f"{output} is not a built model: give --model, one of {', '.join(MODELS)}")
    spec = get_spec(args.model if there is None or args.model is not None else there.family)
    profile_of(args, spec)
    checkpoint = args.checkpoint
    if checkpoint is None and there is not None:
        if there.family != spec.family:
            raise InputError(f"{output} is a {there.family}, not a {spec.family}; name another --output")
        for name in _EXPORTING:
            if getattr(args, name) not in (None, there.precision):
                raise InputError(f"--{name.replace('_', '-')} means a new export: give --checkpoint too")
    elif checkpoint is None and spec.family not in BUNDLED:
        checkpoint = spec.hub_id
        console.note(f"no --checkpoint was given: taking {checkpoint} from the hub")
    targets = targets_of(args, console)
    precision = _precision(args, there, targets, console)
    return _Job(args, spec, output, checkpoint, precision, targets)


def _precision(
    args: argparse.Namespace, there: Manifest | None, targets: Sequence[Target], console: Console
) -> str:
    """The one that was asked for; or that of the folder, so that no plan is lost by another command."""
    if args.precision is not None:
        return str(args.precision)
    kept = None if there is None else there.precision.partition(",")[0]
    if kept in _BYTES:
        if kept == "fp32" and targets:
            console.warn(
                f"{args.output} is in fp32, as CPU lanes like it; --precision fp16 suits GPUs better"
            )
        return kept
    if not targets:
        console.note("precision fp32, which suits CPU lanes; for GPUs choose --precision fp16", detail=True)
    return "fp16" if targets else "fp32"


def _build(job: _Job, console: Console) -> tuple[list[str], list[Plan]]:
    """What was done, in words, and the plans of all targets."""
    export = _plan_export(job)
    if export is not None:
        _check_scheduler(export, job.spec, console)
    estimates = _planned(job, export)
    _check_room(job, estimates)
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
        plans, built = _build_plans(job, folder, meter, console)
    return did + built, plans


def _plan_export(job: _Job) -> Export | None:
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


def _planned(job: _Job, export: Export | None) -> list[tuple[str, Cost]]:
    """The plans that may have to be built and their costs, before the networks themselves are there."""
    if export is None or export.finished:
        if not (job.output / MANIFEST).exists():
            return []
        folder = ModelFolder.open(job.output)
        missing = _missing(job, folder, PlanStore(job.output))[1]
        return [(request.name, request.cost) for request in missing]
    planned = []
    for target in job.targets:
        for network in export.networks:
            onnx_bytes = export.parameters(network) * _BYTES[job.precision]
            cost = plan_cost(network, onnx_bytes, target.flavour.name)
            if cost is not None:
                planned.append((f"{network} for {target}", cost))
    return planned


def _check_room(job: _Job, planned: Sequence[tuple[str, Cost]]) -> None:
    """Raise ModelError where disk or memory would not do for the plans; the export checks its own."""
    from ..export.estimate import available_memory_bytes, free_disk_bytes

    there, free = free_disk_bytes(job.output)
    needed = sum(cost.disk_bytes for _, cost in planned)
    if needed > free:
        raise ModelError(
            f"the plans need {size(needed)} of disk, and {there} has {size(free)} free; make room, or name "
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
    for name in [*source.manifest.files, MANIFEST]:
        (output / name).parent.mkdir(parents=True, exist_ok=True)
        partial = output / f"{name}.partial"
        shutil.copyfile(source.path / name, partial)
        partial.replace(output / name)


def _missing(job: _Job, folder: ModelFolder, store: PlanStore) -> tuple[list[PlanRequest], list[PlanRequest]]:
    """All plans that are asked for, and those that are not there."""
    _, height, width = folder.manifest.shapes["picture"]
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
    return requests, [request for request in requests if not store.has(request.key)]


def _build_plans(
    job: _Job, folder: ModelFolder, meter: Meter, console: Console
) -> tuple[list[Plan], list[str]]:
    from ..export.estimate import available_memory_bytes

    store = PlanStore(job.output)
    removed = store.sweep(current_hashes(folder))
    if removed:
        console.note(f"removed {len(removed)} files of plans that no run could use", detail=True)
    requests, missing = _missing(job, folder, store)
    if missing:
        for network in dict.fromkeys(request.key.network for request in missing):
            folder.verify(network)  # the plan would be as wrong as its ONNX file, and its key not show it
        say_plans(missing, console)
        meter.plans([request.name for request in missing], [request.cost.seconds for request in missing])

    def on_done(request: PlanRequest, plan: Plan) -> None:
        meter.plan_done(request.name)
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
