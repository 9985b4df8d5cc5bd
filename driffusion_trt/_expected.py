"""How many rounds a tolerance takes, as far as calibrations tell."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from .calibration import Calibration, CalibrationWarning, Entry
from .engines.manifest import ModelFolder
from .sampling.plan import Plan
from .sampling.schedule import Schedule

__all__ = ["Expectations", "Expected"]

_FEWER = 0.8  # of the calibrated steps: with fewer ones steps are longer, and drafts further off
_STRONGER = 1.25  # times the strongest calibrated guidance


@dataclass(frozen=True, slots=True)
class Expected:
    """Rounds by lanes and tolerance: those of calibrated numbers of lanes, and between them.

    What is interpolated is how many times the fewest rounds they are. Without entries nothing is known, and
    as many rounds are expected as there are steps.

    entries: of one kind of request, by lanes, ascending. steps: of the schedule that is asked about.
    cautious: count what nine pictures of ten stay within, not the mean. basis: where this is from, in words.
    """

    entries: tuple[Entry, ...]
    steps: int
    cautious: bool
    basis: str

    def __call__(self, lanes: int, tolerance: float) -> float:
        known = [1, *(entry.lanes for entry in self.entries)]
        times = [1.0, *(self._times(entry, tolerance) for entry in self.entries)]
        if len(known) == 1:
            return self.steps
        # More lanes cost no more rounds; how many fewer they take than the most that are known is not known.
        fewest = [_fewest(self.steps, n) for n in (*known, lanes)]
        at = np.minimum.accumulate(np.multiply(fewest[:-1], times))
        above = int(np.searchsorted(known, min(lanes, known[-1])))
        between = fewest[-1] * float(np.interp(lanes, known, times))
        return float(np.clip(between, at[above], at[max(above - 1, 0)]))

    def of_plan(self, plan: Plan) -> float | None:
        """Rounds of a plan with a tolerance; None for others, whose rounds are known."""
        if plan.lanes == 1 or plan.mode != "tolerance":
            return None
        return max(self(plan.lanes, plan.asked()["tolerance"]), float(plan.sequential_calls))

    def _times(self, entry: Entry, tolerance: float) -> float:
        """How many times the fewest rounds an entry's pictures took, at the nearest tolerance measured."""
        measured = sorted(entry.spent)
        if not measured:
            return self.steps / _fewest(self.steps, entry.lanes)
        rounds = entry.most_rounds if self.cautious else entry.rounds
        took = rounds(min(max(tolerance, measured[0]), measured[-1]))
        assert took is not None
        below = tolerance < measured[0] / 2  # then it may be anything
        return (entry.steps if below else took) / _fewest(entry.steps, entry.lanes)


def _fewest(steps: int, lanes: int) -> float:
    """Rounds of a window, without rounding them up."""
    return 1 + (steps - 1) / lanes


class Expectations:
    """The calibrations of a model folder and of the bundled demo, read when they are needed first."""

    def __init__(self, folder: ModelFolder) -> None:
        self._own = cache(lambda: Calibration.read(folder))
        self._demo = cache(lambda: Calibration.read(ModelFolder.open("demo")))

    def of(self, schedule: Schedule, guidance_scale: float) -> Expected:
        """From the folder's calibration; of a solver that it does not have, from the demo's hardest pictures.

        Nothing is expected of schedules with step noises, of much fewer steps, or of much stronger guidance,
        than was calibrated.

        Raises ModelError where the folder's calibration is damaged.
        """
        own = self._own()
        if own.notice:
            warnings.warn(f"{own.notice}; it is not used", CalibrationWarning, stacklevel=6)
        steps, scale = schedule.steps, max(guidance_scale, 1.0)
        if schedule.eta:
            return Expected((), steps, False, "no drafts: of schedules with step noises nothing is known")
        mine = [entry for entry in own.entries if entry.solver == schedule.solver]
        entries = mine or list(self._demo().entries)
        hardest = max((entry.guidance_scale for entry in entries), default=1.0)
        found = _nearest(entries, steps, scale if mine else hardest)
        if not found or scale > _STRONGER * hardest:
            asked = f"{steps} steps of {schedule.solver} at guidance {guidance_scale:g}"
            return Expected(
                (),
                steps,
                False,
                f"no drafts: {asked} are beyond what driffusion-trt plan --calibrate measured",
            )
        kind = f"{found[0].steps} steps of {found[0].solver}, guidance {found[0].guidance_scale:g}"
        whose = "rounds as calibrated with" if mine else "not calibrated: rounds as the demo's hardest with"
        return Expected(found, steps, not mine, f"{whose} {kind}")


def _nearest(entries: Sequence[Entry], steps: int, guidance_scale: float) -> tuple[Entry, ...]:
    """Those of one number of steps and one guidance scale, by lanes: of no more steps than are asked about,
    but for a few; and of the nearest guidance, of two that are as near the larger."""
    fitting = [entry for entry in entries if steps >= _FEWER * entry.steps]
    if not fitting:
        return ()
    most = max(entry.steps for entry in fitting)
    order = sorted(
        (entry for entry in fitting if entry.steps == most),
        key=lambda e: (abs(e.guidance_scale - guidance_scale), -e.guidance_scale),
    )
    chosen = [entry for entry in order if entry.guidance_scale == order[0].guidance_scale]
    return tuple(sorted(chosen, key=lambda e: e.lanes))
