"""Blocks by dynamic programming, against all there are."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from driffusion_trt.sampling.blocks import best_blocks, cost_of


@given(steps=st.integers(1, 9), lanes=st.integers(1, 4), seed=st.integers(0, 999))
def test_no_blocks_cost_less(steps: int, lanes: int, seed: int) -> None:
    costs = np.random.default_rng(seed).exponential(size=(lanes, steps, lanes))
    found = best_blocks(costs)
    every: dict[int, list[tuple[int, ...]]] = {}
    for count in range(steps):
        all_blocks = itertools.product(range(1, lanes + 1), repeat=count)
        every[count + 1] = [blocks for blocks in all_blocks if sum(blocks) == steps - 1]
    assert found.keys() == {rounds for rounds, blocks in every.items() if blocks}
    for rounds, best in found.items():
        wanted = min(every[rounds], key=lambda blocks: cost_of(costs, blocks))
        assert best.blocks == wanted
        assert best.cost == pytest.approx(cost_of(costs, wanted), rel=1e-12)


def test_the_round_before_counts() -> None:
    """Two steps are dear after two, and cheap after one."""
    costs = np.ones((2, 5, 2))
    costs[:, :, 0] = 0.0
    costs[0, :, 1] = 0.1
    assert cost_of(costs, (2, 2)) == pytest.approx(1.1)
    assert best_blocks(costs)[4].cost == pytest.approx(0.1)
    assert best_blocks(costs)[5].cost == 0.0
