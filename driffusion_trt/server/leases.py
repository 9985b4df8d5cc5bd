"""Who keeps how many lanes since when; and from that, when those that wait are expected to start."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from .policy import Machine, Offered, Profile, Running, forecast
from .ticket import Ticket

__all__ = ["BEAT_S", "Lease", "Leases"]

BEAT_S = 1.0

_LEARN = 0.1  # how fast the pace follows what was seen
_PACES = (0.5, 4.0)
# While nothing ends there is nothing to learn from: the pace stays for so long, or so many requests, and then
# goes back to what was measured.
_REMEMBERED_S, _REMEMBERED = 10.0, 10
_FAR_LONGER = 20  # times as long as expected is what hangs
_ARRIVALS = 20  # as many as there can be in the time over which they are counted


@dataclass(slots=True)
class Lease:
    """What a request under way keeps of the lanes, and what it was expected to take."""

    keeps: int
    started_s: float
    expected_ms: float
    longer: float = 1.0  # times as long, which it may take where its size was not measured

    def hangs_s(self, least_s: float, more_s: float) -> float:
        """From when on."""
        far_longer_s = 1e-3 * _FAR_LONGER * self.longer * self.expected_ms
        return self.started_s + more_s + max(least_s, far_longer_s)


class Leases:
    """The lanes that there are and the requests that have them.

    there: lanes of the machine that did not fail. A request that hangs keeps its lanes, and does not count as
    one under way.
    """

    def __init__(
        self, lanes: int, machine: Callable[[int], Machine], clock: Callable[[], float], typical: Profile
    ) -> None:
        """machine: of so many lanes, how they are given out. clock: in seconds. typical: of a request."""
        self._most_lanes = self.there = lanes
        self._machine_of, self._clock = machine, clock
        self._of: dict[Ticket, Lease] = {}
        self._hung: dict[Ticket, Lease] = {}
        self._beat_s = clock()
        self.expect(typical)

    def expect(self, typical: Profile) -> None:
        """From now on a request takes this; nothing is learnt from those under way, of other times."""
        self.typical, self._pace = typical, 1.0
        self._learnt_s = self._since_s = self._clock()
        self._remembered_s = max(_REMEMBERED_S, 1e-3 * _REMEMBERED * typical.ms_on(1))
        self._offered = Offered(_ARRIVALS * typical.ms_on(1) / max(1, self._most_lanes))

    def __len__(self) -> int:
        return len(self._of)

    def tickets(self) -> list[Ticket]:
        return list(self._of)

    @property
    def lanes(self) -> int:
        """Those that can be used now."""
        return max(0, self.there - sum(lease.keeps for lease in self._hung.values()))

    @property
    def hung(self) -> int:
        """Requests that hang."""
        return len(self._hung)

    @property
    def pace(self) -> float:
        """How many times as long as expected calls take these days.

        For what is said of times, and not for the choice of plans.
        """
        idle_s = self._clock() - self._learnt_s - self._remembered_s
        return 1.0 + (self._pace - 1.0) * math.exp(-max(0.0, idle_s) / self._remembered_s)

    @property
    def machine(self) -> Machine:
        return self._machine_of(self.lanes)

    @property
    def failed(self) -> int:
        return self._most_lanes - self.lanes

    @property
    def in_use(self) -> int:
        return min(self.lanes, sum(lease.keeps for lease in self._of.values()))

    @property
    def free(self) -> int:
        return self.lanes - self.in_use

    def arrived(self, work_ms: float) -> None:
        """A request was taken, of so much work for one lane."""
        self._offered.add(1e3 * self._clock(), work_ms)

    @property
    def offered(self) -> float:
        """Lanes' worth of work that arrives, at the pace of these days."""
        return self.pace * self._offered.at(1e3 * self._clock())

    def give(self, ticket: Ticket, lanes: int, expected_ms: float) -> None:
        if not self._of:
            self._beat_s = self._clock()
        keeps = ticket.order.profile.kept_of(lanes)
        self._of[ticket] = Lease(keeps, self._clock(), expected_ms, ticket.order.longer)

    def beat(self) -> None:
        """To be called every `BEAT_S` while requests are under way.

        Where it comes much later the whole process stood still, and that time is not the requests'.
        """
        now = self._clock()
        stood_s = now - self._beat_s - BEAT_S
        if stood_s > BEAT_S:
            for lease in self._of.values():
                lease.started_s = min(now, lease.started_s + stood_s)
        self._beat_s = now

    def rounds_over(self, ticket: Ticket) -> bool:
        """What is left of it is done beside the lanes; whether it had some."""
        lease = self._of.get(ticket)
        had = lease is not None and lease.keeps > 0
        if lease is not None:
            lease.keeps = 0
        return had

    def take_back(self, ticket: Ticket, *, ended_well: bool = False) -> bool:
        """Whether it had any. ended_well: what it took is learnt from, where its size was measured."""
        lease = self._of.pop(ticket, None)
        known = lease is not None and lease.started_s >= self._since_s and ticket.order.times_larger == 1.0
        if lease is not None and ended_well and known:
            ratio = 1e3 * (self._clock() - lease.started_s) / lease.expected_ms
            low, high = _PACES
            self._pace = min(max(self.pace + _LEARN * (ratio - self.pace), low), high)
            self._learnt_s = self._clock()
        return lease is not None

    def hang(self, ticket: Ticket) -> None:
        """Its lanes are lost while it hangs."""
        self._hung[ticket] = self._of.pop(ticket)

    def came_back(self, ticket: Ticket) -> bool:
        """It ended; whether it had been taken to hang."""
        return self._hung.pop(ticket, None) is not None

    def hanging(self, least_s: float, more_s: float) -> list[tuple[Ticket, float, float]]:
        """Requests that hang: for how long they are under way, and what was expected, in seconds.

        least_s: before which none does. more_s: which they have beyond what is far longer than expected.
        """
        now = self._clock()
        return [
            (ticket, now - one.started_s, 1e-3 * one.expected_ms)
            for ticket, one in self._of.items()
            if now >= one.hangs_s(least_s, more_s)
        ]

    def until_hanging_ms(self, least_s: float, more_s: float) -> list[float]:
        """For each request under way, until it hangs."""
        now = self._clock()
        return [1e3 * (one.hangs_s(least_s, more_s) - now) for one in self._of.values()]

    def under_way(self) -> list[Running]:
        """At the pace of what was measured."""
        now = self._clock()
        return [
            Running(lease.keeps, 1e3 * (now - lease.started_s) / self.pace, lease.expected_ms)
            for lease in self._of.values()
        ]

    def waits_ms(self, profiles: Iterable[Profile], upto: int | None = None) -> list[float]:
        """Until each of these starts, one after another, if no others come; of the first so many."""
        starts = forecast(self.machine, self.under_way(), list(profiles), self.offered, upto)
        return [self.pace * start for start, _ in starts]
