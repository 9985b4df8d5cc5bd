"""The executor against literal step-by-step samplers, diffusers' loops, and itself."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from literal import Literal

import driffusion_trt as dt
from driffusion_trt.sampling.noise import noise_streams
from driffusion_trt.sampling.rounds import Round
from driffusion_trt.sampling.skip import draws_noise, noise_weights, variance
from driffusion_trt.sampling.tables import Column, Table

CONFIGS = Path(__file__).parent / "configs"
SHAPE = (3, 5)
VP = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "clip_sample": False}
FAMILIES: dict[str, dict[str, Any]] = {
    "ddim": {"_class_name": "DDIMScheduler", **VP},
    "ddim-v": {"_class_name": "DDIMScheduler", "prediction_type": "v_prediction", **VP},
    "ddim-zero-snr": {
        "_class_name": "DDIMScheduler",
        "prediction_type": "v_prediction",
        "rescale_betas_zero_snr": True,
        "timestep_spacing": "trailing",
        **VP,
    },
    "ddpm": {"_class_name": "DDPMScheduler", **VP},
    "euler": {"_class_name": "EulerDiscreteScheduler", "beta_schedule": "scaled_linear"},
    "euler-v": {
        "_class_name": "EulerDiscreteScheduler",
        "beta_schedule": "scaled_linear",
        "prediction_type": "v_prediction",
    },
    "dpmsolver++": {"_class_name": "DPMSolverMultistepScheduler", "beta_schedule": "scaled_linear"},
    "dpmsolver++-heun": {
        "_class_name": "DPMSolverMultistepScheduler",
        "beta_schedule": "scaled_linear",
        "solver_type": "heun",
        "use_karras_sigmas": True,
    },
    "flow": {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0},
}


def network(schedule: dt.Schedule) -> Any:
    """A smooth, nonlinear stand-in for a network that returns about what a real one would."""
    slope = {"epsilon": 0.9, "v_prediction": -0.4, "flow_prediction": 0.8, "sample": 0.3}[
        schedule.prediction_type
    ]

    def denoiser(latents: np.ndarray, timestep: Any) -> np.ndarray:
        t = np.reshape(np.asarray(timestep, latents.dtype) / 1000, (-1,) + (1,) * (latents.ndim - 1))
        out: np.ndarray = slope * latents + 0.1 * np.sin(2 * latents + 3 * t) + 0.05 * t
        return out

    return denoiser


def start(seed: int, batch: int = 2) -> np.ndarray:
    return noise_streams(seed, batch).draw(SHAPE)


def chain_noises(schedule: dt.Schedule, seed: int, batch: int = 2) -> list[np.ndarray | None]:
    streams = noise_streams(seed, batch)
    streams.draw(SHAPE)
    return [streams.draw(SHAPE) if draws_noise(schedule, i) else None for i in range(schedule.steps)]


def relative(got: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.linalg.norm(got - wanted) / np.linalg.norm(wanted))


@pytest.mark.parametrize("family", FAMILIES)
@given(
    mode=st.sampled_from(["sequential", "aggressive", "conservative"]),
    steps=st.integers(1, 30),
    lanes=st.integers(1, 6),
    eta=st.sampled_from([None, 0.3, 1.0]),
    seed=st.integers(0, 99),
)
@settings(max_examples=25)
def test_modes_equal_their_literal_transcription(
    family: str, mode: str, steps: int, lanes: int, eta: float | None, seed: int
) -> None:
    schedule = dt.Schedule.from_config(
        FAMILIES[family], steps, eta=eta if family.startswith("ddim") else None
    )
    plan = dt.make_plan(schedule, mode=mode, lanes=lanes)
    denoiser = network(schedule)
    noise = start(seed)
    got = dt.sample(plan, denoiser, noise, seed=seed)

    literal = Literal(schedule, denoiser, chain_noises(schedule, seed))
    x = noise.astype(np.float64) * schedule.initial_sigma
    wanted = {
        "sequential": lambda: literal.sequential(x),
        "aggressive": lambda: literal.aggressive(x, lanes),
        "conservative": lambda: literal.conservative(x, lanes),
    }[mode]()
    assert literal.calls == plan.sequential_calls
    assert relative(got, wanted) < 2e-5


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("mode", ["aggressive", "conservative", "skip"])
def test_one_lane_is_the_scheduler_itself_to_the_bit(family: str, mode: str) -> None:
    schedule = dt.Schedule.from_config(FAMILIES[family], 12)
    denoiser, noise = network(schedule), start(3)
    sequential = dt.sample(dt.make_plan(schedule), denoiser, noise, seed=3)
    options = {"rounds": 12} if mode == "skip" else {}
    one_lane = dt.sample(dt.make_plan(schedule, mode=mode, lanes=1, **options), denoiser, noise, seed=3)
    assert np.array_equal(one_lane, sequential)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("mode", ["sequential", "aggressive", "conservative", "skip"])
def test_bits_repeat_and_do_not_depend_on_the_batch(family: str, mode: str) -> None:
    schedule = dt.Schedule.from_config(FAMILIES[family], 13)
    plan, denoiser = dt.make_plan(schedule, mode=mode, lanes=3), network(schedule)
    noise = noise_streams([5, 6], 2).draw(SHAPE)
    both = dt.sample(plan, denoiser, noise, seed=[5, 6])
    assert np.array_equal(both, dt.sample(plan, denoiser, noise, seed=[5, 6]))
    assert np.array_equal(both[1:], dt.sample(plan, denoiser, noise[1:], seed=[6]))


@pytest.mark.parametrize("mode", ["sequential", "aggressive", "conservative", "window", "tolerance", "skip"])
def test_a_denoiser_may_use_its_arrays_again(mode: str) -> None:
    """One output buffer for all calls, as bound sessions and CUDA graphs have, and inputs scaled in place."""
    schedule = dt.Schedule.from_config(FAMILIES["ddim"], 20)  # which does not scale what the network sees
    options: dict[str, Any] = {"skip": {"rounds": 9}, "sequential": {}}.get(mode, {"lanes": 3})
    plan, right, noise = dt.make_plan(schedule, mode=mode, **options), network(schedule), start(3)
    buffer = np.empty((2, *SHAPE), np.float32)

    def reuses(latents: np.ndarray, timestep: np.ndarray) -> np.ndarray:
        buffer[:] = right(latents, timestep)
        return buffer

    def overwrites(latents: np.ndarray, timestep: np.ndarray) -> np.ndarray:
        latents[:] = right(latents, timestep)
        timestep[:] = 0
        return latents

    wanted, given = dt.sample(plan, right, noise, seed=3), noise.copy()
    for denoiser in (reuses, overwrites):
        assert np.array_equal(dt.sample(plan, denoiser, given, seed=3), wanted)
    assert np.array_equal(given, noise)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_prediction_that_is_not_finite_is_an_error(value: float) -> None:
    plan = dt.make_plan(dt.Schedule.from_config(FAMILIES["ddim"], 5), mode="aggressive", lanes=2)
    called = []

    def denoiser(latents: np.ndarray, timestep: np.ndarray) -> np.ndarray:
        called.append(timestep[0])
        return latents if len(called) < 3 else np.full_like(latents, value)

    with pytest.raises(dt.NonFiniteError, match=r"not finite at timestep \d"):
        dt.sample(plan, denoiser, start(0))
    assert len(called) == 3


@given(st.integers(2, 40), st.floats(0.05, 1.0), st.data())
def test_noise_weights_are_those_of_the_chain(steps: int, eta: float, data: st.DataObject) -> None:
    """Chained single steps at a fixed x̂0, unrolled, give the weights of the skip."""
    schedule = dt.Schedule.from_config(FAMILIES["ddim"], steps, eta=eta)
    i = data.draw(st.integers(0, steps - 1))
    j = data.draw(st.integers(i + 1, steps))
    weights: dict[int, float] = {}
    eps = 1.0
    for step in range(i, j):
        v, s_next = variance(schedule, step), float(schedule.s_next[step])
        shrink = np.sqrt(s_next**2 - v) / float(schedule.s[step])
        weights = {at: w * shrink for at, w in weights.items()} | {step: np.sqrt(v)}
        eps *= shrink
    got = noise_weights(schedule, i, j)
    assert all(abs(got.get(step, 0.0) - w) < 1e-12 for step, w in weights.items())
    if eta == 1.0:
        s_end = float(schedule.s_next[j - 1])
        total = sum(w * w for w in got.values())
        assert abs(np.sqrt(max(s_end**2 - total, 0)) - eps * float(schedule.s[i])) < 1e-7


@pytest.mark.parametrize("steps", [7, 20])
@pytest.mark.parametrize("anchor", [0, 3])
def test_ddpm_drafts_are_the_chain_at_a_fixed_x0(steps: int, anchor: int) -> None:
    """With the clean picture known, drafts over shared noises are the states of the chain itself."""
    schedule = dt.Schedule.from_config(FAMILIES["ddpm"], steps)
    clean = np.random.default_rng(0).normal(size=(2, *SHAPE)).astype(np.float32)
    seen: dict[str, list[np.ndarray]] = {}

    def run(mode: str, lanes: int) -> np.ndarray:
        calls: list[np.ndarray] = []

        def oracle(latents: np.ndarray, timestep: np.ndarray) -> np.ndarray:
            calls.append(latents.copy())
            (i,) = np.flatnonzero(schedule.timesteps == timestep[0])
            return ((latents - schedule.a[i] * clean) / schedule.s[i]).astype(np.float32)

        out = dt.sample(dt.make_plan(schedule, mode=mode, lanes=lanes), oracle, start(anchor), seed=anchor)
        seen[mode] = calls
        return out

    chain, drafted = run("sequential", 1), run("aggressive", 3)
    assert relative(drafted, chain) < 1e-5
    for ours, theirs in zip(seen["aggressive"], seen["sequential"], strict=True):
        assert relative(ours, theirs) < 1e-5


def test_step_noises_do_not_depend_on_the_mode() -> None:
    """An ideal network makes drafts equal to states, so all modes must end in one picture."""
    schedule = dt.Schedule.from_config(FAMILIES["ddim"], 15, eta=0.7)
    clean = np.ones((1, *SHAPE), np.float32)

    def oracle(latents: np.ndarray, timestep: np.ndarray) -> np.ndarray:
        (i,) = np.flatnonzero(schedule.timesteps == timestep[0])
        return ((latents - schedule.a[i] * clean) / schedule.s[i]).astype(np.float32)

    noise = start(1, 1)
    ends = [
        dt.sample(dt.make_plan(schedule, mode=mode, lanes=4), oracle, noise, seed=1)
        for mode in ("sequential", "aggressive", "conservative")
    ]
    assert relative(ends[1], ends[0]) < 1e-2
    assert relative(ends[2], ends[0]) < 1e-2


def test_progress_is_told_round_by_round() -> None:
    schedule = dt.Schedule.from_config(FAMILIES["ddim"], 8)
    told: list[Any] = []
    plan = dt.make_plan(schedule, mode="aggressive", lanes=3)
    dt.sample(plan, network(schedule), start(0), on_round=told.append)
    assert [(done.round, done.state) for done in told] == [(1, 0), (2, 3), (3, 6), (4, 8)]
    assert all(done.rounds == 4 and done.steps == 8 for done in told)


@pytest.mark.parametrize(
    ("noise", "message"),
    [
        (np.zeros(4, np.float32), "noise must be finite floats of shape"),
        (np.zeros((1, 4), np.int64), "noise must be finite floats"),
        (np.full((1, 4), np.nan, np.float32), "noise must be finite floats"),
    ],
)
def test_bad_noise_is_refused(noise: np.ndarray, message: str) -> None:
    schedule = dt.Schedule.from_config(FAMILIES["ddim"], 4)
    with pytest.raises(dt.InputError, match=message):
        dt.sample(dt.make_plan(schedule), network(schedule), noise)


def test_a_denoiser_of_another_shape_is_refused() -> None:
    schedule = dt.Schedule.from_config(FAMILIES["ddim"], 4)
    with pytest.raises(dt.InputError, match="it must return floats of the same shape"):
        dt.sample(dt.make_plan(schedule), lambda latents, timestep: latents[..., :2], start(0))


def test_errors_of_the_denoiser_pass_through() -> None:
    schedule = dt.Schedule.from_config(FAMILIES["ddim"], 4)

    def broken(latents: np.ndarray, timestep: np.ndarray) -> np.ndarray:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        dt.sample(dt.make_plan(schedule), broken, start(0))


def test_a_kept_draft_is_not_what_the_network_sees_later() -> None:
    """Rounds may overlap: a state that was drafted before and is known now is predicted as it is."""
    schedule = dt.Schedule.from_config(FAMILIES["ddim"], 2)
    one, end = Column("state", 1), Column("state", 2)
    start_state = {Column("state", 0): 1.0}
    rounds = (
        Round((1,), Table.of({Column("input", 1): {Column("state", 0): 0.5}}), Table.of({one: start_state})),
        Round(
            (1,),
            Table.of({}),
            Table.of({end: {Column("input", 1): 1.0}}),
            frozenset({one, Column("input", 1)}),
        ),
    )
    plan = replace(
        dt.make_plan(schedule), rounds=(replace(rounds[0], keep=frozenset(start_state)), rounds[1])
    )
    seen: list[float] = []

    def denoiser(latents: np.ndarray, timestep: np.ndarray) -> np.ndarray:
        seen.append(float(latents.flat[0]))
        return latents

    end_latents = dt.sample(plan, denoiser, np.full((1, 4), 2.0, np.float32))
    assert seen == [1.0, 2.0]
    assert (end_latents == 2.0).all()


def test_shipped_configs_are_there() -> None:
    assert {json.loads(path.read_text())["_class_name"] for path in CONFIGS.glob("*.json")} >= {
        "DDIMScheduler",
        "EulerDiscreteScheduler",
        "FlowMatchEulerDiscreteScheduler",
    }
