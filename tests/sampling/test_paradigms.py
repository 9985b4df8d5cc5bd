"""ParaDiGMS as a plan: against its literal transcription, what it converges to, and what is refused."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from literal import Literal
from test_sample import FAMILIES, chain_noises, network, relative, start

import driffusion_trt as dt
from driffusion_trt.sampling.paradigms import TOLERANCE, step_variance
from driffusion_trt.sampling.skip import variance
from driffusion_trt.sampling.window import least_rounds

ETAS = st.sampled_from([None, 0.3, 1.0])


def schedule_of(family: str, steps: int, eta: float | None = None) -> dt.Schedule:
    return dt.Schedule.from_config(FAMILIES[family], steps, eta=eta if family.startswith("ddim") else None)


def run(plan: dt.Plan, seed: int = 0) -> Any:
    return dt.sample(plan, network(plan.schedule), start(seed), seed=seed, return_stats=True)


@pytest.mark.parametrize("family", FAMILIES)
@given(
    steps=st.integers(1, 30),
    lanes=st.integers(1, 9),
    more=st.integers(-1, 8),
    tolerance=st.sampled_from([0.02, 0.1, 1.0]),
    eta=ETAS,
    seed=st.integers(0, 99),
)
@settings(max_examples=25, deadline=None)
def test_it_equals_its_literal_transcription(
    family: str, steps: int, lanes: int, more: int, tolerance: float, eta: float | None, seed: int
) -> None:
    """With a tolerance (`more` is −1), or in so many rounds more than the fewest."""
    schedule = schedule_of(family, steps, eta)
    literal = Literal(schedule, network(schedule), chain_noises(schedule, seed))
    x = start(seed).astype(np.float64) * schedule.initial_sigma
    if more < 0:
        plan = dt.make_plan(schedule, mode="paradigms", lanes=lanes, tolerance=tolerance)
        wanted = literal.paradigms(x, lanes, tolerance=tolerance)
    else:
        rounds = min(least_rounds(steps, lanes) + more, steps)
        plan = dt.make_plan(schedule, mode="paradigms", lanes=lanes, rounds=rounds)
        wanted = literal.paradigms(x, lanes, strides=strides_of(plan))
        assert plan.sequential_calls == rounds
    made = run(plan, seed)
    assert made.stats.rounds == literal.calls
    assert made.stats.rounds >= plan.sequential_calls and made.stats.predictions >= plan.model_calls
    assert relative(made.latents, wanted) < 2e-5


def strides_of(plan: dt.Plan) -> list[int]:
    """How far each of a plan's rounds gets: those of mode `window` with as many."""
    window = dt.make_plan(plan.schedule, mode="window", lanes=plan.lanes, rounds=len(plan.rounds))
    return list(window.settings.strides)  # type: ignore[attr-defined]


@pytest.mark.parametrize("family", FAMILIES)
@given(steps=st.integers(1, 24), lanes=st.integers(1, 30), eta=ETAS, seed=st.integers(0, 99))
@settings(max_examples=15, deadline=None)
def test_without_tolerance_it_is_sequential_in_no_more_rounds_than_steps(
    family: str, steps: int, lanes: int, eta: float | None, seed: int
) -> None:
    schedule = schedule_of(family, steps, eta)
    wanted = run(dt.make_plan(schedule), seed).latents
    made = run(dt.make_plan(schedule, mode="paradigms", lanes=lanes, tolerance=0), seed)
    assert made.stats.rounds <= steps
    assert relative(made.latents, wanted) < 1e-6
    fixed = run(dt.make_plan(schedule, mode="paradigms", lanes=min(lanes, steps), rounds=steps), seed)
    assert fixed.stats.rounds == steps and np.array_equal(fixed.latents, wanted)


