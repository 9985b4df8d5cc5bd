"""95 % intervals over pictures: of means by bootstrap with a fixed seed, of shares by Wilson's score."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .frechet import Interval

__all__ = ["LEAST", "mean_interval", "share_difference_interval", "share_interval"]

LEAST = 10  # values; a bootstrap of fewer says little more than their range, so that there is no interval
_Z = 1.959963984540054  # of the normal distribution, at 0.975
_RESAMPLES = 2000
_AT_ONCE = 1 << 22  # numbers drawn


def mean_interval(values: NDArray[np.floating[Any]]) -> Interval:
    """The mean of values (N,) and its percentile interval; of fewer than LEAST there is none.

    Not for shares: where all values are equal, resampling them has no width. For a difference between two
    modes give the differences picture by picture: prompts that are hard for both then do not widen it.
    """
    exact = np.asarray(values, np.float64)
    if len(exact) < LEAST:
        return Interval(float(exact.mean()))
    rng = np.random.default_rng(0)
    rows = max(1, _AT_ONCE // len(exact))
    means = np.concatenate(
        [
            rng.choice(exact, (min(rows, _RESAMPLES - at), len(exact))).mean(1)
            for at in range(0, _RESAMPLES, rows)
        ]
    )
    low, high = np.quantile(means, (0.025, 0.975))
    return Interval(float(exact.mean()), float(low), float(high))


def share_interval(right: NDArray[Any]) -> Interval:
    """The share of a yes-or-no (N,), N at least 1, with Wilson's score interval (1927).

    It has a width at 0 and at 100 % too, where a bootstrap has none.
    """
    value, low, high = _wilson(np.asarray(right, bool))
    return Interval(value, low, high)


def share_difference_interval(right: NDArray[Any], base: NDArray[Any]) -> Interval:
    """The difference of two shares of the same pictures, right (N,) minus base (N,).

    Newcombe's interval for paired shares (Statistics in Medicine 17, 1998, 2635-2650, method 10): Wilson's
    intervals of both, squared and added, less what φ, the correlation corrected for continuity, accounts for.
    """
    one, other = np.asarray(right, bool), np.asarray(base, bool)
    p1, low1, high1 = _wilson(one)
    p2, low2, high2 = _wilson(other)
    phi, value = _phi(one, other), p1 - p2
    down, up = (p1 - low1, high2 - p2), (high1 - p1, p2 - low2)
    below, above = (np.sqrt(max(0.0, a * a - 2 * phi * a * b + b * b)) for a, b in (down, up))
    return Interval(value, value - float(below), value + float(above))


def _wilson(right: NDArray[np.bool_]) -> tuple[float, float, float]:
    count, share = len(right), float(right.mean())
    middle = share + _Z**2 / (2 * count)
    half = _Z * np.sqrt(share * (1 - share) / count + _Z**2 / (4 * count**2))
    low, high = ((middle + sign * half) / (1 + _Z**2 / count) for sign in (-1, 1))
    return share, max(0.0, float(low)), min(1.0, float(high))


def _phi(one: NDArray[np.bool_], other: NDArray[np.bool_]) -> float:
    """Correlation of two yes-or-nos, if positive then nearer to 0 by N/2; 0 where one is constant."""
    count = len(one)
    both, neither = int((one & other).sum()), int((~one & ~other).sum())
    first, second = int(one.sum()), int(other.sum())
    margins = first * (count - first) * second * (count - second)
    if not margins:
        return 0.0
    product = both * neither - (first - both) * (second - both)
    corrected = max(0.0, product - count / 2) if product > 0 else product
    return float(corrected / np.sqrt(margins))
