"""Fréchet distance of two sets of features, each taken as a Gaussian (1706.08500), with an interval.

What the features are of (Inception, the demo's classifier) does not matter here.
"""

from __future__ import annotations

import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from .._errors import InputError

__all__ = ["Gaussian", "Interval", "difference_interval", "distance_interval", "frechet"]

Float64 = NDArray[np.float64]
Features = NDArray[np.floating[Any]]

GROUPS = 20  # of the jackknife
LEAST = 2 * GROUPS  # pictures; with fewer there is no interval
# What numpy and zipfile raise for a file that is none of theirs, is cut short or has a bit that is wrong.
_BROKEN = (
    *(OSError, EOFError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, MemoryError),
    *(NotImplementedError, RuntimeError, SyntaxError, tokenize.TokenError, struct.error),
    *(zipfile.BadZipFile, zlib.error),
)
_T_97_5 = 2.0930  # Student's t at 0.975 with GROUPS - 1 degrees of freedom


@dataclass(frozen=True, slots=True)
class Interval:
    """A figure, and its 95 % interval; None where there are too few pictures for one."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Gaussian:
    """Mean (F,) and covariance (F, F) of features, float64; the latter over count − 1, as numpy's `cov`.

    factor: (F, N) with covariance = factor · factorᵀ, where there are fewer pictures than features.
    """

    mean: Float64
    covariance: Float64
    factor: Float64 | None = None

    @classmethod
    def of(cls, features: Features) -> Self:
        """Of features (N, F), N at least 2."""
        exact = np.asarray(features, np.float64)
        mean, covariance = exact.mean(0), np.atleast_2d(np.cov(exact, rowvar=False))
        few = len(exact) <= exact.shape[1]
        return cls(mean, covariance, (exact - mean).T / np.sqrt(len(exact) - 1) if few else None)

    @classmethod
    def read(cls, path: Path, width: int) -> Self:
        """Statistics as clean-fid keeps them: an .npz with `mu` (F,) and `sigma` (F, F).

        Raises InputError where the file is something else, damaged, of another width than `width`, or has
        numbers that are not finite.
        """
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
                mean, covariance = (np.asarray(stored[name], np.float64) for name in ("mu", "sigma"))
        except _BROKEN as error:
            raise InputError(
                f"{path} cannot be read as statistics ({error}); it must be an .npz with mu and sigma, "
                "as clean-fid's make_custom_stats writes"
            ) from error
        if mean.shape != (width,) or covariance.shape != (width, width):
            raise InputError(
                f"{path} has mu {mean.shape} and sigma {covariance.shape}; "
                f"features here are {width} wide, so ({width},) and ({width}, {width}) are needed"
            )
        if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
            raise InputError(
                f"{path} has a mu or sigma that is not finite, so that no distance from it is; make the "
                "statistics again"
            )
        return cls(mean, covariance)

    def save(self, path: Path) -> None:
        """Write the form that `read` reads, whole or not at all."""
        partial = path.with_name(f".{path.stem}.partial.npz")
        np.savez_compressed(partial, mu=self.mean, sigma=self.covariance)
        partial.replace(path)


class _To:
    """Distances to one Gaussian, whose root is taken once.

    |μ1 − μ2|² + tr(Σ1 + Σ2 − 2·(Σ1·Σ2)^½). The eigenvalues of Σ1·Σ2 are those of Σ2^½·Σ1·Σ2^½, and but for
    zeros those of Aᵀ·Σ2·A with Σ1 = A·Aᵀ, which is small where there are few pictures. Both are symmetric:
    eigenvalues come out real and not negative, also where a covariance has no full rank.
    """

    def __init__(self, target: Gaussian) -> None:
        self._target = target
        self._root: Float64 | None = None

    def __call__(self, one: Gaussian) -> float:
        shift = float(((one.mean - self._target.mean) ** 2).sum())
        cross = np.linalg.eigvalsh(self._product(one))
        spread = np.trace(one.covariance) + np.trace(self._target.covariance)
        return shift + float(spread - 2 * np.sqrt(cross.clip(0)).sum())

    def _product(self, one: Gaussian) -> Float64:
        if one.factor is not None:
            return np.asarray(one.factor.T @ self._target.covariance @ one.factor)
        if self._root is None:
            values, vectors = np.linalg.eigh(self._target.covariance)
            self._root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
        return np.asarray(self._root @ one.covariance @ self._root)


def frechet(one: Features, other: Features | Gaussian) -> float:
    """Fréchet distance of features (N, F) from others (M, F), or from their Gaussian."""
    target = other if isinstance(other, Gaussian) else Gaussian.of(other)
    return _To(target)(Gaussian.of(one))


def _without_groups(features: Features) -> Iterator[Gaussian]:
    """The Gaussian of all features but one group after the other; picture k is in group k mod GROUPS."""
    exact = np.asarray(features, np.float64)
    if len(exact) <= exact.shape[1]:
        for group in range(GROUPS):
            yield Gaussian.of(np.delete(exact, np.s_[group::GROUPS], axis=0))
        return
    centre = exact.mean(0)
    exact = exact - centre  # sums of squares then lose no digits
    total, products = exact.sum(0), exact.T @ exact
    for group in range(GROUPS):
        out = exact[group::GROUPS]
        count = len(exact) - len(out)
        mean = (total - out.sum(0)) / count
        yield Gaussian(mean + centre, (products - out.T @ out - count * np.outer(mean, mean)) / (count - 1))


def distance_interval(features: Features, target: Gaussian) -> tuple[Interval, list[float]]:
    """The distance of features (N, F) from a Gaussian, and the distances without each group.

    The interval is of a delete-a-group jackknife: resampling with repeats (a bootstrap) would draw fewer
    different pictures, which makes the distance itself larger. The target counts as known.
    """
    to = _To(target)
    value = to(Gaussian.of(features))
    if len(features) < LEAST:
        return Interval(value), []
    left = [to(one) for one in _without_groups(features)]
    return _jackknife(value, left), left


def difference_interval(value: float, left: list[float], base: float, base_left: list[float]) -> Interval:
    """Of the difference of two distances from one target, over the same pictures: the groups are paired."""
    if not left or len(left) != len(base_left):
        return Interval(value - base)
    return _jackknife(value - base, [a - b for a, b in zip(left, base_left, strict=True)])


def _jackknife(value: float, left: list[float]) -> Interval:
    spread = np.sqrt((GROUPS - 1) / GROUPS * ((np.array(left) - np.mean(left)) ** 2).sum())
    return Interval(value, value - _T_97_5 * float(spread), value + _T_97_5 * float(spread))
