"""What each lane does in each round of a plan, for pictures of it; nothing is predicted."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from .plan import Plan
from .rounds import Observation, Round

__all__ = ["Cell", "Kind", "Turn", "timeline"]

# At the exact state; at a draft, for a step that is taken with it; at a draft, to draft better later.
Kind = Literal["exact", "taken", "ahead"]


@dataclass(frozen=True, slots=True)
class Cell:
    """One prediction: the number of its state, and what it is made at and for."""

    state: int
    kind: Kind


@dataclass(frozen=True, slots=True)
class Turn:
    """One round: a cell for each lane in use, and the state before and after it."""

    cells: tuple[Cell, ...]
    before: int
    after: int


def timeline(plan: Plan) -> tuple[Turn, ...]:
    """The rounds of a plan. One that adapts is shown with every draft near: in the fewest rounds.

    The first prediction of a round is at the exact state in every mode: of the paper's modes too, whose first
    draft is the refined state. Others are at drafts; where a later round predicts their state again, their
    step is not taken.
    """
    rounds = list(_rounds(plan))
    starts = [item.starts_from() for item in rounds]
    turns: list[Turn] = []
    later: set[int] = set()
    for k in range(len(rounds) - 1, -1, -1):
        predict = rounds[k].predict
        kinds: list[Kind] = ["ahead" if i in later else "taken" for i in predict]
        kinds[0] = "exact"
        cells = tuple(Cell(i, kind) for i, kind in zip(predict, kinds, strict=True))
        after = starts[k + 1] if k + 1 < len(rounds) else plan.schedule.steps
        turns.append(Turn(cells, starts[k], after))
        later |= set(predict)
    return tuple(reversed(turns))


def _rounds(plan: Plan) -> Iterator[Round]:
    """The walk, answered as if every draft were the refined state."""
    walk = plan.walk()
    item = next(walk, None)
    while item is not None:
        yield item
        try:
            item = walk.send(_nothing_off(item) or None)
        except StopIteration:
            return


def _nothing_off(item: Round) -> Observation:
    counts = [len(table.targets) for table in item.observe]
    return tuple(np.zeros((1, count, count)) for count in counts)
