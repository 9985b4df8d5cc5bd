"""The table of bench.quality: shares, distances and their intervals, from what was stored of each picture."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.progress import track

from driffusion_trt.evaluation.frechet import (
    Gaussian,
    Interval,
    difference_interval,
    distance_interval,
    frechet,
)
from driffusion_trt.evaluation.heldout import REAL_PICTURES, Checker, draw_real, shown
from driffusion_trt.evaluation.intervals import mean_interval, share_difference_interval, share_interval

from . import report

if TYPE_CHECKING:
    from .drift import Arrays
    from .quality import Cell


def report_all(
    found: Mapping[tuple[str, float, Cell], Arrays],
    hashes: Mapping[str, str],
    checker: Checker,
    first: int,
    *,
    write: bool,
) -> None:
    """Print a table for each model and guidance scale; write bench/results/quality.json.

    found: what was stored of the pictures of a model, a guidance scale and a cell; the sequential cell first.
    """
    target = Gaussian.of(checker(draw_real(REAL_PICTURES)[0])[1])
    rows: dict[str, dict[str, list[dict[str, Any]]]] = {}
    judges: dict[tuple[str, float], Judge] = {}
    for (model, guidance, cell), got in track(found.items(), "Intervals"):
        if (model, guidance) not in judges:
            judges[model, guidance] = Judge(got, target, first)
        row = {"method": cell.method, "lanes": cell.lanes, **judges[model, guidance](got)}
        rows.setdefault(model, {}).setdefault(f"{guidance:g}", []).append(row)
    for model, by_guidance in rows.items():
        for scale, some in by_guidance.items():
            print(f"\n{model}, guidance {scale}, {some[0]['pictures']} pictures\n\n{as_table(some)}")
    if write:
        count = len(next(iter(found.values()))["labels"])
        others = checker(draw_real(count, REAL_PICTURES)[0])[1]
        result = {
            "pictures": count,
            "first_prompt": first,
            "model_hashes": dict(hashes),
            "drawn_pictures": REAL_PICTURES,
            # What as many other drawn pictures have: few samples alone are a distance.
            "frechet_of_drawn_pictures": frechet(others, target),
            "models": rows,
        }
        print(f"\nwritten to {report.write('quality', result)}")


class Judge:
    """Rows of one model at one guidance scale, each beside the sequential one of the same pictures."""

    def __init__(self, base: Arrays, drawn: Gaussian, first: int) -> None:
        self._first, self._drawn = first, drawn
        self._right = shown(base["labels"], first)
        self._distance, self._left = distance_interval(base["features"], drawn)

    def __call__(self, got: Arrays) -> dict[str, Any]:
        """The row; intervals are 95 % ones, and those of differences are over the pictures' pairs."""
        correct = shown(got["labels"], self._first)
        distance, left = distance_interval(got["features"], self._drawn)
        row = {
            "pictures": len(correct),
            "calls": float(got["rounds"].mean()),
            "predictions": float(got["predictions"].mean()),
            "right": _stored(share_interval(correct)),
            "right_minus_sequential": _stored(share_difference_interval(correct, self._right)),
            "frechet": _stored(distance),
            "frechet_minus_sequential": _stored(
                difference_interval(distance.value, left, self._distance.value, self._left)
            ),
        }
        if "relative_l2" in got:
            errors, ratios = got["relative_l2"], got["psnr_db"]
            row["relative_l2"] = {
                **_stored(mean_interval(errors)),
                "median": float(np.median(errors)),
                "worst": float(errors.max()),
            }
            row["psnr_db"] = {"mean": float(ratios.mean()), "worst": float(ratios.min())}
        return row


def _stored(interval: Interval) -> dict[str, float | None]:
    return {"mean": interval.value, "low": interval.low, "high": interval.high}


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
    cells = [row["method"], str(row["lanes"]), f"{row['calls']:.4g}"]
    cells.append(_interval(row["right"], "{:.1f}", 100))
    if "relative_l2" not in row:
        return [*cells, f"{row['frechet']['mean']:.1f}", "–", "–"]
    ratio = row["psnr_db"]
    return [
        *cells,
        _interval(row["frechet_minus_sequential"], "{:+.2f}"),
        l2(row),
        f"{ratio['mean']:.1f} ({ratio['worst']:.1f})",
    ]


def l2(row: dict[str, Any]) -> str:
    """A row's drift: mean, and worst."""
    return f"{row['relative_l2']['mean']:.4f} ({row['relative_l2']['worst']:.3f})"


def _interval(found: dict[str, Any], form: str, times: float = 1) -> str:
    mean, low, high = (
        "?" if found[name] is None else form.format(times * found[name]) for name in ("mean", "low", "high")
    )
    return f"{mean} ({low} to {high})"
