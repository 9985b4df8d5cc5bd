"""How many lanes the next request gets, and when what waits is expected to be there: arithmetic, no work.

With W requests waiting and F lanes free, k lanes each let F // k of them run at once, in waves of L(k), what
one takes on k lanes. The next one gets the k for which the mean of their ends is the smallest: for one
request the k with the shortest L, for many of them the one with the most requests a second.

Those that come later pay for lanes that are not used well. So it gets no more than the k that has the
shortest mean latency in the long run at the rate at which work arrives: L(k) and the wait of a queue with
M // k servers of the machine's M lanes, as Sakasegawa approximates it (Ann. Inst. Statist. Math. 29, 1977).
"""

from __future__ import annotations

import functools
import heapq
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

__all__ = [
    "Machine",
    "Offered",
    "Profile",
    "Reserved",
    "Running",
    "forecast",
    "lanes_for_next",
    "per_second",
    "reserved",
]

_IDLE_ENOUGH = 0.6  # share of its time that a machine is at work, below which the fastest plan is the best
_CLEARLY = 1.15
_OVERDUE = 0.25  # what has run for longer than expected is taken to need so much of its time again


@dataclass(frozen=True, slots=True)
class Profile:
    """What a request is expected to take.

    ms: on 1, 2, 3, ... lanes, while the others are at work; on more than are listed it takes the last one.
    keeps: lanes that it keeps at work where it is given so many; others can use the rest.
    least: with fewer lanes it would be another picture; where there are fewer in all, it has those.
    """

    ms: tuple[float, ...]
    keeps: tuple[int, ...]
    least: int = 1

    def __post_init__(self) -> None:
        assert self.ms and len(self.ms) == len(self.keeps) and min(self.ms) > 0 and min(self.keeps) > 0
        assert 1 <= self.least <= len(self.ms)

    def ms_on(self, lanes: int) -> float:
        return self.ms[min(lanes, len(self.ms)) - 1]

    def widths(self, most: int) -> range:
        """The lanes that it can have, of so many."""
        return range(min(self.least, most), min(most, len(self.ms)) + 1)

    def kept_of(self, lanes: int) -> int:
        return min(lanes, self.keeps[min(lanes, len(self.keeps)) - 1])

    @property
    def least_ms(self) -> float:
        return min(self.ms)


@dataclass(frozen=True, slots=True)
class Machine:
    """Lanes that requests share.

    most: requests under way at once, with those whose rounds are over.
    each: lanes that every request gets; None for as many as are best.
    """

    lanes: int
    most: int = 1 << 16
    each: int | None = None

    def each_of(self, profile: Profile) -> int | None:
        """Lanes that a request like this gets whatever the load, if that is so."""
        return None if self.each is None else min(max(self.each, profile.least), self.lanes)

    def free(self, kept: int) -> int:
        """Lanes for another request, where those under way keep so many."""
        return max(0, self.lanes - kept)

    def suffices(self, profile: Profile, lanes: int) -> bool:
        """Whether a request can start on so many lanes."""
        return lanes >= min(profile.least, self.lanes)


@dataclass(frozen=True, slots=True)
class Running:
    """A request under way: lanes that it keeps, since when, and what it was expected to take."""

    keeps: int
    for_ms: float
    expected_ms: float

    @property
    def left_ms(self) -> float:
        return max(self.expected_ms - self.for_ms, _OVERDUE * self.for_ms)


class Offered:
    """How much work arrives: lanes that would be busy with it, with one lane each; of the last while."""

    def __init__(self, while_ms: float) -> None:
        self._while_ms, self._at_ms, self._lanes = while_ms, 0.0, 0.0

    def add(self, now_ms: float, work_ms: float) -> None:
        """A request came, of so much work for one lane."""
        self._lanes = self.at(now_ms) + work_ms / self._while_ms
        self._at_ms = now_ms

    def at(self, now_ms: float) -> float:
        return self._lanes * math.exp(min(0.0, self._at_ms - now_ms) / self._while_ms)


def lanes_for_next(
    machine: Machine,
    profile: Profile,
    waiting: int,
    running: Sequence[Running] = (),
    *,
    offered: float = 0.0,
    crowd: bool = False,
) -> int:
    """Lanes for the first of so many requests that wait; 0 to let it wait for more of them.

    waiting: at least 1; the others, and those to come, are taken to be like it.
    offered: lanes' worth of work that arrives, see `Offered`.
    crowd: so many come that only requests a second count.
    """
    if len(running) >= machine.most:
        return 0
    free = machine.free(sum(one.keeps for one in running))
    if (each := machine.each_of(profile)) is not None:
        return each if free >= each else 0
    if not machine.suffices(profile, free):
        return 0
    best = _best(machine, profile, free, waiting, offered, crowd)
    if waiting == 1 and not crowd and _soon_better(machine, profile, profile.ms_on(best), running, offered):
        return 0
    return best


def _best(
    machine: Machine, profile: Profile, free: int, waiting: int, offered: float = 0.0, crowd: bool = False
) -> int:
    def mean_end(lanes: int) -> float:
        at_once = free // profile.kept_of(lanes)
        if crowd:
            return profile.ms_on(lanes) / at_once
        full, rest = divmod(waiting, at_once)
        waves = at_once * full * (full + 1) / 2 + rest * (full + 1)
        return waves / waiting * profile.ms_on(lanes)

    widths = profile.widths(free)
    if not crowd:
        steady = _steady(machine, profile, offered)
        widths = range(widths.start, min(widths.stop, steady + 1))
    return min(widths, key=lambda lanes: (mean_end(lanes), lanes))


