"""Costs from timed plans: a few shapes of round, each some times, in turns, of which the shortest counts."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .costs import Costs

__all__ = ["ROUNDS", "Shape", "measured"]

ROUNDS = 4  # of a timed plan, after a first one that predicts a single noise
_REPEATS = 3
_LONG_MS = 5000.0  # plans that take this long are timed once more, no oftener: noise is small beside them
_TELLING = 1.2  # calls of two rows must take so much longer than those of one to tell two causes apart


@dataclass(frozen=True, slots=True)
class Shape:
    """Rounds: so many noises at once, with and without the prompt (`guided`), seen by the host (`looks`)."""

    drafts: int
    guided: bool
    looks: bool = False


def measured(
    timed: Callable[[Shape], float],
    devices: int,
    *,
    picture_ms: float,
    rows: tuple[int, int] = (1, 0),
    told: Callable[[int, int], None] = lambda done, of: None,
) -> Costs:
    """Costs of some devices.

    timed: runs a plan of one round that predicts a single noise and `ROUNDS` of a shape, guidance in one
        batch, and returns its milliseconds; its first call of each shape may be slow.
    picture_ms: what a picture takes beside its rounds.
    rows: see `Costs`; where calls of a single row cannot be, those of two stand for them.
    told: called after each of so many runs.
    """
    lanes, alone = max(2, devices), rows[0] > 1
    one, two = Shape(1, alone), Shape(1, True)
    many, many_two, pair = Shape(devices, alone), Shape(devices, True), Shape(min(2, devices), True)
    looking, blind, twice = Shape(lanes, True, True), Shape(lanes, True), Shape(2 * devices, True)
    shapes = [one, two, many, many_two, pair]
    if devices > 1 or rows[1] >= 2 * lanes or not rows[1]:
        shapes += [blind, looking]
    shapes += [twice] if rows[1] >= 4 else []
    found = _shortest(timed, list(dict.fromkeys(shapes)), told)
    crowded, of_all = _together((found[one], found[two]), (found[many], found[many_two]))
    call_ms = [found[one], max(found[two], found[one])]
    of_two = of_all
    if devices > 2:
        slower = 1 + (crowded - 1) / (devices - 1)
        of_two = max(0.0, found[pair] - slower * call_ms[1])
    if twice in found:
        four = max((found[twice] - of_all) / crowded, call_ms[1])
        call_ms += [(call_ms[1] + four) / 2, four]
    look_ms = max(0.0, found[looking] - found[blind]) if looking in found else 0.0
    return Costs(devices, tuple(call_ms), crowded, (of_two, of_all), look_ms, picture_ms, rows)


def _shortest(
    timed: Callable[[Shape], float], shapes: Sequence[Shape], told: Callable[[int, int], None]
) -> dict[Shape, float]:
    first = {}
    for done, shape in enumerate(shapes, 1):
        first[shape] = timed(shape)
        told(done, len(shapes) * (1 + _REPEATS))
    repeats = 1 if max(first.values()) > _LONG_MS else _REPEATS
    runs: dict[Shape, list[float]] = {shape: [] for shape in shapes}
    for number in range(repeats):
        for done, shape in enumerate(shapes, 1):
            runs[shape].append(timed(shape))
            told(len(shapes) * (1 + number) + done, len(shapes) * (1 + repeats))
    whole = {shape: min(times) for shape, times in runs.items()}  # others' work only adds
    single = {shape.guided: whole[shape] / (1 + ROUNDS) for shape in whole if shape.drafts == 1}
    return {
        shape: single[shape.guided] if shape.drafts == 1 else (ms - single[shape.guided]) / ROUNDS
        for shape, ms in whole.items()
    }


def _together(alone: tuple[float, float], crowd: tuple[float, float]) -> tuple[float, float]:
    """How much slower calls are while all devices are at work, and what the exchange takes: x·alone + e.

    alone, crowd: milliseconds of rounds of calls of one and of two rows.
    """
    factor = 1.0
    if alone[1] > _TELLING * alone[0]:
        factor = (crowd[1] - crowd[0]) / (alone[1] - alone[0])
        # The difference of two that are noisy: it cannot be more than what is seen in either.
        factor = max(1.0, min(factor, max(both / one for both, one in zip(crowd, alone, strict=True))))
    exchange = statistics.mean(both - factor * one for both, one in zip(crowd, alone, strict=True))
    if exchange < 0:  # then nothing is exchanged, and calls are slower by what is seen
        return max(1.0, crowd[1] / alone[1]), 0.0
    return factor, exchange
