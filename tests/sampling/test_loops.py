"""Whole sequential runs against diffusers' own loops of `scheduler.step`, noise included."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from peers import CLASSES, drawn, peer_loop, peer_of, shipped
from test_sample import network, relative

import driffusion_trt as dt
from driffusion_trt.sampling.noise import noise_streams

SHAPE = (2, 4, 3, 3)  # more than 16 values: torch's vector path
TOLERANCE = 1e-5
ROUNDING = 2e-7  # of the starting state: Euler's x + (x − x̂0)/σ·Δσ cancels to that in diffusers' float32


def allowed(schedule: dt.Schedule) -> float:
    """1e-5, and more only where states begin a hundred times larger than they end."""
    return max(TOLERANCE, ROUNDING * schedule.initial_sigma)


def both(
    config: dict[str, Any], steps: int, *, seed: int, eta: float, mu: float | None
) -> tuple[Any, Any, float]:
    """The end of our sequential run and of diffusers' loop, from one seed, and what they may differ by."""
    ddim = config["_class_name"] in (CLASSES["ddim"], CLASSES["pndm"])
    eta = eta if ddim else 0.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # schedulers complain of options that were drawn on purpose
        peer = peer_of(config, steps, mu=mu)
        schedule = dt.Schedule.from_config(config, steps, eta=eta if ddim else None, mu=mu)
        denoiser = network(schedule)
        theirs = peer_loop(peer, denoiser, SHAPE, seed=seed, eta=eta)
    noise = noise_streams(seed, SHAPE[0]).draw(SHAPE[1:])
    return (
        dt.sample(dt.make_plan(schedule), denoiser, noise, seed=seed),
        theirs,
        allowed(schedule),
    )


# 6 × 40 = 240 configs; eta = 1 at zero SNR is the root of a rounding error in diffusers.
@pytest.mark.parametrize("family", CLASSES)
@given(data=st.data(), seed=st.integers(0, 2**32 - 1), eta=st.sampled_from([0.0, 0.0, 0.4, 0.95]))
@settings(max_examples=40)
def test_sequential_equals_diffusers_over_drawn_configs(
    family: str, data: st.DataObject, seed: int, eta: float
) -> None:
    config, steps, mu = data.draw(drawn(family))
    ours, theirs, limit = both(config, steps, seed=seed, eta=eta, mu=mu)
    assume(np.isfinite(theirs).all())  # diffusers itself has no picture for some configs
    assert relative(ours, theirs) < limit


@pytest.mark.parametrize("steps", [4, 28, 50])
@pytest.mark.parametrize("name", shipped())
def test_sequential_equals_diffusers_with_shipped_configs(name: str, steps: int) -> None:
    ours, theirs, limit = both(shipped()[name], steps, seed=7, eta=0.0, mu=None)
    assert relative(ours, theirs) < limit
