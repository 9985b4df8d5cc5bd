"""Cells measured in turn, one repetition after another, so that the machine's moods hit all of them alike."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from .._call import Result
from .._errors import DriffusionError
from ..engines.manifest import ModelFolder
from ..pipeline import Pipeline
from ..runtime.devices import Devices
from ..runtime.networks import GpuOptions
from ..sampling.plan import Plan
from ..sampling.recording import Recorder
from .cells import Cell
from .drift import Drift
from .memory import Peaks, in_own_process
from .stages import Split, split

__all__ = ["Job", "Measured", "Run", "measure", "order"]

Tick = Callable[[int, str], None]


@dataclass(frozen=True, slots=True)
class Job:
    """What is to be measured, with everything checked.

    cells: sequential first. settings: of every call. prompts: repetition k takes prompt k of them, from the
    start again after the last, and the seeds from seed + k·batch on. batch: pictures of each call. memory:
    whether each cell is made in a process of its own too, to see what it holds.
    """

    folder: ModelFolder
    devices: Devices
    options: GpuOptions
    cells: Sequence[Cell]
    settings: Mapping[str, Any]
    prompts: Sequence[str]
    seed: int
    batch: int
    iterations: int
    memory: bool = True

    @property
    def calls(self) -> int:
        """Of all cells: for memory, to warm up, and measured."""
        return len(self.cells) * (self.memory + 1 + self.iterations)


@dataclass(slots=True)
class Measured:
    """One cell: an entry for each repetition, and for `drift` one for each picture.

    settings: of its pictures, for mode auto those that it chose. memory: None where it was not measured.
    recorder: of the last repetition.
    """

    cell: Cell
    plan: Plan | None = None
    latency_ms: list[float] = field(default_factory=list)
    splits: list[Split] = field(default_factory=list)
    rounds: list[int] = field(default_factory=list)
    predictions: list[int] = field(default_factory=list)
    drift: list[dict[str, float]] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    memory: Peaks | None = None
    recorder: Recorder | None = None


@dataclass(slots=True)
class Run:
    """What was measured so far, in whole repetitions.

    where: the devices in words. notes: what went wrong. failed: what ended the run before it was complete.
    """

    cells: list[Measured]
    where: str = ""
    repetitions: int = 0
    complete: bool = False
    notes: list[str] = field(default_factory=list)
    failed: DriffusionError | None = None


@dataclass(slots=True)
class _Kept:
    """One repetition of one cell, as `Measured` has it."""

    latency_ms: float
    split: Split
    rounds: int
    predictions: int
    drift: list[dict[str, float]]
    recorder: Recorder | None


@dataclass(frozen=True, slots=True)
class _Once:
    """One call of a cell."""

    result: Result
    latency_ms: float
    recorder: Recorder


def order(cells: int, repetition: int) -> list[int]:
    """Whose turn it is: drawn anew for each repetition, so that no cell always follows the same one.

    The same in every run with so many cells.
    """
    return [int(k) for k in np.random.default_rng([cells, repetition]).permutation(cells)]


def measure(job: Job, drift: Drift, tick: Tick) -> Run:
    """Run the job.

    After Ctrl-C, and after an error that came once a repetition was over, the run is not `complete`, and has
    the repetitions that ended before; the error is `Run.failed`, and in the notes.

    tick: told of calls that are done, of `Job.calls`.

    Raises as `Pipeline.load` and a call do, where no repetition is over yet.
    """
    run = Run([Measured(cell) for cell in job.cells])
    kept: list[list[_Kept]] = []
    try:
        with contextlib.ExitStack() as stack:
            _fill(job, run, kept, drift, tick, stack)
    except KeyboardInterrupt:
        run.complete = False
    except (DriffusionError, OSError) as error:
        if not kept:
            raise
        run.complete = False
        run.failed = error if isinstance(error, DriffusionError) else DriffusionError(str(error))
        run.notes.append(f"ended by an error after {len(kept)} of {job.iterations} repetitions: {error}")
    for rows in kept:
        for measured, row in zip(run.cells, rows, strict=True):
            _add(measured, row)
    run.repetitions = len(kept)
    return run


def _fill(
    job: Job, run: Run, kept: list[list[_Kept]], drift: Drift, tick: Tick, stack: contextlib.ExitStack
) -> None:
    """Everything that takes time; `kept` grows by one whole repetition at once."""
    if job.memory:  # before this process holds anything of the GPUs
        _memory(job, run, tick)
    pipes = _pipes(job, stack)
    run.where = pipes[1].where
    _warm_up(job, run, pipes, tick)
    for repetition in range(job.iterations):
        kept.append(_repeat(job, run, pipes, drift, repetition, tick))
        for row in kept[repetition - 1] if repetition else ():
            row.recorder = None  # of the last one alone
    run.complete = True
    if pipes[1].devices < job.devices.count:
        run.notes.append("a device failed meanwhile: figures are of different numbers of devices")


def _add(measured: Measured, row: _Kept) -> None:
    measured.latency_ms.append(row.latency_ms)
    measured.splits.append(row.split)
    measured.rounds.append(row.rounds)
    measured.predictions.append(row.predictions)
    measured.drift += row.drift
    measured.recorder = row.recorder


def _options(job: Job, cell_threads: int) -> GpuOptions:
    return replace(job.options, threads_per_lane=cell_threads)


def _memory(job: Job, run: Run, tick: Tick) -> None:
    """What each cell holds, on the devices that it uses."""
    for done, measured in enumerate(run.cells):
        cell = measured.cell
        tick(done, f"memory: {cell.name}")
        count = min(cell.devices, job.devices.count)
        gpus = [f"cuda:{gpu.index}" for gpu in job.devices.gpus[:count]]
        asked = {
            "model": str(job.folder.path),
            "devices": gpus or ["cpu"] * count,
            "options": asdict(_options(job, cell.threads)),
            "prompt": job.prompts[0],
            "settings": _settings(job, cell, 0),
        }
        try:
            measured.memory = in_own_process(asked)
        except DriffusionError as error:
            run.notes.append(f"{cell.name}: no figures of memory; {error}")


def _pipes(job: Job, stack: contextlib.ExitStack) -> dict[int, Pipeline]:
    """A pipeline for every number of threads that a CPU lane is to have; cells share it."""
    job.folder.verify()
    made = {}
    for threads in sorted({1, *(cell.threads for cell in job.cells)}):
        count = max((cell.devices for cell in job.cells if cell.threads == threads), default=1)
        devices = job.devices if threads == 1 else Devices(min(count, job.devices.count))
        made[threads] = stack.enter_context(Pipeline(job.folder, devices, _options(job, threads)))
    return made


def _warm_up(job: Job, run: Run, pipes: Mapping[int, Pipeline], tick: Tick) -> None:
    """One call of each cell that does not count."""
    for done, measured in enumerate(run.cells, len(run.cells) * job.memory):
        tick(done, f"warm-up: {measured.cell.name}")
        result = _call(job, measured.cell, pipes[measured.cell.threads], 0).result
        measured.plan, measured.settings = result.plan, result.settings[0]


def _repeat(
    job: Job, run: Run, pipes: Mapping[int, Pipeline], drift: Drift, repetition: int, tick: Tick
) -> list[_Kept]:
    """One repetition of all cells, with the next prompt; in the order of `run.cells`."""
    made: dict[int, _Once] = {}
    count = len(run.cells)
    before = job.calls - count * (job.iterations - repetition)
    for done, k in enumerate(order(count, repetition), before):
        cell = run.cells[k].cell
        tick(done, f"{repetition + 1}/{job.iterations}: {cell.name}")
        made[k] = _call(job, cell, pipes[cell.threads], repetition)
    return [
        _Kept(
            once.latency_ms,
            split(once.recorder, once.latency_ms),
            once.result.stats.rounds,
            once.result.stats.predictions,
            drift(once.result, made[0].result),
            once.recorder,
        )
        for _, once in sorted(made.items())
    ]


def _settings(job: Job, cell: Cell, repetition: int) -> dict[str, Any]:
    seeds = [job.seed + repetition * job.batch + k for k in range(job.batch)]
    return {**job.settings, **cell.settings, "seed": seeds, "num_images": job.batch}


def _call(job: Job, cell: Cell, pipe: Pipeline, repetition: int) -> _Once:
    prompt, recorder = job.prompts[repetition % len(job.prompts)], Recorder()
    settings = _settings(job, cell, repetition)
    begun = time.perf_counter()
    result = pipe(prompt, recorder=recorder, **settings)
    return _Once(result, 1e3 * (time.perf_counter() - begun), recorder)
