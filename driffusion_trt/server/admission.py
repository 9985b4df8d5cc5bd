"""Who may wait, and what a request asks for: looked at before any work, and outside of the event loop."""

from __future__ import annotations

import asyncio
import contextvars
import math
import sys
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from .._errors import InputError, QueueFullError
from .orders import Order, Prompt, Shop
from .scheduler import Scheduler

__all__ = ["Admission", "arrival", "check_deadline"]

_CHECKING = 2  # requests that are checked at once, each in a thread: pictures are resized there
_LEAST_RETRY_S = 0.05


class Admission:
    """The way into a scheduler's queue. queue: requests that may wait."""

    def __init__(self, shop: Shop, scheduler: Scheduler, queue: int) -> None:
        self._shop, self._scheduler, self._queue = shop, scheduler, queue
        self._threads = ThreadPoolExecutor(_CHECKING, "driffusion-check")
        self._checking = 0  # requests that are about to wait

    def check(self, *, checked: bool = False) -> None:
        """Raise QueueFullError where no more may wait. checked: this one has only to be added."""
        # Of those that are being checked some will find lanes that are free now.
        coming = 0 if checked else max(0, self._checking - self._scheduler.leases.free)
        if self._scheduler.waiting + coming < self._queue:
            return
        retry_s = max(_LEAST_RETRY_S, 1e-3 * self._scheduler.wait_ms())
        raise QueueFullError(
            f"{self._queue} requests wait, and no more may; ask again in about {retry_s:.1f} s", retry_s
        )

    async def order(self, prompt: Prompt, settings: Mapping[str, Any]) -> Order:
        """Check what is asked for, in a thread; who leaves meanwhile leaves nothing behind."""
        inside = contextvars.copy_context()
        self._checking += 1
        try:
            work = self._threads.submit(inside.run, self._shop.order, prompt, settings)
            return await asyncio.wrap_future(work)
        finally:
            self._checking -= 1

    def close(self) -> None:
        """What is being checked is checked to its end."""
        self._threads.shutdown(wait=False)


def arrival(since_s: object) -> float:
    """When a request came. Raises InputError for what is no time that has been."""
    now = time.perf_counter()
    if since_s is None:
        return now
    number = isinstance(since_s, int | float) and not isinstance(since_s, bool)
    if not number or not math.isfinite(since_s) or since_s > now:  # type: ignore[operator, arg-type]
        raise InputError(f"since_s must be a time of time.perf_counter that has been, not {since_s!r}")
    return float(since_s)  # type: ignore[arg-type]


def check_deadline(deadline_ms: object) -> None:
    """Raises InputError for what is no time to wait."""
    number = isinstance(deadline_ms, int | float) and not isinstance(deadline_ms, bool)
    if deadline_ms is not None and not (number and 0 < deadline_ms <= sys.float_info.max):  # type: ignore[operator]
        raise InputError(f"deadline_ms must be a number of milliseconds above 0, not {deadline_ms!r}")
