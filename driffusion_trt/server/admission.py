"""Who may wait, and what a request asks for: looked at before any work, and outside of the event loop."""

from __future__ import annotations

import asyncio
import contextvars
import math
import random
import sys
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from .._errors import InputError, QueueFullError, did_you_mean
from .orders import Order, Prompt, Shop
from .scheduler import Scheduler

__all__ = ["OPTIONS", "SHARES", "Admission", "Returns", "arrival", "check_deadline", "check_options"]

SHARES = ("elastic", "all", "one")
OPTIONS = ("queue", "share", "hang_s", "most_s", "most_area")
_MOST_WAITING = 1024  # what is expected of them is worked out in the event loop
_CHECKING = 2  # requests that are checked at once, each in a thread: pictures are resized there
_LEAST_RETRY_S = 0.05  # between two that come again
_LATER = 1.25  # than expected: who comes too early has lost one of few tries
_MOST_RETRY_S = 60.0  # of what is told, OpenAI's clients heed two minutes at most
_KEPT = 8  # of so many places one


class Returns:
    """When those that were refused are to come again: each at a time of its own, as places become free.

    Told the same time, all would come for one place, and their clients would soon have no try left.
    """

    def __init__(self) -> None:
        self._last_s = 0.0

    def after_s(self, now_s: float, first_s: float, each_s: float, most_s: float) -> float:
        """Seconds until the next of them is to come.

        first_s: until there may be room for it. each_s: between one place and the next. most_s: where as many
        come again as places become free until then, others are to come at any time within it, by chance.
        """
        at_s = max(now_s + first_s, self._last_s + each_s)
        if at_s > now_s + most_s:
            return random.uniform(first_s, most_s)
        self._last_s = at_s
        return at_s - now_s


class Admission:
    """The way into a scheduler's queue. queue: requests that may wait. most_s: of work of one, None for any.

    The last eighth of the places, one at least, is for clients that have less than their share: that of the
    queue for those that wait and one more. The eighth before it is for users that have less than theirs of
    their client's.
    """

    def __init__(self, shop: Shop, scheduler: Scheduler, queue: int, most_s: float | None) -> None:
        self._shop, self._scheduler, self._queue, self._most_s = shop, scheduler, queue, most_s
        self._threads = ThreadPoolExecutor(_CHECKING, "driffusion-check")
        self._returns = Returns()
        self._checking: list[tuple[str, str]] = []  # client and user of requests that are about to wait

    def check(self, client: str, user: str, *, checked: bool = False) -> None:
        """Raise QueueFullError where no more may wait. checked: this one has only to be added."""
        # Of those that are being checked some will find lanes that are free now.
        coming = 0 if checked else max(0, len(self._checking) - self._scheduler.leases.free)
        waiting = len(self._scheduler.waiting.queue) + coming
        if waiting >= self._queue:
            self._refuse(f"{self._queue} requests wait, and no more may", waiting, self._queue)
        eighth = self._queue // _KEPT
        kept = max(1, eighth) if self._queue > 1 else 0
        (own, others), (users_own, users_others) = self._scheduler.waiting.queue.places(client, user)
        share = self._queue / (others + 2)
        own += sum(one == client for one, _ in self._checking)
        if waiting >= self._queue - kept and own >= share:
            why = f"{own} requests of this client wait, and the last {kept} places are for others"
            self._refuse(why, waiting, self._queue - kept)
        users_own += self._checking.count((client, user))
        if user and waiting >= self._queue - kept - eighth and users_own >= share / (users_others + 2):
            why = (
                f"{users_own} requests of this user wait, and the last {kept + eighth} places are for others"
            )
            self._refuse(why, waiting, self._queue - kept - eighth)

    def _refuse(self, why: str, waiting: int, places: int) -> None:
        """places: of which one has to be free for this request."""
        waits = self._scheduler.waits
        each_s = max(_LEAST_RETRY_S, 1e-3 * waits.between_ms() * _LATER)
        first_s = 1e-3 * waits.first_ms() or each_s  # none waits yet where all are still being checked
        room_s = min(_MOST_RETRY_S, first_s + each_s * (1 + waiting - places))
        most_s = min(_MOST_RETRY_S, room_s + 2 * self._queue * each_s)
        retry_s = self._returns.after_s(time.perf_counter(), room_s, each_s, most_s)
        raise QueueFullError(f"{why}; ask again in about {retry_s:.1f} s", retry_s)

    async def order(self, prompt: Prompt, settings: Mapping[str, Any], client: str, user: str) -> Order:
        """Check what is asked for, in a thread; who leaves meanwhile leaves nothing behind.

        Raises InputError where it is more work than a request may be.
        """
        inside = contextvars.copy_context()
        self._checking.append((client, user))
        try:
            work = self._threads.submit(inside.run, self._shop.order, prompt, settings)
            found = await asyncio.wrap_future(work)
        finally:
            self._checking.remove((client, user))
        work_s = 1e-3 * found.work_ms * found.longer
        if self._most_s is not None and work_s > self._most_s:
            raise InputError(
                f"this may be {work_s:.0f} s of work for one lane, and the most here is {self._most_s:g}; "
                "ask for smaller or fewer pictures, or fewer steps"
            )
        return found

    def close(self) -> None:
        """What is being checked is checked to its end."""
        self._threads.shutdown(wait=False)


def check_options(
    queue: object = 64,
    share: object = "elastic",
    hang_s: object = 30.0,
    most_s: object = None,
    most_area: object = None,
) -> None:
    """Of an engine. Raises InputError."""
    if isinstance(queue, bool) or not isinstance(queue, int) or not 1 <= queue <= _MOST_WAITING:
        raise InputError(f"queue must be a whole number from 1 to {_MOST_WAITING}, not {queue!r}")
    if not isinstance(share, str) or share not in SHARES:
        raise InputError(f"there is no share {share!r}{did_you_mean(str(share), SHARES)}")
    _check_seconds("hang_s", hang_s)
    if most_s is not None:
        _check_seconds("most_s", most_s)
    if most_area is not None and not (_number(most_area) and 1 <= most_area < math.inf):  # type: ignore[operator]
        raise InputError(f"most_area must be a number of pictures from 1 on, not {most_area!r}")


def arrival(since_s: object) -> float:
    """When a request came. Raises InputError for what is no time that has been."""
    now = time.perf_counter()
    if since_s is None:
        return now
    if not _number(since_s) or not math.isfinite(since_s) or since_s > now:  # type: ignore[operator, arg-type]
        raise InputError(f"since_s must be a time of time.perf_counter that has been, not {since_s!r}")
    return float(since_s)  # type: ignore[arg-type]


def check_deadline(deadline_ms: object) -> None:
    """Raises InputError for what is no time to wait."""
    possible = _number(deadline_ms) and 0 < deadline_ms <= sys.float_info.max  # type: ignore[operator]
    if deadline_ms is not None and not possible:
        raise InputError(f"deadline_ms must be a number of milliseconds above 0, not {deadline_ms!r}")


def _check_seconds(name: str, value: object) -> None:
    if not _number(value) or not 0 < value <= sys.float_info.max:  # type: ignore[operator]
        raise InputError(f"{name} must be a number of seconds above 0, not {value!r}")


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
