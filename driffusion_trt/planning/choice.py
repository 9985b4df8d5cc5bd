"""Which plan to run: the fastest that is as near to the sequential picture as was asked, or in time.

Candidates are the sequential plan, on one device or with guidance split over two, and plans with a
tolerance, on any number of lanes, with guidance in one batch or split. Expected times come from measured
costs and from how many rounds pictures took before: nothing is run to decide.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from .._errors import InputError, did_you_mean
from ..sampling.checks import TOLERANCE
from ..sampling.plan import WINDOW_LANES
from ..sampling.window import least_rounds
from .candidates import Candidate, Choice, ExpectedRounds, Wanted
from .costs import Costs

__all__ = ["QUALITIES", "choose", "least_ms", "tolerance_of"]

# How far drafts that are used may be off, as `tolerance` of `make_plan`; docs/method.md section 4.
QUALITIES = {"exact": 0.0, "high": 0.003, "balanced": TOLERANCE, "fast": 0.03}
_NEAR = 1.005  # plans this near to the fastest are as good; then the simplest one is taken
_EXACT = 1.015  # and exact ones as near as this, since drafts are off by a little


def tolerance_of(quality: object) -> float:
    """Of a level of quality. Raises InputError where there is no such level."""
    if not isinstance(quality, str) or quality not in QUALITIES:
        near = did_you_mean(quality, QUALITIES) if isinstance(quality, str) else ""
        raise InputError(f"quality must be one of {', '.join(QUALITIES)}, not {quality!r}{near}")
    return QUALITIES[quality]


def choose(costs: Costs, wanted: Wanted, expected_rounds: ExpectedRounds) -> Choice:
    """The plan to run, on devices of these costs.

    With a tolerance it is the fastest. With a deadline it is the nearest to the sequential picture that is
    there in time: the smallest tolerance whose expected rounds fit, with a bound of the rounds that keeps
    the deadline for every picture.

    expected_rounds: mean rounds that plans with a tolerance took, by lanes and tolerance.

    Raises InputError where no plan is there in time, or a deadline is given and nothing was measured.
    """
    chooser = _Chooser(costs, wanted, expected_rounds)
    return chooser.fastest() if wanted.deadline_ms is None else chooser.in_time(wanted.deadline_ms)


def least_ms(costs: Costs, wanted: Wanted) -> float:
    """What the fastest plan takes that there is, however far from the sequential picture it may end."""
    return _Chooser(costs, wanted, lambda lanes, tolerance: wanted.steps).least_ms()


class _Chooser:
    def __init__(self, costs: Costs, wanted: Wanted, expected_rounds: ExpectedRounds) -> None:
        self._costs, self._wanted, self._expected = costs, wanted, expected_rounds
        can_split = wanted.guided and costs.fits(1, guided=True, split=True, pictures=wanted.pictures)
        possible = [False, True] if can_split else [False]
        self._splits = [split for split in possible if wanted.split in (None, split)] or [False]
        self._sequential = self._candidate(1, False, 0.0, wanted.steps)
        self._exact = [
            self._candidate(1, True, 0.0, wanted.steps) if split else self._sequential
            for split in self._splits
        ]

    def fastest(self) -> Choice:
        drafted = [
            self._candidate(lanes, split, self._wanted.tolerance, self._rounds(lanes, self._wanted.tolerance))
            for lanes, split in (self._widths() if self._wanted.tolerance else ())
        ]
        return self._choice([*self._exact, *drafted])

    def in_time(self, deadline_ms: float) -> Choice:
        if not self._costs.measured:
            raise InputError(
                "deadline_ms was given, and what network calls take on these devices was not measured"
            )
        if exact := [one for one in self._exact if one.ms <= deadline_ms]:
            return self._choice(exact)
        bounds = {place: self._bound(*place, deadline_ms) for place in self._widths()}
        possible = {
            (lanes, split): most
            for (lanes, split), most in bounds.items()
            if most >= least_rounds(self._wanted.steps, lanes)
        }
        if not possible:
            raise InputError(self._too_soon(deadline_ms))
        for tolerance in sorted(level for level in QUALITIES.values() if level):
            unhurried = [
                self._candidate(lanes, split, tolerance, rounds, most)
                for (lanes, split), most in possible.items()
                if (rounds := self._rounds(lanes, tolerance)) <= most
            ]
            if unhurried:
                return self._choice(unhurried)
        # There is time for no level: take the steps in as many rounds as there can be.
        lanes, split = max(possible, key=lambda place: (possible[place], -place[0]))
        most = possible[lanes, split]
        return self._choice([self._candidate(lanes, split, TOLERANCE, most, most)])

    def _choice(self, candidates: list[Candidate]) -> Choice:
        fastest = min(one.ms for one in candidates)
        near = [one for one in candidates if one.ms <= fastest * (_NEAR if one.drafts else _EXACT)]
        chosen = min(near, key=lambda one: (one.drafts, one.lanes, one.split))
        kinds = {(one.drafts, one.split) for one in candidates}
        best = [
            min((one for one in candidates if (one.drafts, one.split) == kind), key=lambda one: one.ms)
            for kind in sorted(kinds)
        ]
        considered = dict.fromkeys((self._sequential, *self._exact, *best, chosen))
        return Choice(chosen, self._sequential, tuple(considered), self._costs)

    def _widths(self) -> Iterator[tuple[int, bool]]:
        """Numbers of lanes that may be worth their devices, and whether guidance is split over these."""
        costs, wanted = self._costs, self._wanted
        for split in self._splits:
            for lanes in range(2, min(wanted.most_lanes, WINDOW_LANES, wanted.steps) + 1):
                if costs.fits(lanes, guided=wanted.guided, split=split, pictures=wanted.pictures):
                    yield lanes, split

    def _rounds(self, lanes: int, tolerance: float) -> float:
        fewest, most = least_rounds(self._wanted.steps, lanes), self._wanted.steps
        return min(max(self._expected(lanes, tolerance), fewest), most)

    def _candidate(
        self, lanes: int, split: bool, tolerance: float, rounds: float, most: int | None = None
    ) -> Candidate:
        first, each = self._times(lanes, split)
        ms = self._beside() + first + (rounds - 1) * each
        return Candidate(lanes, split, tolerance, rounds, ms, most)

    def _times(self, lanes: int, split: bool) -> tuple[float, float]:
        wanted = self._wanted
        return self._costs.times_ms(lanes, guided=wanted.guided, split=split, pictures=wanted.pictures)

    def _beside(self) -> float:
        return self._costs.picture_ms * self._wanted.pictures

    def _bound(self, lanes: int, split: bool, deadline_ms: float) -> int:
        """Rounds that there is time for."""
        first, each = self._times(lanes, split)
        return min(1 + math.floor((deadline_ms - self._beside() - first) / each), self._wanted.steps)

    def least_ms(self) -> float:
        steps, times = self._wanted.steps, [one.ms for one in self._exact]
        for lanes, split in self._widths():
            times.append(self._candidate(lanes, split, 0.0, least_rounds(steps, lanes)).ms)
        return min(times)

    def _too_soon(self, deadline_ms: float) -> str:
        return (
            f"deadline_ms={deadline_ms:g} was asked; the fastest plan for {self._wanted.steps} steps on "
            f"these {self._costs.devices} devices is expected to take {self.least_ms():.0f} ms; take fewer "
            "steps, or more devices"
        )
