"""The third stage: figures as a table for a terminal, as JSON with their circumstances, and as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .._machine import circumstances
from .._tables import aligned
from .intervals import LEAST, mean_interval
from .kept import Reported
from .making import MOST_PSNR_DB, SEQUENTIAL, Row
from .metrics import Metric
from .scoring import Figure, plain
from .work import RowFolder

__all__ = ["as_csv", "as_json", "as_tables", "row_facts"]

_PACKAGES = ("driffusion-trt", "numpy", "onnxruntime", "pillow", "torch", "transformers")


def row_facts(row: Row, folder: RowFolder, count: int, scores: dict[str, Figure], drift: bool) -> Figure:
    """One row: its options, the calls that its pictures took, its figures."""
    records = [folder.records[index] for index in range(count)]
    calls = np.array([record["calls"] for record in records])
    return {
        "name": row.name,
        **row.asked,
        "pictures": count,
        "calls": {"mean": float(calls.mean()), "most": int(calls.max())},
        "predictions": float(np.mean([record["predictions"] for record in records])),
        "metrics": {**(_drift(records) if drift else {}), **scores},
    }


def _drift(records: Sequence[dict[str, Any]]) -> dict[str, Figure]:
    """Distances from the sequential pictures; in the mean PSNR, equal pictures count as MOST_PSNR_DB."""
    found = {}
    for name, worst in (("relative_l2", max), ("psnr_db", min)):
        values = np.array([record[name] for record in records])
        found[name] = {**plain(mean_interval(values)), "worst": float(worst(values))}
    equal = [record["psnr_db"] >= MOST_PSNR_DB for record in records]
    found["psnr_db"]["equal_pictures"] = sum(equal)
    return found


def as_json(
    settings: dict[str, Any],
    metrics: Sequence[Metric],
    rows: Sequence[Figure],
    drift: bool,
    reported: Reported,
) -> dict[str, Any]:
    """Everything, with what makes it comparable, and what was reported before of as many pictures."""
    columns: dict[str, dict[str, Any]] = {}
    if drift:
        columns = {"relative_l2": {"better": "lower"}, "psnr_db": {"better": "higher"}}
    for metric in metrics:
        columns[metric.name] = {
            "title": metric.title,
            "better": metric.better,
            "digits": metric.digits,
            "key": metric.key,
            **_reference(metric),
            **metric.facts,
        }
    return {
        **circumstances(Path(__file__).parent, _PACKAGES),
        "settings": settings,
        "intervals": f"95 %: bootstrap over pictures for means, of {LEAST} or more; Wilson's score for "
        "shares, and Newcombe's of pairs for their differences; a jackknife of 20 groups for distances; "
        f"differences are from {SEQUENTIAL} with the same prompts and seeds (from {settings['seed']} on)",
        **reported.added_to(columns, rows),
    }


def _reference(metric: Metric) -> dict[str, str]:
    if metric.reference is None:
        return {}
    digest = metric.reference.digest
    return {"reference": metric.reference.name, **({"reference_key": digest} if digest else {})}


def as_csv(rows: Sequence[Figure]) -> str:
    """A line for each row and metric."""
    out = io.StringIO()
    table = csv.writer(out, lineterminator="\n")
    head = ["row", "mode", "lanes", "pictures", "calls", "metric", "value", "low", "high", "worst"]
    table.writerow([*head, "difference", "difference_low", "difference_high"])
    for row in rows:
        for name, figure in row["metrics"].items():
            difference = figure.get("difference", {})
            line = [row["name"], row["mode"], row["lanes"], row["pictures"], row["calls"]["mean"], name]
            line += [figure[key] for key in ("value", "low", "high")] + [figure.get("worst")]
            table.writerow([*line, *(difference.get(key) for key in ("value", "low", "high"))])
    return out.getvalue()


def as_tables(columns: Mapping[str, dict[str, Any]], rows: Sequence[Figure]) -> str:
    """Values, then differences from sequential, each with its interval; – where a row has no such figure."""
    arrows = {"higher": "↑", "lower": "↓"}
    scored = {name: column for name, column in columns.items() if "title" in column}
    titles = [f"{column['title']} {arrows[column['better']]}" for column in scored.values()]
    drift = "psnr_db" in columns
    head = ["mode", "calls", *(["rel. L2 (worst)", "PSNR dB (worst)"] if drift else []), *titles]
    values, differences = [head], [["difference from sequential", *titles]]
    for row in rows:
        figures = row["metrics"]
        line = [row["name"], _calls(row), *(_drift_cells(row) if drift else [])]
        line += [_spread(figures.get(name), column["digits"]) for name, column in scored.items()]
        values.append(line)
        if row["name"] != SEQUENTIAL:
            apart = [
                _spread(figures.get(name, {}).get("difference"), column["digits"], sign="+")
                for name, column in scored.items()
            ]
            differences.append([row["name"], *apart])
    tables = [values] + ([differences] if scored and len(differences) > 1 else [])
    return "\n\n".join(aligned(head, body) for head, *body in tables)


def _drift_cells(row: Figure) -> list[str]:
    if row["name"] == SEQUENTIAL:
        return ["–", "–"]
    error, ratio = row["metrics"]["relative_l2"], row["metrics"]["psnr_db"]
    equal = ratio["equal_pictures"] == row["pictures"]
    return [_worst(error, 4, 3), "equal" if equal else _worst(ratio, 1, 1)]


def _calls(row: Figure) -> str:
    mean, most = row["calls"]["mean"], row["calls"]["most"]
    return str(most) if mean == most else f"{mean:.1f}"


def _worst(figure: Figure, digits: int, worst_digits: int) -> str:
    return f"{figure['value']:.{digits}f} ({figure['worst']:.{worst_digits}f})"


def _spread(figure: Figure | None, digits: int, sign: str = "") -> str:
    if figure is None:
        return "–"
    numbers = [figure[name] for name in ("value", "low", "high") if figure[name] is not None]
    value, *ends = (f"{number:{sign}.{digits}f}" for number in numbers)
    return value if not ends else f"{value} [{ends[0]}, {ends[1]}]"
