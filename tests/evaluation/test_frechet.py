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
from driffusion_trt.evaluation.intervals import (
    LEAST,
    mean_interval,
    share_difference_interval,
    share_interval,
)


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
    assert mean_interval(values[: LEAST - 1]) == Interval(values[: LEAST - 1].mean())
    assert mean_interval(values[:LEAST]).low is not None


def saved(path: Path, **arrays: np.ndarray) -> Path:
    np.savez_compressed(path, **arrays)
    return path


def test_statistics_that_are_damaged_are_refused(tmp_path: Path) -> None:
    """Cut short anywhere, or with a bit that is wrong: refused, or read right where the bit says nothing."""
    one = features(50, 5).astype(np.float64)
    path = saved(tmp_path / "x.npz", mu=one.mean(0), sigma=np.cov(one, rowvar=False))
    whole = path.read_bytes()
    broken = [whole[:at] for at in range(0, len(whole), 23)]
    for at in range(len(whole)):
        flipped = bytearray(whole)
        flipped[at] ^= 1 << at % 8
        broken.append(bytes(flipped))
    refused = 0
    for data in broken:
        path.write_bytes(data)
        try:
            read = Gaussian.read(path, 6)
        except InputError:
            refused += 1
        else:
            assert np.array_equal(read.mean, one.mean(0))
    assert refused > len(broken) / 2


def test_statistics_of_another_kind_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "mu.npy", np.zeros(6))
    with pytest.raises(InputError, match=r"mu\.npy cannot be read as statistics"):
        Gaussian.read(tmp_path / "mu.npy", 6)
    for mu, sigma in ((np.full(6, np.nan), np.eye(6)), (np.zeros(6), np.full((6, 6), np.inf))):
        with pytest.raises(InputError, match="has a mu or sigma that is not finite"):
            Gaussian.read(saved(tmp_path / "nan.npz", mu=mu, sigma=sigma), 6)


@pytest.mark.parametrize("right", [0, 1, 9, 150, 199, 200])
def test_shares_have_wilsons_interval(right: int) -> None:
    got = share_interval(np.arange(200) < right)
    wanted = scipy.stats.binomtest(right, 200).proportion_ci(method="wilson")
    assert got.value == right / 200
    assert (got.low, got.high) == pytest.approx((wanted.low, wanted.high), abs=1e-9)
    assert got.low is not None and got.high is not None and got.high - got.low > 0.01


@pytest.mark.parametrize(
    ("table", "low", "high"),
    [
        ((1, 1, 7, 12), -0.507, -0.026),  # Fagerland, Lydersen and Laake 2014: airway hyper-responsiveness
        ((14, 5, 0, 22), 0.011, 0.226),  # Altman and others, Statistics with Confidence, 2000, chapter 6
        ((36, 12, 2, 0), 0.0569, 0.3404),  # Newcombe 1998, method 10
    ],
)
def test_differences_of_shares_have_newcombes_interval(
    table: tuple[int, int, int, int], low: float, high: float
) -> None:
    """table: pictures right in both, in the first alone, in the second alone, in none."""
    one = np.repeat([True, True, False, False], table)
    other = np.repeat([True, False, True, False], table)
    got = share_difference_interval(one, other)
    assert got.value == pytest.approx((table[1] - table[2]) / sum(table))
    assert got.low == pytest.approx(low, abs=0.001) and got.high == pytest.approx(high, abs=0.001)
    mirrored = share_difference_interval(other, one)
    assert mirrored.low is not None and mirrored.low == pytest.approx(-high, abs=0.001)


def test_no_share_is_known_exactly() -> None:
    for right in (np.ones(50, bool), np.zeros(50, bool), np.arange(50) % 2 == 0):
        got = share_difference_interval(right, right)
        assert got.low is not None and got.high is not None
        assert got.low < got.value == 0 < got.high


def test_intervals_of_differences_of_shares_hold_as_often_as_they_say() -> None:
    """Near 100 %, where a bootstrap has no width: over 1000 draws 5 % outside in expectation."""
    rng, outside = np.random.default_rng(1), 0
    for _ in range(1000):
        base = rng.random(100) < 0.97
        right = base & (rng.random(100) < 0.99)
        got = share_difference_interval(right, base)
        assert got.low is not None and got.high is not None
        outside += not got.low <= 0.97 * 0.99 - 0.97 <= got.high
    assert outside <= 70
