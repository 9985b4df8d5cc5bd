"""`driffusion-trt plan --calibrate`: measure a model on its devices, and keep the result in its folder."""

from __future__ import annotations

import argparse
import re
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .._calibrate import measure, pictures_of
from .._errors import InputError, NonFiniteError
from .._planner import Planner
from .._request import Request
from .._stages import Stages
from ..calibration import Calibration, Entry, add_entries, check_addable, plain
from ..engines.manifest import BUNDLED, ModelFolder, resolve_model
from ..runtime.devices import choose_devices
from ..runtime.networks import GpuOptions
from ..sampling.noise import noise_streams
from ..sampling.plan import WINDOW_LANES, Plan, default_lanes
from ..sampling.sample import RoundDone, Sampled, Stats
from ..sampling.schedule import Schedule
from ._console import Console, Tick
from ._inputs import read_prompts

__all__ = ["calibrate"]

_FILE = re.compile(r"\.[a-z]{2,5}$", re.IGNORECASE)
_FEW = 16  # pairs; with fewer the strides of a round are chosen from one or two pictures


@dataclass(frozen=True, slots=True)
class _Job:
    """A calibration with everything checked."""

    folder: ModelFolder
    schedule: Schedule
    lanes: int
    guidance_scale: float
    pairs: list[tuple[Request, int]]  # with the seed


def calibrate(args: argparse.Namespace, console: Console) -> None:
    """Run the command.

    Raises:
        InputError: misuse; nothing has run by then.
        ModelError: the folder is no model, cannot be written to, or has a calibration that is damaged or
            of another network; nothing has run by then.
    """
    with console.warnings():
        job = _checked(args, console)
        entry = _measured(job, args, console)
        path = add_entries(job.folder, [entry])
    if args.json:
        console.out_json(_facts(entry, path))
        return
    console.out(_table(entry))
    console.note(f"kept in {path}")


def _checked(args: argparse.Namespace, console: Console) -> _Job:
    if args.model is not None:
        raise InputError("--model was given; with --calibrate the folder is the value of --calibrate")
    if not args.prompts:
        raise InputError(
            "--calibrate needs --prompts: texts, or files with one a line; a few dozen are enough"
        )
    seeds = 1 if args.seeds is None else args.seeds
    if seeds < 1:
        raise InputError(f"seeds={seeds} was asked; it must be at least 1")
    prompts = _prompts(args.prompts)
    folder = ModelFolder.open(args.calibrate)
    if any(folder.path.resolve() == resolve_model(name).resolve() for name in BUNDLED):
        raise InputError(
            f"{folder.path} comes with the package, and so does its calibration; copy the folder, and "
            "calibrate the copy"
        )
    there = check_addable(folder)
    planner = Planner(folder)
    schedule = planner.schedule(steps=args.steps, scheduler=args.scheduler)
    if schedule.eta:
        raise InputError(
            f"{schedule.solver} with step noises was asked; calibrations are of schedules without them"
        )
    devices = choose_devices("auto" if args.devices is None else args.devices, folder)
    lanes = default_lanes(devices.count, schedule.steps) if args.lanes is None else args.lanes
    if not 2 <= lanes <= WINDOW_LANES:
        raise InputError(f"lanes={lanes} was asked; windows to be calibrated have 2 to {WINDOW_LANES}")
    given = {} if args.guidance_scale is None else {"guidance_scale": args.guidance_scale}
    pairs = [
        (Request.check(folder.spec, planner.own_size, prompt, {**given, "seed": seed}), seed)
        for prompt in prompts
        for seed in range(seeds)
    ]
    guidance_scale = pairs[0][0].guidance_scale
    if not args.force:
        _check_replaced(there, (schedule.solver, schedule.steps, guidance_scale, lanes), len(pairs))
    if len(pairs) < _FEW:
        console.warn(
            f"pairs of prompt and seed: {len(pairs)}, which is few; from {_FEW} on the result means more"
        )
    return _Job(folder, schedule, lanes, guidance_scale, pairs)


def _check_replaced(there: Calibration, key: tuple[str, int, float, int], pairs: int) -> None:
    """Raises InputError where what is kept was measured on more pairs."""
    for one in there.entries:
        if (one.solver, one.steps, one.guidance_scale, one.lanes) == key and one.pairs > pairs:
            raise InputError(
                f"pairs of prompt and seed: {pairs}, and what is kept of this request was measured on "
                f"{one.pairs}; give more prompts or --seeds, or replace it with --force"
            )


