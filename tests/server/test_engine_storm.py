"""Clients that come, hurry, leave and fail in any order: every request ends once, and nothing is left."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from typing import Any

import pytest
from fakeshop import FakeShop

import driffusion_trt as dt
from driffusion_trt.server.engine import Engine
from driffusion_trt.server.observer import Unobserved
from driffusion_trt.server.ticket import Ticket


class Books(Unobserved):
    """How often each request was taken, and ended; and whether lanes were ever given twice."""

    def __init__(self) -> None:
        self.taken: Counter[str] = Counter()
        self.ended: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()
        self.engine: Engine | None = None
        self.most_lanes = 0

    def on_queued(self, ticket: Ticket) -> None:
        self.taken[ticket.id] += 1

    def on_started(self, ticket: Ticket) -> None:
        scheduler: Any = self.engine and self.engine._scheduler
        kept = sum(lease.keeps for lease in scheduler.leases._of.values())
        self.most_lanes = max(self.most_lanes, kept)

    def on_finished(self, ticket: Ticket, result: Any) -> None:
        self.ended[ticket.id] += 1

    def on_failed(self, ticket: Ticket, error: BaseException) -> None:
        self.ended[ticket.id] += 1

    def on_refused(self, error: dt.DriffusionError) -> None:
        self.refused[type(error).__name__] += 1


@pytest.mark.parametrize(("seed", "share"), [(1, "elastic"), (3, "all")])
def test_a_storm(seed: int, share: str) -> None:
    draw, books, shop = random.Random(seed), Books(), FakeShop(4, step_ms=0.2)
    outcomes: Counter[str] = Counter()

    async def client(engine: Engine, number: int) -> None:
        await asyncio.sleep(draw.uniform(0, 0.4) if number >= 60 else 0)
        prompt = f"request {number}"
        if draw.random() < 0.1:
            shop.fails[prompt] = [dt.LaneError("a lane failed")] * draw.choice([1, 2])
        deadline = draw.choice([None, None, None, 1.0, 30.0, 2000.0])
        settings = {"steps": draw.randint(1, 20), "mode": draw.choice(["auto", "aggressive"])}
        try:
            work = engine.generate(prompt, client=draw.choice("abcde"), deadline_ms=deadline, **settings)
            patience = draw.choice([None, None, 0.0, 0.02])
            made: Any = await asyncio.wait_for(work, patience)
            assert made.prompt == prompt, "another one's picture"
            outcomes["made"] += 1
        except (dt.DriffusionError, TimeoutError) as error:
            outcomes[type(error).__name__] += 1

    async def storm() -> None:
        pipe: Any = None
        async with Engine(pipe, queue=20, share=share, observer=books, shop=shop) as engine:
            books.engine = engine
            async with asyncio.timeout(60):
                await asyncio.gather(*(client(engine, number) for number in range(250)))
                await engine.drain()
            status = engine.status()
            assert (status.queued, status.running, status.lanes_in_use) == (0, 0, 0)
            scheduler: Any = engine._scheduler
            assert not scheduler.waiting and not scheduler.waiting.queue._had and scheduler._timer is None

    asyncio.run(storm())
    assert set(books.taken.values()) == {1} and books.ended == books.taken, "each ends once"
    assert max(Counter(prompt for prompt, _ in shop.made).values()) == 1, "none is made twice"
    assert outcomes["made"] > 20 and outcomes["made"] <= len(shop.made)
    assert outcomes["TimeoutError"] and outcomes["DeadlineError"] and outcomes["QueueFullError"]
    assert books.refused["QueueFullError"] == outcomes["QueueFullError"]
    assert shop.now == 0 and 1 < books.most_lanes <= 4
