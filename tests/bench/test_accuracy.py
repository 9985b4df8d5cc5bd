"""The exact-score benchmark: its networks are right, and drafting beats skipping at equal calls."""

from __future__ import annotations

import numpy as np
import pytest

import driffusion_trt as dt
from bench import accuracy


@pytest.mark.parametrize("family", accuracy.SCHEDULES)
def test_the_ideal_network_finds_a_lone_picture(family: str) -> None:
    """With one centre and no spread the posterior mean is that picture, from any noise."""
    file, steps = accuracy.SCHEDULES[family]
    schedule = dt.Schedule.from_config(accuracy.CONFIGS / file, steps)
    centre = np.linspace(-1, 1, 16)
    network = accuracy.denoiser(schedule, accuracy._posterior_mean(centre[None], 0.0))
    noise = np.random.default_rng(0).normal(size=(3, 16)).astype(np.float32)
    got = dt.sample(dt.make_plan(schedule), network, noise)
    final = float(schedule.a_next[-1])  # some schedules end a little short of noiseless
    left = float(schedule.s_next[-1])
    assert np.abs(got - final * centre).max() <= 4.5 * left + 1e-4


@pytest.mark.parametrize("family", accuracy.SCHEDULES)
def test_drafting_ends_nearer_than_skipping(family: str) -> None:
    model = "mixture of 10 in 16 dimensions"
    skip = accuracy.cell(family, model, mode="skip", lanes=3)
    aggressive = accuracy.cell(family, model, mode="aggressive", lanes=3)
    conservative = accuracy.cell(family, model, mode="conservative", lanes=3)
    assert conservative < aggressive < skip / 2
