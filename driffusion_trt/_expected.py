"""How many rounds a tolerance takes, as far as calibrations tell."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from .calibration import Calibration, Entry
from .engines.manifest import ModelFolder
from .sampling.schedule import Schedule

__all__ = ["Expectations", "Expected"]


@dataclass(frozen=True, slots=True)
class Expected:
    """Mean rounds by lanes and tolerance: those of calibrated numbers of lanes, and between them.

    entries: of one kind of request, by lanes, ascending. steps: of the schedule that is asked about: with
        another number of them than was calibrated, rounds take as many more or fewer.
    basis: where they are from, in words.
    """

    entries: tuple[Entry, ...]
    steps: int
    basis: str

    def __call__(self, lanes: int, tolerance: float) -> float:
        """No fewer than there are steps where nothing was calibrated."""
        if not self.entries:
            return self.steps
        rounds = [self._scaled(entry, tolerance) for entry in self.entries]
        known = [1, *(entry.lanes for entry in self.entries)]
        return float(np.interp(lanes, known, [self.steps, *np.minimum.accumulate(rounds)]))

    def _scaled(self, entry: Entry, tolerance: float) -> float:
        measured = sorted(entry.spent)
        rounds = entry.rounds(min(max(tolerance, measured[0]), measured[-1])) if measured else None
        if rounds is None:
            return self.steps
        return 1 + (rounds - 1) * (self.steps - 1) / max(1, entry.steps - 1)


class Expectations:
    """The calibrations of a model folder and of the bundled demo, read when they are needed first."""

    def __init__(self, folder: ModelFolder) -> None:
        self._folder = folder
        self._read = cache(lambda: (Calibration.read(folder), Calibration.read(ModelFolder.open("demo"))))

    def of(self, schedule: Schedule, guidance_scale: float) -> Expected:
        """From the folder's calibration; where it has none of this solver, from the demo's hardest pictures.

        Entries of the nearest number of steps count, and of these of the nearest guidance scale.

        Raises ModelError where the folder's calibration is damaged.
        """
        own, demo = self._read()
        solvers = [entry for entry in own.entries if entry.solver == schedule.solver and not schedule.eta]
        found = _nearest(solvers, schedule.steps, guidance_scale)
        if found:
            one = found[0]
            kind = f"{one.steps} steps of {one.solver}, guidance {one.guidance_scale:g}"
            basis = f"rounds as calibrated with {kind}"
            return Expected(found, schedule.steps, basis)
        hardest = max((entry.guidance_scale for entry in demo.entries), default=1.0)
        basis = (
            f"rounds as the demo's at guidance {hardest:g}, since none of {schedule.solver} were calibrated"
        )
        return Expected(_nearest(demo.entries, schedule.steps, hardest), schedule.steps, basis)


def _nearest(entries: Sequence[Entry], steps: int, guidance_scale: float) -> tuple[Entry, ...]:
    """Those of one number of steps and one guidance scale, by lanes; of two that are as near the larger."""
    wanted = max(guidance_scale, 1.0)
    order = sorted(
        entries,
        key=lambda e: (abs(e.steps - steps), -e.steps, abs(e.guidance_scale - wanted), -e.guidance_scale),
    )
    kinds = [(entry.steps, entry.guidance_scale) for entry in order]
    return tuple(
        sorted((e for e, kind in zip(order, kinds, strict=True) if kind == kinds[0]), key=lambda e: e.lanes)
    )
