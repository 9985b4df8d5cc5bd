"""How far windows end from the exact states: a walk of single exact steps that tries windows on its way.

What a round that takes m steps from state p is off by depends on what is known there from the rounds before,
and so on their steps. A *track* is a chain of windows a stride apart, each of which starts from the exact
state with what the one before has predicted; every window tries all numbers of steps up to the stride, and
what they come to is compared with the exact states once these are reached. One of these errors is followed
to the end of the picture, to see what becomes of it: its *echo*. docs/method.md section 9.
"""

from __future__ import annotations

import itertools
from collections.abc import Generator
from dataclasses import dataclass, field, replace

import numpy as np

from .carry import Carried, Carry
from .plan import Plan
from .rounds import Observation, Round, Walk
from .schedule import Schedule
from .skip import predicted, solver_step
from .tables import Column, Float64, Form, Table
from .window import Settings, Window, as_tables, norms

__all__ = ["LAST", "Case", "MeasuringPlan", "stops"]

ECHOES = 6  # states from which errors are followed, one a picture
LAST = 1 / 6  # share of the steps at the end in which errors have ever less time to change

Case = tuple[int, int, int]  # a track's stride, the state where a window starts, and the steps that it takes


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class MeasuringPlan(Plan):
    """Sequential sampling that measures on its way; its pictures are those of mode `sequential`.

    carry, order: of the windows. offset: where the tracks start, and the echo; other pictures take others, so
    that together they come by every state. Of the last picture that was made, for each of its batch (B,):
    found: the distance of each case, the root mean square over √(a² + s²). grown: by the state where the echo
    began how far it ended from the picture, over that case's distance.
    """

    carry: Carry
    order: int
    offset: int = 0
    found: dict[Case, Float64] = field(default_factory=dict)
    grown: dict[int, Float64] = field(default_factory=dict)

    @classmethod
    def of(cls, schedule: Schedule, lanes: int, carry: Carry, order: int, offset: int) -> MeasuringPlan:
        """lanes: of the windows; fewer devices share their predictions."""
        return cls(schedule, "measure", lanes, schedule.steps, (), carry, order, offset)

    def walk(self) -> Walk:
        self.found.clear()
        self.grown.clear()
        yield from _Measuring(self).rounds()
        return None

    @property
    def tracks(self) -> dict[int, tuple[int, ...]]:
        """Where the windows start, by stride. One of a single step is exact: there is nothing to measure."""
        strides = range(2, self.lanes + 1)
        return {stride: stops(self.steps, stride, self.offset % stride) for stride in strides}

    @property
    def echo(self) -> Case | None:
        """The case whose error is followed: of the longest stride, at a place that goes with the offset."""
        most = (1 - LAST) * self.steps - self.lanes
        here = [at for at in self.tracks.get(self.lanes, ()) if at <= most]
        wanted = float(np.geomspace(1, max(1, most), ECHOES)[self.offset % ECHOES])
        at = min(here, key=lambda at: abs(at - wanted), default=0)
        return (self.lanes, at, self.lanes) if at else None

    @property
    def _echo_steps(self) -> int:
        return 0 if self.echo is None else self.steps - self.echo[1] - self.echo[2]

    @property
    def sequential_calls(self) -> int:
        """Its rounds: at every state one, and one more for every further track with a window there."""
        windows = [at for track in self.tracks.values() for at in track]
        return self.steps + len(windows) - len(set(windows)) + self._echo_steps

    @property
    def model_calls(self) -> int:
        windows = [at for track in self.tracks.values() for at in track]
        in_windows = sum(min(self.lanes, self.steps - at) - 1 for at in windows)
        return self.steps + in_windows + self._echo_steps

    def with_lanes(self, lanes: int) -> MeasuringPlan:
        return self


def stops(steps: int, stride: int, offset: int) -> tuple[int, ...]:
    """Where the windows of a track start: at state 1, perhaps `offset` later, then every `stride` states.

    There is none at state 0, before which nothing is known, nor at the last one, where one step is left.
    """
    return (1, *range(1 + (offset or stride), steps - 1, stride)) if steps > 2 else ()


class _Stored(Carried):
    """Predictions of one track in columns of their own: other tracks predict at the same states."""

    def __init__(self, schedule: Schedule, carry: Carry, order: int, first: int) -> None:
        super().__init__(schedule, carry, order)
        self._first = first
        self.fresh: frozenset[int] = frozenset()  # states whose prediction has just been made

    def column(self, i: int) -> Column:
        """Where the quantity of state i is kept."""
        return Column("x0", self._first + i)

    def quantity(self, i: int) -> Form:
        return super().quantity(i) if i in self.fresh else {self.column(i): 1.0}


