"""Starts requests where there are lanes for them, and keeps the books; in the thread of one event loop."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from .._call import Result
from .._errors import CancelledError, InputError, LaneError, NoDeviceError
from .calls import Calls
from .leases import BEAT_S, Leases
from .observer import Observer
from .orders import Shop
from .policy import Machine, Profile
from .starts import Starts
from .ticket import RoundSeen, Ticket, given_up, hung, too_late
from .waiting import WaitingRoom
from .waits import Waits

__all__ = ["Scheduler"]

_log = logging.getLogger("driffusion_trt.engine")
_TRIES = 2  # of a call whose lane failed
_LOOK_AGAIN_S = 0.005
_LET_PAST = 4  # requests, at most, that wait for more lanes than are free while others start


class Scheduler:
    """The queue, what is under way, and the threads that make it.

    machine: of so many lanes, how they are given out. queue: requests that may wait. typical: what one takes.
    hang_s: a request hangs that takes longer, and far longer than expected.
    """

    def __init__(
        self,
        shop: Shop,
        machine: Callable[[int], Machine],
        queue: int,
        observer: Observer,
        typical: Profile,
        hang_s: float,
    ) -> None:
        self._shop, self._observer, self._hang_s = shop, observer, hang_s
        self._clock = time.perf_counter
        self.leases = Leases(shop.lanes, machine, self._clock, typical)
        self.waiting = WaitingRoom()
        self.waits = Waits(self.leases, self.waiting)
        self._starts = Starts(shop, self.leases, self.waiting, queue)
        self._calls = Calls(shop, self._round_ended, self._ended)
        self._timer: asyncio.TimerHandle | None = None
        self._stepping = self._step_again = False
        self.idle = asyncio.Event()
        self.idle.set()

    @property
    def queued(self) -> int:
        return len(self.waiting)

    def add(self, ticket: Ticket) -> None:
        """Take a request. Raises DeadlineError where it cannot be there in time; then it is not taken."""
        self.waiting.add(ticket)
        left = ticket.left_ms()
        if left is not None:
            expected = self.waits.of(ticket) + self.leases.pace * ticket.order.least_ms
            if expected <= left and not self._starts.in_hope(ticket):
                busy_ms = max(one.left_ms for one in self.leases.under_way())
                expected = self.leases.pace * (busy_ms + ticket.order.least_ms)
            if expected > left:
                self.waiting.remove(ticket)
                raise too_late(ticket, expected)
        self.idle.clear()
        ticket.timeline = replace(ticket.timeline, queued_s=self._clock())
        self.leases.arrived(ticket.work)
        self.tell("on_queued", ticket)
        self.step()

    def place_of(self, ticket: Ticket) -> int:
        return self.waiting.place_of(ticket)

    def cancel(self, ticket: Ticket) -> None:
        if not ticket.done:
            self._give_up(ticket)
            self.step()

    def cancel_all(self, why: str) -> None:
        """What waits first, so that none of it is started only to be cancelled."""
        for ticket in [*self.waiting, *self.leases.tickets()]:
            if not ticket.done:
                ticket.why = why
                self._give_up(ticket)
        self.step()

    def _give_up(self, ticket: Ticket) -> None:
        ticket.giving_up.set()
        if self.waiting.remove(ticket):
            self._end(ticket, error=given_up(ticket, "while it waited"))

    def abandon(self) -> None:
        """Give up on what does not end; its threads go on for as long as they do."""
        for ticket in self.leases.tickets():
            self.leases.take_back(ticket)
            ticket.why = "did not end in time"
            self._end(ticket, error=given_up(ticket, "when the engine ended"))
        self._settle()

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._calls.close()

    def tell(self, what: str, *facts: object) -> None:
        """An observer that fails is no reason to lose a request."""
        try:
            getattr(self._observer, what)(*facts)
        except Exception:
            _log.exception("an observer failed in %s", what)

    def step(self) -> None:
        """Start what can be started, and end what waits in vain or hangs."""
        self._step_again = True
        if self._stepping:  # an observer called back
            return
        self._stepping = True
        self.leases.beat()
        try:
            while self._step_again:
                self._step_again = False
                self._end_what_hangs()
                self._end_late()
                self._start_all()
        finally:
            self._stepping = False
        self._settle()

    def _start_all(self) -> None:
        """In their order; where one waits for more lanes than are free, others that do not delay it."""
        past: list[Ticket] = []
        while (ticket := self.waiting.first(but=past)) is not None:
            lanes = self._starts.lanes_for(ticket)
            if lanes and past and (kept := self._starts.reserved(past[0])) is not None:
                lanes = kept.leaves(self.leases.machine, ticket.order.profile, lanes)
            if not lanes or not self._start(ticket, lanes):
                past.append(ticket)
                if len(past) >= _LET_PAST or not self.leases.free:
                    break

    def _start(self, ticket: Ticket, lanes: int) -> bool:
        """Whether it was started, or ended: else it waits for more lanes."""
        left, pace = ticket.left_ms(), self.leases.pace
        try:
            settings, expected_ms = self._starts.planned(ticket, lanes)
        except Exception as error:  # whatever it is, it is for who waits for the request
            failure: Exception = error
            if left is not None and isinstance(error, InputError):
                if self.leases.in_use and lanes < self.leases.lanes:
                    return False
                failure = too_late(ticket, pace * ticket.order.profile.ms_on(lanes))
            self.waiting.take(ticket)
            self._end(ticket, error=failure)
            return True
        self.waiting.take(ticket)
        self._run(ticket, lanes, settings, expected_ms)
        return True

    def _run(self, ticket: Ticket, lanes: int, settings: dict[str, Any], expected_ms: float) -> None:
        now, first = self._clock(), ticket.timeline.started_s
        self.leases.give(ticket, lanes, expected_ms)
        ticket.tried += 1
        ticket.timeline = replace(
            ticket.timeline, started_s=now if first is None else first, lanes=lanes, expected_ms=expected_ms
        )
        self.tell("on_started", ticket)
        self._calls.make(ticket, settings)

    def _round_ended(self, ticket: Ticket, seen: RoundSeen) -> None:
        if ticket.done:
            return
        ticket.round_ended(seen)
        self.tell("on_round", ticket, seen)
        if seen.state == seen.steps and self.leases.rounds_over(ticket):
            self.step()

    def _ended(self, ticket: Ticket, result: Result | None, error: BaseException | None) -> None:
        if self.leases.came_back(ticket):
            _log.warning("request %s, which hung, ended; its lanes are used again", ticket.id)
        elif not self.leases.take_back(ticket, ended_well=error is None):
            return  # it was abandoned
        self._look_at_lanes(error)
        if ticket.done:
            pass
        elif error is None:
            self._end(ticket, result=result)
        elif isinstance(error, LaneError) and self.leases.lanes and self._may_go_on(ticket):
            _log.warning("request %s begins again: %s", ticket.id, error)
            self.waiting.begins_again(ticket)
        else:
            if isinstance(error, CancelledError):
                error = given_up(ticket, "and ended after the round under way")
            self._end(ticket, error=error)
        self.step()

    def _may_go_on(self, ticket: Ticket) -> bool:
        return ticket.tried < _TRIES and not ticket.giving_up.is_set()

    def _look_at_lanes(self, error: BaseException | None) -> None:
        """Take note of devices that failed, or came back. None at all is believed of a failure only."""
        left, before = self._shop.lanes, self.leases.there
        if left == before or (not left and not isinstance(error, LaneError)):
            return
        self.leases.there = left
        if left < before:
            self.tell("on_lanes_lost", before - left, self.leases.lanes)
            self._end_without_lanes(f"every device has failed; the last one: {error}")

    def _end_without_lanes(self, why: str) -> None:
        """Where no lane is left nothing that waits can be made."""
        if self.leases.lanes:
            return
        for ticket in list(self.waiting):
            if self.waiting.remove(ticket):
                self._end(ticket, error=NoDeviceError(why))

    def _end_what_hangs(self) -> None:
        for ticket, for_s, expected_s in self.leases.hanging(self._hang_s, self._shop.patience_s):
            before = self.leases.lanes
            self.leases.hang(ticket)
            ticket.giving_up.set()
            error = hung(ticket, for_s, expected_s)
            _log.error("%s", error)
            self._end(ticket, error=error)
            self.tell("on_lanes_lost", before - self.leases.lanes, self.leases.lanes)
            self._end_without_lanes(f"no lane is left; the last one hangs: {error}")

    def _end_late(self) -> None:
        for ticket in [one for one in self.waiting.queue.items() if one.deadline_ms is not None]:
            left = ticket.left_ms()
            least = self.leases.pace * ticket.order.least_ms
            if left is not None and left < least and self.waiting.remove(ticket):
                self._end(ticket, error=too_late(ticket, least))

    def _end(self, ticket: Ticket, result: Result | None = None, error: BaseException | None = None) -> None:
        ticket.timeline = replace(ticket.timeline, ended_s=self._clock())
        ticket.finish(result, error)
        if error is None:
            self.tell("on_finished", ticket, result)
        else:
            self.tell("on_failed", ticket, error)

    def _settle(self) -> None:
        """Look again when something is due that no event tells of."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not self.queued and not self.leases:
            self.idle.set()
        pace = self.leases.pace
        due = [
            left - pace * one.order.least_ms
            for one in self.waiting.queue.items()
            if (left := one.left_ms()) is not None
        ]
        due += self.leases.until_hanging_ms(self._hang_s, self._shop.patience_s)
        due += [1e3 * BEAT_S] if self.leases else []
        if self.queued and self.leases.in_use < self.leases.lanes:  # it waits for more than are free
            due += [pace * one.left_ms for one in self.leases.under_way()]
        if due:
            self._timer = asyncio.get_running_loop().call_later(
                max(_LOOK_AGAIN_S, 1e-3 * min(due)), self.step
            )
