"""When those that wait are expected to start."""

from __future__ import annotations

import time

from .leases import Leases
from .ticket import Ticket
from .waiting import WaitingRoom

__all__ = ["Waits"]

_SELDOM = 10  # times as long as it takes, for which a wait that was worked out is good


class Waits:
    """Milliseconds, if no others come."""

    def __init__(self, leases: Leases, waiting: WaitingRoom) -> None:
        self._leases, self._waiting = leases, waiting
        self._last_ms, self._good_until_s = 0.0, 0.0

    def of(self, ticket: Ticket) -> float:
        """Of one that waits."""
        waiting = list(self._waiting)
        place = waiting.index(ticket)
        return self._leases.waits_ms((one.order.profile for one in waiting), place + 1)[place]

    def first_ms(self) -> float:
        """Of the first request that waits; 0 where none does."""
        first = self._waiting.first(but=[])
        alike = [] if first is None else [first.order.profile] * len(self._waiting)
        return self._leases.waits_ms(alike, 1)[0] if alike else 0.0

    def between_ms(self) -> float:
        """Between one start and the next: of those that wait, or of typical ones on a lane each."""
        if waiting := len(self._waiting):
            return max(0.0, self.last_ms() - self.first_ms()) / waiting
        return self._leases.pace * self._leases.typical.ms_on(1) / max(1, self._leases.lanes)

    def last_ms(self) -> float:
        """Of a typical request that comes last. Whoever asks often gets what was found a moment ago."""
        begun = time.perf_counter()
        if begun >= self._good_until_s:
            profiles = [*(ticket.order.profile for ticket in self._waiting), self._leases.typical]
            self._last_ms = self._leases.waits_ms(profiles)[-1]
            self._good_until_s = begun + _SELDOM * (time.perf_counter() - begun)
        return self._last_ms
