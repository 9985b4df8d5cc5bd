"""The table of bench.quality: shares, distances and their intervals, from what was stored of each picture."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.progress import track

from driffusion_trt.export.demo import scenes
from driffusion_trt.export.demo.labels import IGNORED

from . import report
from .demo_quality import REAL, Checker, frechet, prompt

if TYPE_CHECKING:
    from .quality import Arrays, Cell

DRAWN = 2000  # pictures that the Fréchet distance is taken to
_RESAMPLED = 200


def report_all(
    found: Mapping[tuple[str, float, Cell], Arrays], checker: Checker, first: int, *, write: bool
) -> None:
    """Print a table for each model and guidance scale; write bench/results/quality.json.

    found: what was stored of the pictures of a model, a guidance scale and a cell; the sequential cell first.
    """
    drawn = checker(np.stack([scenes.example(k, REAL)[0] for k in range(DRAWN)]))[1]
    rows: dict[str, dict[str, list[dict[str, Any]]]] = {}
    judges: dict[tuple[str, float], Judge] = {}
    for (model, guidance, cell), got in track(found.items(), "Intervals"):
        if (model, guidance) not in judges:
            judges[model, guidance] = Judge(got, drawn, first)
        row = {"method": cell.method, "lanes": cell.lanes, **judges[model, guidance](got)}
        rows.setdefault(model, {}).setdefault(f"{guidance:g}", []).append(row)
    for model, by_guidance in rows.items():
        for scale, some in by_guidance.items():
            print(f"\n{model}, guidance {scale}, {some[0]['pictures']} pictures\n\n{as_table(some)}")
    if write:
        count = len(next(iter(found.values()))["labels"])
        result = {
            "pictures": count,
            "first_prompt": first,
            "drawn_pictures": DRAWN,
            # What as many drawn pictures have: few samples alone are a distance.
            "frechet_of_drawn_pictures": frechet(drawn[:count], drawn[count:]),
            "models": rows,
        }
        print(f"\nwritten to {report.write('quality', result)}")


class Frechet:
    """The Fréchet distance to one set of features, whose root is taken once; as `demo_quality.frechet`."""

    def __init__(self, drawn: np.ndarray) -> None:
        self._mean, covariance = drawn.mean(0), np.cov(drawn.T)
        values, vectors = np.linalg.eigh(covariance)
        self._root = vectors * np.sqrt(values.clip(0)) @ vectors.T
        self._trace = float(np.trace(covariance))

    def __call__(self, features: np.ndarray) -> float:
        mean, covariance = features.mean(0), np.cov(features.T)
        cross = np.sqrt(np.linalg.eigvalsh(self._root @ covariance @ self._root).clip(0)).sum()
        return float(((mean - self._mean) ** 2).sum() + self._trace + np.trace(covariance) - 2 * cross)


class Judge:
    """Rows of one model at one guidance scale, each beside the sequential one.

    Intervals hold 95 % of the resamples of the pictures, which are the same for all rows, so that
    differences from sequential are those of the same pictures.
    """

    def __init__(self, base: Arrays, drawn: np.ndarray, first: int) -> None:
        count = len(base["labels"])
        self._draws = np.random.default_rng(0).integers(count, size=(_RESAMPLED, count))
        self._first, self._frechet = first, Frechet(drawn)
        self._right = self._read_right(base)
        self._distances = self._resampled(base["features"])

    def _read_right(self, got: Arrays) -> np.ndarray:
        wanted = np.array([prompt(self._first + k)[1] for k in range(len(got["labels"]))])
        return ((got["labels"] == wanted) | (wanted == IGNORED)).all(1)

    def _resampled(self, features: np.ndarray) -> np.ndarray:
        """The distance of all pictures, then of every resample."""
        return np.array([self._frechet(features), *(self._frechet(features[draw]) for draw in self._draws)])

    def _interval(self, values: np.ndarray) -> list[float]:
        """Of the mean of a value of each picture."""
        return _middle(values[self._draws].mean(1))

    def __call__(self, got: Arrays) -> dict[str, Any]:
        right, distances = self._read_right(got).astype(float), self._resampled(got["features"])
        before, further = self._right.astype(float), distances - self._distances
        row = {
            "pictures": len(right),
            "calls": float(got["rounds"].mean()),
            "predictions": float(got["predictions"].mean()),
            "right": float(right.mean()),
            "right_interval": self._interval(right),
            "right_minus_sequential": float((right - before).mean()),
            "right_minus_sequential_interval": self._interval(right - before),
            "frechet": float(distances[0]),
            "frechet_minus_sequential": float(further[0]),
            "frechet_minus_sequential_interval": _middle(further[1:]),
        }
        if "relative_l2" in got:
            errors, ratios = got["relative_l2"], got["psnr_db"]
            row["relative_l2"] = {
                "mean": float(errors.mean()),
                "interval": self._interval(errors),
                "median": float(np.median(errors)),
                "worst": float(errors.max()),
            }
            row["psnr_db"] = {"mean": float(ratios.mean()), "worst": float(ratios.min())}
        return row


def _middle(values: np.ndarray) -> list[float]:
    low, high = np.quantile(values, (0.025, 0.975))
    return [float(low), float(high)]


def as_table(rows: list[dict[str, Any]]) -> str:
    """The rows as Markdown."""
    head = [
        "method",
        "n",
        "calls",
        "all right",
        "Fréchet",
        "relative L2, mean (worst)",
        "PSNR dB, mean (worst)",
    ]
    return report.table(head, [_words(row) for row in rows])


def _words(row: dict[str, Any]) -> list[str]:
    low, high = (100 * value for value in row["right_interval"])
    cells = [row["method"], str(row["lanes"]), f"{row['calls']:.4g}"]
    cells += [f"{100 * row['right']:.1f} % ({low:.1f}–{high:.1f})"]
    if "relative_l2" not in row:
        return [*cells, f"{row['frechet']:.1f}", "–", "–"]
    low, high = row["frechet_minus_sequential_interval"]
    l2, ratio = row["relative_l2"], row["psnr_db"]
    return [
        *cells,
        f"{row['frechet_minus_sequential']:+.2f} ({low:+.2f} to {high:+.2f})",
        f"{l2['mean']:.4f} ({l2['worst']:.3f})",
        f"{ratio['mean']:.1f} ({ratio['worst']:.1f})",
    ]
