"""A request that an engine took: its result to come, its rounds as they end, and when it did what."""

from __future__ import annotations

import asyncio
import contextvars
import secrets
import threading
import time
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from .._call import Result
from .._errors import CancelledError, DeadlineError, LaneError
from .orders import Order

__all__ = ["RoundSeen", "Ticket", "Timeline"]

_ROUNDS_KEPT = 16  # for readers that come late or are slow


@dataclass(frozen=True, slots=True)
class RoundSeen:
    """A round that ended: `number`, from 1, of at least `of`, and `state` of `steps` is reached.

    ms: since the request was started. preview: the first of its pictures so far, small; None where nobody
    asked for previews.
    """

    number: int
    of: int
    state: int
    steps: int
    ms: float
    preview: Image.Image | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Timeline:
    """When a request did what, in seconds of `time.perf_counter`; what has not been yet is None.

    arrived_s: from when on its deadline counts; what was read and checked of it came after.
    lanes: that it was given; 0 before its start. expected_ms: what it was then expected to take.
    """

    arrived_s: float
    queued_s: float | None = None
    started_s: float | None = None
    ended_s: float | None = None
    lanes: int = 0
    expected_ms: float | None = None

    @property
    def queue_ms(self) -> float:
        """In the queue, to its start; of a request that never started, to its end; 0 while it waits."""
        until = self.ended_s if self.started_s is None else self.started_s
        return 0.0 if until is None or self.queued_s is None else 1e3 * (until - self.queued_s)

    @property
    def run_ms(self) -> float:
        """From start to end; 0 before."""
        if self.started_s is None or self.ended_s is None:
            return 0.0
        return 1e3 * (self.ended_s - self.started_s)


class Ticket:
    """What `Engine.submit` gives; any task of the engine's event loop may use it."""

    def __init__(
        self,
        order: Order,
        client: str,
        user: str,
        arrived_s: float,
        *,
        deadline_ms: float | None,
        previews: bool,
        engine: Any,
    ) -> None:
        self.id = secrets.token_hex(8)
        self.client, self.user, self.order, self.previews = client, user, order, previews
        self.deadline_ms = deadline_ms
        self.timeline = Timeline(arrived_s)
        self.context = contextvars.copy_context()  # of who submits it, for its call
        self.giving_up = threading.Event()  # the `cancel` of its call
        self.why = "was cancelled"
        self.tried = 0  # times that its call was started
        self._engine = engine
        self._future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._future.add_done_callback(_looked_at)
        self._rounds: deque[tuple[int, RoundSeen]] = deque(maxlen=_ROUNDS_KEPT)
        self._told = 0  # rounds in all
        self._news = asyncio.Event()

    @property
    def work(self) -> float:
        """In milliseconds of one lane."""
        return self.order.work_ms

    @property
    def position(self) -> int:
        """Its place among those that wait, from 1, if no others arrive; 0 once it was started."""
        place: int = self._engine.place_of(self)
        return place

    def left_ms(self) -> float | None:
        """Until its deadline; None without one."""
        if self.deadline_ms is None:
            return None
        return self.deadline_ms - self.age_ms

    @property
    def age_ms(self) -> float:
        """Since it arrived."""
        return 1e3 * (time.perf_counter() - self.timeline.arrived_s)

    @property
    def deadline_kept(self) -> bool | None:
        """Whether its pictures were there in time; None without a deadline, and until it is done."""
        if self.deadline_ms is None or self.timeline.ended_s is None or not self.done:
            return None
        took_ms = 1e3 * (self.timeline.ended_s - self.timeline.arrived_s)
        return self._future.exception() is None and took_ms <= self.deadline_ms

    @property
    def done(self) -> bool:
        """Whether it has its result, or failed, or was cancelled."""
        return self._future.done()

    def cancel(self) -> None:
        """Give it up: at once where it waits, else after the round under way. Nothing where it is done.

        Who waits for its result gets a `driffusion_trt.CancelledError`.
        """
        self._engine.cancel(self)

    async def result(self) -> Result:
        """Its pictures; from any number of tasks. A task that is cancelled here does not cancel the request.

        Raises:
            CancelledError: of this package, not asyncio's: it was cancelled, or the engine ended.
            DeadlineError: while it waited, its deadline became impossible.
            LaneError, ModelError, NonFiniteError: as a call of the pipeline does.
        """
        return await asyncio.shield(self._future)

    async def rounds(self) -> AsyncIterator[RoundSeen]:
        """Every round as it ends, until it is done; who reads slowly misses old ones. Raises nothing."""
        seen = 0
        while True:
            new = [(number, one) for number, one in self._rounds if number > seen]
            if new:
                seen = new[-1][0]
                for _, one in new:
                    yield one
                continue
            if self.done:
                return
            self._news.clear()
            await self._news.wait()

    # What follows is for the engine, in the thread of its event loop.

    def round_ended(self, seen: RoundSeen) -> None:
        self._told += 1
        self._rounds.append((self._told, seen))
        self._news.set()

    def finish(self, result: Result | None, error: BaseException | None) -> None:
        """Once; later calls change nothing."""
        if not self._future.done():
            if error is not None:
                self._future.set_exception(error)
            else:
                assert result is not None
                self._future.set_result(result)
        self._news.set()

    def __repr__(self) -> str:
        return f"Ticket({self.id!r}, client={self.client!r}, {'done' if self.done else 'under way'})"


def _looked_at(done: asyncio.Future[Result]) -> None:
    """asyncio would report an error that nobody asks for; clients that leave do not."""
    if not done.cancelled():
        done.exception()


def given_up(ticket: Ticket, when: str) -> CancelledError:
    return CancelledError(f"request {ticket.id} {ticket.why} {when}, and there is no picture of it")


def hung(ticket: Ticket, for_s: float, expected_s: float) -> LaneError:
    return LaneError(
        f"request {ticket.id} has been at work for {for_s:.1f} s, where {expected_s:.1f} s were "
        "expected, and is given up: a lane hangs; load the engine again where it stays so"
    )


def too_late(ticket: Ticket, in_ms: float) -> DeadlineError:
    """in_ms: from now, in which it is expected."""
    expected_ms = ticket.age_ms + in_ms
    return DeadlineError(
        f"request {ticket.id} was to be there in {ticket.deadline_ms:.0f} ms, and is expected to take "
        f"{expected_ms:.0f} ms from its arrival; allow more time, take fewer steps, or ask again later",
        expected_ms,
    )
