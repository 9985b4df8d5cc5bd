"""An asyncio engine over one pipeline: many requests, a bounded queue, deadlines, and lanes by the load."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any, Self

from .._call import Result
from .._errors import DrainingError, DriffusionError, InputError, LaneError, QueueFullError, did_you_mean
from ..pipeline import Pipeline
from ..runtime.devices import Asked
from .observer import Observer, Unobserved
from .orders import PipelineShop, Shop
from .policy import Machine, Profile, per_second
from .scheduler import Scheduler
from .ticket import Ticket

__all__ = ["SHARES", "Engine", "Status"]

SHARES = ("elastic", "all", "one")
_LEAST_RETRY_S = 0.05


@dataclass(frozen=True, slots=True)
class Status:
    """What an engine is doing.

    ready: whether it takes requests. draining: whether it ends.
    queued, running: requests. queue: how many may wait.
    lanes: that can be used; lanes_in_use: that requests keep; lanes_failed: that were lost.
    expected_wait_ms: from now to the start of a request with default settings that comes last; 0 where no
        lane is left.
    expected_ms: what such a request takes with all lanes. per_second: how many of them there can be.
    pace: how many times as long as was measured calls take at present.
    """

    ready: bool
    draining: bool
    queued: int
    running: int
    queue: int
    lanes: int
    lanes_in_use: int
    lanes_failed: int
    expected_wait_ms: float
    expected_ms: float
    per_second: float
    pace: float


class Engine:
    """Pictures for many clients from one pipeline, for services that bring their own server.

    Use it in `async with`, and from the tasks of one event loop. Requests wait in a bounded queue that is
    fair between clients. A request whose mode is open ("auto", the default) gets its lanes when it is
    started: all of them where nothing else waits, fewer under load, down to one each; so its picture may
    vary with the load within the quality that was asked. One that names its mode gets the picture that the
    pipeline makes of it, whatever the load. `Result.settings` has the plan that was run.
    """

    def __init__(
        self,
        pipe: Pipeline,
        *,
        queue: int = 64,
        share: str = "elastic",
        observer: Observer | None = None,
        shop: Shop | None = None,
    ) -> None:
        """Take over a pipeline, which is closed with the engine.

        Args:
            queue: requests that may wait.
            share: lanes of a request: "elastic" by the load, "all" or "one" whatever the load.
            observer: is told what happens.
            shop: makes the pictures, where it is not to be `pipe`.

        Raises InputError for what these cannot be.
        """
        if isinstance(queue, bool) or not isinstance(queue, int) or queue < 1:
            raise InputError(f"queue must be a whole number of at least 1, not {queue!r}")
        if not isinstance(share, str) or share not in SHARES:
            raise InputError(f"there is no share {share!r}{did_you_mean(str(share), SHARES)}")
        self.pipe = pipe
        self._shop: Shop = PipelineShop(pipe) if shop is None else shop
        self._queue, self._share = queue, share
        self._observer: Observer = observer or Unobserved()
        self._scheduler: Scheduler | None = None
        self._typical: Profile | None = None
        self._draining = self._closed = False

    @classmethod
    def load(
        cls,
        model: str | os.PathLike[str] = "demo",
        *,
        devices: Asked = "auto",
        queue: int = 64,
        share: str = "elastic",
        observer: Observer | None = None,
        **how: Any,
    ) -> Self:
        """Load a model for an engine; `how` are further arguments of `Pipeline.load`. Raises as it does."""
        make = partial(cls, queue=queue, share=share, observer=observer)
        pipe = Pipeline.load(model, devices=devices, **how)
        try:
            return make(pipe)
        except BaseException:
            pipe.close()
            raise

    async def __aenter__(self) -> Self:
        """Warm up, measure where that was never done on this machine, and take requests. Once."""
        if self._scheduler is not None or self._closed:
            raise LaneError("an engine is entered once; make a new one")
        try:
            await asyncio.to_thread(self._shop.open)
            self._typical = self._shop.order("", {}).profile
            self._scheduler = Scheduler(self._shop, self._machine, self._queue, self._observer, self._typical)
        except BaseException:
            self._closed = True
            await asyncio.to_thread(self._shop.close)
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Finish what was taken, or cancel it where the block failed; then close the pipeline."""
        try:
            await self.drain(None if kind is None else 0.0)
        finally:
            self._closed = True
            if self._scheduler is not None:
                self._scheduler.close()
            await asyncio.to_thread(self._shop.close)

    def submit(
        self,
        prompt: str | Sequence[str],
        *,
        client: str = "",
        deadline_ms: float | None = None,
        previews: bool = False,
        **settings: Any,
    ) -> Ticket:
        """Take a request; it is checked at once.

        Args:
            prompt, settings: of `Pipeline.__call__`, but for `cancel` and `callback_on_round_end`.
            client: whose it is; the queue is fair between clients.
            deadline_ms: from now to its pictures. It gets the plan that it would have without, as long as
                that is in time; then more lanes, and at last, where its mode is open and nothing was said
                of the quality, a plan with fewer rounds. What cannot be in time is refused.
            previews: whether `Ticket.rounds` has small pictures.

        Raises:
            InputError, ModelError: as a call of the pipeline, before any work.
            QueueFullError: as many requests wait as may.
            DeadlineError: it cannot be there in time.
            DrainingError: the engine ends.
            LaneError: every device has failed, or the engine is not in its `async with`.
        """
        try:
            return self._submitted(prompt, client, deadline_ms, previews, settings)
        except DriffusionError as error:
            if self._scheduler is not None:
                self._scheduler.tell("on_refused", error)
            raise

    def _submitted(
        self,
        prompt: str | Sequence[str],
        client: str,
        deadline_ms: float | None,
        previews: bool,
        settings: dict[str, Any],
    ) -> Ticket:
        scheduler = self._open()
        if scheduler.full:
            retry_s = max(_LEAST_RETRY_S, 1e-3 * scheduler.wait_ms())
            raise QueueFullError(
                f"{self._queue} requests wait, and no more may; ask again in about {retry_s:.1f} s", retry_s
            )
        accepted_s = time.perf_counter()
        _check_deadline(deadline_ms)
        order = self._shop.order(prompt, settings)
        ticket = Ticket(
            order, client, accepted_s, deadline_ms=deadline_ms, previews=previews, engine=scheduler
        )
        scheduler.add(ticket)
        return ticket

    async def generate(
        self,
        prompt: str | Sequence[str],
        *,
        client: str = "",
        deadline_ms: float | None = None,
        **settings: Any,
    ) -> Result:
        """Submit a request and wait for its pictures; a task that is cancelled cancels its request.

        Raises as `submit` and `Ticket.result` do.
        """
        ticket = self.submit(prompt, client=client, deadline_ms=deadline_ms, **settings)
        try:
            return await ticket.result()
        except asyncio.CancelledError:
            ticket.cancel()
            raise

    def status(self) -> Status:
        """What it is doing; from a task of its event loop."""
        scheduler, typical = self._scheduler, self._typical
        if scheduler is None or typical is None:
            nothing = (0, 0, self._queue, self._shop.lanes, 0, 0, 0.0, 0.0, 0.0, 1.0)
            return Status(False, self._draining, *nothing)
        leases = scheduler.leases
        there, pace = leases.lanes > 0, leases.pace
        return Status(
            ready=there and not self._draining and not self._closed,
            draining=self._draining,
            queued=scheduler.queued,
            running=len(leases),
            queue=self._queue,
            lanes=leases.lanes,
            lanes_in_use=leases.in_use,
            lanes_failed=leases.failed,
            expected_wait_ms=scheduler.wait_ms(typical) if there else 0.0,
            expected_ms=typical.least_ms * pace,
            per_second=per_second(leases.machine, typical) / pace if there else 0.0,
            pace=pace,
        )

    async def drain(self, timeout_s: float | None = None) -> None:
        """Take no more requests, and wait for those that were taken.

        timeout_s: after which the others are cancelled; their rounds under way have as long again to end,
            and then their results are given up.
        """
        self._draining = True
        scheduler = self._scheduler
        if scheduler is None:
            return
        if await _within(scheduler.idle, timeout_s):
            return
        scheduler.cancel_all("was cancelled, since the engine ends,")
        if not await _within(scheduler.idle, timeout_s or None):
            scheduler.abandon()

    def _open(self) -> Scheduler:
        if self._draining:
            raise DrainingError("the engine ends, and takes no more requests; ask another one")
        if self._scheduler is None or self._closed:
            raise LaneError("the engine is not at work; submit requests within its `async with`")
        if not self._scheduler.leases.lanes:
            raise LaneError("every device has failed; load the engine again, or see driffusion-trt doctor")
        return self._scheduler

    def _machine(self, lanes: int) -> Machine:
        """Beside what has lanes, one request may be under way whose rounds are over."""
        lanes = max(1, lanes)
        each = {"elastic": None, "all": lanes, "one": 1}[self._share]
        return Machine(lanes, self._shop.shared, lanes + 1 if self._shop.shared else 2, each)


async def _within(event: asyncio.Event, timeout_s: float | None) -> bool:
    """Whether it comes in time."""
    if event.is_set():
        return True
    try:
        await asyncio.wait_for(event.wait(), timeout_s)
    except TimeoutError:
        return False
    return True


def _check_deadline(deadline_ms: object) -> None:
    number = isinstance(deadline_ms, int | float) and not isinstance(deadline_ms, bool)
    if deadline_ms is not None and not (number and 0 < deadline_ms <= sys.float_info.max):  # type: ignore[operator]
        raise InputError(f"deadline_ms must be a number of milliseconds above 0, not {deadline_ms!r}")
