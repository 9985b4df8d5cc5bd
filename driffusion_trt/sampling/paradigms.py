"""ParaDiGMS, a baseline: Picard iteration over a window of states (2305.16317, algorithm 1).

Every round predicts at all states of a window, x_p exact and the others as they were found so far, and
finds all of them anew: x_{j+1} = x_p + Σ_{i=p..j} (Φ_i(x_i) − x_i), Φ_i being one step of the solver. Then
the window slides over the states that hardly changed. docs/method.md section 8.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from .._errors import InputError
from .checks import check_tolerance
from .plan import Plan, strides_of
from .rounds import Observation, Round, Walk
from .schedule import Schedule
from .skip import predicted, solver_step
from .tables import Column, Float64, Form, Table, total
from .window import as_tables, least_rounds, near_ones

__all__ = ["TOLERANCE", "ParadigmsPlan", "fixed_rounds", "paradigms_plan", "step_variance", "walk"]

TOLERANCE = 0.1  # the authors', for pictures


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class ParadigmsPlan(Plan):
    """A plan of fixed rounds, or with a tolerance that decides how far each of them reaches."""

    tolerance: float | None

    def walk(self) -> Walk:
        if self.tolerance is None:
            return Plan.walk(self)
        return walk(self.schedule, self.lanes, self.tolerance)

    @property
    def sequential_calls(self) -> int:
        return len(self.rounds) or -(-self.steps // self.lanes)

    @property
    def model_calls(self) -> int:
        return sum(len(item.predict) for item in self.rounds) or self.steps

    def asked(self) -> dict[str, Any]:
        return {"rounds": len(self.rounds)} if self.tolerance is None else {"tolerance": self.tolerance}

    def expected_rounds(self, done: int, state: int) -> int:
        return len(self.rounds) or done + -(-(self.steps - state) // self.lanes)

    def with_lanes(self, lanes: int) -> Plan:
        rounds = max(len(self.rounds), least_rounds(self.steps, lanes)) if self.rounds else None
        return paradigms_plan(self.schedule, lanes, rounds, self.tolerance)


def paradigms_plan(schedule: Schedule, lanes: int, rounds: int | None, tolerance: float | None) -> Plan:
    """The plan of mode `paradigms`: with a tolerance, or of so many rounds, whose strides are a window's.

    Raises InputError for numbers that cannot be, or both.
    """
    if rounds is None:
        wanted = check_tolerance(tolerance, TOLERANCE)
        return ParadigmsPlan(schedule, "paradigms", lanes, schedule.steps, (), wanted)
    if tolerance is not None:
        raise InputError(
            f"rounds={rounds!r} and tolerance={tolerance!r} were given; mode 'paradigms' takes one of them"
        )
    made = fixed_rounds(schedule, lanes, strides_of(schedule, lanes, rounds))
    return ParadigmsPlan(schedule, "paradigms", lanes, schedule.steps, made, None)


def walk(schedule: Schedule, lanes: int, tolerance: float) -> Walk:
    """The rounds of a window of `lanes` states; returns how far accepted states had moved, per picture."""
    picard = _Picard(schedule, lanes)
    drift: Float64 | None = None
    while picard.at < schedule.steps:
        observation = yield picard.next_round(range(1, lanes + 1), observed=True)
        near, moved = _accepted(picard.moved(observation or ()), tolerance)
        drift = moved if drift is None else np.maximum(drift, moved)
        picard.slide(1 + near)
    return drift


def fixed_rounds(schedule: Schedule, lanes: int, strides: Sequence[int]) -> tuple[Round, ...]:
    """The same with strides that are given, each from 1 to `lanes`: one iteration a round."""
    picard, rounds = _Picard(schedule, lanes), []
    for stride in strides:
        rounds.append(picard.next_round(range(stride, stride + 1), observed=False))
        picard.slide(stride)
    return tuple(rounds)


def step_variance(schedule: Schedule, i: int) -> float:
    """Of the noise in step i → i+1 if it were that of DDPM: s'²·[1 − (a·s' / (a'·s))²].

    It is what changes are measured by, also where a solver adds none, as in the authors' DDIM.
    """
    a, s, a_next, s_next = (
        float(levels[i]) for levels in (schedule.a, schedule.s, schedule.a_next, schedule.s_next)
    )
    return s_next**2 * max(0.0, 1 - (a * s_next / (a_next * s)) ** 2) if a_next and s else 0.0


class _Picard:
    """The window from `at` on: what its states are, as forms over the columns of the round before."""

    def __init__(self, schedule: Schedule, lanes: int) -> None:
        self._schedule, self._lanes = schedule, lanes
        self.at = 0
        self._predict = range(0)
        self._found: dict[int, Form] = {}

    def next_round(self, strides: range, *, observed: bool) -> Round:
        """Predict at all states of the window; the refined ones are those that `strides` may lead to."""
        schedule, at = self._schedule, self.at
        self._predict = predict = range(at, min(at + self._lanes, schedule.steps))
        drafts = {Column("input", j): self._known(j) for j in predict[1:]}
        self._found, clean = self._iterated()
        refined: dict[Column, Form] = {}
        for j in (at + stride for stride in strides if at + stride in self._found):
            refined[Column("state", j)] = self._found[j]
            if j < schedule.steps and schedule.orders[j] == 2:
                refined[Column("x0", j - 1)] = clean[j - 1]
        gaps: list[Form] = [{Column("state", j): 1.0, Column("input", j): -1.0} for j in predict[1:]]
        observe = as_tables(gaps) if observed else ()
        item = Round(tuple(predict), Table.of(drafts), Table.of(refined), observe=observe)
        return replace(item, keep=frozenset(item.reads()))

    def slide(self, stride: int) -> None:
        """Go on from the state that is so many further."""
        self.at += min(stride, len(self._predict))

    def _known(self, j: int) -> Form:
        """The state as it was found last; new ones at the end of the window start from its last one."""
        newest = max(self._found, default=self.at)
        if newest == self.at:
            return {Column("state", self.at): 1.0}
        return self._found[min(j, newest)]

    def _iterated(self) -> tuple[dict[int, Form], dict[int, Form]]:
        """All states after the window's first one, and x̂0 at each that was predicted."""
        schedule, at = self._schedule, self.at
        found: dict[int, Form] = {}
        clean: dict[int, Form] = {}
        before: Form | None = {Column("x0", at - 1): 1.0} if at and schedule.orders[at] == 2 else None
        for i in self._predict:
            seen: Form = {Column("state" if i == at else "input", i): 1.0}
            now = predicted(schedule, i, seen, {Column("output", i): 1.0})
            step = solver_step(schedule, i, seen, now, before)
            found[i + 1] = step if i == at else total((1.0, found[i]), (1.0, step), (-1.0, seen))
            clean[i] = before = now.x0
        return found, clean

    def moved(self, observation: Observation) -> Float64:
        """By how much each predicted state but the first has changed (B, states).

        Root mean squares, in units of the noise of the step from there. Where a step has no noise any change
        is without end, so that the step is taken from a state that is exact.
        """
        squares = [np.diagonal(gram, axis1=1, axis2=2) for gram in observation]
        if not squares:
            return np.zeros((1, 0))
        changed = np.concatenate(squares, 1)
        scale = np.array([step_variance(self._schedule, j) for j in self._predict[1:]])
        endless = np.where(changed > 0, np.inf, 0.0)
        found: Float64 = np.where(scale > 0, np.sqrt(changed / np.where(scale > 0, scale, 1)), endless)
        return found


def _accepted(moved: Float64, tolerance: float) -> tuple[int, Float64]:
    """How many leading states are within the tolerance in every picture of the batch; and how far off."""
    near = near_ones(moved.T.tolist(), tolerance)
    return near, moved[:, :near].max(1, initial=0.0)
