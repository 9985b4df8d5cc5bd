"""Results of measurements with what makes them comparable: date, commit, machine, versions."""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from driffusion_trt._machine import circumstances

RESULTS = Path(__file__).parent / "results"


def write(name: str, result: Mapping[str, Any], packages: Iterable[str] = ("numpy", "onnxruntime")) -> Path:
    """Write `bench/results/<name>.json`, whole or not at all; returns its path."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    partial = path.with_suffix(".partial")
    partial.write_text(
        json.dumps({**circumstances(Path(__file__).parent, packages), **result}, indent=1) + "\n"
    )
    os.replace(partial, path)
    return path


def read(name: str) -> Any:
    """The result of this name. Raises FileNotFoundError where there is none."""
    return json.loads((RESULTS / f"{name}.json").read_text("utf-8"))


def where(found: Mapping[str, Any]) -> str:
    """Of a result: the machine, the day and the commit."""
    machine = found["machine"]
    return f"{machine['processor']}, {machine['cores']} cores, {found['date'][:10]}, commit {found['commit']}"


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median and quartiles: what a noisy machine lets one say."""
    if len(values) == 1:
        return {"median": values[0], "low": values[0], "high": values[0]}
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return {"median": middle, "low": low, "high": high}


def words(spread: Mapping[str, float] | None, form: str = ".2f") -> str:
    """A median with its quartiles; "-" where there is none."""
    if spread is None:
        return "-"
    return f"{spread['median']:{form}} ({spread['low']:{form}}–{spread['high']:{form}})"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    lines += [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join(lines)
