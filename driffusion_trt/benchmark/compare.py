"""Two runs held against each other: what changed, and what is beyond the noise."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .._errors import InputError
from .figures import ratio_interval
from .report import FORMAT, KIND
from .tables import table

__all__ = ["Change", "compare", "differences", "load", "shown"]

Interval = tuple[float, float]
_HEAD = ("mode", "lanes", "old ms", "new ms", "time, new/old (95 %)", "speed-up, new/old (95 %)", "verdict")


@dataclass(frozen=True, slots=True)
class Change:
    """One cell in both runs. time, speedup: new over old, of the medians, with 95 % intervals.

    An interval is None where a run has fewer than three repetitions.
    """

    mode: str
    lanes: int
    old_ms: float
    new_ms: float
    time: float
    time_interval: Interval | None
    speedup: float
    speedup_interval: Interval | None

    @property
    def verdict(self) -> str:
        """Slower or faster where the interval of the times leaves out 1, else same; "?" without one."""
        if self.time_interval is None:
            return "?"
        low, high = self.time_interval
        return "slower" if low > 1 else "faster" if high < 1 else "same"

    def slower_by(self, percent: float) -> bool:
        """Whether it is slower beyond the noise, and by more than so many per cent."""
        return self.verdict == "slower" and self.time > 1 + percent / 100


def load(path: str) -> dict[str, Any]:
    """A run's JSON. Raises InputError where the file cannot be read, or is none."""
    try:
        found = json.loads(Path(path).read_text("utf-8"))
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise InputError(f"{path} is no JSON ({error}); give what `bench --json` wrote") from error
    if not isinstance(found, dict) or found.get("kind") != KIND:
        raise InputError(f"{path} is no result of `driffusion-trt bench`; give what `bench --json` wrote")
    if found.get("format") != FORMAT:
        raise InputError(
            f"{path} has format {found.get('format')!r}, and this version reads {FORMAT}; measure it again"
        )
    try:
        for cell in found["cells"]:
            raw = cell["raw"]
            numbers = [*raw["latency_ms"], *raw["speedup"], cell["lanes"]]
            if not len(raw["latency_ms"]) or not all(value > 0 for value in numbers):
                raise ValueError(f"cell {cell['name']!r} has no times")
            str(cell["mode"])
        for name in ("machine", "model", "settings", "versions"):
            found[name].items()
        for name in ("date", "commit", "repetitions"):
            str(found[name])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{path} is damaged ({error!r}); measure it again") from error
    return found


def compare(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[Change]:
    """The cells that both have, in the new one's order. Raises InputError where there is none."""
    before = {cell["name"]: cell for cell in old["cells"]}
    found = [_change(before[cell["name"]], cell) for cell in new["cells"] if cell["name"] in before]
    if not found:
        raise InputError("the two runs have no mode with the same lanes in common; measure the same --modes")
    return found


def _change(old: Mapping[str, Any], new: Mapping[str, Any]) -> Change:
    times = [cell["raw"]["latency_ms"] for cell in (old, new)]
    speedups = [cell["raw"]["speedup"] for cell in (old, new)]
    old_ms, new_ms = (float(np.median(one)) for one in times)
    return Change(
        new["mode"],
        new["lanes"],
        old_ms,
        new_ms,
        new_ms / old_ms,
        ratio_interval(times[1], times[0]),
        float(np.median(speedups[1]) / np.median(speedups[0])),
        ratio_interval(speedups[1], speedups[0]),
    )


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What makes the two hard to compare, in words: machine, versions, model, settings, cells."""
    found = []
    for section in ("machine", "versions", "model", "settings"):
        before, now = old[section], new[section]
        for name in dict.fromkeys((*before, *now)):
            if before.get(name) != now.get(name):
                pair = f"{_short(before.get(name))} then, {_short(now.get(name))} now"
                found.append(f"{section}: {name.replace('_', ' ')} differs: {pair}")
    for words, one, other in (("new", new, old), ("old", old, new)):
        known = {cell["name"] for cell in other["cells"]}
        if alone := [cell["name"] for cell in one["cells"] if cell["name"] not in known]:
            found.append(f"only the {words} run has {', '.join(alone)}")
    return found


def _short(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."


def shown(changes: list[Change]) -> str:
    """A table with a row for each cell."""
    return table(_HEAD, [_row(one) for one in changes])


def _row(one: Change) -> tuple[str, ...]:
    return (
        one.mode,
        str(one.lanes),
        f"{one.old_ms:.1f}",
        f"{one.new_ms:.1f}",
        _ratio(one.time, one.time_interval),
        _ratio(one.speedup, one.speedup_interval),
        one.verdict,
    )


def _ratio(value: float, limits: Interval | None) -> str:
    return f"{value:.3f}" if limits is None else f"{value:.3f} ({limits[0]:.3f}–{limits[1]:.3f})"
