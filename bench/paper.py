"""The paper's published latencies beside the rounds of its plans: what a round must have cost there.

The figures are those of DRiffusion (2603.25872), on up to four V100s, as two public sets of reading notes of
its CVPR version copy them from its main table and from its table of comparisons. The paper's own tables could
not be had when this was written, so that rows which the notes leave out are left out here, and the steps are
those of the models' defaults in the paper's text as far as the notes name them (28 for SD3) and 50 else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import driffusion_trt as dt

from . import report

__all__ = ["PUBLISHED", "Published", "rows", "table"]


@dataclass(frozen=True, slots=True)
class Published:
    """One cell: seconds of a picture, and of the original sampler on one device; or a speed-up alone."""

    model: str
    steps: int
    mode: str
    devices: int
    speedup: float
    seconds: float | None = None
    original_seconds: float | None = None

    @property
    def measured(self) -> float:
        """The speed-up: from the seconds where there are some, with more digits."""
        if self.seconds is None or self.original_seconds is None:
            return self.speedup
        return self.original_seconds / self.seconds


PUBLISHED = (
    Published("SD2.1", 50, "conservative", 4, 2.5, 2.42, 5.96),
    Published("SD2.1", 50, "aggressive", 4, 3.6, 1.66, 5.96),
    Published("SDXL", 50, "conservative", 2, 1.5),
    Published("SDXL", 50, "aggressive", 4, 3.6),
    Published("SD3", 28, "aggressive", 3, 3.0, 3.81, 11.25),
    Published("SD3", 28, "aggressive", 4, 3.7, 3.00, 11.25),
)


def _rounds(one: Published) -> int:
    schedule = dt.Schedule.from_config({"_class_name": "DDIMScheduler", "clip_sample": False}, one.steps)
    return dt.make_plan(schedule, mode=one.mode, lanes=one.devices).sequential_calls


def rows(published: Sequence[Published] = PUBLISHED) -> list[dict[str, Any]]:
    """Rounds, the ideal, and what a round took more than a step of the original.

    overhead: of a round, as a share of a step; from a speed-up alone what its rounding leaves open, from and
    to. overhead_ms: the same in milliseconds, where seconds were published.
    """
    found = []
    for one in published:
        rounds = _rounds(one)
        ideal = one.steps / rounds
        between = (one.measured, one.measured)
        if one.seconds is None:
            between = one.speedup + 0.05, one.speedup - 0.05
        shares = [ideal / speedup - 1 for speedup in between]
        step_ms = None if one.original_seconds is None else 1e3 * one.original_seconds / one.steps
        found.append(
            {
                "model": one.model,
                "steps": one.steps,
                "mode": one.mode,
                "devices": one.devices,
                "rounds": rounds,
                "ideal_speedup": ideal,
                "published_speedup": one.measured,
                "overhead": shares,
                "step_ms": step_ms,
                "overhead_ms": None if step_ms is None else shares[0] * step_ms,
            }
        )
    return found


def table() -> str:
    """The same as Markdown."""
    head = ["model, steps", "plan", "rounds", "ideal", "published", "a round over a step"]
    lines = []
    for row in rows():
        low, high = row["overhead"]
        span = f"{100 * low:+.1f} %" if low == high else f"{100 * low:+.0f} to {100 * high:+.0f} %"
        more = (
            "" if row["overhead_ms"] is None else f" ({row['overhead_ms']:+.1f} of {row['step_ms']:.0f} ms)"
        )
        lines.append(
            [
                f"{row['model']}, {row['steps']}",
                f"{row['mode']}, {row['devices']}",
                str(row["rounds"]),
                f"{row['ideal_speedup']:.2f}",
                f"{row['published_speedup']:.2f}" if more else f"{row['published_speedup']:.1f}",
                span + more,
            ]
        )
    return report.table(head, lines)
