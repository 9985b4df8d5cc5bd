"""Plans: which states are drafted, predicted and refined in which round."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, replace

from .._errors import InputError, did_you_mean
from .rounds import Round, aggressive_rounds, conservative_rounds, sequential_rounds
from .schedule import Schedule
from .tables import Float64

MODES = ("sequential", "aggressive", "conservative", "skip")

Walk = Generator[Round, Float64 | None, None]


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

    @property
    def sequential_calls(self) -> int:
        """Network calls that wait for one another: the number of rounds."""
        return len(self.rounds)

    @property
    def model_calls(self) -> int:
        """Predictions in all, over all lanes."""
        return sum(len(item.predict) for item in self.rounds)

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


def make_plan(
    schedule: Schedule, *, mode: str = "sequential", lanes: int = 1, rounds: int | None = None
) -> Plan:
    """Plan the sampling of one schedule.

    schedule: noise levels and timesteps, `Schedule.from_config(...)`.
    mode: `sequential`, the scheduler as it is; `aggressive` or `conservative`, the two
        modes of DRiffusion (2603.25872, section 3); `skip`, the same scheduler with only
        `rounds` steps, the baseline that spends as many sequential calls.
    lanes: noises that can be predicted at once, the paper's n; at least 1.
    rounds: for `skip` only; by default as many as `aggressive` needs with these lanes.

    Raises InputError for an unknown mode, or numbers that cannot be.
    """
    if not isinstance(mode, str):
        raise InputError(f"mode must be one of {', '.join(MODES)}, not {mode!r}")
    if mode not in MODES:
        raise InputError(f"there is no mode {mode!r}{did_you_mean(mode, MODES)}")
    _whole("lanes", lanes, 1, None)
    if rounds is not None and mode != "skip":
        raise InputError(f"rounds={rounds!r} was given, but mode {mode!r} has a fixed number; leave it out")
    steps = schedule.steps
    if mode == "skip":
        count = rounds if rounds is not None else 1 + -(-(steps - 1) // lanes)
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
