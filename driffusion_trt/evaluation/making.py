"""The first stage: every picture of every mode that was asked for, each beside the sequential one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .._errors import InputError, did_you_mean
from ..pictures import psnr, relative_l2, save_png
from ..pipeline import Pipeline
from ..sampling.plan import MODES
from ..sampling.window import least_rounds
from .captions import Prompts
from .work import RowFolder, Work

__all__ = ["Job", "Row", "make_pictures", "rows_of"]

Tick = Callable[[int, str], None]
SEQUENTIAL = "sequential"
MOST_PSNR_DB = 96.0  # what pictures that are equal, whose ratio is infinite, count as
_ROUNDS = ("skip", "window", "tolerance", "paradigms")  # modes that take a number of rounds
_TOLERANCE = ("tolerance", "paradigms")


@dataclass(frozen=True, slots=True)
class Row:
    """One row of the table: a mode, its lanes, and its options of `Pipeline.__call__`."""

    name: str
    mode: str
    lanes: int
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def asked(self) -> dict[str, Any]:
        return {"mode": self.mode, "lanes": self.lanes, **self.options}


@dataclass(frozen=True, slots=True)
class Job:
    """What is to be made: rows, prompts, and the settings that all pictures share.

    seed: of the first picture; picture k has seed + k in every row.
    """

    rows: tuple[Row, ...]
    prompts: Prompts
    seed: int
    batch_size: int
    settings: dict[str, Any]


def rows_of(
    modes: Sequence[str], lanes: Sequence[int], steps: int, rounds: int | None, tolerance: float | None
) -> tuple[Row, ...]:
    """Sequential, which all are compared with, then every mode with every number of lanes.

    Mode skip knows no lanes: it gets as many rounds as `aggressive` has with each number of them.

    Raises InputError for a mode that does not exist, and a setting that none of the modes takes.
    """
    for mode in modes:
        if mode not in MODES:
            raise InputError(f"--modes {mode!r}: there is no such mode{did_you_mean(mode, MODES)}")
    for name, given, takers in (("rounds", rounds, _ROUNDS), ("tolerance", tolerance, _TOLERANCE)):
        if given is not None and not set(modes) & set(takers):
            raise InputError(f"--{name} was given, and goes with the modes {', '.join(takers)}")
    rows = {SEQUENTIAL: Row(SEQUENTIAL, SEQUENTIAL, 1)}
    for mode in modes:
        for n in lanes if mode != SEQUENTIAL else ():
            row = _row(mode, n, steps, rounds, tolerance)
            rows[row.name] = row
    return tuple(rows.values())


def _row(mode: str, lanes: int, steps: int, rounds: int | None, tolerance: float | None) -> Row:
    if mode == "skip":
        count = least_rounds(steps, lanes) if rounds is None else rounds
        return Row(f"skip-{count}", mode, 1, {"rounds": count})
    options: dict[str, Any] = {}
    if rounds is not None and mode in _ROUNDS:
        options["rounds"] = rounds
    if tolerance is not None and mode in _TOLERANCE:
        options["tolerance"] = tolerance
    words = "".join(f"-{name[0]}{value:g}" for name, value in options.items())
    return Row(f"{mode}-n{lanes}{words}", mode, lanes, options)


def make_pictures(job: Job, load: Callable[[], Pipeline], work: Work, tick: Tick) -> dict[str, RowFolder]:
    """Make what is missing, row after row; the model is loaded only if anything is.

    Whatever stops it, even a kill, what was made before stays, and the next run goes on from there. The
    folders come back by the names of the rows.

    Raises InputError for a row whose pictures were made with other options, else as a call does.
    """
    folders = {row.name: work.row(row.name, row.asked) for row in job.rows}
    count, size = len(job.prompts.texts), job.batch_size
    missing = {name: set(folder.missing(count, size)) for name, folder in folders.items()}
    there = count * len(folders) - sum(map(len, missing.values()))
    if not any(missing.values()):
        return folders
    with load() as pipe:
        for row in job.rows:
            lacking = missing[row.name]
            for indices in _batches(count, size, lacking):
                tick(there, f"{row.name}: picture {indices[0] + 1} of {count}")
                _make(pipe, job, row, indices, lacking, folders[row.name], folders[SEQUENTIAL])
                there += len(lacking.intersection(indices))
    return folders


def _batches(count: int, size: int, lacking: set[int]) -> Iterator[list[int]]:
    """Whole batches that lack a picture: a picture has the same neighbours, however often it was stopped."""
    for at in range(0, count, size):
        indices = list(range(at, min(at + size, count)))
        if not lacking.isdisjoint(indices):
            yield indices


def _make(
    pipe: Pipeline,
    job: Job,
    row: Row,
    indices: list[int],
    missing: set[int],
    folder: RowFolder,
    base: RowFolder,
) -> None:
    """What a batch lacks: latents where they are wanted, then the file, then its line: a line has a file."""
    texts = [job.prompts.texts[index] for index in indices]
    result = pipe(texts, seed=[job.seed + index for index in indices], **job.settings, **row.asked)
    for place, index in enumerate(indices):
        if index not in missing:
            continue
        image, latents = result.images[place], result.latents[place]
        if row.name == SEQUENTIAL:
            base.keep_latents(index, latents)
            drift = {"relative_l2": 0.0, "psnr_db": MOST_PSNR_DB}
        else:
            drift = _drift(latents, image, base, index)
        save_png(image, folder.picture(index), result.settings[place])
        calls = {"calls": result.stats.rounds, "predictions": result.stats.predictions}
        folder.add({"index": index, **calls, **drift, "settings": result.settings[place]})


def _drift(latents: NDArray[np.float32], image: Image.Image, base: RowFolder, index: int) -> dict[str, float]:
    """‖latents − sequential‖ / ‖sequential‖, and the PSNR of the 8-bit pictures."""
    exact = base.latents(index).astype(np.float64)
    with Image.open(base.picture(index)) as other:
        decibel = min(psnr(image, other), MOST_PSNR_DB)
    return {"relative_l2": relative_l2(latents, exact), "psnr_db": decibel}
