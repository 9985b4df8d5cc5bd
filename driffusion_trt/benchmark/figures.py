"""Statistics of repeated measurements: percentiles, and intervals by the bootstrap (Efron, 1979)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["interval", "percentiles", "ratio_interval", "with_interval"]

Float64 = NDArray[np.float64]
_RESAMPLES = 4000
_LEVEL = 95.0
_LEAST = 3  # values from which an interval says anything


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """p50, p90 and p99, linear between values; of n values p99 is nearly the largest where n < 100."""
    found = np.percentile(np.asarray(values, np.float64), [50, 90, 99])
    return dict(zip(("p50", "p90", "p99"), map(float, found), strict=True))


def interval(values: Sequence[float]) -> tuple[float, float] | None:
    """A 95 % interval of the median, the same for the same values; None for fewer than 3 of them."""
    if len(values) < _LEAST:
        return None
    return _limits(_medians(values, 0))


def with_interval(values: Sequence[float]) -> dict[str, Any]:
    """The median and its interval: {"median", "low", "high"}, the last two None for fewer than 3 values."""
    low, high = interval(values) or (None, None)
    return {"median": float(np.median(values)), "low": low, "high": high}


def ratio_interval(over: Sequence[float], under: Sequence[float]) -> tuple[float, float] | None:
    """A 95 % interval of median(over) / median(under), measured apart; None for fewer than 3 of either."""
    if min(len(over), len(under)) < _LEAST:
        return None
    return _limits(_medians(over, 1) / _medians(under, 2))


def _medians(values: Sequence[float], seed: int) -> Float64:
    """Of resamples with replacement."""
    given = np.asarray(values, np.float64)
    drawn = np.random.default_rng(seed).integers(0, len(given), (_RESAMPLES, len(given)))
    medians: Float64 = np.median(given[drawn], axis=1)
    return medians


def _limits(medians: Float64) -> tuple[float, float]:
    beyond = (100 - _LEVEL) / 2
    low, high = np.percentile(medians, [beyond, 100 - beyond])
    return float(low), float(high)
