"""Rounds of a plan, and the builders of the paper's two modes (2603.25872; docs/method.md section 3)."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, replace

from . import skip
from .schedule import Schedule
from .tables import Column, Float64, Form, Table

Observation = tuple[Float64, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Round:
    """One round: draft, predict in parallel, refine, and perhaps look at the result.

    predict: numbers of the states to predict at, one a lane; at most `lanes` of them.
    draft: one row `input` i for every predicted state that is not known itself. Where
        there is no such row the network sees `state` i.
    refine: rows `state` j (and `x0` j for multistep solvers) from what is known by then.
    keep: columns of earlier rounds that this round or a later one reads; the rest is let go.
    observe: tables of at most 4 rows, whose inner products are sent back to the plan before it
        decides its next round: for each (batch, rows, rows) float64, the mean over the elements.
    """

    predict: tuple[int, ...]
    draft: Table
    refine: Table
    keep: frozenset[Column] = frozenset()
    observe: tuple[Table, ...] = ()

    def reads(self) -> set[Column]:
        """Columns that the round needs and does not make itself."""
        made = {*self.draft.targets, *(Column("output", i) for i in self.predict)}
        made |= {Column("input", i) for i in self.predict}
        wanted = set(self.refine.columns)
        wanted |= {Column("state", i) for i in self.predict if Column("input", i) not in self.draft.targets}
        for table in self.observe:
            wanted |= set(table.columns) - set(self.refine.targets)
        return {*self.draft.columns, *(wanted - made)}  # a draft may read an older one of the same state

    def starts_from(self) -> int:
        """The state that was reached before the round."""
        states = (column.number for column in self.reads() if column.kind == "state")
        return max(states, default=self.predict[0] - 1)  # at pure noise a step may not read its state

    def writes(self) -> set[Column]:
        """Columns that are there once the round has ended."""
        predictions = {Column(kind, i) for i in self.predict for kind in ("input", "output")}
        return {*self.draft.targets, *self.refine.targets, *predictions}


# Yields rounds and is sent what they observed; returns how far accepted drafts were off (B,), or None.
Walk = Generator[Round, Observation | None, Float64 | None]


class Refiner:
    """Walks the exact solver over predictions and collects the forms of one round.

    `at` and `x` are the state that was reached and its form over the round's columns;
    `x0` is what a second-order solver remembers of the step before.
    """

    def __init__(self, schedule: Schedule, at: int, *, drafted: bool) -> None:
        self.schedule, self.at = schedule, at
        self.x: Form = {Column("state", at): 1.0}
        self.x0: Form | None = {Column("x0", at - 1): 1.0} if self._has_history(at) else None
        self._drafted_from: dict[int, Form] = {}
        self._exact = set() if drafted else {at}

    def _has_history(self, i: int) -> bool:
        return 0 < i < self.schedule.steps and self.schedule.orders[i] == 2

    def prediction(self) -> skip.Prediction:
        """x̂0 and ε̂ at the state reached: raw where the network saw that very state."""
        i = self.at
        if i in self._exact:
            return skip.predicted(self.schedule, i, self.x, {Column("output", i): 1.0})
        return skip.held(self.schedule, i, self.x, skip.carried(self.schedule, i))

    def draft(self, last: int) -> dict[Column, Form]:
        """Drafts of the states after `at` up to `last`, from the prediction at `at`.

        The first of them is the refined state itself, so its prediction is exact.
        """
        now, first = self.prediction(), self.at + 1
        carry = skip.carried(self.schedule, self.at)
        if self.at in self._exact:
            raw: Form = {Column("output", self.at): 1.0}
            carry = raw if self.schedule.prediction_type == "flow_prediction" else now.eps
        forms = skip.skip_steps(self.schedule, self.at, last, self.x, now, carry, self.x0)
        own: Form = {Column("input", first): 1.0}
        self._drafted_from = {first: own}
        self._exact.add(first)
        return {Column("input", first + k): form for k, form in enumerate(forms)}

    def advance(self) -> None:
        """One solver step with the prediction at the state reached."""
        now = self.prediction()
        following = self._drafted_from.get(self.at + 1)
        self.x = following or skip.solver_step(self.schedule, self.at, self.x, now, self.x0)
        self.at += 1
        self.x0 = now.x0

    def results(self) -> dict[Column, Form]:
        """Rows to write at the end of a round: the state, and the memory of a multistep solver."""
        rows = {Column("state", self.at): self.x}
        if self._has_history(self.at):
            assert self.x0 is not None
            rows[Column("x0", self.at - 1)] = self.x0
        return rows


_NOTHING: Mapping[Column, Form] = {}


def _round(predict: range, draft: Mapping[Column, Form], refine: Mapping[Column, Form]) -> Round:
    return Round(tuple(predict), Table.of(draft), Table.of(refine))


def sequential_rounds(schedule: Schedule) -> tuple[Round, ...]:
    """One prediction and one solver step a round: the scheduler as it is."""
    rounds = []
    for i in range(schedule.steps):
        refiner = Refiner(schedule, i, drafted=False)
        refiner.advance()
        rounds.append(_round(range(i, i + 1), _NOTHING, refiner.results()))
    return with_keeps(rounds)


def aggressive_rounds(
    schedule: Schedule, lanes: int, blocks: Sequence[int] | None = None
) -> tuple[Round, ...]:
    """Drafts from an anchor whose noise was predicted on its own draft; 1 + ⌈(T−1)/n⌉ rounds.

    blocks: the drafts of each round after the first, T − 1 in all; by default n as long as there are as many.
    """
    last = schedule.steps - 1
    if last == 0:
        return sequential_rounds(schedule)
    rounds, anchor, before = [_round(range(1), _NOTHING, _NOTHING)], 0, 1
    even = [min(lanes, last - at) for at in range(0, last, lanes)]
    for block in even if blocks is None else blocks:
        refiner = Refiner(schedule, anchor, drafted=before > 1)  # a first draft is the state itself
        reach = anchor + block
        drafts = refiner.draft(reach)
        end = schedule.steps if reach == last else reach
        while refiner.at < end:
            refiner.advance()
        rounds.append(_round(range(anchor + 1, reach + 1), drafts, refiner.results()))
        anchor, before = reach, block
    return with_keeps(rounds)


def conservative_rounds(schedule: Schedule, lanes: int) -> tuple[Round, ...]:
    """An exact prediction, then a round of drafts; 2q + min(r, 2) rounds, q, r = divmod(T, n+1)."""
    rounds: list[Round] = []
    anchor = 0
    while anchor < schedule.steps:
        refiner = Refiner(schedule, anchor, drafted=False)
        drafted = min(lanes, schedule.steps - anchor - 1)
        if drafted == 0:
            refiner.advance()
            rounds.append(_round(range(anchor, anchor + 1), _NOTHING, refiner.results()))
            break
        rounds.append(_round(range(anchor, anchor + 1), _NOTHING, _NOTHING))
        drafts = refiner.draft(anchor + drafted)
        for _ in range(drafted + 1):
            refiner.advance()
        rounds.append(_round(range(anchor + 1, anchor + drafted + 1), drafts, refiner.results()))
        anchor += drafted + 1
    return with_keeps(rounds)


def with_keeps(rounds: list[Round]) -> tuple[Round, ...]:
    """Fill in `keep`, from the last round back: what a round or one after it still reads."""
    needed: set[Column] = set()
    out: list[Round] = []
    for item in reversed(rounds):
        needed = item.reads() | (needed - item.writes())
        out.append(replace(item, keep=frozenset(needed)))
    return tuple(reversed(out))
