"""Window and tolerance modes: shares against least squares, exactness, bounds, and what is refused."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import driffusion_trt as dt
from driffusion_trt.sampling.carry import fitted, weights
from driffusion_trt.sampling.known import Known
from driffusion_trt.sampling.window import least_rounds, strides

DDIM = {
    "_class_name": "DDIMScheduler",
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
    "prediction_type": "v_prediction",
}
EULER = {
    "_class_name": "EulerDiscreteScheduler",
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
}
DPM = {
    "_class_name": "DPMSolverMultistepScheduler",
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "algorithm_type": "dpmsolver++",
    "solver_order": 2,
}
FLOW = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}
DDPM = {**DDIM, "_class_name": "DDPMScheduler"} | {"prediction_type": "epsilon"}
for _name in ("set_alpha_to_one", "steps_offset"):
    del DDPM[_name]
CONFIGS: dict[str, dict[str, Any]] = {
    "ddim": DDIM,
    "euler": EULER,
    "dpmsolver++": DPM,
    "flow": FLOW,
    "ddpm": DDPM,
}
CENTRES = np.random.default_rng(5).standard_normal((6, 12))
Floats = NDArray[np.float32]


class Network:
    """The exact denoiser of a mixture, of the schedule's prediction type; it counts its calls."""

    def __init__(self, schedule: dt.Schedule) -> None:
        self.schedule, self.calls = schedule, 0
        keys = [float(np.float32(t)) for t in schedule.timesteps]
        self._at = dict(
            zip(keys, zip(schedule.a, schedule.s, schedule.input_scale, strict=True), strict=True)
        )

    def __call__(self, latents: Floats, timestep: Floats) -> Floats:
        self.calls += 1
        a, s, scale = self._at[float(timestep[0])]
        x = latents.astype(np.float64) / scale
        scores = (a * x @ CENTRES.T - 0.5 * a * a * (CENTRES**2).sum(1)) / ((0.3 * a) ** 2 + s**2)
        weight = np.exp(scores - scores.max(1, keepdims=True))
        near = weight / weight.sum(1, keepdims=True) @ CENTRES
        x0 = near + a * 0.09 / ((0.3 * a) ** 2 + s**2) * (x - a * near)
        eps = (x - a * x0) / s
        kinds = {"epsilon": eps, "v_prediction": a * eps - s * x0, "flow_prediction": eps - x0}
        return np.asarray(kinds[self.schedule.prediction_type], np.float32)


def start(batch: int = 3, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).standard_normal((batch, 12)).astype(np.float32)


def run(schedule: dt.Schedule, seed: int = 0, batch: int = 3, **options: Any) -> dt.sampling.sample.Sampled:  # type: ignore[name-defined]
    plan = dt.make_plan(schedule, **options)
    network = Network(schedule)
    made = dt.sample(plan, network, start(batch, seed), seed=list(range(batch)), return_stats=True)
    assert network.calls == made.stats.predictions
    return made


def distance(one: Floats, other: Floats) -> float:
    return float((np.linalg.norm(one - other, axis=1) / np.linalg.norm(other, axis=1)).mean())


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("carry", ["G", "x0"])
def test_one_step_a_round_and_no_tolerance_are_sequential_to_the_bit(config: str, carry: str) -> None:
    schedule = dt.Schedule.from_config(CONFIGS[config], 12)
    wanted = run(schedule).latents
    for options in ({"mode": "window", "rounds": 12}, {"mode": "tolerance", "tolerance": 0}):
        for lanes in (1, 2, 4):
            made = run(schedule, lanes=lanes, carry=carry, **options)
            assert np.array_equal(made.latents, wanted) and made.stats.rounds == 12


