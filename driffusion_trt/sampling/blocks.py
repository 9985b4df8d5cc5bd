"""Block sizes of a plan: how many solver steps each round takes after the first, which takes one state.

In mode `window` they are the strides, in mode `aggressive` the drafts of each round. In both the first round
predicts at pure noise alone, so that the blocks of T steps sum to T − 1. docs/method.md section 9.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .._errors import InputError
from .tables import Float64

__all__ = ["Best", "best_blocks", "checked_blocks", "cost_of"]


@dataclass(frozen=True, slots=True)
class Best:
    """Blocks, and the sum of their costs."""

    blocks: tuple[int, ...]
    cost: float


def checked_blocks(blocks: object, steps: int, lanes: int) -> tuple[int, ...]:
    """Blocks that were given by hand.

    Raises InputError where they are no whole numbers from 1 to `lanes`, or do not sum to steps − 1.
    """
    given = tuple(blocks) if isinstance(blocks, Sequence) and not isinstance(blocks, str | bytes) else None
    if given is None or any(isinstance(one, bool) or not isinstance(one, int) for one in given):
        raise InputError(f"blocks must be a sequence of whole numbers, one for each round, not {blocks!r}")
    for number, one in enumerate(given):
        if not 1 <= one <= lanes:
            raise InputError(
                f"blocks has {one} at place {number}; a round takes from 1 to as many steps as there are "
                f"lanes, {lanes}"
            )
    if sum(given) != steps - 1:
        raise InputError(
            f"the {len(given)} blocks sum to {sum(given)}; the first of {steps} steps has its own round, "
            f"so they must sum to {steps - 1}"
        )
    return given


def best_blocks(costs: Float64) -> dict[int, Best]:
    """For every number of rounds that there can be the blocks whose costs have the least sum.

    costs: (lanes, steps, lanes) of a round by the steps of the round before less 1, the state where it
        starts, and its own steps less 1. The first round starts at state 0, takes one step and costs nothing.

    Dynamic programming over the rounds taken, the state reached, and the steps of the round that reached it.
    """
    lanes, steps, _ = costs.shape
    least = np.full((steps + 1, lanes, steps + 1), np.inf)  # by state, steps of the last round, rounds
    came = np.zeros(least.shape, np.intp)  # steps of the round before that one
    least[1, 0, 1] = 0.0
    for at in range(1, steps):
        for taken in range(min(lanes, steps - at)):
            found = least[at] + costs[:, at, taken, None]
            best = found.argmin(0)
            least[at + taken + 1, taken, 1:] = np.take_along_axis(found, best[None], 0)[0, :-1]
            came[at + taken + 1, taken, 1:] = best[:-1]
    ends = least[steps].argmin(0)
    return {
        rounds: Best(
            _traced(came, int(ends[rounds]), steps, rounds), float(least[steps, ends[rounds], rounds])
        )
        for rounds in range(1, steps + 1)
        if np.isfinite(least[steps, :, rounds]).any()
    }


def _traced(came: np.ndarray, taken: int, at: int, rounds: int) -> tuple[int, ...]:
    blocks: list[int] = []
    while rounds > 1:
        blocks.append(taken + 1)
        at, taken, rounds = at - taken - 1, int(came[at, taken, rounds]), rounds - 1
    return tuple(reversed(blocks))


def cost_of(costs: Float64, blocks: Sequence[int]) -> float:
    """The sum of the costs of these blocks, as `best_blocks` has it."""
    total, before, at = 0.0, 1, 1
    for block in blocks:
        total += float(costs[before - 1, at, block - 1])
        before, at = block, at + block
    return total
