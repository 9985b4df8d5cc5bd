"""Percentiles and bootstrap intervals have the properties that reading them relies on."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from driffusion_trt.benchmark.figures import interval, percentiles, ratio_interval, with_interval

times = st.lists(st.floats(0.1, 1e4), min_size=6, max_size=30)


@settings(max_examples=40, deadline=None)
@given(times)
def test_an_interval_lies_among_the_values_and_around_their_median(values: list[float]) -> None:
    found = with_interval(values)
    assert min(values) <= found["low"] <= found["median"] <= found["high"] <= max(values)
    assert interval(values) == (found["low"], found["high"]), "the same values, the same interval"


@settings(max_examples=20, deadline=None)
@given(times, st.floats(0.01, 100))
def test_an_interval_goes_with_the_unit(values: list[float], unit: float) -> None:
    scaled = interval([unit * value for value in values])
    np.testing.assert_allclose(scaled, np.multiply(unit, interval(values)), rtol=1e-9)  # type: ignore[arg-type]


@settings(max_examples=20, deadline=None)
@given(times, times, st.floats(0.5, 2))
def test_a_ratio_goes_with_both(over: list[float], under: list[float], factor: float) -> None:
    low, high = ratio_interval(over, under) or (0.0, 0.0)
    assert 0 < low <= high
    assert min(over) / max(under) <= low and high <= max(over) / min(under)
    more = ratio_interval([factor * value for value in over], under)
    np.testing.assert_allclose(more, (factor * low, factor * high), rtol=1e-9)


def test_the_interval_covers_the_true_median_about_as_often_as_it_says() -> None:
    random = np.random.default_rng(1)
    drawn = [interval(random.lognormal(size=15).tolist()) for _ in range(150)]
    covered = np.mean([one is not None and one[0] <= 1.0 <= one[1] for one in drawn])
    assert 0.88 <= covered <= 0.995


def test_six_values_have_one_that_covers_and_all_of_eight_ratios_do_so_together() -> None:
    random = np.random.default_rng(2)
    alone, together = [], []
    for _ in range(60):
        sets = [random.lognormal(sigma=0.1, size=(2, 6)).tolist() for _ in range(8)]
        first = interval(sets[0][0]) or (9, 9)
        alone.append(first[0] <= 1 <= first[1])
        found = [ratio_interval(over, under, among=8) or (9, 9) for over, under in sets]
        together.append(all(low <= 1 <= high for low, high in found))
    assert np.mean(alone) >= 0.85 and np.mean(together) >= 0.85


def test_constant_values_have_no_width_and_five_values_no_interval() -> None:
    assert with_interval([2.0] * 6) == {"median": 2.0, "low": 2.0, "high": 2.0}
    assert with_interval([1.0, 3.0] * 2) == {"median": 2.0, "low": None, "high": None}
    assert interval([1.0, 2.0, 3.0, 4.0, 5.0]) is None
    assert ratio_interval([1.0] * 5, [1.0] * 9) is None


@settings(max_examples=40, deadline=None)
@given(times)
def test_percentiles_are_in_order(values: list[float]) -> None:
    found = percentiles(values)
    assert min(values) <= found["p50"] <= found["p90"] <= found["p99"] <= max(values)
    assert found["p50"] == pytest.approx(np.median(values))
