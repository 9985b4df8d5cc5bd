"""Plans: which states are drafted, predicted and refined in which round."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from .._errors import InputError, did_you_mean
from . import window
from .blocks import checked_blocks
from .carry import CARRIES
from .checks import check_tolerance, check_whole, is_auto
from .places import Places
from .rounds import Round, Walk, aggressive_rounds, conservative_rounds, sequential_rounds
from .schedule import Schedule

BASELINES = ("skip", "paradigms")  # what the other modes are to be compared with
MODES = ("sequential", "aggressive", "conservative", "window", "tolerance", *BASELINES)
WINDOW_LANES = 16  # sums over more predictions than these are too long for one launch on a GPU


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """How one picture is made: a schedule and its rounds.

    schedule: the schedule that is walked (for `skip` the coarse one).
    mode, lanes, steps: what was asked; `steps` is that of the schedule given.
    rounds: the rounds in order, where they are known beforehand.
    blocks: solver steps of each round after the first, where they were given.
    """

    schedule: Schedule
    mode: str
    lanes: int
    steps: int
    rounds: tuple[Round, ...]
    blocks: tuple[int, ...] | None = field(default=None, kw_only=True)

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
        if self.mode == "skip":
            return {"rounds": self.sequential_calls}
        return {} if self.blocks is None else {"blocks": list(self.blocks)}

    @property
    def ideal_speedup(self) -> float:
        """Steps over sequential calls: the speed-up if nothing but the network took time."""
        return self.steps / self.sequential_calls

    def with_lanes(self, lanes: int) -> Plan:
        """The same with other lanes: mode `skip` keeps its number of rounds, others their blocks if they fit.

        Raises InputError where there cannot be so many.
        """
        if self.mode == "skip":
            return replace(self, lanes=lanes)
        return make_plan(self.schedule, mode=self.mode, lanes=lanes, blocks=self._fitting(lanes))

    def _fitting(self, lanes: int) -> tuple[int, ...] | None:
        return None if self.blocks is None or max(self.blocks, default=1) > lanes else self.blocks

    def __repr__(self) -> str:
        return (
            f"Plan(mode={self.mode!r}, lanes={self.lanes}, steps={self.steps}, "
            f"sequential_calls={self.sequential_calls}, model_calls={self.model_calls})"
        )


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class WindowPlan(Plan):
    """A plan of mode `window` or `tolerance`, whose tables depend on what the rounds show.

    Those that do not are kept: a plan makes many pictures.
    """

    settings: window.Settings
    _places: Places = field(init=False, repr=False, default_factory=Places)

    def walk(self) -> Walk:
        return window.walk(self.schedule, self.lanes, self.settings, self._places)

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
        own: dict[str, Any] = {"tolerance": settings.tolerance}
        if settings.most is not None:
            own["rounds"] = settings.most
        if settings.strides is not None:
            # Not the number of rounds: which strides it stands for depends on the model's calibration.
            own = {"blocks": list(settings.strides[1:])}
        return {**own, "order": settings.order, "carry": settings.carry}

    def expected_rounds(self, done: int, state: int) -> int:
        if self.settings.strides is not None:
            return self.sequential_calls
        ahead = self.lanes if self.settings.tolerance else 1
        return done + math.ceil((self.steps - state) / ahead)

    def with_lanes(self, lanes: int) -> Plan:
        asked = self.asked()
        if asked.pop("blocks", None) is not None:
            asked["blocks"] = self._fitting(lanes)
            if asked["blocks"] is None:
                asked["rounds"] = self.sequential_calls
        if asked.get("rounds") is not None:
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
    blocks: Sequence[int] | None = None,
) -> Plan:
    """Plan the sampling of one schedule.

    schedule: noise levels and timesteps, `Schedule.from_config(...)`.
    mode: `sequential`, the scheduler as it is; `aggressive` or `conservative`, the two
        modes of DRiffusion (2603.25872, section 3); `window`, overlapping drafts in any number of
        rounds; `tolerance`, the same in as many rounds as the picture needs. Baselines: `skip`, the same
        scheduler with only `rounds` steps; `paradigms`, Picard iterations over a window (2305.16317), in
        a number of `rounds`, or in as many as the `tolerance` needs.
    lanes: noises that can be predicted at once, the paper's n; at least 1, and in `window` and
        `tolerance` at most 16.
    rounds: for `skip` and `window`, by default as many as `aggressive` needs with these lanes; for
        `tolerance` the most that there may be: where they run out, drafts are used that were not near;
        for `paradigms` in place of a tolerance.
    order: of the extrapolation in `window` and `tolerance`: 0, 1 or 2; "auto" is 1, and 0 for
        schedules with step noises.
    carry: what `window` and `tolerance` carry from a draft to other states: "G" = ε̂ − x̂0, or "x0";
        "auto" is G for `window` and x0 for `tolerance`.
    tolerance: for mode `tolerance`: how far a draft that is used may be from the refined state, as a
        share of the state, by default 0.01; 0 is sequential, to the bit. docs/method.md section 4. For
        `paradigms`: how much a state may change in an iteration, as a share of the step's noise, by
        default 0.1; 0 is sequential, within rounding. Section 8.
    blocks: for modes `window` and `aggressive`, in place of `rounds`: solver steps that each round after
        the first takes, which in `aggressive` are the drafts it predicts at. Each is from 1 to `lanes`,
        and they sum to the steps less 1, since the first round has nothing to draft with.

    Raises InputError for an unknown mode, or numbers that cannot be.
    """
    _check_mode(mode)
    check_whole("lanes", lanes, 1, None)
    if rounds is not None and mode in ("sequential", "aggressive", "conservative"):
        raise InputError(f"rounds={rounds!r} was given, but mode {mode!r} has a fixed number; leave it out")
    blocks = None if blocks is None else _own_blocks(schedule, mode, lanes, rounds, blocks)
    if mode in ("window", "tolerance"):
        return _window_plan(schedule, mode, lanes, rounds, order, carry, tolerance, blocks)
    for name, given in (("order", order), ("carry", carry)):
        if given is not None and not is_auto(given):
            raise InputError(f"{name}={given!r} was given; it goes with mode 'window' or 'tolerance'")
    if mode == "paradigms":
        from .paradigms import paradigms_plan  # which is built on what is here

        return paradigms_plan(schedule, lanes, rounds, tolerance)
    if tolerance is not None:
        raise InputError(f"tolerance={tolerance!r} was given; it goes with mode 'tolerance' or 'paradigms'")
    if mode == "skip":
        return _skip_plan(schedule, lanes, rounds)
    built = _rounds_of(schedule, mode, lanes, blocks)
    return Plan(schedule, mode, lanes, schedule.steps, built, blocks=blocks)


def _skip_plan(schedule: Schedule, lanes: int, rounds: int | None) -> Plan:
    count = rounds if rounds is not None else window.least_rounds(schedule.steps, lanes)
    check_whole("rounds", count, 1, schedule.steps)
    coarse = schedule.with_steps(count)
    return Plan(coarse, "skip", lanes, schedule.steps, sequential_rounds(coarse))


def _check_mode(mode: object) -> None:
    if not isinstance(mode, str):
        raise InputError(f"mode must be one of {', '.join(MODES)}, not {mode!r}")
    if mode not in MODES:
        raise InputError(f"there is no mode {mode!r}{did_you_mean(mode, MODES)}")


def _rounds_of(schedule: Schedule, mode: str, lanes: int, blocks: Sequence[int] | None) -> tuple[Round, ...]:
    if lanes > 1 and mode == "aggressive":
        return aggressive_rounds(schedule, lanes, blocks)
    if lanes > 1 and mode == "conservative":
        return conservative_rounds(schedule, lanes)
    return sequential_rounds(schedule)  # with one lane every mode is the scheduler itself


def _own_blocks(
    schedule: Schedule, mode: str, lanes: int, rounds: int | None, blocks: Sequence[int]
) -> tuple[int, ...]:
    if mode not in ("window", "aggressive"):
        raise InputError(f"blocks={blocks!r} was given; it goes with mode 'window' or 'aggressive'")
    if rounds is not None:
        raise InputError(f"rounds={rounds!r} and blocks were given; the blocks are the rounds, leave one out")
    return checked_blocks(blocks, schedule.steps, lanes)


def _window_plan(
    schedule: Schedule,
    mode: str,
    lanes: int,
    rounds: int | None,
    order: int | str,
    carry: str,
    tolerance: float | None,
    blocks: tuple[int, ...] | None,
) -> Plan:
    steps = schedule.steps
    if lanes > WINDOW_LANES:
        raise InputError(
            f"lanes={lanes} was asked; mode {mode!r} takes {WINDOW_LANES} at most: more are of no use to it"
        )
    if is_auto(order):
        order = 0 if schedule.eta else 1
    if not isinstance(order, int) or isinstance(order, bool) or order not in (0, 1, 2):
        raise InputError(f"order must be 0, 1, 2 or 'auto', not {order!r}")
    if is_auto(carry):
        carry = "x0" if mode == "tolerance" else "G"
    if not isinstance(carry, str) or carry not in CARRIES:
        raise InputError(f"carry must be one of {', '.join(CARRIES)} or 'auto', not {carry!r}")
    if mode == "tolerance":
        allowed, least = check_tolerance(tolerance), window.least_rounds(steps, lanes)
        if rounds is not None:
            check_whole("rounds", rounds, least if allowed else steps, steps)
        settings = window.Settings(carry, order, None, allowed, rounds)
        return WindowPlan(schedule, mode, lanes, steps, (), settings)
    if tolerance is not None:
        raise InputError(f"tolerance={tolerance!r} was given; it goes with mode 'tolerance'")
    strides = strides_of(schedule, lanes, rounds) if blocks is None else (1, *blocks)
    settings = window.Settings(carry, order, strides)
    return WindowPlan(schedule, mode, lanes, steps, (), settings, blocks=strides[1:])


def strides_of(schedule: Schedule, lanes: int, rounds: int | None) -> tuple[int, ...]:
    """Steps of each round of a window with so many rounds, by default the fewest.

    Raises InputError for rounds that cannot be.
    """
    least = window.least_rounds(schedule.steps, lanes)
    count = least if rounds is None else rounds
    check_whole("rounds", count, least, schedule.steps)
    return window.strides(schedule.steps, count, short_last=schedule.solver == "flow" and count == least)


def default_lanes(devices: int, steps: int) -> int:
    """Lanes where nobody asked for a number: 2, or one for every 10 steps, but no more than 4.

    Drafts reach as far ahead as there are lanes: with 16 lanes and 50 steps the aggressive
    mode has 5 rounds left, and the picture little to do with the sequential one.
    """
    return min(devices, max(2, min(4, steps // 10)))
