"""With how many lanes, and which plan, a request starts: the policy, asked about what waits and runs."""

from __future__ import annotations

import math
from typing import Any

from .._errors import InputError
from .leases import Leases
from .orders import Shop
from .policy import Reserved, lanes_for_next, reserved
from .ticket import Ticket
from .waiting import WaitingRoom

__all__ = ["Starts"]


class Starts:
    """queue: requests that may wait."""

    def __init__(self, shop: Shop, leases: Leases, waiting: WaitingRoom, queue: int) -> None:
        self._shop, self._leases, self._waiting, self._bound = shop, leases, waiting, queue

    def lanes_for(self, ticket: Ticket) -> int:
        """If it is the next one; 0 to wait for more."""
        machine, running, profile = self._leases.machine, self._leases.under_way(), ticket.order.profile
        crowd = len(self._waiting.queue) >= max(2, self._bound // 2)
        offered = self._leases.offered
        lanes = lanes_for_next(machine, profile, len(self._waiting), running, offered=offered, crowd=crowd)
        left = ticket.left_ms()
        if not lanes or left is None or machine.each is not None:
            return lanes
        free = machine.free(sum(one.keeps for one in running))
        in_time = [k for k in range(lanes, free + 1) if self._leases.pace * profile.ms_on(k) <= left]
        return in_time[0] if in_time else free

    def planned(self, ticket: Ticket, lanes: int) -> tuple[dict[str, Any], float]:
        """Of its call, and the milliseconds to expect. Raises InputError where it would not be in time."""
        left = ticket.left_ms()
        within = None if left is None else left / self._leases.pace
        settings, expected_ms = self._shop.call(ticket.order, lanes, within)
        if within is not None and expected_ms > within:
            raise InputError(f"{expected_ms:.0f} ms are expected on {lanes} lanes")
        return settings, expected_ms

    def reserved(self, ticket: Ticket) -> Reserved | None:
        """What is kept for it, where it needs more lanes than are free."""
        order, leases, left = ticket.order, self._leases, ticket.left_ms()
        within_ms = math.inf if left is None else left / leases.pace
        return reserved(leases.machine, leases.under_way(), order.profile, within_ms, order.least_ms)

    def in_hope(self, ticket: Ticket) -> bool:
        """Whether it is not first, can start now, or gets the lanes that it needs when others end."""
        lanes = self.lanes_for(ticket) if self._waiting.first(but=[]) is ticket else 0
        if not lanes:
            return True
        try:
            self.planned(ticket, lanes)
        except InputError:
            return not self._leases.in_use or self.reserved(ticket) is not None
        except Exception:  # its start will tell
            return True
        return True
