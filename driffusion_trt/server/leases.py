"""Who keeps how many lanes since when; and from that, when those that wait are expected to start."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from .policy import Machine, Offered, Profile, Running, forecast
from .ticket import Ticket

__all__ = ["Lease", "Leases"]

_LEARN, _FORGET = 0.1, 0.05  # how fast the pace follows what was seen, and goes back to what was measured
_PACES = (0.5, 4.0)
_ARRIVALS = 20  # as many as there can be in the time over which they are counted


@dataclass(slots=True)
class Lease:
    """What a request under way keeps of the lanes, and what it was expected to take."""

    keeps: int
    started_s: float
    expected_ms: float


class Leases:
    """The lanes that there are and the requests that have them.

    lanes: that can be used now. pace: how many times as long as expected calls take these days; for what is
    said of times, and not for the choice of plans.
    """

    def __init__(
        self, lanes: int, machine: Callable[[int], Machine], clock: Callable[[], float], typical: Profile
    ) -> None:
        """machine: of so many lanes, how they are given out. clock: in seconds. typical: of a request."""
        self._most_lanes = self.lanes = lanes
        self._machine_of, self._clock = machine, clock
        self._of: dict[Ticket, Lease] = {}
        self.pace = 1.0
        self._offered = Offered(_ARRIVALS * typical.ms_on(1) / max(1, lanes))

    def __len__(self) -> int:
        return len(self._of)

    def tickets(self) -> list[Ticket]:
        return list(self._of)

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
        keeps = self.machine.keeps(ticket.order.profile, lanes)
        self._of[ticket] = Lease(keeps, self._clock(), expected_ms)

    def rounds_over(self, ticket: Ticket) -> bool:
        """What is left of it is done beside the lanes; whether it had some."""
        lease = self._of.get(ticket)
        had = lease is not None and lease.keeps > 0
        if lease is not None:
            lease.keeps = 0
        return had

    def take_back(self, ticket: Ticket, *, ended_well: bool = False) -> bool:
        """Whether it had any. ended_well: what it took is learnt from."""
        lease = self._of.pop(ticket, None)
        if lease is not None and ended_well:
            ratio = 1e3 * (self._clock() - lease.started_s) / lease.expected_ms
            low, high = _PACES
            self.pace = min(max(self.pace + _LEARN * (ratio - self.pace), low), high)
        return lease is not None

    def refused(self) -> None:
        """Refusals must not keep up the pace that they are for."""
        self.pace += _FORGET * (1.0 - self.pace)

    def under_way(self) -> list[Running]:
        """At the pace of what was measured."""
        now = self._clock()
        return [
            Running(lease.keeps, 1e3 * (now - lease.started_s) / self.pace, lease.expected_ms)
            for lease in self._of.values()
        ]

    def waits_ms(self, profiles: Iterable[Profile]) -> list[float]:
        """Until each of these starts, one after another, if no others come."""
        starts = forecast(self.machine, self.under_way(), list(profiles), self.offered)
        return [self.pace * start for start, _ in starts]
