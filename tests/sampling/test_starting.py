"""Later starts, and the part of a picture that stays: against diffusers' loops, and literal ones."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from literal import Literal
from peers import CLASSES, drawn, peer_of, peer_step, scaled, shipped
from test_loops import ROUNDING, TOLERANCE
from test_sample import FAMILIES, chain_noises, network, relative

import driffusion_trt as dt
from driffusion_trt import InputError
from driffusion_trt.sampling.known import Known, noisy
from driffusion_trt.sampling.noise import noise_streams

SHAPE = (2, 4, 3, 3)
CLEAN = np.random.default_rng(5).standard_normal(SHAPE).astype(np.float32)
REPAINT = np.random.default_rng(6).random((2, 1, 3, 3)) < 0.6


def mixing(schedule: dt.Schedule) -> Any:
    """A network in which neighbours matter, as what is known does for what is not."""
    alone = network(schedule)

    def denoiser(latents: np.ndarray, timestep: Any) -> np.ndarray:
        out: np.ndarray = 0.7 * alone(latents, timestep) + 0.3 * np.roll(alone(latents, timestep), 1, -1)
        return out

    return denoiser


def peer_tail(peer: Any, denoiser: Any, first: int, seed: int, eta: float, *, inpaint: bool) -> np.ndarray:
    """What diffusers' image-to-image and inpainting pipelines do between their encoder and their decoder."""
    if hasattr(peer, "set_begin_index"):
        peer.set_begin_index(first)
    generator, clean = torch.Generator().manual_seed(seed), torch.from_numpy(CLEAN)
    noise, timesteps = torch.randn(SHAPE, generator=generator), peer.timesteps[first:]
    repaint = torch.from_numpy(REPAINT).float()

    def noised(t: torch.Tensor) -> Any:
        flow = hasattr(peer, "scale_noise")
        return peer.scale_noise(clean, t, noise) if flow else peer.add_noise(clean, noise, t)

    x = noised(timesteps[:1].repeat(len(clean)))
    for i, t in enumerate(timesteps):
        seen = scaled(peer, x, t).numpy()
        output = torch.from_numpy(denoiser(seen, np.full(len(seen), float(t), np.float32)))
        x = peer_step(peer, output, t, x, eta=eta, generator=generator)
        if inpaint:
            known = noised(timesteps[i + 1 : i + 2]) if i + 1 < len(timesteps) else clean
            x = (1 - repaint) * known + repaint * x
    found: np.ndarray = x.numpy()
    return found


def our_tail(schedule: dt.Schedule, denoiser: Any, seed: int, *, inpaint: bool, **how: Any) -> np.ndarray:
    noise = noise_streams(seed, SHAPE[0]).draw(SHAPE[1:])
    known = Known(CLEAN, noise, REPAINT) if inpaint else None
    start = noisy(schedule, 0, CLEAN, noise)
    return dt.sample(dt.make_plan(schedule, **how), denoiser, start, seed=seed, known=known)


def both(
    config: dict[str, Any], steps: int, first: int, *, seed: int, eta: float, mu: float | None, inpaint: bool
) -> tuple[np.ndarray, np.ndarray, float]:
    eta = eta if config["_class_name"] in (CLASSES["ddim"], CLASSES["pndm"]) else 0.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # schedulers complain of options that were drawn on purpose
        peer = peer_of(config, steps, mu=mu)
        whole = dt.Schedule.from_config(config, steps, eta=eta or None, mu=mu)
        schedule = whole.starting_at(first)
        denoiser = mixing(schedule)
        theirs = peer_tail(peer, denoiser, first, seed, eta, inpaint=inpaint)
    ours = our_tail(schedule, denoiser, seed, inpaint=inpaint)
    return ours, theirs, max(TOLERANCE, ROUNDING * whole.initial_sigma)


@pytest.mark.parametrize("family", CLASSES)
@given(
    data=st.data(),
    seed=st.integers(0, 2**32 - 1),
    eta=st.sampled_from([0.0, 0.0, 0.4, 0.95]),
    inpaint=st.booleans(),
)
@settings(max_examples=30)
def test_later_starts_equal_diffusers_over_drawn_configs(
    family: str, data: st.DataObject, seed: int, eta: float, inpaint: bool
) -> None:
    config, steps, mu = data.draw(drawn(family))
    first = data.draw(st.integers(0, steps - 1))
    ours, theirs, limit = both(config, steps, first, seed=seed, eta=eta, mu=mu, inpaint=inpaint)
    assume(np.isfinite(theirs).all())
    assert relative(ours, theirs) < limit


@pytest.mark.parametrize("inpaint", [False, True])
@pytest.mark.parametrize("first", [0, 1, 20, 27])
@pytest.mark.parametrize("name", shipped())
def test_later_starts_equal_diffusers_with_shipped_configs(name: str, first: int, inpaint: bool) -> None:
    ours, theirs, limit = both(shipped()[name], 28, first, seed=7, eta=0.0, mu=None, inpaint=inpaint)
    assert relative(ours, theirs) < limit


