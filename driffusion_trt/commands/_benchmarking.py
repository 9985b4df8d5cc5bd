"""The work of `driffusion-trt bench`: check everything, measure, print and write."""

from __future__ import annotations

import argparse
import json
import os
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .._auto import check_auto
from .._errors import InputError
from .._machine import memory_bytes
from .._planner import Planner, planned
from .._request import Request
from ..benchmark.cells import DEFAULT_MODES, Cell, cells
from ..benchmark.drift import NO_SSIM, Drift
from ..benchmark.figures import LEAST
from ..benchmark.measuring import Job, Run, measure
from ..benchmark.plot import ENDINGS, check_plots, plot
from ..benchmark.prompts import DEMO, GENERAL
from ..benchmark.report import as_csv, document
from ..benchmark.tables import tables
from ..benchmark.trace import trace
from ..engines.manifest import BUNDLED, ModelFolder
from ..models import ModelSpec
from ..runtime.devices import Devices, choose_devices
from ..runtime.networks import GpuOptions
from ..sampling.noise import noise_streams
from ._console import Console
from ._inputs import read_prompts
from ._output import check_writable

_ITERATIONS = 10
_PIXEL_BYTES = 12  # three colours in float32, as the decoder gives them
_SETTINGS = ("steps", "guidance_scale", "scheduler", "height", "width")
_FILES = ("json", "csv", "plot", "trace")


@dataclass(frozen=True, slots=True)
class _Outputs:
    """Where results go; None for nowhere."""

    json: Path | None
    csv: Path | None
    plot: Path | None
    trace: Path | None


def benchmark(args: argparse.Namespace, console: Console) -> None:
    """Run the command.

    Raises:
        InputError, ModelError, MissingExtraError: misuse; nothing has run by then.
        KeyboardInterrupt: after Ctrl-C, once what was measured by then is printed and written.
        As `Pipeline.load` and calls do; once a repetition is over, also after printing and writing.
    """
    with console.warnings():
        outputs = _outputs(args)
        job = _checked(args)
        drift = Drift(_lpips(args, job))
        notes = _notes(job, drift)
        for note in notes:
            console.note(note)
        with console.progress(job.calls) as tick:
            run = measure(job, drift, tick)
    if run.repetitions:
        _report(job, run, notes, outputs, console)
    else:
        console.note("interrupted before the first repetition was over: there is nothing to show")
    if run.failed is not None:
        raise run.failed
    if not run.complete:
        raise KeyboardInterrupt


def _outputs(args: argparse.Namespace) -> _Outputs:
    given = {name: value for name in _FILES if (value := getattr(args, name)) is not None}
    for name, value in given.items():
        if value == "-":
            raise InputError(f"--{name} - was given; results go to files: name one, such as out.{name}")
    paths = {name: Path(value) for name, value in given.items()}
    for path in paths.values():
        check_writable([path], make_folder=False)
    if len({path.resolve() for path in paths.values()}) < len(paths):
        raise InputError(f"two results were to go to one file; name another for each of {', '.join(paths)}")
    if "plot" in paths:
        check_plots()
        if paths["plot"].suffix.lower() not in ENDINGS:
            raise InputError(f"--plot {args.plot} was given; plots are {', '.join(ENDINGS)}")
    return _Outputs(**{name: paths.get(name) for name in _FILES})


def _lpips(args: argparse.Namespace, job: Job) -> Any:
    if args.lpips is None:
        return None
    from ..evaluation.lpips import LEAST, Lpips

    size = _size(job.folder, job.settings)
    if min(size) < LEAST:
        raise InputError(
            f"--lpips was given, and pictures are {size}; it takes {LEAST} pixels a side or more"
        )
    return Lpips(args.lpips)


def _checked(args: argparse.Namespace) -> Job:
    """Every check that needs no network."""
    iterations = _at_least_one("iterations", args.iterations, _ITERATIONS)
    batch = _at_least_one("batch-size", args.batch_size, 1)
    folder = ModelFolder.open(args.model or "demo")
    settings = {name: value for name in _SETTINGS if (value := getattr(args, name)) is not None}
    asked = "auto" if args.devices is None else args.devices
    devices = choose_devices(asked, folder)
    lanes = [max(2, devices.count)] if args.lanes is None else args.lanes
    wanted = cells(args.modes or DEFAULT_MODES, lanes)
    _check_memory(folder, settings, batch)
    planner = Planner(folder)
    for cell in wanted:
        _check(cell, folder.spec, planner, settings, devices, batch)
    if asked == "auto":  # no more than are needed: another that idles would count with those that failed
        count = min(devices.count, max(cell.devices for cell in wanted))
        devices = Devices(count, devices.gpus[:count])
    own = DEMO if folder.manifest.family in BUNDLED else GENERAL
    prompts = own if args.prompts is None else tuple(read_prompts([], args.prompts))
    seed = 0 if args.seed is None else args.seed
    last = seed + iterations * batch - 1
    for one in (seed, last):
        noise_streams(one, 1)  # negative, or too large
    options = GpuOptions(not args.no_cuda_graphs, not args.no_peer_copies)
    memory = not args.no_memory
    return Job(folder, devices, options, wanted, settings, prompts, seed, batch, iterations, memory)


