"""A run as tables for a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .._tables import aligned
from .report import at
from .stages import STAGES

__all__ = ["tables"]

_SPEED = ("mode", "lanes", "rounds", "p50 ms", "p90", "p99", "speed-up (95 %)", "rel. L2 mean, worst", "PSNR")
_STAGED = ("p50 ms", "lanes", *STAGES, "network/round")
_HELD = ("process memory", "lanes", "peak MB", "over sequential")


def tables(found: Mapping[str, Any]) -> str:
    """What a terminal shows: speed and drift of every cell, then its time by stage, then its memory."""
    cells = found["cells"]
    parts = [aligned(_SPEED, [_speed(cell) for cell in cells])]
    parts.append(aligned(_STAGED, [_staged(cell) for cell in cells]))
    if any(at(cell, ("memory", "process_peak_resident_bytes")) is not None for cell in cells):
        parts.append(aligned(_HELD, [_held(cell) for cell in cells]))
    for title in {title: None for cell in cells for title in at(cell, ("memory", "gpus")) or ()}:
        head = (title, "buffers, peak MB", "in use MB", "over sequential")
        parts.append(aligned(head, [_on_gpu(cell, title) for cell in cells]))
    return "\n\n".join(parts)


def _speed(cell: Mapping[str, Any]) -> tuple[str, ...]:
    times, drift = cell["latency_ms"], cell["drift"]
    exact = cell["name"] == "sequential"
    return (
        cell["mode"],
        str(cell["lanes"]),
        f"{cell['rounds']['mean']:.4g}",
        *(f"{times[name]:.1f}" for name in ("p50", "p90", "p99")),
        "" if exact else _ratio(cell["speedup"]),
        "" if exact else "{mean:.4f}, {worst:.4f}".format(**drift["relative_l2"]),
        "" if exact else _decibels(drift["psnr_db"]["mean"]),
    )


def _staged(cell: Mapping[str, Any]) -> tuple[str, ...]:
    stages = (f"{cell['stages_ms'][name]['p50']:.2f}" for name in STAGES)
    return (cell["mode"], str(cell["lanes"]), *stages, f"{cell['round_network_ms']['p50']:.2f}")


def _held(cell: Mapping[str, Any]) -> tuple[str, ...]:
    memory = cell["memory"] or {}
    more = memory.get("process_peak_resident_bytes_over_sequential")
    return (
        cell["mode"],
        str(cell["lanes"]),
        _megabytes(memory.get("process_peak_resident_bytes")),
        "" if cell["name"] == "sequential" else _megabytes(more, "+"),
    )


def _on_gpu(cell: Mapping[str, Any], title: str) -> tuple[str, ...]:
    found = at(cell, ("memory", "gpus", title)) or {}
    return (
        cell["name"],
        _megabytes(found.get("buffers_peak_bytes")),
        _megabytes(found.get("in_use_bytes")),
        _megabytes(found.get("in_use_bytes_over_sequential"), "+"),
    )


def _ratio(found: Mapping[str, Any]) -> str:
    if found["low"] is None:
        return f"{found['median']:.2f}"
    return "{median:.2f} ({low:.2f}–{high:.2f})".format(**found)


def _decibels(value: float | None) -> str:
    return "equal" if value is None else f"{value:.1f}"


def _megabytes(value: int | None, sign: str = "") -> str:
    return "" if value is None else f"{value / 1e6:{sign}.1f}"
