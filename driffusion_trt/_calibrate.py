"""Calibrating: local errors of windows over pairs of a prompt and a seed, and the blocks that follow."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from .calibration import Entry, Growth, Spent
from .sampling.blocks import best_blocks, cost_of
from .sampling.measure import LAST, Case, MeasuringPlan
from .sampling.plan import Plan, make_plan
from .sampling.sample import Stats
from .sampling.schedule import Schedule
from .sampling.tables import Float64
from .sampling.window import least_rounds, strides

__all__ = ["TOLERANCES", "Make", "costs_of", "measure", "pictures_of", "spent_by"]

TOLERANCES = (0.003, 0.005, 0.01, 0.02, 0.05)

_FEWEST_ECHOES, _MOST_POWER = 6, 1.5
_FAR = 1e6  # a squared distance that is no better than one that is not finite
_FLOOR = 1e-14  # of squared distances: where a network's drafts are exact they are 0

# Makes a picture of each pair by the plan of the same place.
Make = Callable[[Sequence[Plan]], Sequence[Stats]]


def pictures_of(pairs: int, tolerances: Sequence[float] = TOLERANCES) -> int:
    """How many pictures `measure` asks for."""
    return pairs * (1 + len(tolerances))


def measure(
    make: Make,
    schedule: Schedule,
    *,
    lanes: int,
    guidance_scale: float,
    pairs: int,
    tolerances: Sequence[float] = TOLERANCES,
) -> Entry:
    """Measure one kind of request.

    guidance_scale: what `make` guides with; it is only noted.
    """
    asked = make_plan(schedule, mode="window", lanes=lanes).asked()
    carry, order = asked["carry"], asked["order"]
    plans = [MeasuringPlan.of(schedule, lanes, carry, order, k) for k in range(pairs)]
    make(plans)
    growth = growth_of(schedule, [plan.grown for plan in plans])
    costs = costs_of([plan.found for plan in plans], schedule.steps, lanes)
    costs *= _weights(schedule, lanes, growth) ** 2
    best = best_blocks(costs)
    spent = spent_by(make, schedule, lanes=lanes, pairs=pairs, tolerances=tolerances)
    return Entry(
        schedule.solver,
        schedule.steps,
        max(guidance_scale, 1.0),
        lanes,
        pairs,
        carry,
        order,
        {rounds: one.blocks for rounds, one in best.items()},
        {rounds: _figure(math.sqrt(one.cost)) for rounds, one in best.items()},
        {rounds: _figure(math.sqrt(cost_of(costs, _even(schedule, rounds, lanes)))) for rounds in best},
        spent,
        growth,
    )


def spent_by(
    make: Make, schedule: Schedule, *, lanes: int, pairs: int, tolerances: Sequence[float] = TOLERANCES
) -> dict[float, Spent]:
    """The rounds that mode `tolerance` takes, by tolerance."""
    spent = {}
    for tolerance in tolerances:
        plan = make_plan(schedule, mode="tolerance", lanes=lanes, tolerance=tolerance)
        rounds = [made.rounds for made in make([plan] * pairs)]
        spent[tolerance] = Spent(_figure(float(np.mean(rounds))), _figure(float(np.quantile(rounds, 0.9))))
    return spent


def growth_of(schedule: Schedule, grown: Iterable[Mapping[int, Float64]]) -> Growth:
    """How errors grow to the end of a picture, by the signal's share where they are made.

    A least squares fit of logarithms; where too few were followed errors count as they are.
    """
    points = [(state, one) for pair in grown for state, ratios in pair.items() for one in ratios.tolist()]
    points = [(state, one) for state, one in points if 0 < one < math.inf and _settled(schedule, state) == 1]
    shares = np.log([share_of(schedule, state) for state, _ in points])
    if len(points) < _FEWEST_ECHOES or np.ptp(shares) < 0.1:
        return Growth(1.0, 0.0)
    ratios = np.log([one for _, one in points])
    slope = float(np.polyfit(shares, ratios, 1)[0])
    power = min(max(-slope, 0.0), _MOST_POWER)
    return Growth(_figure(float(np.exp((ratios + power * shares).mean()))), _figure(power))


def _figure(value: float) -> float:
    """To four digits, which is more than there is in it."""
    return float(f"{value:.4g}")


def _weights(schedule: Schedule, lanes: int, growth: Growth) -> Float64:
    """What an error grows by that a round makes, by where the round starts and its steps."""
    weights = np.ones((1, schedule.steps, lanes))
    for at in range(schedule.steps):
        for taken in range(1, min(lanes, schedule.steps - at) + 1):
            grown = growth.factor * share_of(schedule, at + taken) ** -growth.power
            weights[0, at, taken - 1] = grown ** _settled(schedule, at + taken)
    return weights


def _settled(schedule: Schedule, state: int) -> float:
    """1 of errors that have time to grow or to be put right; 0 of those of the picture itself, which stay."""
    return min(1.0, (schedule.steps - state) / (LAST * schedule.steps))


def share_of(schedule: Schedule, state: int) -> float:
    """a/√(a² + s²) of a state; 1 of the picture."""
    if state == schedule.steps:
        return 1.0
    return float(schedule.a[state] / np.hypot(schedule.a[state], schedule.s[state]))


def _even(schedule: Schedule, rounds: int, lanes: int) -> tuple[int, ...]:
    """What mode `window` takes where nothing was calibrated."""
    short_last = schedule.solver == "flow" and rounds == least_rounds(schedule.steps, lanes)
    return strides(schedule.steps, rounds, short_last=short_last)[1:]


def costs_of(found: Iterable[Mapping[Case, Float64]], steps: int, lanes: int) -> Float64:
    """What `best_blocks` takes, from what each pair found.

    A round of m steps after one of b is as far off as in the track of stride max(b, m): its predecessors in
    there were no nearer. (By the track of stride b a long round after a short one would seem free, since all
    rounds before were short too.) Mean squares over the pairs; no more than one in so many as the stride
    comes by a state, so geometric means are taken over as many states as make all of them count.
    """
    squares: dict[Case, list[float]] = {}
    for pair in found:
        for case, distances in pair.items():
            bounded = np.nan_to_num(distances**2, nan=_FAR, posinf=_FAR)
            squares.setdefault(case, []).extend(bounded.clip(0, _FAR).tolist())
    mean = np.full((lanes + 1, steps, lanes + 1), np.nan)  # by stride, state, and steps
    for (stride, at, taken), values in squares.items():
        mean[stride, at, taken] = np.mean(values)
    costs = np.zeros((lanes, steps, lanes))  # a single step is exact
    for before in range(1, lanes + 1):
        for taken in range(2, lanes + 1):
            stride = max(before, taken)
            costs[before - 1, :, taken - 1] = _smooth(mean[stride, :, taken], stride)
    return costs


def _smooth(values: Float64, stride: int) -> Float64:
    """Geometric means over `stride` neighbours or one more; state 1, where every track begins, stands alone.

    Where nothing was measured it is 0: there are no such rounds, or too few pairs.
    """
    made, reach = np.zeros(len(values)), stride // 2
    for at in range(1, len(values)):
        near = values[max(2, at - reach) : at + reach + 1] if at > 1 else values[1:2]
        near = near[np.isfinite(near)]
        if len(near):
            made[at] = np.exp(np.log(near + _FLOOR).mean())
    return made