def _at_least_one(name: str, given: int | None, default: int) -> int:
    value = default if given is None else given
    if value < 1:
        raise InputError(f"--{name} {value} was asked; it must be at least 1")
    return value


def _check(
    cell: Cell, spec: ModelSpec, planner: Planner, common: dict[str, Any], devices: Devices, batch: int
) -> None:
    """Raises InputError for a cell whose calls would be refused."""
    if cell.threads > 1 and devices.gpus:
        raise InputError(
            f"{cell.spelt} was asked, and these are GPUs; threads are of CPU lanes: --devices cpu"
        )
    settings = {**common, **cell.settings}
    check_auto(settings)
    Request.check(spec, planner.own_size, "", {**settings, "num_images": batch})
    if settings["mode"] == "auto":
        planner.schedule(**{k: v for k, v in common.items() if k != "guidance_scale"})
    else:
        planner.plan(devices.count, **planned(settings))
    if cell.settings.get("split_guidance"):
        scale = settings.get("guidance_scale", spec.guidance_scale)
        if devices.count < 2:
            raise InputError(f"{cell.spelt} was asked: it splits guidance over two devices, and there is one")
        if isinstance(scale, int | float) and scale <= 1:
            raise InputError(f"{cell.spelt} was asked, and guidance {scale:g} is none that could be split")


def _size(folder: ModelFolder, settings: Mapping[str, Any]) -> list[int]:
    """Height and width of the pictures."""
    _, *own = folder.shape("picture")
    return [settings.get(name, side) for name, side in zip(("height", "width"), own, strict=True)]


def _check_memory(folder: ModelFolder, settings: dict[str, Any], batch: int) -> None:
    """Raises InputError where the pictures of one call alone, without any network, are more than there is."""
    height, width = _size(folder, settings)
    there, needed = memory_bytes(), _PIXEL_BYTES * batch * height * width
    if there is not None and needed > there:
        raise InputError(
            f"{batch} pictures of {height} × {width} pixels a call were asked; they alone take "
            f"{needed / 1e9:.3g} GB, and this machine has {there / 1e9:.3g} GB"
        )


def _notes(job: Job, drift: Drift) -> list[str]:
    """What is left out or weak, and why."""
    notes = [] if drift.has_ssim else [NO_SSIM]
    if job.iterations < LEAST:
        notes.append(
            f"repetitions: {job.iterations}; from {LEAST} on there are intervals, and verdicts of --compare"
        )
    return notes


def _report(job: Job, run: Run, notes: Sequence[str], outputs: _Outputs, console: Console) -> None:
    found = document(job, run, notes)
    console.out(_head(found) + "\n")
    for note in run.notes:
        console.warn(note)
    console.out(tables(found))
    if outputs.json is not None:
        _write(outputs.json, json.dumps(found, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    if outputs.csv is not None:
        _write(outputs.csv, as_csv(found))
    if outputs.trace is not None:
        recorders = {one.cell.name: one.recorder for one in run.cells if one.recorder is not None}
        _write(outputs.trace, json.dumps(trace(recorders)))
    if outputs.plot is not None:
        plot(found, outputs.plot)
    for path in (outputs.json, outputs.csv, outputs.trace, outputs.plot):
        if path is not None:
            console.note(f"written to {path}")


def _head(found: dict[str, Any]) -> str:
    model, settings = found["model"], found["settings"]
    of = "" if found["complete"] else f" of {found['iterations']}"
    return (
        f"{model['family']} ({model['precision']}), {settings['steps']} steps of {settings['scheduler']}, "
        f"guidance {settings['guidance_scale']:g}, batch {settings['batch_size']}, on {settings['devices']}; "
        f"repetitions: {found['repetitions']}{of}"
    )


def _write(path: Path, text: str) -> None:
    """Whole or not at all."""
    partial = path.with_name(f".{path.name[:40]}.{secrets.token_hex(4)}.partial")
    try:
        partial.write_text(text, "utf-8")
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
