"""The exact-score benchmark: its networks are right, and drafting beats skipping at equal calls."""

from __future__ import annotations

import numpy as np
import pytest

import driffusion_trt as dt
from bench import accuracy
from bench.exact_models import Mixture, denoiser


def schedule_of(family: str) -> dt.Schedule:
    file, steps = accuracy.SCHEDULES[family]
    return dt.Schedule.from_config(accuracy.CONFIGS / file, steps)


@pytest.mark.parametrize("family", accuracy.SCHEDULES)
def test_the_ideal_network_finds_a_lone_picture(family: str) -> None:
    """With one centre and no spread the posterior mean is that picture, from any noise."""
    schedule = schedule_of(family)
    centre = np.linspace(-1, 1, 16)
    network = denoiser(schedule, Mixture(centre[None], 0.0, np.zeros(1, int)))
    noise = np.random.default_rng(0).normal(size=(3, 16)).astype(np.float32)
    got = dt.sample(dt.make_plan(schedule), network, noise)
    final = float(schedule.a_next[-1])  # some schedules end a little short of noiseless
    left = float(schedule.s_next[-1])
    assert np.abs(got - final * centre).max() <= 4.5 * left + 1e-4


def literal_mean(centres: np.ndarray, spread: float, x: np.ndarray, a: float, s: float) -> np.ndarray:
    """E[x0 | x] by Bayes, centre by centre, for one x: N(a·c, (a·spread)² + s²) each, Gaussian within."""
    variance = (a * spread) ** 2 + s**2
    distances = np.array([((x - a * centre) ** 2).sum() for centre in centres])
    weights = np.exp(-(distances - distances.min()) / (2 * variance))
    within = [centre + a * spread**2 / variance * (x - a * centre) for centre in centres]
    mean: np.ndarray = sum(w * m for w, m in zip(weights / weights.sum(), within, strict=True))
    return mean


@pytest.mark.parametrize("family", accuracy.SCHEDULES)
@pytest.mark.parametrize("step", [0, 14, 27])
@pytest.mark.parametrize("guidance", [None, 1.0, 7.5])
def test_the_guided_network_is_the_literal_one(family: str, step: int, guidance: float | None) -> None:
    schedule = schedule_of(family)
    rng = np.random.default_rng(step)
    labels = np.array([0, 1, 2, 0, 1, 2, 2])
    centres, spread, classes = rng.normal(size=(7, 5)), 0.4, np.array([2, 0, 1])
    a, s = float(schedule.a[step]), float(schedule.s[step])
    x = a * rng.normal(size=(3, 5)) + s * rng.normal(size=(3, 5))
    seen = (x * schedule.input_scale[step]).astype(np.float32)
    x = seen.astype(np.float64) / schedule.input_scale[step]

    def output(row: np.ndarray, x0: np.ndarray) -> np.ndarray:
        eps = (row - a * x0) / s
        kinds = {"epsilon": eps, "v_prediction": a * eps - s * x0, "flow_prediction": eps - x0}
        return kinds[schedule.prediction_type]

    wanted = []
    for row, label in zip(x, classes, strict=True):
        u = output(row, literal_mean(centres, spread, row, a, s))
        c = output(row, literal_mean(centres[labels == label], spread, row, a, s))
        wanted.append(u if guidance is None else u + guidance * (c - u))
    network = denoiser(schedule, Mixture(centres, spread, labels), guidance, classes)
    got = network(seen, np.full(3, schedule.timesteps[step], np.float32))
    assert got.dtype == np.float32
    # Two outputs in float32, their difference times g.
    room = 4 * np.finfo(np.float32).eps * (1 + 2 * (guidance or 0)) * np.abs(wanted).max()
    np.testing.assert_allclose(got, wanted, rtol=0, atol=room)


@pytest.mark.parametrize("family", accuracy.SCHEDULES)
@pytest.mark.parametrize("guidance", [None, 3.0])
def test_drafting_ends_nearer_than_skipping(family: str, guidance: float | None) -> None:
    model = "mixture of 10 in 16 dimensions"
    skip, rounds = accuracy.cell(family, model, guidance, mode="skip", lanes=3)
    aggressive, same = accuracy.cell(family, model, guidance, mode="aggressive", lanes=3)
    conservative, _ = accuracy.cell(family, model, guidance, mode="conservative", lanes=3)
    assert conservative < aggressive < skip / 2
    assert rounds == same


def test_a_tolerance_decides_for_each_sample_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """So the samples do not depend on how many there are, and neither do the rounds of each."""
    family, model = "SD2.1", "mixture of 10 in 16 dimensions"
    options = {"mode": "tolerance", "lanes": 4, "tolerance": 0.01}
    monkeypatch.setattr(accuracy, "SAMPLES", 8)
    eight, rounds = accuracy.samples(family, model, 7.5, **options)
    monkeypatch.setattr(accuracy, "SAMPLES", 1)
    one, alone = accuracy.samples(family, model, 7.5, **options)
    np.testing.assert_array_equal(one[0], eight[0])
    assert alone == int(alone)
    assert rounds != int(rounds)  # some take more than others


def test_factors_are_of_equal_calls() -> None:
    def of(value: float) -> dict[str, dict[str, float]]:
        return {"2": {"geometric_mean": value}}

    found = accuracy.factors(
        {
            "aggressive": of(6.0),
            "window, aggressive budget": of(2.0),
            "conservative": of(1.0),
            "window, conservative budget": of(4.0),
        }
    )
    assert found == {"aggressive": {"2": 3.0}, "conservative": {"2": 0.25}}


@pytest.mark.parametrize("lanes", accuracy.WIDTHS)
@pytest.mark.parametrize("family", accuracy.SCHEDULES)
def test_the_columns_of_one_budget_have_equal_calls(family: str, lanes: int) -> None:
    schedule = schedule_of(family)
    calls = {
        name: dt.make_plan(schedule, **options(lanes, schedule.steps)).sequential_calls
        for name, options in accuracy.COLUMNS.items()
        if not name.startswith("tolerance")
    }
    for budget in accuracy.RIVALS:
        same = {count for name, count in calls.items() if name == budget or name.endswith(f"{budget} budget")}
        assert len(same) == 1, calls
    assert calls["aggressive"] <= calls["conservative"]
