"""What `driffusion-trt build` shows: how far it is, and what it has made."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .._errors import ModelError
from ..calibration import Calibration
from ..engines.manifest import ModelFolder
from ..engines.plans import PlanRequest
from ..engines.store import Plan
from ..export.estimate import duration
from ._console import Console, Tick

__all__ = ["Meter", "say_plans", "say_stale", "size", "summary"]


class Meter:
    """Progress in shares of the time that the whole is expected to take."""

    TOTAL = 1000

    def __init__(self, seconds: Sequence[float]) -> None:
        """seconds: the export's, then each plan's."""
        self.tick: Tick = lambda done, text: None
        self._export, self._plans = seconds[0], sum(seconds[1:])
        self._exported = 0.0
        self._of_plan: dict[str, float] = {}
        self._built = 0.0
        self._phases: dict[str, str] = {}  # in words, by the name of the request
        self._start = time.monotonic()

    def export(self, share: float, text: str) -> None:
        """Told by the export: its share, from 0 to 1, and what it does."""
        self._exported = share * self._export
        self._show(text)

    def plans(self, names: Sequence[str], seconds: Sequence[float]) -> None:
        """What is to be built, now that it is known."""
        self._of_plan = dict(zip(names, seconds, strict=True))
        self._plans = sum(seconds)

    def phase(self, request: PlanRequest, phase: str) -> None:
        """Told by a builder what it is at."""
        self._phases[request.name] = f"{request.key.network}: {phase}"  # no room for lists of targets
        self._show("; ".join(self._phases.values()))

    def plan_done(self, request: PlanRequest) -> None:
        """A plan is there."""
        self._built += self._of_plan[request.name]
        self._phases.pop(request.name, None)
        self._show("")

    def _show(self, text: str) -> None:
        share = (self._exported + self._built) / max(self._export + self._plans, 1e-9)
        passed = time.monotonic() - self._start
        # What has passed tells more than the estimate, once there is enough of it.
        left = passed * (1 - share) / share if share > 0.1 else (self._export + self._plans) - passed
        self.tick(int(self.TOTAL * min(share, 1.0)), f"{duration(left)} left  {text}")


def size(number: float) -> str:
    """Bytes for people."""
    for unit in ("B", "kB", "MB"):
        if number < 1000:
            return f"{number:.0f} {unit}" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1000
    return f"{number:.1f} GB"


def say_plans(missing: Sequence[PlanRequest], console: Console) -> None:
    """What will be built, and what that takes."""
    seconds = sum(request.cost.seconds for request in missing)
    memory = max(request.cost.memory_bytes for request in missing)
    disk = sum(request.cost.disk_bytes for request in missing)
    platforms = dict.fromkeys(str(request.key.platform) for request in missing)
    console.note(
        f"{len(missing)} plans of {'; '.join(platforms)}: {duration(seconds)}, {size(disk)} of disk, "
        f"{size(memory)} of memory"
    )


def summary(folder: ModelFolder, plans: Sequence[Plan], *, seconds: float, did: list[str]) -> dict[str, Any]:
    """The command's result for programs."""
    manifest = folder.manifest
    return {
        "folder": str(Path(folder.path)),
        "family": manifest.family,
        "precision": manifest.precision,
        "parity": manifest.parity,
        "plans": [
            {
                "path": str(plan.path),
                "network": plan.key.network if plan.key else None,
                "platform": str(plan.key.platform) if plan.key else None,
                "size_bytes": plan.size_bytes,
                **{
                    name: plan.facts[name]
                    for name in ("seconds", "peak_memory_bytes", "parity")
                    if name in plan.facts
                },
            }
            for plan in plans
        ],
        "did": did,
        "seconds": seconds,
    }


def say_stale(folder: ModelFolder, console: Console) -> None:
    """A calibration stays where it is: a build of the same network finds it again."""
    try:
        notice = Calibration.read(folder).notice
    except ModelError as error:
        notice = str(error)
    if notice:
        console.warn(notice)
