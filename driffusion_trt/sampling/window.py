"""Windows: every round predicts at the state reached and at drafts after it, and takes some of the steps.

docs/method.md section 4. A *window* plan takes a number of steps that is fixed beforehand; one with a
*tolerance* takes those whose drafts turned out to be near the refined states.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from .carry import DETAIL, Carried, Carry, Shares, Theta, fit_rows, fitted
from .places import Asked, Place, Places
from .rounds import Observation, Round, Walk
from .schedule import Schedule
from .skip import predicted, solver_step
from .tables import Column, Float64, Form, Number, Table
from .traced import Tape, TapedTable

__all__ = [
    "Settings",
    "Window",
    "as_tables",
    "effects",
    "least_rounds",
    "near_ones",
    "norms",
    "strides",
    "walk",
]

OBSERVED_ROWS = 4  # of one table; more the kernel of GPU lanes does not take

# Of `effects`. Found on the bundled models: docs/method.md section 4.
_EARLY, _EARLY_POWER, _LATE_POWER = 0.25, 2, 4


@dataclass(frozen=True, slots=True)
class Settings:
    """How a window works.

    carry, order: what is carried, and how it is extrapolated.
    strides: solver steps of each round, for a window; None with a tolerance.
    tolerance: how far a draft may be from the refined state; see `effects`.
    most: rounds that there may be with a tolerance; None for as many as it takes.
    """

    carry: Carry
    order: int
    strides: tuple[int, ...] | None = None
    tolerance: float = 0.0
    most: int | None = None


def least_rounds(steps: int, lanes: int) -> int:
    """The fewest rounds of a window: one at the start, then as many steps as there are lanes."""
    return 1 + -(-(steps - 1) // lanes)


def strides(steps: int, rounds: int, *, short_last: bool) -> tuple[int, ...]:
    """Solver steps of each round: one, then the others as evenly as can be."""
    if rounds == 1:
        return (steps,)
    base, more = divmod(steps - 1, rounds - 1)
    even = [base] * (rounds - 1 - more) + [base + 1] * more
    return (1, *(reversed(even) if short_last else even))


def walk(schedule: Schedule, lanes: int, settings: Settings, places: Places | None = None) -> Walk:
    """The rounds, one after another; returns how far drafts were off that were taken, per picture.

    places: what earlier walks with the same arguments have found, and this one adds to.
    """
    window = Window(schedule, lanes, settings, places)
    while window.at < schedule.steps:
        observation = yield window.next_round()
        window.ended(observation or ())
    return window.drift


class Window:
    """The rounds of one walk: each is made by `next_round`, and told by `ended` what it observed."""

    def __init__(
        self, schedule: Schedule, lanes: int, settings: Settings, places: Places | None = None
    ) -> None:
        self._schedule, self._lanes, self._settings = schedule, lanes, settings
        self._places = Places() if places is None else places
        self._carried = Carried(schedule, settings.carry, settings.order, detailed=settings.tolerance > 0)
        self._first: Shares = 0.5
        self._second: Shares = 0.5
        self._round = self.at = 0
        self._predict = range(0)
        self._asked = Asked((), (), ())
        self._sizes: Sequence[float] = ()
        self._taken: list[list[float]] = []

    def next_round(self) -> Round:
        """Draft from what is known, predict, refine as far as may be needed."""
        known, exact = self._carried.known, self._settings.strides is None and not self._settings.tolerance
        ahead = self._lanes if known and not exact else 1  # at first there is nothing to draft with
        self._predict = range(self.at, min(self.at + ahead, self._schedule.steps))
        given = [share for share in (self._first, self._second) if not isinstance(share, float)]
        key = (self.at, frozenset(known), len(given))  # θ2 is fitted with a θ1, if ever
        place = self._places.get(key) or self._places.add(key, self._place())
        self._asked, self._sizes = place.asked, place.sizes
        if place.drafts is None:
            return place.item
        item = place.item
        return Round(item.predict, place.drafts.table(given), item.refine, item.keep, item.observe)

    def _place(self) -> Place:
        """What there is to do here, with shares as they are where they were not fitted, else any."""
        known, tape = self._carried.known, Tape()
        differences = self._carried.differences() if known else []
        drafts = TapedTable(tape, self._drafts(differences, self._theta(lambda _: tape.input())))
        asked = self._observed(differences)
        item = Round(tuple(self._predict), drafts.plain, Table.of(self._refined()), observe=asked.tables)
        kept = {Column(kind, i) for i in known for kind in ("input", "output")}
        item = replace(item, keep=frozenset(item.reads() | kept))
        sizes = (norms(self._schedule, asked.drafted) / effects(self._schedule, asked.drafted)).tolist()
        return Place(item, asked, drafts if drafts else None, sizes)

    def _theta(self, of: Callable[[list[float]], Number]) -> Theta:
        """The shares of now. of: what stands for those that were fitted."""
        shares = (self._first, self._second)
        return Theta(*(share if isinstance(share, float) else of(share) for share in shares))

    def _memory(self) -> Form | None:
        """x̂0 of the step before, where the next one is of second order."""
        second = self.at > 0 and self._schedule.orders[self.at] == 2
        return {Column("x0", self.at - 1): 1.0} if second else None

    def _drafts(self, differences: list[Form], theta: Theta) -> dict[Column, Form]:
        """Chained solver steps from the state reached, with what was predicted before, or is expected."""
        carried = self._carried
        x: Form = {Column("state", self.at): 1.0}
        before, made = self._memory(), {}
        for i in self._predict[:-1]:
            if i in carried.known:
                now = carried.moved(i, x)
            else:
                now = carried.at(i, x, carried.extrapolated(i, differences, theta))
            x, before = solver_step(self._schedule, i, x, now, before), now.x0
            made[Column("input", i + 1)] = x
        return made

    def _refined(self) -> dict[Column, Form]:
        """The states that may be reached, and what a multistep solver remembers there."""
        schedule, at, before = self._schedule, self.at, self._memory()
        strides = self._settings.strides
        wanted = range(at + 1, self._predict[-1] + 2)
        if strides is not None:
            wanted = range(at + strides[self._round], at + strides[self._round] + 1)
        targets: dict[Column, Form] = {}
        x: Form = {Column("state", at): 1.0}
        now = predicted(schedule, at, x, {Column("output", at): 1.0})  # exact: the sequential step
        for i in range(at, wanted[-1]):
            if i > at:
                now = self._carried.moved(i, x)
            x, before = solver_step(schedule, i, x, now, before), now.x0
            if i + 1 in wanted:
                targets[Column("state", i + 1)] = x
                if i + 1 < schedule.steps and schedule.orders[i + 1] == 2:
                    targets[Column("x0", i)] = before
        return targets

    def _observed(self, differences: list[Form]) -> Asked:
        fit = self._fit(differences)
        drafted = tuple(self._predict[1:]) if self._settings.strides is None else ()
        gaps: list[Form] = [{Column("state", i): 1.0, Column("input", i): -1.0} for i in drafted]
        return replace(fit, drafted=drafted, tables=(*fit.tables, *as_tables(gaps)))

    def _fit(self, differences: list[Form]) -> Asked:
        """Sums for θ, where something was extrapolated by differences."""
        last = self._carried.last
        new = [i for i in self._predict if i > last] if len(differences) > 1 else []
        tables = as_tables(fit_rows(self._carried, differences, new)) if new else ()
        return Asked(tuple(i - last for i in new), (), tables)

    def ended(self, observation: Observation) -> None:
        """Learn from what was observed, and go on from the last state that can be trusted."""
        strides = self._settings.strides
        observation = self._learned(observation)
        taken = self._accepted(self._distances(observation)) if strides is None else strides[self._round]
        carried = self._carried
        carried.known = {i for i in (*carried.known, *self._predict) if i >= self.at - 2}
        self.at, self._round = self.at + taken, self._round + 1

    def _learned(self, observation: Observation) -> Observation:
        """Fit θ; returns the rest of what was observed."""
        if not self._asked.fitted:
            return observation
        self._first, seconds = fitted(observation[0], self._asked.fitted, self._first)
        self._second = seconds or self._second
        return observation[1:]

    def _distances(self, observation: Observation) -> list[list[float]]:
        """Of each draft from its refined state, in every picture."""
        found: list[list[float]] = []
        for pictures in map(np.ndarray.tolist, observation):
            for k in range(len(pictures[0])):
                size = self._sizes[len(found)]
                found.append([math.sqrt(rows[k][k]) / size for rows in pictures])
        assert len(found) == len(self._sizes)
        return found

    def _accepted(self, distances: list[list[float]]) -> int:
        """Steps that are taken: one, and one for each draft that was near, up to the first that was not.

        The pictures of a batch go on together: as far as the one whose drafts were the worst. Where the
        rounds that are left would not be enough, steps are taken whose drafts were not near.
        """
        tolerance = self._settings.tolerance
        taken = 1 + max(near_ones(distances, tolerance), self._behind())
        self._taken += distances[: taken - 1]
        return taken

    @property
    def drift(self) -> Float64 | None:
        """The furthest that a draft which was taken was off (B,), or (1,) where there was none."""
        if self._settings.strides is not None:
            return None
        furthest: Float64 = np.array(self._taken or [[0.0]]).max(0)
        return furthest

    def _behind(self) -> int:
        """Drafts that must be taken in this round for the rounds after it to suffice."""
        if self._settings.most is None:
            return 0
        after = self._settings.most - self._round - 1
        return self._schedule.steps - self.at - 1 - self._lanes * after


def norms(schedule: Schedule, states: Sequence[int]) -> Float64:
    """Root mean squares of these states, √(a² + s²), for latents of variance 1."""
    a, s = _levels(schedule, states)
    return np.sqrt(a**2 + s**2)


def effects(schedule: Schedule, states: Sequence[int]) -> Float64:
    """What an error of a draft at these states counts for, as a share of the state.

    With ρ = a/√(a² + s²), the signal's share: ¼/ρ² + ¾·ρ⁴·s²/(s² + a²·c²). Near the noise a small
    error decides what the picture becomes, and grows; in between later steps put it right; near the end few
    are left that could, and at last the prediction follows its input, see `carry.detail_slope`.
    """
    a, s = _levels(schedule, states)
    share = a / np.sqrt(a**2 + s**2)
    late: Float64 = share**_LATE_POWER * s**2 / (s**2 + (a * DETAIL) ** 2)
    return _EARLY * share**-_EARLY_POWER + (1 - _EARLY) * late


def _levels(schedule: Schedule, states: Sequence[int]) -> tuple[Float64, Float64]:
    """a and s; state T is clean."""
    return np.append(schedule.a, 1.0)[list(states)], np.append(schedule.s, 0.0)[list(states)]


def near_ones(distances: Sequence[Sequence[float]], tolerance: float) -> int:
    """How many leading states are within the tolerance in every picture."""
    near = 0
    for state in distances:
        if not all(distance <= tolerance for distance in state):  # nor is a NaN
            break
        near += 1
    return near


def as_tables(rows: Sequence[Form]) -> tuple[Table, ...]:
    """Tables that are only observed: the names of their rows say nothing."""
    named = [(Column("x0", -1 - k), row) for k, row in enumerate(rows)]
    return tuple(Table.of(dict(named[k : k + OBSERVED_ROWS])) for k in range(0, len(named), OBSERVED_ROWS))
