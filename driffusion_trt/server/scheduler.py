"""Starts requests where there are lanes for them, and keeps the books; in the thread of one event loop."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any

from .._call import Result
from .._errors import CancelledError, InputError, LaneError, NoDeviceError
from ..sampling.sample import RoundDone
from .fair import FairQueue
from .leases import Leases
from .observer import Observer
from .orders import Shop
from .policy import Machine, Profile, lanes_for_next
from .ticket import RoundSeen, Ticket, given_up, too_late

__all__ = ["Scheduler"]

_log = logging.getLogger("driffusion_trt.engine")
_TRIES = 2  # of a call whose lane failed
_LOOK_AGAIN_S = 0.005


class Scheduler:
    """The queue, what is under way, and the threads that make it.

    machine: of so many lanes, how they are given out. queue: requests that may wait. typical: what one takes.
    """

    def __init__(
        self,
        shop: Shop,
        machine: Callable[[int], Machine],
        queue: int,
        observer: Observer,
        typical: Profile,
    ) -> None:
        self._shop, self._bound, self._observer = shop, queue, observer
        self._clock = time.perf_counter
        self._loop = asyncio.get_running_loop()
        self.leases = Leases(shop.lanes, machine, self._clock, typical)
        self._queue: FairQueue[Ticket] = FairQueue()
        self._again: deque[Ticket] = deque()  # their lanes failed; they come before all others
        self._pool = ThreadPoolExecutor(self.leases.machine.most, "driffusion-engine")
        self._timer: asyncio.TimerHandle | None = None
        self.idle = asyncio.Event()
        self.idle.set()

    @property
    def queued(self) -> int:
        return len(self._queue) + len(self._again)

    @property
    def waiting(self) -> int:
        """Requests that were not started yet."""
        return len(self._queue)

    def wait_ms(self, profile: Profile | None = None) -> float:
        """Of a request like this one that comes last; without one, of the first that waits."""
        profiles = [ticket.order.profile for ticket in self._waiting()]
        waits = self.leases.waits_ms(profiles if profile is None else [*profiles, profile])
        return waits[0 if profile is None else -1] if waits else 0.0

    def add(self, ticket: Ticket) -> None:
        """Take a request. Raises DeadlineError where it cannot be there in time; then it is not taken."""
        self._queue.add(ticket)
        if ticket.deadline_ms is not None:
            waiting = list(self._waiting())
            waits = self.leases.waits_ms(one.order.profile for one in waiting)
            gone = ticket.deadline_ms - (self._left_ms(ticket) or 0.0)
            expected = gone + waits[waiting.index(ticket)] + self.leases.pace * ticket.order.least_ms
            if expected > ticket.deadline_ms:
                self._queue.remove(ticket)
                self.leases.refused()
                raise too_late(ticket, expected)
        self.idle.clear()
        self.leases.arrived(ticket.work)
        self.tell("on_queued", ticket)
        self.step()

    def place_of(self, ticket: Ticket) -> int:
        return next((place for place, one in enumerate(self._waiting(), 1) if one is ticket), 0)

    def cancel(self, ticket: Ticket, why: str = "was cancelled") -> None:
        if ticket.done:
            return
        if self._queue.remove(ticket) or ticket in self._again:
            if ticket in self._again:
                self._again.remove(ticket)
            self._end(ticket, error=given_up(ticket, f"{why} while it waited"))
            self.step()
        ticket.giving_up.set()

    def cancel_all(self, why: str) -> None:
        for ticket in [*self._waiting(), *self.leases.tickets()]:
            self.cancel(ticket, why)

    def abandon(self) -> None:
        """Give up on what does not end; its threads go on for as long as they do."""
        for ticket in self.leases.tickets():
            self.leases.take_back(ticket)
            self._end(ticket, error=given_up(ticket, "did not end in time"))
        self._settle()

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._pool.shutdown(wait=False)

    def tell(self, what: str, *facts: object) -> None:
        """An observer that fails is no reason to lose a request."""
        try:
            getattr(self._observer, what)(*facts)
        except Exception:
            _log.exception("an observer failed in %s", what)

    def step(self) -> None:
        """Start what can be started, and end what waits in vain."""
        self._end_late()
        while (ticket := next(self._waiting(), None)) is not None:
            lanes = self._lanes_for(ticket)
            if not lanes or not self._start(ticket, lanes):
                break
        self._settle()

    def _waiting(self) -> Iterator[Ticket]:
        yield from list(self._again)
        yield from self._queue

    def _left_ms(self, ticket: Ticket) -> float | None:
        """Until its deadline."""
        if ticket.deadline_ms is None:
            return None
        return ticket.deadline_ms - 1e3 * (self._clock() - ticket.timeline.accepted_s)

    def _lanes_for(self, ticket: Ticket) -> int:
        machine, running, profile = self.leases.machine, self.leases.under_way(), ticket.order.profile
        crowd = len(self._queue) >= max(2, self._bound // 2)
        offered = self.leases.offered
        lanes = lanes_for_next(machine, profile, self.queued, running, offered=offered, crowd=crowd)
        left = self._left_ms(ticket)
        if not lanes or left is None or machine.each is not None:
            return lanes
        free = machine.free(sum(one.keeps for one in running))
        in_time = [k for k in range(lanes, free + 1) if self.leases.pace * profile.ms_on(k) <= left]
        return in_time[0] if in_time else free

    def _start(self, ticket: Ticket, lanes: int) -> bool:
        """Whether it was started, or ended: else it waits for more lanes."""
        left, pace = self._left_ms(ticket), self.leases.pace
        within = None if left is None else left / pace
        try:
            settings, expected_ms = self._shop.call(ticket.order, lanes, within)
            if within is not None and expected_ms > within:
                raise InputError(f"{expected_ms:.0f} ms are expected on {lanes} lanes")
        except Exception as error:  # whatever it is, it is for who waits for the request
            failure: Exception = error
            if left is not None and isinstance(error, InputError):
                if self.leases.in_use and lanes < self.leases.lanes:
                    return False
                waited = (ticket.deadline_ms or 0.0) - left
                failure = too_late(ticket, waited + pace * ticket.order.profile.ms_on(lanes))
            self._remove(ticket)
            self._end(ticket, error=failure)
            return True
        self._remove(ticket)
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
        told = partial(self._told, ticket, now)
        settings["cancel"] = ticket.giving_up
        inside = contextvars.copy_context()
        work = self._pool.submit(inside.run, self._shop.make, ticket.order, settings, told)
        work.add_done_callback(lambda done: self._loop.call_soon_threadsafe(self._ended, ticket, done))

    def _remove(self, ticket: Ticket) -> None:
        if self._again and self._again[0] is ticket:
            self._again.popleft()
        else:
            taken = self._queue.take()
            assert taken is ticket

    def _told(self, ticket: Ticket, started_s: float, done: RoundDone) -> None:
        """In the thread of the call."""
        preview = self._shop.preview(done) if ticket.previews else None
        ms = 1e3 * (self._clock() - started_s)
        seen = RoundSeen(done.round, done.rounds, done.state, done.steps, ms, preview)
        self._loop.call_soon_threadsafe(self._round_ended, ticket, seen)

    def _round_ended(self, ticket: Ticket, seen: RoundSeen) -> None:
        ticket.round_ended(seen)
        self.tell("on_round", ticket, seen)
        if seen.state == seen.steps and self.leases.rounds_over(ticket):
            self.step()

    def _ended(self, ticket: Ticket, done: Future[Result]) -> None:
        error = done.exception()
        if not self.leases.take_back(ticket, ended_well=error is None):
            return  # it was abandoned
        self._look_at_lanes(error)
        if error is None:
            self._end(ticket, result=done.result())
        elif isinstance(error, LaneError) and self.leases.lanes and self._may_go_on(ticket):
            _log.warning("request %s begins again: %s", ticket.id, error)
            self._again.append(ticket)
        else:
            if isinstance(error, CancelledError):
                error = given_up(ticket, "was cancelled, and ended after the round under way")
            self._end(ticket, error=error)
        self.step()

    def _may_go_on(self, ticket: Ticket) -> bool:
        return ticket.tried < _TRIES and not ticket.giving_up.is_set()

    def _look_at_lanes(self, error: BaseException | None) -> None:
        """Take note of devices that failed, or came back. None at all is believed of a failure only."""
        left = self._shop.lanes
        if left == self.leases.lanes or (not left and not isinstance(error, LaneError)):
            return
        lost, self.leases.lanes = left < self.leases.lanes, left
        if lost:
            self.tell("on_lane_lost", left)
        if not left:
            for ticket in list(self._waiting()):
                self._queue.remove(ticket)
                self._end(ticket, error=NoDeviceError(f"every device has failed; the last one: {error}"))
            self._again.clear()

    def _end_late(self) -> None:
        for ticket in [one for one in self._queue if one.deadline_ms is not None]:
            left = self._left_ms(ticket)
            least = self.leases.pace * ticket.order.least_ms
            if left is not None and left < least:
                self._queue.remove(ticket)
                self.leases.refused()
                self._end(ticket, error=too_late(ticket, (ticket.deadline_ms or 0.0) - left + least))

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
            for one in self._queue
            if (left := self._left_ms(one)) is not None
        ]
        if self.queued and self.leases.in_use < self.leases.lanes:  # it waits for more than are free
            due += [pace * one.left_ms for one in self.leases.under_way()]
        if due:
            self._timer = self._loop.call_later(max(_LOOK_AGAIN_S, 1e-3 * min(due)), self.step)
