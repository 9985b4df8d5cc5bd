"""95 % intervals of means over pictures, by bootstrap with a fixed seed."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .frechet import Interval

__all__ = ["mean_interval"]

_RESAMPLES = 2000
_AT_ONCE = 1 << 22  # numbers drawn


def mean_interval(values: NDArray[np.floating[Any]]) -> Interval:
    """The mean of values (N,) and its percentile interval; of one picture there is none.

    For a difference between two modes give the differences picture by picture: prompts that are hard for
    both then do not widen it.
    """
    exact = np.asarray(values, np.float64)
    if len(exact) < 2:
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