@pytest.mark.parametrize("inpaint", [False, True])
@pytest.mark.parametrize(("mode", "lanes"), [("aggressive", 2), ("aggressive", 3), ("conservative", 3)])
@pytest.mark.parametrize("family", FAMILIES)
def test_drafts_from_a_later_start_are_the_literal_ones(
    family: str, mode: str, lanes: int, inpaint: bool
) -> None:
    """The literal sampler puts what is known over every single step; the plans do it once a round."""
    schedule = dt.Schedule.from_config(FAMILIES[family], 14).starting_at(3)
    denoiser = mixing(schedule)
    noise = noise_streams(9, 2).draw(SHAPE[1:])

    def blend(i: int, x: np.ndarray) -> np.ndarray:
        a, s = (1.0, 0.0) if i == schedule.steps else (schedule.a[i], schedule.s[i])
        return np.where(REPAINT, x, a * CLEAN + s * noise) if inpaint else x

    streams = noise_streams(9, 2)
    streams.draw(SHAPE[1:])
    drawn_at = [z is not None for z in chain_noises(schedule, 0)]
    z = [streams.draw(SHAPE[1:]) if there else None for there in drawn_at]
    literal = Literal(schedule, denoiser, z, blend)
    wanted = getattr(literal, mode)(schedule.a[0] * CLEAN + schedule.s[0] * noise, lanes)
    got = our_tail(schedule, denoiser, 9, inpaint=inpaint, mode=mode, lanes=lanes)
    assert relative(got, wanted) < 5e-5
    if inpaint:
        assert np.array_equal(np.where(REPAINT, 0, got), np.where(REPAINT, 0, CLEAN))


def test_a_later_start_is_the_rest_of_the_schedule() -> None:
    whole = dt.Schedule.from_config(FAMILIES["dpmsolver++"], 20)
    late = whole.starting_at(12)
    assert (late.steps, late.first, late.initial_sigma) == (8, 12, 1.0)
    assert np.array_equal(late.timesteps, whole.timesteps[12:]) and np.array_equal(
        late.s_next, whole.s_next[12:]
    )
    assert whole.orders[12] == 2 and late.orders == (1, *whole.orders[13:])
    assert late.orders[-1] == whole.orders[-1] == 1


def test_skipping_keeps_the_share_of_the_schedule() -> None:
    """20 of 50 steps done in 5 are the last 5 of about 12."""
    late = dt.Schedule.from_config(FAMILIES["ddim"], 50).starting_at(30)
    plan = dt.make_plan(late, mode="skip", rounds=5)
    assert (plan.schedule.steps, plan.schedule.first) == (5, 7)
    assert abs(plan.schedule.s[0] - late.s[0]) < 0.1
    same = late.with_steps(20)
    assert same.first == 30 and np.array_equal(same.timesteps, late.timesteps)


@pytest.mark.parametrize("state", [-1, 20, 1.0, True, None])
def test_a_state_that_there_is_not_is_refused(state: Any) -> None:
    with pytest.raises(InputError, match=r"state=.* must be a whole number from 0 to 19"):
        dt.Schedule.from_config(FAMILIES["ddim"], 20).starting_at(state)


def test_a_schedule_starts_later_once() -> None:
    with pytest.raises(InputError, match="starts at state 4 already"):
        dt.Schedule.from_config(FAMILIES["ddim"], 20).starting_at(4).starting_at(4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"latents": CLEAN.astype(np.float64)}, "latents of what is known is float64, expected float32"),
        ({"noise": CLEAN[:1]}, r"latents of shape \(2, 4, 3, 3\) and noise of \(1, 4, 3, 3\) differ"),
        ({"repaint": REPAINT.astype(np.float32)}, "repaint of what is known is float32, expected bool"),
        ({"repaint": np.ones((2, 1, 5, 3), bool)}, r"repaint of shape \(2, 1, 5, 3\) does not go with"),
        ({"repaint": np.ones((3, 2, 4, 3, 3), bool)}, "does not go with latents"),
    ],
)
def test_what_is_known_must_fit(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Known(**{"latents": CLEAN, "noise": CLEAN, "repaint": REPAINT, **change})


def test_what_is_known_must_fit_the_noise() -> None:
    plan = dt.make_plan(dt.Schedule.from_config(FAMILIES["ddim"], 4))
    with pytest.raises(
        InputError, match=r"noise is of shape \(1, 4, 3, 3\), and what is known of \(2, 4, 3, 3\)"
    ):
        dt.sample(plan, mixing(plan.schedule), CLEAN[:1], known=Known(CLEAN, CLEAN, REPAINT))
