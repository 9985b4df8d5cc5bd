"""Speed-up against drift, one point for each mode and number of lanes."""

from __future__ import annotations

import importlib.util
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .._errors import MissingExtraError

__all__ = ["ENDINGS", "check_plots", "drawn", "plot"]

ENDINGS = (".svg", ".png", ".pdf")
_LINEAR = 1e-4  # relative L2 up to which the axis is linear: exact modes lie at 0
_MARKERS = "osD^vP*Xph<>"


def check_plots() -> None:
    """Raises MissingExtraError where matplotlib is not installed; it is not loaded yet."""
    if importlib.util.find_spec("matplotlib") is None:
        raise MissingExtraError("matplotlib", "bench")


def plot(found: Mapping[str, Any], path: Path) -> None:
    """Draw a run's JSON; the file, whose ending is one of `ENDINGS`, appears whole."""
    partial = path.with_name(f".{path.stem[:40]}.{secrets.token_hex(4)}{path.suffix}")
    try:
        drawn(found).savefig(partial, dpi=150)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def drawn(found: Mapping[str, Any]) -> Any:
    """The figure of a run's JSON.

    Speed-ups are medians with their 95 % intervals, drifts means of the relative L2 with the worst at the end
    of the line. Points are marked with their lanes.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot()
    cells = [cell for cell in found["cells"] if cell["name"] != "sequential"]
    modes = list(dict.fromkeys(cell["mode"] for cell in cells))
    for number, mode in enumerate(modes):
        _points(axes, [cell for cell in cells if cell["mode"] == mode], f"C{number}", _MARKERS[number % 12])
    axes.axhline(1, color="grey", linewidth=0.8)
    axes.set_xscale("symlog", linthresh=_LINEAR)
    axes.set_xlim(left=-_LINEAR / 8)  # room for the points at 0
    axes.set_xlabel("relative L2 from the sequential latents: mean, and line to the worst")
    axes.set_ylabel("speed-up over sequential: median and 95 % interval")
    model, settings = found["model"], found["settings"]
    axes.set_title(
        f"{model['family']} ({model['precision']}), {settings['steps']} steps, guidance "
        f"{settings['guidance_scale']:g}, {found['repetitions']} repetitions, {settings['devices']}",
        fontsize="medium",
    )
    if modes:
        axes.legend(fontsize="small")
    return figure


def _points(axes: Any, cells: list[Mapping[str, Any]], colour: str, marker: str) -> None:
    """One mode's, joined in the order of their lanes."""
    x = [cell["drift"]["relative_l2"]["mean"] for cell in cells]
    worst = [cell["drift"]["relative_l2"]["worst"] for cell in cells]
    y = [cell["speedup"]["median"] for cell in cells]
    low, high = ([cell["speedup"][name] for cell in cells] for name in ("low", "high"))
    down = [at - (at if limit is None else limit) for at, limit in zip(y, low, strict=True)]
    up = [(at if limit is None else limit) - at for at, limit in zip(y, high, strict=True)]
    far = [max(0.0, most - at) for at, most in zip(x, worst, strict=True)]
    spread = {"xerr": ([0.0] * len(x), far), "yerr": ([max(0.0, v) for v in down], [max(0.0, v) for v in up])}
    axes.errorbar(
        x, y, **spread, color=colour, marker=marker, linewidth=1, elinewidth=0.6, label=cells[0]["mode"]
    )
    for cell, left, height in zip(cells, x, y, strict=True):
        axes.annotate(
            f"{cell['lanes']}", (left, height), xytext=(5, 5), textcoords="offset points", fontsize="small"
        )
