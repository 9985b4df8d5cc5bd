"""What requests are expected to take is measured anew where it is doubted, while nothing is asked for."""

from __future__ import annotations

import asyncio
import logging
import threading

from .._errors import CancelledError
from .orders import Shop
from .policy import Profile
from .scheduler import Scheduler
from .workers import ended_within, within

__all__ = ["Renewal"]

_log = logging.getLogger("driffusion_trt.engine")
_QUIET_S = 2.0  # without a request, before anything is measured


class Renewal:
    """Watches for quiet moments of a scheduler, in the event loop, and measures in a thread.

    A request that comes meanwhile ends the measurement after the round under way, which is one call of the
    network on every lane, on a machine with a single lane two; what was found by then is thrown away.
    """

    def __init__(self, shop: Shop, scheduler: Scheduler) -> None:
        self._shop, self._scheduler = shop, scheduler
        self._came, self._giving_way = asyncio.Event(), threading.Event()
        self._task = asyncio.create_task(self._watch())

    def give_way(self) -> None:
        """A request comes; it may be refused."""
        self._came.set()
        self._giving_way.set()

    def close(self) -> None:
        """Nothing is measured any more; what is being measured ends after the round under way."""
        self._giving_way.set()
        self._task.cancel()

    async def _watch(self) -> None:
        while True:
            self._came.clear()
            await self._scheduler.idle.wait()
            leases = self._scheduler.leases
            pace = leases.pace  # it fades while nothing is asked for
            due_s = None if leases.hung else self._shop.renewal_in_s(pace)
            if not await within(self._came, None if due_s is None else max(_QUIET_S, due_s)):
                await self._renew(pace)

    async def _renew(self, pace: float) -> None:
        found: list[Profile] = []
        self._giving_way.clear()
        if self._came.is_set():  # at the very end of the quiet moment
            return

        def work() -> None:
            try:
                self._shop.renew(pace, self._check_quiet)
            finally:
                found.append(self._shop.order("", {}).profile)

        try:
            await ended_within(work, None, "driffusion-measure")
        except CancelledError as error:
            _log.debug("costs were not measured: %s", error)
        except Exception:
            _log.exception("costs could not be measured anew")
        for typical in found:
            if typical != self._scheduler.leases.typical:
                self._scheduler.leases.expect(typical)

    def _check_quiet(self) -> None:
        if self._giving_way.is_set():
            raise CancelledError("a request came while nothing was to be asked for")
