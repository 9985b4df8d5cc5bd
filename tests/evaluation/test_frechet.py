"""Fréchet distances: the definition, statistics in others' form, and intervals that hold."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import scipy.stats

from driffusion_trt import InputError
from driffusion_trt.evaluation import frechet as module
from driffusion_trt.evaluation.frechet import (
    GROUPS,
    Gaussian,
    Interval,
    difference_interval,
    distance_interval,
    frechet,
)
from driffusion_trt.evaluation.intervals import mean_interval


def features(count: int, seed: int, shift: float = 0.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    mixed = np.random.default_rng(99).normal(size=(6, 6))
    return (rng.normal(size=(count, 6)) @ mixed + shift).astype(np.float32)


def defined(one: np.ndarray, other: np.ndarray) -> float:
    """1706.08500, equation 6, literally."""
    first, second = np.cov(one.T), np.cov(other.T)
    mean = ((one.mean(0, dtype=np.float64) - other.mean(0, dtype=np.float64)) ** 2).sum()
    return float(mean + np.trace(first + second - 2 * scipy.linalg.sqrtm(first @ second).real))


def test_distance_is_that_of_its_definition() -> None:
    one, other = features(300, 0), features(200, 1, 0.5) * 2
    assert frechet(one, other) == pytest.approx(defined(one, other))
    assert frechet(other, one) == pytest.approx(defined(one, other))
    assert frechet(one, one) == pytest.approx(0, abs=1e-9)


def test_fewer_pictures_than_features_have_a_distance_too() -> None:
    few, many = np.random.default_rng(2).normal(size=(3, 6)), features(300, 0)
    assert frechet(few, many) == pytest.approx(defined(few, many), rel=1e-5)
    assert frechet(many, few) == pytest.approx(frechet(few, many)), "by the factor and by the root"


def test_a_jackknife_of_fewer_pictures_than_features() -> None:
    one = np.random.default_rng(4).normal(size=(45, 60))
    target = Gaussian.of(np.random.default_rng(5).normal(size=(200, 60)) + 0.2)
    interval, left = distance_interval(one, target)
    literal = [frechet(np.delete(one, np.s_[k::GROUPS], axis=0), target) for k in range(GROUPS)]
    assert left == pytest.approx(literal)
    assert interval.low is not None and interval.low < interval.value


def test_what_torchmetrics_says() -> None:
    """FrechetInceptionDistance of torchmetrics 1.9.0 with these features, in float64."""
    one, other = features(60, 3).astype(np.float64), features(70, 4, 1.0).astype(np.float64)
    assert frechet(one, other) == pytest.approx(8.659790462003535, rel=1e-9)


def test_statistics_have_the_form_of_pytorch_fid_and_clean_fid(tmp_path: Path) -> None:
    one = features(50, 5)
    np.savez_compressed(tmp_path / "x.npz", mu=one.mean(0), sigma=np.cov(one, rowvar=False))
    read = Gaussian.read(tmp_path / "x.npz", 6)
    assert frechet(features(40, 6), read) == pytest.approx(frechet(features(40, 6), one), rel=1e-5)
    Gaussian.of(one).save(tmp_path / "y.npz")
    again = Gaussian.read(tmp_path / "y.npz", 6)
    assert np.array_equal(again.covariance, Gaussian.of(one).covariance)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.npz", "y.npz"]


def test_other_files_are_no_statistics(tmp_path: Path) -> None:
    (tmp_path / "no.npz").write_text("mu")
    with pytest.raises(InputError, match="cannot be read as statistics"):
        Gaussian.read(tmp_path / "no.npz", 6)
    np.savez(tmp_path / "wide.npz", mu=np.zeros(5), sigma=np.eye(5))
    with pytest.raises(InputError, match=r"\(5,\) and sigma \(5, 5\); features here are 6 wide"):
        Gaussian.read(tmp_path / "wide.npz", 6)
    np.savez(tmp_path / "lacking.npz", mu=np.zeros(6))
    with pytest.raises(InputError, match="mu and sigma"):
        Gaussian.read(tmp_path / "lacking.npz", 6)


def test_the_jackknife_leaves_out_one_group_after_the_other() -> None:
    one, target = features(107, 7), Gaussian.of(features(500, 8, 0.3))
    interval, left = distance_interval(one, target)
    literal = [frechet(np.delete(one, np.s_[k::GROUPS], axis=0), target) for k in range(GROUPS)]
    assert left == pytest.approx(literal, rel=1e-9)
    spread = np.sqrt((GROUPS - 1) / GROUPS * ((literal - np.mean(literal)) ** 2).sum())
    quantile = scipy.stats.t.ppf(0.975, GROUPS - 1)
    assert interval.value == pytest.approx(frechet(one, target))
    assert interval.high == pytest.approx(interval.value + quantile * spread, rel=1e-4)
    assert interval.low == pytest.approx(interval.value - quantile * spread, rel=1e-4)


def test_intervals_of_distances_hold_as_often_as_they_say() -> None:
    """Over 120 draws: what is outside is 5 % in expectation; more than 13 would come once in 200."""
    target = Gaussian(np.zeros(2), np.eye(2))
    rng = np.random.default_rng(0)
    # Finite samples are further off than the distribution itself, so the truth is a mean over many.
    truth = np.mean([frechet(rng.normal(0.5, 1, (60, 2)), target) for _ in range(2000)])
    outside = 0
    for _ in range(120):
        interval, _ = distance_interval(rng.normal(0.5, 1, (60, 2)), target)
        assert interval.low is not None and interval.high is not None
        outside += not interval.low <= truth <= interval.high
    assert outside <= 13


def test_differences_are_paired() -> None:
    """What two sets have in common does not widen the interval of their difference."""
    target, one = Gaussian.of(features(500, 8, 0.3)), features(200, 9)
    near = one + 0.01
    a, a_left = distance_interval(near, target)
    b, b_left = distance_interval(one, target)
    difference = difference_interval(a.value, a_left, b.value, b_left)
    assert difference.value == pytest.approx(a.value - b.value)
    assert difference.low is not None and difference.high is not None and a.low is not None
    assert difference.high - difference.low < 0.1 * (a.value - a.low)
    assert difference_interval(b.value, b_left, b.value, b_left) == Interval(0.0, 0.0, 0.0)


def test_too_few_pictures_have_no_interval() -> None:
    interval, left = distance_interval(features(module.LEAST - 1, 9), Gaussian.of(features(50, 8)))
    assert (interval.low, interval.high, left) == (None, None, [])
    assert difference_interval(2.0, [], 1.0, []) == Interval(1.0)


def test_means_have_the_interval_of_normal_theory() -> None:
    values = np.random.default_rng(3).normal(2, 1, 400)
    interval = mean_interval(values)
    half = 1.96 * values.std(ddof=1) / np.sqrt(400)
    assert interval.value == values.mean()
    assert interval.low == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert interval.high == pytest.approx(values.mean() + half, abs=0.1 * half)
    assert mean_interval(values) == interval, "the seed is fixed"
    assert mean_interval(np.array([3.0])) == Interval(3.0)
