"""What earlier runs on a work folder made and reported, so that a later one adds to it."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .making import Row
from .scoring import Figure
from .work import RowFolder, Work

__all__ = ["Reported", "other_rows"]

DRIFT = ("relative_l2", "psnr_db")  # made anew of the records, whatever was reported of it


def other_rows(
    work: Work, asked: Collection[str], count: int, batch_size: int
) -> tuple[list[tuple[Row, RowFolder]], list[str]]:
    """Rows that are there and were not asked for: those with all `count` pictures, and the names of others.

    Raises InputError or ModelError where the records of one are damaged.
    """
    whole, short = [], []
    for name, options in work.rows().items():
        if name in asked:
            continue
        folder = RowFolder(work.folder / name)
        if folder.missing(count, batch_size):
            short.append(name)
            continue
        given = {key: value for key, value in options.items() if key not in ("mode", "lanes")}
        whole.append((Row(name, options["mode"], options["lanes"], given), folder))
    return whole, short


@dataclass(frozen=True, slots=True)
class Reported:
    """What results.json had: a column for each metric, and figures by row and metric.

    other: the metrics that it had of another number of pictures, whose figures are left behind.
    """

    columns: dict[str, dict[str, Any]] = field(default_factory=dict)
    figures: dict[str, dict[str, Figure]] = field(default_factory=dict)
    other: tuple[str, ...] = ()

    @classmethod
    def read(cls, path: Path, count: int) -> Reported:
        """Of `count` pictures; nothing where there is no results.json, or one that is damaged."""
        try:
            data = json.loads(path.read_text("utf-8"))
            columns = {str(name): dict(column) for name, column in data["metrics"].items()}
            rows = {str(row["name"]): (row["pictures"], dict(row["metrics"])) for row in data["rows"]}
            figures = {name: metrics for name, (pictures, metrics) in rows.items() if pictures == count}
            shown = {name for _, metrics in rows.values() for name in metrics if name in columns}
        except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
            return cls()
        there = {name for metrics in figures.values() for name in metrics}
        other = tuple(name for name in columns if name in shown - there and name not in DRIFT)
        return cls(columns, figures, other)

    @property
    def drift(self) -> bool:
        """Whether distances from sequential were shown."""
        return DRIFT[0] in self.columns

    def added_to(self, columns: Mapping[str, dict[str, Any]], rows: Sequence[Figure]) -> dict[str, Any]:
        """New columns and rows with the figures that only results.json has: {"metrics": …, "rows": …}.

        Figures of one column have to be of the same weights and reference.
        """
        kept = [
            name
            for name, column in self.columns.items()
            if name not in DRIFT and columns.get(name, column) == column
        ]
        found = []
        for row in rows:
            old = self.figures.get(row["name"], {})
            both = {**{name: old[name] for name in kept if name in old}, **row["metrics"]}
            order = [*columns, *(name for name in kept if name not in columns)]
            found.append({**row, "metrics": {name: both[name] for name in order if name in both}})
        shown = {name for row in found for name in row["metrics"]}
        more = {name: self.columns[name] for name in kept if name in shown and name not in columns}
        return {"metrics": {**columns, **more}, "rows": found}