class _Track(Window):
    """Windows that start from exact states, `stride` apart; stride 1 is the exact steps alone."""

    def __init__(self, plan: MeasuringPlan, stride: int, windows: tuple[int, ...] = ()) -> None:
        # Without strides a window refines all the states that it may come to.
        super().__init__(plan.schedule, plan.lanes, Settings(plan.carry, plan.order))
        self._stored = _Stored(plan.schedule, plan.carry, plan.order, stride * (plan.steps + 1))
        self._carried, self.stride, self.windows = self._stored, stride, frozenset(windows)

    @property
    def kept(self) -> set[Column]:
        """What its next window reads of earlier ones."""
        return {self._stored.column(i) for i in self._stored.known}

    def window(self, at: int) -> tuple[range, dict[Column, Form], dict[Column, Form], tuple[Table, ...]]:
        """States to predict at, their drafts, the states that may be reached, and what to observe."""
        stored, steps = self._stored, self._schedule.steps
        self.at, self._predict = at, range(at, min(at + (self._lanes if stored.known else 1), steps))
        drafts = self._drafts(stored.differences(), self._theta(np.array)) if stored.known else {}
        stored.fresh = frozenset(self._predict)  # from here on what is predicted now counts
        self._asked = self._fit(stored.differences() if stored.known else [])
        return self._predict, drafts, self._refined(), self._asked.tables

    def rows(self, predict: range) -> dict[Column, Form]:
        """What keeps the predictions that have just been made."""
        self._stored.fresh = frozenset(predict)
        return {self._stored.column(i): self._stored.quantity(i) for i in predict}

    def learned(self, observation: Observation) -> Observation:
        """End a window; returns the rest of what was observed."""
        stored = self._stored
        stored.known = {i for i in {*stored.known, *stored.fresh} if i >= self.at - 2}
        stored.fresh = frozenset()
        return self._learned(observation)


class _Measuring:
    """The walk: its tracks, and what windows came to where the exact state is still to come."""

    def __init__(self, plan: MeasuringPlan) -> None:
        self._plan, self._schedule, self._found = plan, plan.schedule, plan.found
        self._alone = _Track(plan, 1)
        self._tracks = [_Track(plan, stride, windows) for stride, windows in plan.tracks.items()]
        self._names = itertools.count((plan.lanes + 1) * (plan.steps + 1))
        self._tried: dict[int, dict[Case, Column]] = {}  # by the state that is still to come
        self._echo: tuple[Column, ...] = ()  # its state, and what a multistep solver remembers of it

    def rounds(self) -> Walk:
        for at in range(self._schedule.steps):
            here = [track for track in self._tracks if at in track.windows]
            yield from self._round(here[0] if here else self._alone, at, exact=True)
            for track in here[1:]:
                yield from self._round(track, at, exact=False)
            if self._echo:
                yield from self._echo_round(at)
            self._begin_echo(at + 1)
        return None

    def _round(self, track: _Track, at: int, *, exact: bool) -> Generator[Round, Observation | None, None]:
        """One track's window at the exact state `at`; with `exact` the next exact state is made too."""
        predict, drafts, refined, observe = track.window(at)
        rows = {column: form for column, form in refined.items() if exact and column in _exact(at)}
        for column, form in refined.items():
            if column.kind == "state" and 1 < column.number - at <= track.stride:
                case = (track.stride, at, column.number - at)
                name = self._tried.setdefault(column.number, {})[case] = Column("x0", next(self._names))
                rows[name] = form
        storing = self._tracks if not at else [track] if track is not self._alone else []
        for one in storing:  # at pure noise there is one prediction, for all
            rows |= one.rows(predict)
        ends = self._tried.get(at + 1, {}) if exact else {}
        gaps: list[Form] = [{Column("state", at + 1): 1.0, name: -1.0} for name in ends.values()]
        made = tuple(predict if exact else predict[1:])
        item = Round(made, Table.of(drafts), Table.of(rows), observe=(*observe, *as_tables(gaps)))
        observed = yield replace(item, keep=frozenset(item.reads() | self._kept(at)))
        observed = observed or ()
        for one in storing:
            observed = one.learned(observed)
        for case, square in zip(ends, _diagonals(observed), strict=True):
            self._found[case] = np.sqrt(square) / norms(self._schedule, [at + 1])[0]

    def _begin_echo(self, reached: int) -> None:
        """Forget what came to this state, but for an error that is to be followed."""
        tried, case = self._tried.pop(reached, {}), self._plan.echo
        if case in tried:
            self._echo = (tried[case], Column("x0", reached - 1))

    def _echo_round(self, at: int) -> Generator[Round, Observation | None, None]:
        """One exact step from the echo's state."""
        schedule, (state, memory) = self._schedule, self._echo
        seen: Form = {Column("input", at): 1.0}
        now = predicted(schedule, at, seen, {Column("output", at): 1.0})
        before: Form | None = {memory: 1.0} if schedule.orders[at] == 2 else None
        self._echo = Column("x0", next(self._names)), Column("x0", next(self._names))
        ends = at + 1 == schedule.steps
        gap: list[Form] = [{Column("state", at + 1): 1.0, self._echo[0]: -1.0}] if ends else []
        refined = {self._echo[0]: solver_step(schedule, at, seen, now, before), self._echo[1]: now.x0}
        draft = Table.of({Column("input", at): {state: 1.0}})
        item = Round((at,), draft, Table.of(refined), observe=as_tables(gap))
        observed = yield replace(item, keep=frozenset(item.reads() | self._kept(at)))
        case = self._plan.echo
        if ends and observed and case is not None:
            with np.errstate(divide="ignore", invalid="ignore"):  # where nothing was off nothing can grow
                self._plan.grown[case[1] + case[2]] = np.sqrt(observed[0][:, 0, 0]) / self._found[case]

    def _kept(self, at: int) -> set[Column]:
        """What later rounds read."""
        tried = {name for cases in self._tried.values() for name in cases.values()}
        exact = {*_exact(at - 1), *_exact(at), Column("input", at), Column("output", at)}
        noises = {Column("noise", step) for step in range(at, self._schedule.steps)}  # each is drawn once
        return exact.union(tried, noises, self._echo, *(track.kept for track in self._tracks))


def _exact(at: int) -> tuple[Column, Column]:
    """What the exact step from a state makes."""
    return Column("state", at + 1), Column("x0", at)


def _diagonals(observed: Observation) -> list[Float64]:
    return [gram[:, k, k] for gram in observed for k in range(gram.shape[-1])]