def _prompts(given: Sequence[str]) -> list[str]:
    """Each is a file with prompts where there is one of that name, else a prompt.

    Raises InputError for what looks like the name of a file that is not there.
    """
    prompts: list[str] = []
    for one in given:
        if one == "-" or Path(one).is_file():
            prompts += read_prompts([], one)
        elif " " not in one.strip() or _FILE.search(one):
            raise InputError(
                f"there is no file {one!r}, and it looks like the name of one; if it is a prompt, write it "
                "into a file with one a line, or give - and write it to standard input"
            )
        else:
            prompts.append(one)
    return prompts


def _measured(job: _Job, args: argparse.Namespace, console: Console) -> Entry:
    devices = choose_devices("auto" if args.devices is None else args.devices, job.folder)
    stages = Stages(job.folder, devices, GpuOptions())
    each = job.schedule.steps
    try:
        for request, _ in job.pairs:
            stages.check(request)
        console.note(
            f"pairs: {len(job.pairs)}; {job.lanes} lanes, {each} steps of {job.schedule.solver}, guidance "
            f"{job.guidance_scale:g}, on {devices}"
        )
        with console.progress(each * pictures_of(len(job.pairs))) as tick:
            runner = _Runner(stages, job, tick, 1 if devices.gpus else devices.count)
            return measure(
                runner,
                job.schedule,
                lanes=job.lanes,
                guidance_scale=job.guidance_scale,
                pairs=len(job.pairs),
            )
    finally:
        stages.close()


class _Runner:
    """Makes the latents of each pair by a plan of its own, several pairs at once on CPU lanes."""

    def __init__(self, stages: Stages, job: _Job, tick: Tick, threads: int) -> None:
        self._stages, self._job, self._tick, self._threads = stages, job, tick, threads
        self._lock, self._steps, self._pictures = threading.Lock(), 0, 0
        self._all = pictures_of(len(job.pairs))

    def __call__(self, plans: Sequence[Plan]) -> list[Stats]:
        with ThreadPoolExecutor(self._threads) as pool:
            return list(pool.map(self._picture, plans, self._job.pairs))

    def _picture(self, plan: Plan, pair: tuple[Request, int]) -> Stats:
        request, seed = pair
        streams = noise_streams(seed, 1)
        given, without = self._stages.conditioner(request)
        job = self._stages.lanes.job(given, request.guidance_scale if request.guided else 1.0, without)
        reached = 0

        def told(done: RoundDone) -> None:
            nonlocal reached
            with self._lock:
                self._steps += done.state - reached
                self._pictures += done.state == done.steps > reached
                self._tick(self._steps, f"{self._pictures}/{self._all} pictures")
            reached = done.state

        made: Sampled = job.sample(plan, streams.draw(self._job.folder.latent_shape), streams, told)
        if not np.isfinite(made.latents).all():
            raise NonFiniteError(
                f"{request.prompts[0][0]!r} with seed {seed} and guidance_scale {request.guidance_scale:g} "
                "left the range of numbers; calibrate with a lower guidance scale, or without this prompt"
            )
        return made.stats


def _table(entry: Entry) -> str:
    """Expected errors of even and calibrated strides by the number of rounds, and rounds by tolerance."""
    lines = [
        f"{entry.steps} steps of {entry.solver}, {entry.lanes} lanes, guidance {entry.guidance_scale:g}; "
        f"{entry.pairs} pairs",
        "",
        f"{'rounds':>6}{'even':>12}{'calibrated':>12}   blocks",
    ]
    for rounds, blocks in sorted(entry.strides.items()):
        errors = f"{entry.even_errors[rounds]:>12.2e}{entry.errors[rounds]:>12.2e}"
        lines.append(f"{rounds:>6}{errors}   {','.join(map(str, blocks))}")
    lines += ["", f"{'tolerance':>9}{'rounds':>9}{'9 of 10':>9}"]
    lines += [f"{at:>9g}{one.mean:>9.1f}{one.most:>9.1f}" for at, one in sorted(entry.spent.items())]
    return "\n".join(lines)


def _facts(entry: Entry, path: Path) -> dict[str, Any]:
    return {"path": str(path), **plain(entry)}
