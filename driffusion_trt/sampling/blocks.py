"""Block sizes of a plan: how many solver steps each round takes after the first, which takes one state.

In mode `window` they are the strides, in mode `aggressive` the drafts of each round. In both the first round
predicts at pure noise alone, so that the blocks of T steps sum to T − 1. docs/method.md section 5.
"""

from __future__ import annotations

from collections.abc import Sequence

from .._errors import InputError

__all__ = ["checked_blocks"]


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
