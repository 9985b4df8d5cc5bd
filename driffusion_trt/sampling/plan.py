"""Plans: which states are drafted, predicted and refined in which round."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass, replace
from typing import Any

from .._errors import InputError, did_you_mean
from . import window
from .carry import CARRIES
from .rounds import Round, Walk, aggressive_rounds, conservative_rounds, sequential_rounds
from .schedule import Schedule

MODES = ("sequential", "aggressive", "conservative", "window", "tolerance", "skip")
TOLERANCE = 0.01
WINDOW_LANES = 16  # sums over more predictions than these are too long for one launch on a GPU


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """How one picture is made: a schedule and its rounds.

    schedule: the schedule that is walked (for `skip` the coarse one).
    mode, lanes, steps: what was asked; `steps` is that of the schedule given.
    rounds: the rounds in order, where they are known beforehand.
    """

    schedule: Schedule
    mode: str
    lanes: int
    steps: int
    rounds: tuple[Round, ...]

    def walk(self) -> Walk:
        """Yield rounds to run; each may be answered with the round's observation.

        An executor calls `next` once, then `send(observation)` after every round. A plan
        that adapts decides its next round from that; these plans know all of theirs.
        """
        yield from self.rounds
        return None

    @property
    def sequential_calls(self) -> int:
        """Network calls that wait for one another: the number of rounds; with a tolerance the fewest."""
        return len(self.rounds)

    @property
    def model_calls(self) -> int:
        """Predictions in all, over all lanes; with a tolerance the fewest."""
        return sum(len(item.predict) for item in self.rounds)

    def expected_rounds(self, done: int, state: int) -> int:
        """How many rounds there will be, after so many that have come to this state."""
        return self.sequential_calls

    def asked(self) -> dict[str, Any]:
        """Arguments of `make_plan`, beside mode and lanes, that make this plan again."""
        return {"rounds": self.sequential_calls} if self.mode == "skip" else {}

    @property
    def ideal_speedup(self) -> float:
        """Steps over sequential calls: the speed-up if nothing but the network took time."""
        return self.steps / self.sequential_calls

    def with_lanes(self, lanes: int) -> Plan:
        """The same with other lanes; mode `skip` keeps its number of rounds.

        Raises InputError where there cannot be so many.
        """
        if self.mode == "skip":
            return replace(self, lanes=lanes)
        return make_plan(self.schedule, mode=self.mode, lanes=lanes)

    def __repr__(self) -> str:
        return (
            f"Plan(mode={self.mode!r}, lanes={self.lanes}, steps={self.steps}, "
            f"sequential_calls={self.sequential_calls}, model_calls={self.model_calls})"
        )


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class WindowPlan(Plan):
    """A plan of mode `window` or `tolerance`, whose tables depend on what the rounds show."""

    settings: window.Settings

    def walk(self) -> Walk:
        return window.walk(self.schedule, self.lanes, self.settings)

    @property
    def sequential_calls(self) -> int:
        if self.settings.strides is not None:
            return len(self.settings.strides)
        exact = self.lanes == 1 or not self.settings.tolerance
        return self.steps if exact else window.least_rounds(self.steps, self.lanes)

    @property
    def model_calls(self) -> int:
        if self.settings.strides is None:
            return self.steps
        starts = [sum(self.settings.strides[:k]) for k in range(1, len(self.settings.strides))]
        return 1 + sum(min(self.lanes, self.steps - start) for start in starts)

    def asked(self) -> dict[str, Any]:
        settings = self.settings
        own = (
            {"tolerance": settings.tolerance}
            if settings.strides is None
            else {"rounds": len(settings.strides)}
        )
        return {**own, "order": settings.order, "carry": settings.carry}

    def expected_rounds(self, done: int, state: int) -> int:
        if self.settings.strides is not None:
            return self.sequential_calls
        ahead = self.lanes if self.settings.tolerance else 1
        return done + math.ceil((self.steps - state) / ahead)

    def with_lanes(self, lanes: int) -> Plan:
        asked = self.asked()
        if "rounds" in asked:
            asked["rounds"] = max(asked["rounds"], window.least_rounds(self.steps, lanes))
        return make_plan(self.schedule, mode=self.mode, lanes=lanes, **asked)


def make_plan(
    schedule: Schedule,
    *,
    mode: str = "sequential",
    lanes: int = 1,
    rounds: int | None = None,
    order: int | str = "auto",
    carry: str = "auto",
    tolerance: float | None = None,
) -> Plan:
    """Plan the sampling of one schedule.

    schedule: noise levels and timesteps, `Schedule.from_config(...)`.
    mode: `sequential`, the scheduler as it is; `aggressive` or `conservative`, the two
        modes of DRiffusion (2603.25872, section 3); `window`, overlapping drafts in any number of
        rounds; `tolerance`, the same in as many rounds as the picture needs; `skip`, the same
        scheduler with only `rounds` steps, the baseline that spends as many sequential calls.
    lanes: noises that can be predicted at once, the paper's n; at least 1, and in `window` and
        `tolerance` at most 16.
    rounds: for `skip` and `window` only; by default as many as `aggressive` needs with these lanes.
    order: of the extrapolation in `window` and `tolerance`: 0, 1 or 2; "auto" is 1, and 0 for
        schedules with step noises.
    carry: what `window` and `tolerance` carry from a draft to other states: "G" = ε̂ − x̂0, or "x0";
        "auto" is G for `window` and x0 for `tolerance`.
    tolerance: for mode `tolerance`: how far a draft that is used may be from the refined state, as a
        share of the state, by default 0.01; 0 is sequential, to the bit. docs/method.md section 4.

    Raises InputError for an unknown mode, or numbers that cannot be.
    """
    if not isinstance(mode, str):
        raise InputError(f"mode must be one of {', '.join(MODES)}, not {mode!r}")
    if mode not in MODES:
        raise InputError(f"there is no mode {mode!r}{did_you_mean(mode, MODES)}")
    _whole("lanes", lanes, 1, None)
    if rounds is not None and mode not in ("skip", "window"):
        why = "takes as many as the picture needs" if mode == "tolerance" else "has a fixed number"
        raise InputError(f"rounds={rounds!r} was given, but mode {mode!r} {why}; leave it out")
    if mode in ("window", "tolerance"):
        return _window_plan(schedule, mode, lanes, rounds, order, carry, tolerance)
    for name, given in (("order", order), ("carry", carry), ("tolerance", tolerance)):
        if given is not None and not _auto(given):
            raise InputError(f"{name}={given!r} was given; it goes with mode 'window' or 'tolerance'")
    steps = schedule.steps
    if mode == "skip":
        count = rounds if rounds is not None else window.least_rounds(steps, lanes)
        _whole("rounds", count, 1, steps)
        schedule = schedule.with_steps(count)
        return Plan(schedule, mode, lanes, steps, sequential_rounds(schedule))
    if lanes == 1:  # every mode is then the scheduler itself
        built = sequential_rounds(schedule)
    elif mode == "aggressive":
        built = aggressive_rounds(schedule, lanes)
    elif mode == "conservative":
        built = conservative_rounds(schedule, lanes)
    else:
        built = sequential_rounds(schedule)
    return Plan(schedule, mode, lanes, steps, built)


def _window_plan(
    schedule: Schedule,
    mode: str,
    lanes: int,
    rounds: int | None,
    order: int | str,
    carry: str,
    tolerance: float | None,
) -> Plan:
    steps = schedule.steps
    if lanes > WINDOW_LANES:
        raise InputError(
            f"lanes={lanes} was asked; mode {mode!r} takes {WINDOW_LANES} at most: more are of no use to it"
        )
    if _auto(order):
        order = 0 if schedule.eta else 1
    if not isinstance(order, int) or isinstance(order, bool) or order not in (0, 1, 2):
        raise InputError(f"order must be 0, 1, 2 or 'auto', not {order!r}")
    if _auto(carry):
        carry = "x0" if mode == "tolerance" else "G"
    if not isinstance(carry, str) or carry not in CARRIES:
        raise InputError(f"carry must be one of {', '.join(CARRIES)} or 'auto', not {carry!r}")
    if mode == "tolerance":
        settings = window.Settings(carry, order, None, _tolerance(tolerance))
        return WindowPlan(schedule, mode, lanes, steps, (), settings)
    if tolerance is not None:
        raise InputError(f"tolerance={tolerance!r} was given; it goes with mode 'tolerance'")
    least = window.least_rounds(steps, lanes)
    count = least if rounds is None else rounds
    _whole("rounds", count, least, steps)
    strides = window.strides(steps, count, short_last=schedule.solver == "flow" and count == least)
    return WindowPlan(schedule, mode, lanes, steps, (), window.Settings(carry, order, strides))


def _auto(given: object) -> bool:
    """By type first: an array compares with a text element by element."""
    return isinstance(given, str) and given == "auto"


def _tolerance(given: object) -> float:
    if given is None:
        return TOLERANCE
    if isinstance(given, bool) or not isinstance(given, int | float) or not 0 <= given <= sys.float_info.max:
        raise InputError(f"tolerance must be a number of at least 0, not {given!r}")
    return float(given)


def default_lanes(devices: int, steps: int) -> int:
    """Lanes where nobody asked for a number: 2, or one for every 10 steps, but no more than 4.

    Drafts reach as far ahead as there are lanes: with 16 lanes and 50 steps the aggressive
    mode has 5 rounds left, and the picture little to do with the sequential one.
    """
    return min(devices, max(2, min(4, steps // 10)))


def _whole(name: str, value: object, least: int, most: int | None) -> None:
    span = f"at least {least}" if most is None else f"from {least} to {most}"
    if isinstance(value, bool) or not isinstance(value, int):
        raise InputError(f"{name} must be a whole number {span}, not {value!r}")
    if value < least or (most is not None and value > most):
        raise InputError(f"{name}={value} was asked; it must be {span}")
