"""Plans that may be run, and the one that was chosen from them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..sampling.checks import TOLERANCE
from ..sampling.plan import WINDOW_LANES
from .costs import Costs

WISHES = ("quality", "deadline_ms")  # what a call says for mode auto alone
FOUND = ("rounds", "order", "carry", "blocks")  # and what that mode finds itself
OF_AUTO = (*WISHES, "tolerance", *FOUND)

__all__ = ["FOUND", "OF_AUTO", "WISHES", "Candidate", "Choice", "ExpectedRounds", "Wanted"]

# Mean rounds of a plan with (lanes, tolerance); at least `least_rounds`.
ExpectedRounds = Callable[[int, float], float]


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a picture is to be like.

    steps: of its schedule. guided: whether it is made with guidance. pictures: in its batch.
    tolerance: how far drafts may be off; of no meaning with `deadline_ms`.
    deadline_ms: in which it is to be there, from the prompt to the picture.
    most_lanes: noises predicted at once, at most. split: whether guidance is split; None for either.
    """

    steps: int
    guided: bool
    pictures: int = 1
    tolerance: float = TOLERANCE
    deadline_ms: float | None = None
    most_lanes: int = WINDOW_LANES
    split: bool | None = None


@dataclass(frozen=True, slots=True)
class Candidate:
    """A plan that may be run, and what to expect of it.

    rounds: expected; `most_rounds` is the bound that a deadline sets.
    ms: expected for the whole picture, or batch of pictures; see `Costs`.
    """

    lanes: int
    split: bool
    tolerance: float
    rounds: float
    ms: float
    most_rounds: int | None = None

    @property
    def drafts(self) -> bool:
        return self.lanes > 1

    def named(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """A call's settings with this plan in place of what is for mode auto alone.

        Whether guidance is split stays as the caller has it, if it was said.
        """
        rest = {name: value for name, value in settings.items() if name not in OF_AUTO}
        split = {name: rest[name] for name in ("split_guidance",) if name in rest}
        return {**rest, **self.settings(), **split}

    def settings(self) -> dict[str, Any]:
        """The arguments of `Pipeline.__call__` that run it."""
        shared: dict[str, Any] = {"lanes": self.lanes, "split_guidance": self.split}
        if not self.drafts:
            return {"mode": "sequential", **shared}
        bound = {} if self.most_rounds is None else {"rounds": self.most_rounds}
        return {"mode": "tolerance", "tolerance": self.tolerance, **bound, **shared}

    def __str__(self) -> str:
        words = f"tolerance {self.tolerance:g}, {self.lanes} lanes" if self.drafts else "sequential"
        return words + (", guidance split over two devices" if self.split else "")


@dataclass(frozen=True, slots=True)
class Choice:
    """The plan to run, and those that it was chosen from, the fastest of each kind.

    sequential: the plan that any other is compared with: on one device, in one batch.
    costs: that all of it was expected from. basis: where the numbers of rounds are from, in words.
    """

    chosen: Candidate
    sequential: Candidate
    considered: tuple[Candidate, ...]
    costs: Costs = field(repr=False)
    basis: str = ""

    @property
    def speedup(self) -> float:
        """Expected, of the whole picture, over sequential on one device."""
        return self.sequential.ms / self.chosen.ms

    def __str__(self) -> str:
        """One line: "tolerance 0.01, 4 lanes: about 15.9 rounds, 210 ms expected, 2.9 times as fast ..."."""
        one, faster = self.chosen, ""
        if one.ms < self.sequential.ms:
            faster = f", {self.speedup:.2f} times as fast as sequential on one device"
        return f"{one}: {_rounds(one)} rounds, {self._time(one)} expected{faster}"

    def explained(self) -> list[str]:
        """The costs, and each plan that was considered with its expected time; lines of text."""
        costs = self.costs
        lines = [
            f"devices: {costs.devices}; calls with guidance take {costs.batch_factor:.2f} times those "
            f"without, and {costs.crowded:.2f} times as long while all devices are at work",
            _source(costs),
            *([self.basis] if self.basis else []),
        ]
        for one in self.considered:
            mark = "*" if one is self.chosen else " "
            lines.append(f"{mark} {one}: {_rounds(one)} rounds, {self._time(one)}")
        return lines

    def _time(self, one: Candidate) -> str:
        return f"{one.ms:.0f} ms" if self.costs.measured else f"{one.ms:.1f} calls"


def _rounds(one: Candidate) -> str:
    about = "" if float(one.rounds).is_integer() else "about "
    bound = "" if one.most_rounds is None else f" (at most {one.most_rounds})"
    return f"{about}{one.rounds:.3g}{bound}"


def _source(costs: Costs) -> str:
    if not costs.measured:
        return "assumed, not measured: times are in calls"
    if costs.disturbed:
        return "measured on these devices while other work took them: not kept, and to be done again"
    return "measured on these devices"