@functools.lru_cache(maxsize=64)  # a forecast asks the same for every request of a queue
def _steady(machine: Machine, profile: Profile, offered: float) -> int:
    """Lanes with the shortest mean latency in the long run; where none keep up, those that come nearest."""

    def latency(lanes: int) -> tuple[float, float]:
        ms = profile.ms_on(lanes)
        servers = max(1, machine.lanes // profile.kept_of(lanes))
        busy = offered * ms / (servers * profile.ms_on(1))
        if busy >= 1:
            return math.inf, busy
        # Times of service are all alike, arrivals at random: half of the wait of M/M/c.
        wait = 0.5 * busy ** (math.sqrt(2 * (servers + 1)) - 1) / (servers * (1 - busy)) * ms
        return ms + wait, busy

    widths = profile.widths(machine.lanes)
    fastest = min(widths, key=profile.ms_on)
    if latency(fastest)[1] < _IDLE_ENOUGH:
        return fastest
    found = {lanes: latency(lanes) for lanes in widths}
    best = min(found, key=lambda lanes: (*found[lanes], lanes))
    # What arrives is known roughly: more lanes are let go for what is clearly better.
    near = [lanes for lanes, (ms, _) in found.items() if ms <= _CLEARLY * found[best][0] < math.inf]
    return max(near, default=best)


def _soon_better(
    machine: Machine, profile: Profile, now_ms: float, running: Sequence[Running], offered: float
) -> bool:
    """Whether a lone request ends earlier if it waits for lanes that others are about to give back."""
    return any(
        in_ms + profile.ms_on(_best(machine, profile, free, 1, offered)) < now_ms
        for in_ms, free in _given_back(machine, profile, running)
    )


def _given_back(
    machine: Machine, profile: Profile, running: Sequence[Running]
) -> Iterator[tuple[float, int]]:
    """When requests under way end, and the lanes that are free then, where these suffice for another one."""
    kept = sum(one.keeps for one in running)
    for one in sorted(running, key=lambda one: one.left_ms):
        kept -= one.keeps
        if machine.suffices(profile, free := machine.free(kept)):
            yield one.left_ms, free


def per_second(machine: Machine, profile: Profile) -> float:
    """Requests a second where there are always some waiting."""
    lanes = machine.each_of(profile) or _best(machine, profile, machine.lanes, 1, crowd=True)
    at_once = machine.lanes // profile.kept_of(lanes)
    return 1e3 * max(1, at_once) / profile.ms_on(lanes)


def forecast(
    machine: Machine,
    running: Sequence[Running],
    queue: Sequence[Profile],
    offered: float = 0.0,
    upto: int | None = None,
) -> list[tuple[float, float]]:
    """Milliseconds to the start and the end of each request of a queue, in its order, if no others come.

    upto: only of the first so many.
    """
    most = len(queue) if upto is None else min(upto, len(queue))
    now, under_way = 0.0, [(one.left_ms, index, one.keeps) for index, one in enumerate(running)]
    heapq.heapify(under_way)
    found: list[tuple[float, float]] = []
    while len(found) < most:
        profile, kept = queue[len(found)], sum(keeps for _, _, keeps in under_way)
        still = [Running(keeps, 0.0, end - now) for end, _, keeps in under_way]
        lanes = lanes_for_next(machine, profile, len(queue) - len(found), still, offered=offered)
        if not lanes and under_way:
            now = max(now, heapq.heappop(under_way)[0])
            continue
        lanes = lanes or machine.free(kept) or 1
        end = now + profile.ms_on(lanes)
        heapq.heappush(under_way, (end, len(running) + len(found), profile.kept_of(lanes)))
        found.append((now, end))
    return found


@dataclass(frozen=True, slots=True)
class Reserved:
    """Lanes that are kept for a request which needs more than are free: it begins in so many milliseconds.

    spare: lanes that it leaves to others then.
    """

    in_ms: float
    spare: int

    def leaves(self, machine: Machine, profile: Profile, lanes: int) -> int:
        """Lanes for another request, of so many at most, that do not delay it; 0 for none."""
        widths = profile.widths(lanes) if machine.suffices(profile, lanes) else range(0)
        return next(
            (
                k
                for k in reversed(widths)
                if profile.ms_on(k) <= self.in_ms or profile.kept_of(k) <= self.spare
            ),
            0,
        )


def reserved(
    machine: Machine, running: Sequence[Running], profile: Profile, within_ms: float, least_ms: float
) -> Reserved | None:
    """The earliest start with which a request ends within so many milliseconds; None where there is none.

    least_ms: what it takes with all lanes and the plan with the fewest rounds. With such reservations others
    are let past the first one that waits as in EASY backfilling (Lifka, JSSPP 1995).
    """
    for in_ms, free in _given_back(machine, profile, running):
        for lanes in profile.widths(free):
            if in_ms + profile.ms_on(lanes) <= within_ms:
                return Reserved(in_ms, free - profile.kept_of(lanes))
        if free == machine.lanes and in_ms + least_ms <= within_ms:
            return Reserved(in_ms, 0)
    return None
