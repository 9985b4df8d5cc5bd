"""Noise against torch's own generator."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from driffusion_trt import InputError
from driffusion_trt.sampling.noise import TorchGenerator, noise_streams

SEEDS = st.one_of(
    st.integers(0, 2**64 - 1), st.sampled_from([0, 1, 2**32 - 1, 2**32, 2**32 + 7, 2**63, 2**64 - 1])
)
# Both paths and their border: fewer than 16 values, whole blocks, and what is left over.
SIZES = st.lists(st.one_of(st.integers(0, 40), st.integers(41, 3000)), min_size=1, max_size=8)


def torch_stream(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@given(SEEDS, SIZES)
def test_a_stream_is_torchs_over_any_calls(seed: int, sizes: list[int]) -> None:
    ours, theirs = TorchGenerator(seed), torch_stream(seed)
    for size in sizes:
        got = ours.randn((size,))
        assert got.dtype == np.float32
        np.testing.assert_allclose(got, torch.randn(size, generator=theirs).numpy(), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "shape", [(1, 4, 64, 64), (2, 4, 96, 96), (1, 16, 128, 128), (3, 4, 5, 7), (1, 3), ()]
)
def test_shapes_are_filled_in_torchs_order(shape: tuple[int, ...]) -> None:
    wanted = torch.randn(shape, generator=torch_stream(42)).numpy()
    got = TorchGenerator(42).randn(shape)
    assert got.shape == wanted.shape
    np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-6)


def test_the_second_of_a_pair_waits_through_a_large_draw() -> None:
    ours, theirs = TorchGenerator(5), torch_stream(5)
    for size in (1, 64, 1, 17, 3, 2):
        wanted = torch.randn(size, generator=theirs).numpy()
        np.testing.assert_allclose(ours.randn((size,)), wanted, rtol=0, atol=1e-6)


def test_a_number_is_one_stream_for_the_whole_batch() -> None:
    streams, theirs = noise_streams(9, 3), torch_stream(9)
    for _ in range(3):
        wanted = torch.randn((3, 4, 5), generator=theirs).numpy()
        np.testing.assert_allclose(streams.draw((4, 5)), wanted, rtol=0, atol=1e-6)


def test_a_list_is_one_stream_for_each_picture() -> None:
    seeds = [9, 2**40, 0]
    streams, theirs = noise_streams(seeds, 3), [torch_stream(seed) for seed in seeds]
    for shape in [(4, 5), (3,), (4, 5)]:  # 20 values, and 3 by the path of few
        wanted = torch.cat([torch.randn((1, *shape), generator=one) for one in theirs]).numpy()
        np.testing.assert_allclose(streams.draw(shape), wanted, rtol=0, atol=1e-6)


def test_seeds_may_be_numpys() -> None:
    one = noise_streams(np.int64(3), 1).draw((2, 3))  # type: ignore[arg-type]
    assert np.array_equal(one, noise_streams(np.array([3]), 1).draw((2, 3)))
    assert np.array_equal(one, noise_streams((3,), 1).draw((2, 3)))


@pytest.mark.parametrize(
    "seed", [-1, 2**64, 1.0, "3", None, True, [1, -1], [1, 2.5], [1, True], np.zeros((2, 1), int)]
)
def test_other_seeds_are_refused(seed: Any) -> None:
    with pytest.raises(InputError, match=r"a seed must be a whole number from 0 to 2\*\*64 - 1, not"):
        noise_streams(seed, 2)


@pytest.mark.parametrize("seeds", [[], [1], [1, 2, 3]])
def test_as_many_seeds_as_pictures(seeds: list[int]) -> None:
    with pytest.raises(InputError, match=f"{len(seeds)} seeds were given for 2 pictures"):
        noise_streams(seeds, 2)


@pytest.mark.parametrize("batch", [0, -1, 1.0, True])
def test_the_batch_is_a_whole_number(batch: Any) -> None:
    with pytest.raises(InputError, match="batch must be a whole number"):
        noise_streams(0, batch)


def test_a_million_values_take_no_time() -> None:
    generator = TorchGenerator(0)
    taken = []
    for _ in range(5):
        start = time.process_time()
        generator.randn((1_000_000,))
        taken.append(time.process_time() - start)
    assert min(taken) < 0.1
