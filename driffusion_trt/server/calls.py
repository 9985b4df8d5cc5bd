"""The calls that make pictures: in threads, from which they tell the event loop."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from .._call import Result
from ..sampling.sample import RoundDone
from .orders import Shop
from .ticket import RoundSeen, Ticket
from .workers import Workers

__all__ = ["Calls"]

_log = logging.getLogger("driffusion_trt.engine")
Ended = Callable[[Ticket, Result | None, BaseException | None], None]


class Calls:
    """Makes what tickets ask for; `seen` and `ended` are called in the thread of the event loop."""

    def __init__(self, shop: Shop, seen: Callable[[Ticket, RoundSeen], None], ended: Ended) -> None:
        self._shop, self._seen, self._ended = shop, seen, ended
        self._loop = asyncio.get_running_loop()
        self._workers = Workers("driffusion-engine")

    def make(self, ticket: Ticket, settings: dict[str, Any]) -> None:
        """Begin; settings: of the call."""
        settings["cancel"] = ticket.giving_up
        self._workers.run(partial(self._make, ticket, settings, time.perf_counter()))

    def close(self) -> None:
        """Those under way go on for as long as they take."""
        self._workers.close()

    def _make(self, ticket: Ticket, settings: dict[str, Any], started_s: float) -> None:
        result: Result | None = None
        failure: BaseException | None = None
        told = partial(self._told, ticket, started_s)
        try:
            # A copy: what hangs is still in its context when the request is made again.
            result = ticket.context.copy().run(self._shop.make, ticket.order, settings, told)
        except BaseException as error:  # it is for who waits for the request
            failure = error
        try:
            self._loop.call_soon_threadsafe(self._ended, ticket, result, failure)
        except RuntimeError:
            _log.warning("request %s ended after its event loop", ticket.id)
        finally:
            del failure  # it holds this frame

    def _told(self, ticket: Ticket, started_s: float, done: RoundDone) -> None:
        preview = self._shop.preview(done) if ticket.previews else None
        ms = 1e3 * (time.perf_counter() - started_s)
        seen = RoundSeen(done.round, done.rounds, done.state, done.steps, ms, preview)
        self._loop.call_soon_threadsafe(self._seen, ticket, seen)
