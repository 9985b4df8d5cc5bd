"""Two runs held against each other: what changed, and what is beyond the noise."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from .._errors import InputError
from .._foreign import plain
from .._tables import aligned
from .figures import ratio_interval

__all__ = ["JUDGED", "Change", "compare", "differences", "missing", "shown"]

Interval = tuple[float, float]
JUDGED = ("speed-up", "latency")
_HEAD = (
    "mode",
    "lanes",
    "old ms",
    "new ms",
    "time, new/old",
    "speed-up, new/old",
    "drift old",
    "new",
    "verdict",
)
_SAME_DRIFT = 0.02, 1e-4  # relative and absolute: beyond rounding, the same pictures were not made


@dataclass(frozen=True, slots=True)
class Change:
    """One cell in both runs.

    time, speedup: new over old, of the medians, with intervals as `ratio_interval` has them; None where a run
    has fewer than six repetitions. drift: mean relative L2, old and new; None where it is not known. judged:
    what the verdict is of, one of `JUDGED`.
    """

    name: str
    mode: str
    lanes: int
    old_ms: float
    new_ms: float
    time: float
    time_interval: Interval | None
    speedup: float
    speedup_interval: Interval | None
    drift: tuple[float | None, float | None] = (None, None)
    judged: str = JUDGED[0]

    @property
    def is_measure(self) -> bool:
        """Whether it is sequential, judged by speed-ups: those are over it."""
        return self.judged == "speed-up" and self.name == "sequential"

    @property
    def slowness(self) -> float:
        """Of what is judged, how many times as slow the new run is."""
        return self.time if self.judged == "latency" else 1 / self.speedup

    @property
    def _limits(self) -> Interval | None:
        if self.judged == "latency" or self.speedup_interval is None:
            return self.time_interval
        low, high = self.speedup_interval
        return 1 / high, 1 / low

    @property
    def verdict(self) -> str:
        """Slower or faster where the interval of what is judged leaves out 1, else same; "?" without one."""
        if self.is_measure:
            return "–"
        if self._limits is None:
            return "?"
        low, high = self._limits
        return "slower" if low > 1 else "faster" if high < 1 else "same"

    def slower_by(self, percent: float) -> bool:
        """Whether it is slower beyond the noise, and by more than so many per cent."""
        return self.verdict == "slower" and self.slowness > 1 + percent / 100


def compare(old: Mapping[str, Any], new: Mapping[str, Any], judged: str = JUDGED[0]) -> list[Change]:
    """The cells that both have, in the new one's order. Raises InputError where there is none."""
    before = {cell["name"]: cell for cell in old["cells"]}
    both = [(before[cell["name"]], cell) for cell in new["cells"] if cell["name"] in before]
    if not both:
        raise InputError("the two runs have no mode with the same lanes in common; measure the same --modes")
    among = sum(judged == "latency" or cell["name"] != "sequential" for _, cell in both)
    return [_change(one, other, judged, max(1, among)) for one, other in both]


def _change(old: Mapping[str, Any], new: Mapping[str, Any], judged: str, among: int) -> Change:
    times = [cell["raw"]["latency_ms"] for cell in (old, new)]
    speedups = [cell["raw"]["speedup"] for cell in (old, new)]
    old_ms, new_ms = (float(np.median(one)) for one in times)
    return Change(
        new["name"],
        new["mode"],
        new["lanes"],
        old_ms,
        new_ms,
        new_ms / old_ms,
        ratio_interval(times[1], times[0], among=among),
        float(np.median(speedups[1]) / np.median(speedups[0])),
        ratio_interval(speedups[1], speedups[0], among=among),
        (_drift(old), _drift(new)),
        judged,
    )


def _drift(cell: Mapping[str, Any], pictures: int | None = None) -> float | None:
    found = cell["raw"].get("relative_l2", [])[:pictures]
    return float(np.mean(found)) if found else None


def missing(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """The names of cells that the old run has and the new one has not."""
    known = {cell["name"] for cell in new["cells"]}
    return [cell["name"] for cell in old["cells"] if cell["name"] not in known]


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What makes the two hard to compare, in words: versions, machine, model, settings, plans."""
    found = _changed("", {"version": old.get("version")}, {"version": new.get("version")})
    for section in ("machine", "versions", "model", "settings"):
        found += _changed(f"{section}: ", old[section], new[section])
    before = {cell["name"]: cell for cell in old["cells"]}
    for cell in new["cells"]:
        if (other := before.get(cell["name"])) is not None:
            found += _changed(f"plan of {cell['name']}: ", other.get("plan", {}), cell.get("plan", {}))
            found += _drifted(other, cell)
    for words, alone in (("new", missing(new, old)), ("old", missing(old, new))):
        if alone:
            found.append(f"only the {words} run has {', '.join(alone)}")
    return found


def _changed(where: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    found = []
    for name in dict.fromkeys((*before, *now)):
        if before.get(name) != now.get(name):
            pair = f"{_short(before.get(name))} then, {_short(now.get(name))} now"
            found.append(f"{where}{name.replace('_', ' ')} differs: {pair}")
    return found


def _drifted(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Of the pictures that both have: with the same prompts and seeds they would drift alike."""
    count = min(len(cell["raw"].get("relative_l2", ())) for cell in (old, new))
    before, now = _drift(old, count), _drift(new, count)
    if not count or before is None or now is None:
        return []
    relative, absolute = _SAME_DRIFT
    if abs(before - now) <= absolute + relative * max(before, now):
        return []
    return [
        f"drift of {new['name']} differs: {before:.4f} then, {now:.4f} now: the times are of other pictures"
    ]


def _short(value: object) -> str:
    return plain(json.dumps(value, ensure_ascii=False), 60)


def shown(changes: list[Change]) -> str:
    """A table with a row for each cell."""
    return aligned(_HEAD, [_row(one) for one in changes])


def _row(one: Change) -> tuple[str, ...]:
    return (
        one.mode,
        str(one.lanes),
        f"{one.old_ms:.1f}",
        f"{one.new_ms:.1f}",
        _ratio(one.time, one.time_interval),
        "" if one.is_measure else _ratio(one.speedup, one.speedup_interval),
        *("" if value is None else f"{value:.4f}" for value in one.drift),
        one.verdict,
    )


def _ratio(value: float, limits: Interval | None) -> str:
    return f"{value:.3f}" if limits is None else f"{value:.3f} ({limits[0]:.3f}–{limits[1]:.3f})"
