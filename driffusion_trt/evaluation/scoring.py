"""The second stage: what each metric says of each picture, kept in chunks, and the figures made of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .._errors import InputError
from ..pictures import UNREADABLE
from .frechet import Gaussian, Interval, difference_interval, distance_interval
from .intervals import mean_interval, share_difference_interval, share_interval
from .metrics import Metric, Scorer
from .reference import Reference
from .work import RowFolder, Work, save_array

__all__ = ["Figure", "figures"]

CHUNK = 32  # pictures that a kill can cost

Tick = Callable[[int, str], None]
Array = NDArray[np.float32]
Figure = dict[str, Any]


def figures(
    metrics: Sequence[Metric], work: Work, rows: dict[str, RowFolder], texts: Sequence[str], tick: Tick
) -> dict[str, dict[str, Figure]]:
    """For each row and metric the value with its 95 % interval, and its difference from the first row.

    Rows are compared picture by picture. tick is told of each picture that a metric has seen.

    Raises:
        ModelError: weights are not what they should be.
        InputError: a picture of the reference cannot be read.
    """
    found: dict[str, dict[str, Figure]] = {name: {} for name in rows}
    done = 0
    for metric in metrics:
        scorer = _Once(metric.load)
        target = None if metric.reference is None else _target(metric, metric.reference, work, scorer)
        values: dict[str, Array] = {}
        for name, row in rows.items():
            folder = row.folder / "scores" / f"{metric.name}-{metric.key[:12]}"
            chunks = _chunks(folder, [row.picture(k) for k in range(len(texts))], texts, scorer)
            parts = []
            for part in chunks:
                parts.append(part)
                done += len(part)
                tick(done, f"{metric.title}: {name}")
            values[name] = np.concatenate(parts)
        for name, figure in _compared(values, target, metric).items():
            found[name][metric.name] = figure
    return found


class _Once:
    """A scorer that is loaded when something is scored, and then kept."""

    def __init__(self, load: Callable[[], Scorer]) -> None:
        self._load = load
        self._scorer: Scorer | None = None

    def __call__(self, images: Sequence[Image.Image], texts: Sequence[str], first: int) -> Array:
        if self._scorer is None:
            self._scorer = self._load()
        return self._scorer(images, texts, first)


def _chunks(folder: Path, files: Sequence[Path], texts: Sequence[str], scorer: Scorer) -> Iterator[Array]:
    """What the scorer says of the pictures in these files, chunk by chunk; what is kept is not done again."""
    folder.mkdir(parents=True, exist_ok=True)
    for first in range(0, len(files), CHUNK):
        path, some = folder / f"{first:06}.npy", files[first : first + CHUNK]
        kept = _kept(path, some)
        if kept is None:
            kept = scorer([_opened(file) for file in some], texts[first : first + CHUNK], first)
            save_array(path, kept)
        yield kept[: len(some)]


def _kept(path: Path, files: Sequence[Path]) -> Array | None:
    """A chunk that is there, long enough (of fewer prompts it may be shorter) and later than its pictures."""
    try:
        found: Array = np.load(path, allow_pickle=False)
        last = max(file.stat().st_mtime_ns for file in files)
        if len(found) < len(files) or last > path.stat().st_mtime_ns:
            return None
    except (OSError, ValueError, EOFError):
        return None
    return found


def _opened(file: Path) -> Image.Image:
    try:
        with Image.open(file) as image:
            return image.convert("RGB")
    except UNREADABLE as error:
        raise InputError(
            f"{file} cannot be read as a picture ({error}); put it right, or remove it"
        ) from error


def _target(metric: Metric, reference: Reference, work: Work, scorer: Scorer) -> Gaussian:
    """The Gaussian of the reference; features of its files are kept."""
    if reference.known is not None:
        return reference.known()
    name = f"{metric.name}-{metric.key[:12]}-{reference.digest[:12]}"
    folder = work.folder / ".reference" / name
    no_texts = [""] * len(reference.files)
    return Gaussian.of(np.concatenate(list(_chunks(folder, reference.files, no_texts, scorer))))


def _compared(values: dict[str, Array], target: Gaussian | None, metric: Metric) -> dict[str, Figure]:
    if target is not None:
        return _distances(values, target)
    base = next(iter(values.values()))
    found = {}
    for name, scores in values.items():
        apart = Interval(0.0, 0.0, 0.0) if scores is base else _apart(metric, scores, base)
        own = share_interval(scores) if metric.share else mean_interval(scores)
        found[name] = {**plain(own, metric.scale), "difference": plain(apart, metric.scale)}
    return found


def _apart(metric: Metric, scores: Array, base: Array) -> Interval:
    if metric.share:
        return share_difference_interval(scores, base)
    return mean_interval(scores.astype(np.float64) - base)


def _distances(values: dict[str, Array], target: Gaussian) -> dict[str, Figure]:
    found: dict[str, Figure] = {}
    base: tuple[float, list[float]] | None = None
    for name, features in values.items():
        if len(features) < 2:
            raise InputError("a distance needs two pictures at least; ask for more by --count")
        interval, left = distance_interval(features, target)
        base = base or (interval.value, left)
        difference = difference_interval(interval.value, left, *base)
        found[name] = {**plain(interval), "difference": plain(difference)}
    return found


def plain(interval: Interval, scale: float = 1.0) -> Figure:
    numbers = {"value": interval.value, "low": interval.low, "high": interval.high}
    return {name: None if number is None else scale * number for name, number in numbers.items()}
