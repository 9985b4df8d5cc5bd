"""An asyncio engine over one pipeline: many requests, a bounded queue, deadlines, and lanes by the load."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Sequence
from functools import partial
from types import TracebackType
from typing import Any, Self

from .._call import Result
from .._errors import (
    DrainingError,
    DriffusionError,
    LaneError,
    NoDeviceError,
)
from ..pipeline import Pipeline
from ..runtime.devices import Asked
from .admission import SHARES, Admission, arrival, check_deadline, check_options
from .observer import Observer, Unobserved
from .orders import PipelineShop, Shop
from .policy import Machine
from .renewal import Renewal
from .scheduler import Scheduler
from .status import Status, status_of
from .ticket import Ticket
from .workers import ended_within, within

__all__ = ["ENDING_S", "SHARES", "Engine", "Status"]

_log = logging.getLogger("driffusion_trt.engine")
_LAST_ROUNDS_S = (1.0, 10.0)  # at least and at most, for rounds under way of requests that were cancelled
_CLOSING_S = 10.0
ENDING_S = _LAST_ROUNDS_S[1] + _CLOSING_S  # that the end may take after the time that `drain` was given


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
        hang_s: float = 30.0,
        most_s: float | None = 600.0,
        most_area: float | None = 16.0,
        observer: Observer | None = None,
        shop: Shop | None = None,
    ) -> None:
        """Take over a pipeline, which is closed with the engine.

        Args:
            queue: requests that may wait, up to 1024.
            share: lanes of a request: "elastic" by the load, "all" or "one" whatever the load.
            hang_s: a request that takes longer, and over 20 times what was expected, hangs; on GPUs only
                after their own `deadline_s`. It gets a LaneError, its lanes are lost for as long as it hangs,
                and no other requests are taken.
            most_s: of work that a request may be on one lane, as expected; what is more is refused with an
                InputError. None for any.
            most_area: that all pictures of a request may have together, in pictures of the model's own size:
                they are made in one batch, whose memory grows with it. What is more is refused with an
                InputError. None for any.
            observer: is told what happens.
            shop: makes the pictures, where it is not to be `pipe`; then `most_area` is the shop's to heed.

        Raises InputError for what these cannot be.
        """
        check_options(queue, share, hang_s, most_s, most_area)
        self.pipe = pipe
        self._shop: Shop = PipelineShop(pipe, most_area) if shop is None else shop
        self._queue, self._share, self._hang_s, self._most_s = queue, share, hang_s, most_s
        self._observer: Observer = observer or Unobserved()
        self._scheduler: Scheduler | None = None
        self._renewal: Renewal | None = None
        self._admission: Admission | None = None
        self._draining = self._closed = False

    @classmethod
    def load(
        cls,
        model: str | os.PathLike[str] = "demo",
        *,
        devices: Asked = "auto",
        queue: int = 64,
        share: str = "elastic",
        hang_s: float = 30.0,
        most_s: float | None = 600.0,
        most_area: float | None = 16.0,
        observer: Observer | None = None,
        **how: Any,
    ) -> Self:
        """Load a model for an engine; `how` are further arguments of `Pipeline.load`. Raises as it does."""
        check_options(queue, share, hang_s, most_s, most_area)
        make = partial(
            cls,
            queue=queue,
            share=share,
            hang_s=hang_s,
            most_s=most_s,
            most_area=most_area,
            observer=observer,
        )
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
            typical = self._shop.order("", {}).profile
            self._scheduler = Scheduler(
                self._shop, self._machine, self._queue, self._observer, typical, self._hang_s
            )
            self._admission = Admission(self._shop, self._scheduler, self._queue, self._most_s)
            self._renewal = Renewal(self._shop, self._scheduler)
        except BaseException:
            self._closed = True
            await self._close()
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
            if self._admission is not None:
                self._admission.close()
            if self._scheduler is not None:
                self._scheduler.close()
            await self._close()

    def admit(self, client: str = "", user: str = "") -> None:
        """Raise what would refuse any request of this client now, whatever it asks for.

        For servers that ask before they read a body or decode a picture; `submit` does it anyway.

        Raises DrainingError, LaneError, NoDeviceError or QueueFullError as `submit` does.
        """
        try:
            _, admission, renewal = self._open()
            renewal.give_way()
            admission.check(client, user)
        except DriffusionError as error:
            self._tell_refused(error)
            raise

    async def submit(
        self,
        prompt: str | Sequence[str],
        *,
        client: str = "",
        user: str = "",
        deadline_ms: float | None = None,
        since_s: float | None = None,
        previews: bool = False,
        **settings: Any,
    ) -> Ticket:
        """Take a request, once it was checked in a thread.

        Args:
            prompt, settings: of `Pipeline.__call__`, but for `cancel` and `callback_on_round_end`.
            client: whose it is; the queue is fair between clients.
            user: for whom the client asks; its share is fair between its users.
            deadline_ms: to its pictures. It gets the plan that it would have without, as long as
                that is in time; then more lanes, and at last, where its mode is open and nothing was said
                of the quality, a plan with fewer rounds. What cannot be in time is refused.
            since_s: of `time.perf_counter`, when it arrived, from which the deadline counts; by default now.
            previews: whether `Ticket.rounds` has small pictures.

        Raises:
            InputError, ModelError: as a call of the pipeline, before any work.
            QueueFullError: as many requests wait as may.
            DeadlineError: it cannot be there in time.
            DrainingError: the engine ends.
            NoDeviceError: every device has failed, or one hangs.
            LaneError: the engine is not in its `async with`.
        """
        try:
            arrived_s = arrival(since_s)
            _, admission, renewal = self._open()
            renewal.give_way()
            admission.check(client, user)
            check_deadline(deadline_ms)
            order = await admission.order(prompt, settings, client, user)
            scheduler, *_ = self._open()  # it may have ended meanwhile
            admission.check(client, user, checked=True)
            ticket = Ticket(
                order, client, user, arrived_s, deadline_ms=deadline_ms, previews=previews, engine=scheduler
            )
            renewal.give_way()
            scheduler.add(ticket)
        except DriffusionError as error:
            self._tell_refused(error)
            raise
        return ticket

    def _tell_refused(self, error: DriffusionError) -> None:
        if self._scheduler is not None:
            self._scheduler.tell("on_refused", error)

    async def generate(
        self,
        prompt: str | Sequence[str],
        *,
        client: str = "",
        user: str = "",
        deadline_ms: float | None = None,
        **settings: Any,
    ) -> Result:
        """Submit a request and wait for its pictures; a task that is cancelled cancels its request.

        Raises as `submit` and `Ticket.result` do.
        """
        ticket = await self.submit(prompt, client=client, user=user, deadline_ms=deadline_ms, **settings)
        try:
            return await ticket.result()
        except asyncio.CancelledError:
            ticket.cancel()
            raise

    def status(self) -> Status:
        """What it is doing; from a task of its event loop."""
        scheduler = self._scheduler
        if scheduler is None:
            nothing = (0, 0, self._queue, self._shop.lanes, 0, 0, 0, 0.0, 0.0, 0.0, 1.0, False)
            return Status(False, self._draining, *nothing)
        takes = not self._draining and not self._closed
        doubtful = self._shop.renewal_in_s(scheduler.leases.pace) is not None
        return status_of(
            scheduler, self._queue, draining=self._draining, takes=takes, costs_doubtful=doubtful
        )

    async def drain(self, timeout_s: float | None = None) -> None:
        """Take no more requests, and wait for those that were taken.

        timeout_s: after which the others are cancelled; their rounds under way have as long again to end,
            but at least a second and at most ten, and then their results are given up.
        """
        self._draining = True
        if self._renewal is not None:
            self._renewal.close()
        scheduler = self._scheduler
        if scheduler is None:
            return
        if await within(scheduler.idle, timeout_s):
            return
        scheduler.cancel_all("was cancelled, since the engine ends,")
        least, most = _LAST_ROUNDS_S
        if not await within(scheduler.idle, min(max(timeout_s or 0.0, least), most)):
            scheduler.abandon()

    async def _close(self) -> None:
        """The end of a lane that hangs is not waited for: its thread ends with the process."""
        if not await ended_within(self._shop.close, _CLOSING_S, "driffusion-close"):
            _log.error("the pipeline was not closed within %.0f s: a lane hangs", _CLOSING_S)

    def _open(self) -> tuple[Scheduler, Admission, Renewal]:
        """Raises what refuses any request."""
        if self._draining:
            raise DrainingError("the engine ends, and takes no more requests; ask another one")
        if not (self._scheduler and self._admission and self._renewal) or self._closed:
            raise LaneError("the engine is not at work; submit requests within its `async with`")
        if not self._scheduler.leases.lanes:
            raise NoDeviceError(
                "every device has failed; load the engine again, or see driffusion-trt doctor"
            )
        if self._scheduler.leases.hung:
            raise NoDeviceError("a lane hangs, and no requests are taken until it ends what it does")
        return self._scheduler, self._admission, self._renewal

    def _machine(self, lanes: int) -> Machine:
        """Beside what has lanes, one request may be under way whose rounds are over."""
        lanes = max(1, lanes)
        each = {"elastic": None, "all": lanes, "one": 1}[self._share]
        return Machine(lanes, lanes + 1, each)