@pytest.mark.parametrize("family", FAMILIES)
@given(
    steps=st.integers(1, 40),
    lanes=st.integers(1, 12),
    tolerance=st.sampled_from([0.0, 1e-3, 0.1, 3.0, 1e9]),
    seed=st.integers(0, 99),
)
@settings(max_examples=15, deadline=None)
def test_rounds_stay_between_the_fewest_and_the_steps(
    family: str, steps: int, lanes: int, tolerance: float, seed: int
) -> None:
    plan = dt.make_plan(schedule_of(family, steps), mode="paradigms", lanes=lanes, tolerance=tolerance)
    stats = run(plan, seed).stats
    assert -(-steps // lanes) == plan.sequential_calls <= stats.rounds <= steps
    assert steps == plan.model_calls <= stats.predictions <= stats.rounds * lanes
    assert stats.drift.shape == (2,) and (stats.drift <= tolerance).all()


def test_a_smaller_tolerance_is_nearer_and_takes_more_rounds() -> None:
    schedule = schedule_of("ddim", 50)
    wanted = run(dt.make_plan(schedule)).latents
    made = [run(dt.make_plan(schedule, mode="paradigms", lanes=8, tolerance=t)) for t in (1.0, 0.1, 0.001)]
    rounds = [one.stats.rounds for one in made]
    errors = [relative(one.latents, wanted) for one in made]
    assert rounds == sorted(rounds) and rounds[0] < rounds[-1]
    assert errors[0] > errors[1] > errors[2]


@pytest.mark.parametrize("family", ["ddpm", "ddim"])
def test_changes_are_measured_by_the_noise_of_the_step(family: str) -> None:
    schedule = schedule_of(family, 20, 1.0)
    wanted = [variance(schedule, i) for i in range(20)]
    assert [step_variance(schedule, i) for i in range(20)] == pytest.approx(wanted)


def test_without_noise_in_the_scheduler_the_scale_is_the_same() -> None:
    still, noisy = schedule_of("ddim", 20, 0.0), schedule_of("ddim", 20, 1.0)
    for i in range(20):
        assert step_variance(still, i) == step_variance(noisy, i)


def test_a_plan_can_be_asked_for_again() -> None:
    schedule = schedule_of("ddim", 20)
    tolerant = dt.make_plan(schedule, mode="paradigms", lanes=4)
    assert tolerant.asked() == {"tolerance": TOLERANCE} == {"tolerance": 0.1}
    fewer = dt.make_plan(schedule, mode="paradigms", lanes=4, tolerance=0.3).with_lanes(2)
    assert (fewer.mode, fewer.lanes, fewer.asked()) == ("paradigms", 2, {"tolerance": 0.3})
    fixed = dt.make_plan(schedule, mode="paradigms", lanes=4, rounds=8)
    assert fixed.asked() == {"rounds": 8} and fixed.with_lanes(8).asked() == {"rounds": 8}
    assert fixed.with_lanes(2).asked() == {"rounds": 11}
    again = dt.make_plan(schedule, mode=fixed.mode, lanes=fixed.lanes, **fixed.asked())
    assert np.array_equal(run(again).latents, run(fixed).latents)


def test_what_a_plan_says_of_its_rounds() -> None:
    told: list[dt.sampling.sample.RoundDone] = []  # type: ignore[name-defined]
    plan = dt.make_plan(schedule_of("ddim", 20), mode="paradigms", lanes=4)
    dt.sample(plan, network(plan.schedule), start(0), on_round=told.append)
    assert [one.round for one in told] == list(range(1, len(told) + 1))
    assert told[-1].state == 20 and told[-1].rounds == len(told)
    states = [0, *(one.state for one in told)]
    assert all(0 < after - before <= 4 for before, after in itertools.pairwise(states))
    assert all(one.rounds == one.round + -(-(20 - one.state) // 4) for one in told)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rounds": 5, "tolerance": 0.1}, "rounds=5 and tolerance=0.1 were given; mode"),
        ({"rounds": 3, "lanes": 4}, "rounds=3 was asked; it must be from 4 to 10"),
        ({"rounds": 11, "lanes": 4}, "it must be from 4 to 10"),
        ({"tolerance": -1.0}, "tolerance must be a number of at least 0, not -1.0"),
        ({"tolerance": "0.1"}, "tolerance must be a number"),
        ({"order": 1}, "order=1 was given; it goes with mode 'window' or 'tolerance'"),
        ({"carry": "G"}, "carry='G' was given"),
    ],
)
def test_what_cannot_be_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(dt.InputError, match=message):
        dt.make_plan(schedule_of("ddim", 10), mode="paradigms", **options)
