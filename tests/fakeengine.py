"""What the tests of the engine share: engines over pictures of known costs, and what an observer is told."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from functools import wraps
from typing import Any

from fakeshop import FakeShop

import driffusion_trt as dt
from driffusion_trt.server.engine import Engine
from driffusion_trt.server.observer import Unobserved
from driffusion_trt.server.ticket import Ticket

GO = 1000


class Notes(Unobserved):
    """Takes down what an observer is told."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, Any]] = []

    def names(self) -> list[str]:
        return [name for name, _ in self.seen]

    def on_queued(self, ticket: Ticket) -> None:
        self.seen.append(("queued", ticket.order.prompt))

    def on_started(self, ticket: Ticket) -> None:
        self.seen.append(("started", (ticket.order.prompt, ticket.timeline.lanes)))

    def on_finished(self, ticket: Ticket, result: Any) -> None:
        self.seen.append(("finished", ticket.order.prompt))

    def on_refused(self, error: dt.DriffusionError) -> None:
        self.seen.append(("refused", type(error).__name__))

    def on_failed(self, ticket: Ticket, error: BaseException) -> None:
        self.seen.append(("failed", type(error).__name__))

    def on_lanes_lost(self, lost: int, left: int) -> None:
        self.seen.append(("lanes lost", (lost, left)))


def engine(shop: FakeShop, **options: Any) -> Engine:
    """most_s: by itself none, since tests hold up requests whose costs are made up."""
    pipe: Any = None
    return Engine(pipe, shop=shop, **{"most_s": None, **options})


def in_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run in an event loop, and end where it hangs."""

    @wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        asyncio.run(asyncio.wait_for(test(*args, **kwargs), 90))

    return run


async def until(what: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not what():
        assert time.monotonic() < end, "it does not come about"
        await asyncio.sleep(0.001)
