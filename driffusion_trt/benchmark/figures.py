"""Statistics of repeated measurements: percentiles, and intervals by the bootstrap (Efron, 1979)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["LEAST", "interval", "percentiles", "ratio_interval", "with_interval"]

Float64 = NDArray[np.float64]
_RESAMPLES = 4000
_LEVEL = 95.0
LEAST = (
    6  # values from which an interval is one: of fewer not even their range holds the median in 95 % of cases
)


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """p50, p90 and p99, linear between values; of n values p99 is nearly the largest where n < 100."""
    found = np.percentile(np.asarray(values, np.float64), [50, 90, 99])
    return dict(zip(("p50", "p90", "p99"), map(float, found), strict=True))


def interval(values: Sequence[float]) -> tuple[float, float] | None:
    """A 95 % interval of the median, the same for the same values; None for fewer than 6 of them."""
    if len(values) < LEAST:
        return None
    return _limits(_medians(values, 0))


def with_interval(values: Sequence[float]) -> dict[str, Any]:
    """The median and its interval: {"median", "low", "high"}, the last two None for fewer than 6 values."""
    low, high = interval(values) or (None, None)
    return {"median": float(np.median(values)), "low": low, "high": high}


def ratio_interval(
    over: Sequence[float], under: Sequence[float], *, among: int = 1
) -> tuple[float, float] | None:
    """A 95 % interval of median(over) / median(under), measured apart; None for fewer than 6 of either.

    among: how many such ratios are judged together. Each is then one of 100 − 5/among % (Bonferroni), so
    that in 95 % of such sets none of them misses its ratio.
    """
    if min(len(over), len(under)) < LEAST:
        return None
    return _limits(_medians(over, 1) / _medians(under, 2), 100 - (100 - _LEVEL) / among)


def _medians(values: Sequence[float], seed: int) -> Float64:
    """Of resamples with replacement."""
    given = np.asarray(values, np.float64)
    drawn = np.random.default_rng(seed).integers(0, len(given), (_RESAMPLES, len(given)))
    medians: Float64 = np.median(given[drawn], axis=1)
    return medians


def _limits(medians: Float64, level: float = _LEVEL) -> tuple[float, float]:
    beyond = (100 - level) / 2
    low, high = np.percentile(medians, [beyond, 100 - beyond])
    return float(low), float(high)
