"""Recorded calls as a trace for Perfetto or chrome://tracing (the Trace Event Format's JSON)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..sampling.recording import HOST, LEAD, Recorder

__all__ = ["trace"]


def trace(recorders: Mapping[str, Recorder]) -> dict[str, Any]:
    """The spans of one call under each name: a process each, with a thread for every track.

    Times are microseconds from the first span of each; complete events ("ph": "X") nest by their times.
    """
    events: list[dict[str, Any]] = []
    for pid, (name, recorder) in enumerate(recorders.items(), 1):
        events += _process(pid, name, recorder)
    return {"traceEvents": events, "displayTimeUnit": "ms"}


def _process(pid: int, name: str, recorder: Recorder) -> list[dict[str, Any]]:
    first = min((one.start_s for one in recorder.spans), default=0.0)
    tracks = sorted({one.track for one in recorder.spans}, key=_order)
    events = [_named("process_name", pid, 0, name)]
    for tid, track in enumerate(tracks, 1):
        events.append(_named("thread_name", pid, tid, track))
        events.append(
            {"ph": "M", "name": "thread_sort_index", "pid": pid, "tid": tid, "args": {"sort_index": tid}}
        )
    for one in recorder.spans:
        # Whole nanoseconds: a span then ends within the one around it, however times are rounded.
        start_ns, end_ns = (round(1e9 * (at - first)) for at in (one.start_s, one.end_s))
        args = {**({"round": one.round} if one.round else {}), **one.facts}
        events.append(
            {
                "ph": "X",
                "name": one.name,
                "cat": "driffusion",
                "pid": pid,
                "tid": tracks.index(one.track) + 1,
                "ts": start_ns / 1e3,
                "dur": (end_ns - start_ns) / 1e3,
                "args": args,
            }
        )
    return events


def _named(kind: str, pid: int, tid: int, name: str) -> dict[str, Any]:
    return {"ph": "M", "name": kind, "pid": pid, "tid": tid, "args": {"name": name}}


def _order(track: str) -> tuple[int, float]:
    """Host, lead, then the lanes by their numbers."""
    if track in (HOST, LEAD):
        return (HOST, LEAD).index(track), 0.0
    return 2, float(track.removeprefix("lane "))