@given(
    config=st.sampled_from(list(CONFIGS)),
    steps=st.integers(1, 30),
    lanes=st.integers(2, 9),
    more=st.integers(0, 10),
    order=st.integers(0, 2),
    carry=st.sampled_from(["G", "x0"]),
    seed=st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_a_window_takes_the_rounds_and_predictions_that_its_plan_says(
    config: str, steps: int, lanes: int, more: int, order: int, carry: str, seed: int
) -> None:
    schedule = dt.Schedule.from_config(CONFIGS[config], steps)
    rounds = min(steps, least_rounds(steps, lanes) + more)
    options: dict[str, Any] = {
        "mode": "window",
        "lanes": lanes,
        "rounds": rounds,
        "order": order,
        "carry": carry,
    }
    plan = dt.make_plan(schedule, **options)
    made = run(schedule, seed, **options)
    assert (made.stats.rounds, made.stats.predictions) == (plan.sequential_calls, plan.model_calls)
    assert plan.sequential_calls == rounds and np.isfinite(made.latents).all()
    assert np.array_equal(made.latents, run(schedule, seed, **options).latents)


@given(
    config=st.sampled_from(["ddim", "euler", "dpmsolver++", "flow"]),
    lanes=st.integers(2, 8),
    tolerance=st.sampled_from([1e-4, 1e-3, 0.01, 0.1]),
    order=st.integers(0, 2),
    carry=st.sampled_from(["G", "x0"]),
    seed=st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_a_tolerance_bounds_the_drift(
    config: str, lanes: int, tolerance: float, order: int, carry: str, seed: int
) -> None:
    schedule = dt.Schedule.from_config(CONFIGS[config], 24)
    options: dict[str, Any] = {"lanes": lanes, "tolerance": tolerance, "order": order, "carry": carry}
    made = run(schedule, seed, batch=1, mode="tolerance", **options)
    assert made.stats.drift.shape == (1,) and 0 <= made.stats.drift[0] <= tolerance
    assert least_rounds(24, lanes) <= made.stats.rounds <= 24
    # What one step may be off by is not what all of them are; they add up, and grow a little.
    assert distance(made.latents, run(schedule, seed, batch=1).latents) <= 24 * tolerance


@given(lanes=st.integers(2, 6), more=st.integers(0, 20), tolerance=st.sampled_from([1e-9, 0.01, 10.0]))
@settings(max_examples=40, deadline=None)
def test_a_tolerance_takes_no_more_rounds_than_it_may(lanes: int, more: int, tolerance: float) -> None:
    schedule = dt.Schedule.from_config(EULER, 24)
    most = min(24, least_rounds(24, lanes) + more)
    made = run(schedule, mode="tolerance", lanes=lanes, tolerance=tolerance, rounds=most)
    wanted = {1e-9: most, 10.0: least_rounds(24, lanes)}.get(tolerance, made.stats.rounds)
    assert made.stats.rounds == wanted <= most and np.isfinite(made.latents).all()
    free = run(schedule, mode="tolerance", lanes=lanes, tolerance=tolerance)
    if free.stats.rounds <= most:
        assert np.array_equal(made.latents, free.latents)
    else:
        assert made.stats.drift is not None and made.stats.drift.max() > tolerance


def test_a_smaller_tolerance_is_nearer_and_takes_more_rounds() -> None:
    schedule = dt.Schedule.from_config(DDIM, 50)
    wanted = run(schedule, batch=1).latents
    made = [run(schedule, batch=1, mode="tolerance", lanes=4, tolerance=t) for t in (0.1, 0.003, 0.0003)]
    rounds = [one.stats.rounds for one in made]
    errors = [distance(one.latents, wanted) for one in made]
    assert rounds == sorted(rounds) and rounds[0] < rounds[-1]
    assert errors[0] > errors[1] > errors[2]


def test_the_distance_is_what_the_documentation_says() -> None:
    """One window of two, from the exact trajectory: the largest accepted distance, by hand."""
    schedule = dt.Schedule.from_config(DDIM, 2)
    network, noise = Network(schedule), start(1)
    a, s = schedule.a[1], schedule.s[1]
    told: list[Floats] = []

    def asked(latents: Floats, timestep: Floats) -> Floats:
        told.append(latents)
        return network(latents, timestep)

    plan = dt.make_plan(schedule, mode="tolerance", lanes=2, tolerance=1e9)
    stats = dt.sample(plan, asked, noise, return_stats=True).stats
    assert stats.rounds == 2 and len(told) == 2  # a first round has nothing to draft with
    plan = dt.make_plan(dt.Schedule.from_config(DDIM, 3), mode="tolerance", lanes=2, tolerance=1e9, order=0)
    network, told = Network(plan.schedule), []
    stats = dt.sample(plan, asked, noise, return_stats=True).stats
    a, s = plan.schedule.a[2], plan.schedule.s[2]
    exact = Network(plan.schedule)(told[1], np.full(1, plan.schedule.timesteps[1], np.float32))
    x0 = plan.schedule.a[1] * told[1] - plan.schedule.s[1] * exact
    eps = plan.schedule.s[1] * told[1] + plan.schedule.a[1] * exact
    refined = a * x0 + s * eps
    share = a / math.hypot(a, s)
    effect = 0.25 / share**2 + 0.75 * share**4 * s**2 / (s**2 + (0.08 * a) ** 2)
    gap = np.sqrt(((refined - told[2]) ** 2).mean()) / math.hypot(a, s) * effect
    assert stats.drift == pytest.approx([gap], rel=1e-4)


@given(
    distances=st.lists(st.integers(1, 6), min_size=1, max_size=5, unique=True),
    second=st.booleans(),
    seed=st.integers(0, 999),
)
@settings(max_examples=80, deadline=None)
def test_shares_are_least_squares(distances: list[int], second: bool, seed: int) -> None:
    """Against numpy's lstsq where the shares lie inside, and against the rule at the edges."""
    rng = np.random.default_rng(seed)
    first_d, second_d = rng.standard_normal((2, 40))
    wanted = rng.uniform(0.05, 0.95, 2) * (1, second)
    pairs = np.array([weights(d) for d in distances])
    residuals = [w1 * wanted[0] * first_d + w2 * wanted[1] * second_d for w1, w2 in pairs]
    rows = [first_d, second_d][: 1 + second]
    sums = [sum(w[k] * r for w, r in zip(pairs, residuals, strict=True)) for k in range(len(rows))]
    wide = np.stack([*rows, *sums])
    firsts, seconds = fitted((wide @ wide.T)[None] / 40, tuple(distances), 0.5)
    if not second:
        assert firsts == pytest.approx([wanted[0]], abs=1e-3) and seconds == []
        return
    columns = np.concatenate([np.stack([w1 * first_d, w2 * second_d], 1) for w1, w2 in pairs])
    if np.linalg.cond(columns) < 1e4:
        assert firsts + seconds == pytest.approx(list(wanted), abs=2e-3)


def test_shares_stay_between_hold_and_the_whole_difference() -> None:
    gram = np.array([[[1.0, 5.0], [5.0, 25.0]], [[1.0, -5.0], [-5.0, 25.0]], [[0.0, 0.0], [0.0, 1.0]]])
    firsts, _ = fitted(gram, (1,), 0.25)
    assert firsts == [1.0, 0.0, 0.25]  # no difference to learn from: as before


def test_extrapolation_is_exact_on_a_line() -> None:
    """A network whose G moves evenly from step to step is foretold: a window is then sequential."""
    schedule = dt.Schedule.from_config(FLOW, 20)
    place = {float(np.float32(t)): i for i, t in enumerate(schedule.timesteps)}

    def network(latents: Floats, timestep: Floats) -> Floats:
        return np.full_like(latents, 0.1 * place[float(timestep[0])] - 1)

    wanted = dt.sample(dt.make_plan(schedule), network, start())
    held, drawn = (
        dt.sample(
            dt.make_plan(schedule, mode="tolerance", lanes=4, order=order, carry="G", tolerance=1e-4),
            network,
            start(),
            return_stats=True,
        )
        for order in (0, 1)
    )
    assert drawn.stats.rounds < held.stats.rounds
    np.testing.assert_allclose(drawn.latents, wanted, atol=1e-3)


@pytest.mark.parametrize("config", ["ddim", "euler", "flow"])
def test_windows_are_nearer_than_the_papers_mode_at_equal_calls(config: str) -> None:
    schedule = dt.Schedule.from_config(CONFIGS[config], 30)
    wanted, ratios = run(schedule, batch=64).latents, []
    for lanes in (2, 3, 4):
        paper, ours = (run(schedule, batch=64, lanes=lanes, mode=mode) for mode in ("aggressive", "window"))
        assert paper.stats.rounds == ours.stats.rounds
        ratios.append(distance(ours.latents, wanted) / distance(paper.latents, wanted))
    assert np.prod(ratios) ** (1 / 3) < 0.8


def test_pictures_of_a_batch_go_on_together() -> None:
    schedule = dt.Schedule.from_config(DDIM, 24)
    options: dict[str, Any] = {"mode": "tolerance", "lanes": 4, "tolerance": 0.01}
    plan = dt.make_plan(schedule, **options)
    alone = [
        dt.sample(plan, Network(schedule), start(4)[k : k + 1], return_stats=True).stats.rounds
        for k in range(4)
    ]
    both = dt.sample(plan, Network(schedule), start(4), return_stats=True).stats
    assert both.rounds >= max(alone) and both.drift is not None and both.drift.shape == (4,)


@pytest.mark.parametrize(
    "options", [{"lanes": 1}, {"lanes": 4, "tolerance": 0}, {"lanes": 4, "steps": 1}], ids=str
)
def test_every_picture_has_a_drift_where_nothing_was_compared(options: dict[str, Any]) -> None:
    options = dict(options)
    schedule = dt.Schedule.from_config(DDIM, options.pop("steps", 6))
    stats = run(schedule, mode="tolerance", **options).stats
    assert stats.drift is not None and stats.drift.tolist() == [0.0, 0.0, 0.0]


def test_what_stays_of_a_picture_does_not_dilute_the_tolerance() -> None:
    """With ten elements of twelve known, distances are those of the other two."""
    schedule = dt.Schedule.from_config(DDIM, 12)
    noise = start(1)
    repaint = np.zeros((1, 12), np.bool_)
    repaint[:, :2] = True
    known = Known(np.zeros_like(noise), noise, repaint)
    plan = dt.make_plan(schedule, mode="tolerance", lanes=4, tolerance=1e9)
    network = Network(schedule)
    stats = dt.sample(plan, network, noise, known=known, return_stats=True).stats
    assert stats.drift is not None
    assert known.share.shape == (1, 1, 1) and known.share[0, 0, 0] == pytest.approx(2 / 12)
    unscaled = replace_share(known, plan, network, noise)
    assert stats.drift[0] == pytest.approx(unscaled * math.sqrt(6), rel=1e-6)


def replace_share(known: Known, plan: dt.Plan, network: Network, noise: Floats) -> float:
    """The drift as it would be if the known part counted."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Known, "share", np.ones((1, 1, 1)))
        stats = dt.sample(plan, network, noise, known=known, return_stats=True).stats
    assert stats.drift is not None
    return float(stats.drift[0])


@pytest.mark.parametrize(
    ("steps", "rounds", "short_last", "wanted"),
    [
        (10, 4, False, (1, 3, 3, 3)),
        (10, 5, False, (1, 2, 2, 2, 3)),
        (10, 5, True, (1, 3, 2, 2, 2)),
        (1, 1, False, (1,)),
        (4, 4, False, (1, 1, 1, 1)),
    ],
)
def test_strides(steps: int, rounds: int, short_last: bool, wanted: tuple[int, ...]) -> None:
    assert strides(steps, rounds, short_last=short_last) == wanted


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "window", "lanes": 4, "rounds": 3}, "rounds=3 was asked; it must be from 4 to 10"),
        ({"mode": "window", "lanes": 4, "rounds": 11}, "it must be from 4 to 10"),
        ({"mode": "window", "lanes": 17}, "lanes=17 was asked; mode 'window' takes 16 at most"),
        ({"mode": "tolerance", "lanes": 4, "rounds": 3}, "rounds=3 was asked; it must be from 4 to 10"),
        ({"mode": "tolerance", "lanes": 4, "rounds": 9, "tolerance": 0}, "it must be from 10 to 10"),
        ({"mode": "tolerance", "tolerance": -0.1}, "tolerance must be a number of at least 0"),
        ({"mode": "tolerance", "tolerance": math.nan}, "tolerance must be a number"),
        ({"mode": "tolerance", "tolerance": 10**400}, "tolerance must be a number of at least 0"),
        ({"mode": "tolerance", "tolerance": np.ones(2)}, "tolerance must be a number of at least 0"),
        ({"mode": "tolerance", "order": np.ones(2)}, "order must be 0, 1, 2 or 'auto'"),
        ({"mode": "sequential", "tolerance": np.ones(2)}, "goes with mode 'tolerance' or 'paradigms'"),
        ({"mode": "window", "tolerance": 0.1}, "goes with mode 'tolerance'"),
        (
            {"mode": "aggressive", "order": 1},
            "order=1 was given; it goes with mode 'window' or 'tolerance'",
        ),
        ({"mode": "aggressive", "carry": "G"}, "carry='G' was given"),
        ({"mode": "sequential", "tolerance": 0.1}, "tolerance=0.1 was given"),
        ({"mode": "window", "order": 3}, "order must be 0, 1, 2 or 'auto', not 3"),
        ({"mode": "window", "carry": "eps"}, "carry must be one of G, x0 or 'auto', not 'eps'"),
    ],
)
def test_what_cannot_be_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(dt.InputError, match=message):
        dt.make_plan(dt.Schedule.from_config(DDIM, 10), **options)


def test_fewer_lanes_keep_the_mode() -> None:
    schedule = dt.Schedule.from_config(DDIM, 20)
    tolerant = dt.make_plan(schedule, mode="tolerance", lanes=4, tolerance=0.02, carry="G").with_lanes(2)
    assert (tolerant.mode, tolerant.lanes, tolerant.settings.tolerance) == ("tolerance", 2, 0.02)  # type: ignore[attr-defined]
    bounded = dt.make_plan(schedule, mode="tolerance", lanes=4, rounds=8, tolerance=0.1)
    assert bounded.with_lanes(2).asked()["rounds"] == max(8, least_rounds(schedule.steps, 2))
    assert bounded.with_lanes(4).asked() == bounded.asked() and bounded.asked()["rounds"] == 8
    window = dt.make_plan(schedule, mode="window", lanes=4, rounds=8, order=2).with_lanes(2)
    assert (window.lanes, window.sequential_calls) == (2, 11)


@pytest.mark.parametrize("config", ["ddim", "dpmsolver++", "flow"])
@pytest.mark.parametrize("mode", ["window", "aggressive"])
def test_blocks_of_one_step_are_sequential_to_the_bit(config: str, mode: str) -> None:
    """Of the paper's mode too: what is drafted one step ahead is the state itself."""
    schedule = dt.Schedule.from_config(CONFIGS[config], 12)
    made = run(schedule, mode=mode, lanes=3, blocks=[1] * 11)
    np.testing.assert_array_equal(made.latents, run(schedule).latents)
    assert made.stats.rounds == 12


def test_blocks_are_the_strides_of_a_window() -> None:
    schedule = dt.Schedule.from_config(DDIM, 12)
    even = run(schedule, mode="window", lanes=4, rounds=5).latents
    assert np.array_equal(run(schedule, mode="window", lanes=4, blocks=(2, 3, 3, 3)).latents, even)
    assert not np.array_equal(run(schedule, mode="window", lanes=4, blocks=(3, 3, 3, 2)).latents, even)
