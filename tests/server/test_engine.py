"""The engine over pictures of known costs: queue, lanes, deadlines, cancelling, failures, draining."""

from __future__ import annotations

import asyncio
import gc
import logging
import threading
import time
import weakref
from collections.abc import Callable, Coroutine
from functools import wraps
from typing import Any

import pytest
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

    def on_lane_lost(self, left: int) -> None:
        self.seen.append(("lane lost", left))


def engine(shop: FakeShop, **options: Any) -> Engine:
    pipe: Any = None
    return Engine(pipe, shop=shop, **options)


def in_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run in an event loop, and end where it hangs."""

    @wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        asyncio.run(asyncio.wait_for(test(*args, **kwargs), 30))

    return run


async def until(what: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not what():
        assert time.monotonic() < end, "it does not come about"
        await asyncio.sleep(0.001)


@in_loop
async def test_a_request_alone_gets_every_lane() -> None:
    shop, notes = FakeShop(4), Notes()
    async with engine(shop, observer=notes) as served:
        ticket = await served.submit("one")
        assert ticket.position == 0 and not ticket.done
        result: Any = await ticket.result()
        assert result.lanes == ticket.timeline.lanes == 4
        assert ticket.timeline.run_ms >= ticket.timeline.expected_ms * 0.5 > 0
        assert (await served.generate("two")).lanes == 4  # type: ignore[attr-defined]
        assert served.status().ready and served.status().running == 0
    assert (shop.opened, shop.closed) == (1, 1)
    assert notes.names() == ["queued", "started", "finished"] * 2


@in_loop
async def test_under_load_requests_share_the_lanes() -> None:
    shop = FakeShop(4, step_ms=1.0)
    async with engine(shop) as served:
        gate = shop.hold("first")
        first = await served.submit("first")
        others = [await served.submit("others") for _ in range(40)]
        assert [one.position for one in others] == list(range(1, 41)) and first.position == 0
        assert served.status().queued == 40 and served.status().expected_wait_ms > 0
        gate.release(GO)
        await asyncio.gather(*(one.result() for one in others))
        assert first.timeline.lanes == 4
        assert {one.timeline.lanes for one in others[:20]} == {1}
        assert 4 <= shop.peak <= 5, "one lane each, and one whose rounds are over"


@pytest.mark.parametrize(("share", "lanes", "peak"), [("all", 4, 1), ("one", 1, 4)])
def test_fixed_shares(share: str, lanes: int, peak: int) -> None:
    async def run() -> None:
        shop = FakeShop(4)
        async with engine(shop, share=share) as served:
            made: list[Any] = await asyncio.gather(*(served.generate("one") for _ in range(12)))
            assert {one.lanes for one in made} == {lanes}
            assert peak <= shop.peak <= peak + 1

    asyncio.run(run())


@in_loop
async def test_gpus_make_one_picture_at_a_time_and_decode_beside_the_next() -> None:
    shop = FakeShop(4, shared=False)
    async with engine(shop) as served:
        made: list[Any] = await asyncio.gather(*(served.generate("one") for _ in range(12)))
        assert {one.lanes for one in made} == {4}
        assert shop.peak <= 2


@pytest.mark.parametrize("shared", [True, False])
def test_the_next_request_has_the_lanes_while_the_last_one_is_decoded(shared: bool) -> None:
    async def run() -> None:
        shop = FakeShop(2, shared=shared)
        async with engine(shop) as served:
            ends = {name: shop.decoding.setdefault(name, threading.Event()) for name in ("a", "b", "c")}
            tickets = [await served.submit(name) for name in ends]
            await until(lambda: served.status().lanes_in_use == 0 and served.status().running > 1)
            assert not any(ticket.done for ticket in tickets)
            if not shared:  # no more than one is decoded beside another's rounds, so they do not pile up
                assert [ticket.position for ticket in tickets] == [0, 0, 1]
            for event in ends.values():
                event.set()
            await asyncio.gather(*(ticket.result() for ticket in tickets))
            assert [ticket.timeline.lanes for ticket in tickets] == [2, 2, 2]

    asyncio.run(asyncio.wait_for(run(), 30))


@in_loop
async def test_the_queue_is_bounded() -> None:
    shop, notes = FakeShop(1), Notes()
    async with engine(shop, queue=3, observer=notes) as served:
        gate = shop.hold("held")
        tickets = [await served.submit("held") for _ in range(4)]
        with pytest.raises(dt.QueueFullError, match="3 requests wait") as refused:
            await served.submit("one more")
        assert 0 < refused.value.retry_after_s < 60
        assert notes.seen[-1] == ("refused", "QueueFullError")
        gate.release(GO)
        await asyncio.gather(*(ticket.result() for ticket in tickets))
        await served.generate("again")
    assert len(shop.made) == 5


@in_loop
async def test_checking_a_request_holds_up_nothing_and_takes_a_place() -> None:
    shop = FakeShop(1)
    async with engine(shop, queue=2) as served:
        gate, let = shop.hold("held"), shop.checks.setdefault("slow", threading.Event())
        held = await served.submit("held")
        slow = asyncio.ensure_future(served.submit("slow"))
        left = asyncio.ensure_future(served.submit("slow"))
        await asyncio.sleep(0)
        with pytest.raises(dt.QueueFullError):
            served.admit()
        left.cancel()
        await asyncio.wait([left])
        served.admit()  # one that left while it was checked has no place
        assert left.cancelled() and not slow.done()
        let.set()
        gate.release(GO)
        await asyncio.gather(held.result(), (await slow).result())
    assert [prompt for prompt, _ in shop.made] == ["held", "slow"]


@in_loop
async def test_an_engine_that_ends_takes_nothing_that_is_being_checked() -> None:
    shop = FakeShop(1)
    async with engine(shop) as served:
        let = shop.checks.setdefault("slow", threading.Event())
        slow = asyncio.ensure_future(served.submit("slow"))
        await asyncio.sleep(0)
        await served.drain()
        let.set()
        with pytest.raises(dt.DrainingError):
            await slow
        with pytest.raises(dt.DrainingError):
            served.admit()
    assert shop.made == []


@in_loop
async def test_a_deadline_counts_from_the_arrival() -> None:
    shop = FakeShop(1, step_ms=10.0)  # 100 ms, or 50 with fewer rounds
    async with engine(shop) as served:
        arrived = time.perf_counter() - 60
        with pytest.raises(dt.DeadlineError) as refused:
            await served.submit("one", deadline_ms=60_000, since_s=arrived)
        assert refused.value.expected_ms >= 60_050
        ticket = await served.submit("one", deadline_ms=600_000, since_s=arrived)
        assert ticket.timeline.queue_ms >= 60_000
        await ticket.result()
        for wrong in (time.perf_counter() + 60, float("nan"), "now", True):
            with pytest.raises(dt.InputError, match="since_s must be"):
                await served.submit("one", since_s=wrong)  # type: ignore[arg-type]


@in_loop
async def test_clients_take_turns() -> None:
    shop = FakeShop(1)
    async with engine(shop) as served:
        gate = shop.hold("first")
        first = await served.submit("first", client="a")
        flood = [await served.submit(f"a{k}", client="a") for k in range(5)]
        quiet = await served.submit("b", client="b")
        assert quiet.position <= 2
        gate.release(GO)
        await asyncio.gather(*(one.result() for one in (first, *flood, quiet)))
    assert [prompt for prompt, _ in shop.made].index("b") <= 2


@in_loop
async def test_bad_input_is_refused_at_once() -> None:
    shop, notes = FakeShop(), Notes()
    async with engine(shop, observer=notes) as served:
        with pytest.raises(dt.InputError, match="steps must be"):
            await served.submit("one", steps=0)
        for deadline in (0, -1.0, float("nan"), float("inf"), "soon", True):
            with pytest.raises(dt.InputError, match="deadline_ms must be"):
                await served.submit("one", deadline_ms=deadline)
    assert shop.made == [] and set(notes.seen) == {("refused", "InputError")}


@in_loop
async def test_a_deadline_that_cannot_be_met_is_refused() -> None:
    shop = FakeShop(2, step_ms=10.0)  # 10 steps are 60 ms on both lanes, 30 with fewer rounds
    async with engine(shop) as served:
        with pytest.raises(dt.DeadlineError, match="was to be there in 20 ms") as refused:
            await served.submit("one", deadline_ms=20)
        assert 25 <= refused.value.expected_ms <= 35
        with pytest.raises(dt.DeadlineError, match="in 40 ms"):
            await served.submit("one", deadline_ms=40, quality="high")
        ticket = await served.submit("one", deadline_ms=45)
        assert ticket.timeline.expected_ms == pytest.approx(32.5, abs=6), "a plan with fewer rounds"
        await ticket.result()
        ticket = await served.submit("one", deadline_ms=5000)
        assert ticket.timeline.expected_ms == pytest.approx(55, abs=1), "the plan that it has without"
        await ticket.result()
        gate = shop.hold("long")
        long = await served.submit("long", steps=100)
        with pytest.raises(dt.DeadlineError):
            await served.submit("one", deadline_ms=100)
        gate.release(GO)
        await long.result()


@in_loop
async def test_a_deadline_that_becomes_impossible_ends_a_request_before_any_work() -> None:
    shop, notes = FakeShop(1, step_ms=2.0), Notes()
    async with engine(shop, observer=notes) as served:
        gate = shop.hold("held")
        held = await served.submit("held", steps=10)
        late = await served.submit("late", deadline_ms=100)
        begun = time.perf_counter()
        with pytest.raises(dt.DeadlineError) as error:
            await late.result()
        assert time.perf_counter() - begun < 1 and error.value.expected_ms >= 100
        assert late.timeline.lanes == 0 and late.timeline.queue_ms > 0
        gate.release(GO)
        await held.result()
        assert ("failed", "DeadlineError") in notes.seen and ("started", ("late", 1)) not in notes.seen


@in_loop
async def test_a_deadline_takes_more_lanes_where_they_are_free() -> None:
    shop = FakeShop(4, step_ms=10.0)
    async with engine(shop) as served:
        gate = shop.hold("held")
        held = await served.submit("held", mode="sequential")
        many = [await served.submit("many", steps=4) for _ in range(20)]
        hurry = await served.submit("hurry", steps=40, deadline_ms=5000, client="other")
        gate.release(GO)
        await asyncio.gather(held.result(), hurry.result(), *(one.result() for one in many))
        assert hurry.timeline.run_ms < 5000


@in_loop
async def test_cancelling_what_waits_is_at_once() -> None:
    shop, notes = FakeShop(1), Notes()
    async with engine(shop, observer=notes) as served:
        gate = shop.hold("held")
        held = await served.submit("held")
        waits, stays = await served.submit("waits"), await served.submit("stays")
        waits.cancel()
        assert waits.done and stays.position == 1
        with pytest.raises(dt.CancelledError, match="while it waited"):
            await waits.result()
        gate.release(GO)
        await held.result(), await stays.result()
        stays.cancel()
        assert (await stays.result()) is not None, "what is there stays"
    assert [prompt for prompt, _ in shop.made] == ["held", "stays"]
    assert notes.names().count("failed") == 1


@in_loop
async def test_cancelling_what_runs_frees_its_lanes_after_the_round() -> None:
    shop = FakeShop(1)
    async with engine(shop) as served:
        gate = shop.hold("held")
        held, after = await served.submit("held"), await served.submit("after")
        held.cancel()
        await asyncio.sleep(0.02)
        assert not held.done and after.position == 1, "the round is under way"
        gate.release()
        await after.result()
        with pytest.raises(dt.CancelledError, match="after the round under way"):
            await held.result()


@in_loop
async def test_a_task_that_is_cancelled_cancels_its_request() -> None:
    shop = FakeShop(1)
    async with engine(shop) as served:
        gate = shop.hold("held")
        task = asyncio.ensure_future(served.generate("held"))
        await until(lambda: served.status().running == 1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        gate.release()
        await until(lambda: served.status().running == 0)
        waiting = asyncio.ensure_future((await served.submit("other")).result())
        await asyncio.sleep(0)
        waiting.cancel()  # of who waits only
        await until(lambda: ("other", 1) in shop.made)


@in_loop
async def test_a_lane_that_fails_loses_no_request() -> None:
    shop, notes = FakeShop(2), Notes()
    async with engine(shop, observer=notes) as served:
        gate = shop.hold("fails")
        shop.fails["fails"] = [dt.LaneError("lane 1 failed")]
        ticket, others = await served.submit("fails"), [await served.submit("others") for _ in range(6)]
        shop.lanes = 1
        gate.release(GO)
        assert (await ticket.result()).lanes == 1  # type: ignore[attr-defined]
        await asyncio.gather(*(one.result() for one in others))
        status = served.status()
        assert (status.lanes, status.lanes_failed, status.ready) == (1, 1, True)
        assert {one.timeline.lanes for one in others} == {1}
        assert notes.names().count("lane lost") == 1 and "failed" not in notes.names()


@in_loop
async def test_a_lane_that_fails_again_and_again_is_told_to_the_client() -> None:
    shop = FakeShop(2)
    async with engine(shop) as served:
        shop.fails["fails"] = [dt.LaneError("lane 1 failed"), dt.LaneError("lane 0 failed")]
        with pytest.raises(dt.LaneError, match="lane 0 failed"):
            await served.generate("fails")
        await served.generate("others")


@in_loop
async def test_without_any_lane_all_fail_and_it_is_not_ready() -> None:
    shop, notes = FakeShop(1), Notes()
    async with engine(shop, observer=notes) as served:
        gate = shop.hold("fails")
        shop.fails["fails"] = [dt.LaneError("GPU 0 failed")]
        ticket, others = await served.submit("fails"), [await served.submit("others") for _ in range(3)]
        shop.lanes = 0
        gate.release(GO)
        for one in (ticket, *others):
            with pytest.raises(dt.LaneError, match="GPU 0 failed"):
                await one.result()
        status = served.status()
        assert not status.ready and status.queued == 0
        assert status.per_second == status.expected_wait_ms == 0, "numbers that JSON has"
        with pytest.raises(dt.LaneError, match="every device has failed"):
            await served.submit("one more")
        assert notes.seen.count(("lane lost", 0)) == 1
    assert shop.made == []


@in_loop
async def test_draining_finishes_what_was_taken() -> None:
    shop = FakeShop(1)
    async with engine(shop) as served:
        gate = shop.hold("held")
        tickets = [await served.submit("held"), await served.submit("other")]
        drained = asyncio.ensure_future(served.drain())
        await asyncio.sleep(0)
        assert served.status().draining and not served.status().ready
        with pytest.raises(dt.DrainingError):
            await served.submit("late")
        assert not drained.done()
        gate.release(GO)
        await drained
        assert all(ticket.done for ticket in tickets)
        await served.drain()
    assert len(shop.made) == 2


@in_loop
async def test_draining_cancels_what_takes_too_long() -> None:
    shop = FakeShop(1)
    async with engine(shop) as served:
        gate = shop.hold("held")
        runs, waits, hangs = await served.submit("held"), await served.submit("other"), shop.hold("hangs")
        drained = asyncio.ensure_future(served.drain(0.05))
        await until(lambda: waits.done)
        gate.release()
        await drained
        for one in (runs, waits):
            with pytest.raises(dt.CancelledError, match="since the engine ends"):
                await waits.result()
            assert one.done
        hangs.release()


@in_loop
async def test_draining_does_not_wait_for_what_hangs() -> None:
    shop = FakeShop(1)
    async with engine(shop) as served:
        gate = shop.hold("hangs")
        ticket = await served.submit("hangs")
        await served.drain(0.05)
        with pytest.raises(dt.CancelledError, match="did not end in time"):
            await ticket.result()
        gate.release(GO)


@in_loop
async def test_an_error_in_its_block_cancels_all() -> None:
    shop = FakeShop(1)
    with pytest.raises(ZeroDivisionError):
        async with engine(shop) as served:
            tickets = [await served.submit("long", steps=20_000), await served.submit("other")]
            raise ZeroDivisionError
    for ticket in tickets:
        with pytest.raises(dt.CancelledError):
            await ticket.result()
    assert shop.closed == 1


@in_loop
async def test_it_works_in_its_block_only() -> None:
    shop = FakeShop(1)
    served = engine(shop)
    assert not served.status().ready
    with pytest.raises(dt.LaneError, match="async with"):
        await served.submit("early")
    async with served:
        pass
    with pytest.raises(dt.DrainingError):
        await served.submit("late")
    with pytest.raises(dt.LaneError, match="entered once"):
        await served.__aenter__()


@in_loop
async def test_rounds_are_told_and_previews_where_asked() -> None:
    shop = FakeShop(1)
    async with engine(shop) as served:
        ticket = await served.submit("one", steps=5, previews=True)
        seen = [one async for one in ticket.rounds()]
        assert [one.number for one in seen] == [1, 2, 3, 4, 5]
        assert {one.of for one in seen} == {5} and seen[-1].state == seen[-1].steps == 5
        assert [one.ms for one in seen] == sorted(one.ms for one in seen)
        assert [one.preview.getpixel((0, 0))[0] for one in seen] == [1, 2, 3, 4, 5]
        assert ticket.done
        plain = await served.submit("one", steps=2)
        assert [one.preview async for one in plain.rounds()] == [None, None]
        assert [one.number async for one in plain.rounds()] == [1, 2], "also for who comes late"


@in_loop
async def test_a_slow_reader_misses_old_rounds_and_delays_nothing() -> None:
    shop = FakeShop(1, step_ms=0.1)
    async with engine(shop) as served:
        ticket, seen = await served.submit("one", steps=60), []
        async for one in ticket.rounds():
            seen.append(one.number)
            if len(seen) == 1:
                await ticket.result()
        assert seen[-1] == 60 and len(seen) <= 1 + 2 * 16
        assert len(ticket._rounds) <= 16


@in_loop
async def test_an_observer_that_fails_loses_nothing(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(Unobserved):
        def on_started(self, ticket: Ticket) -> None:
            raise ZeroDivisionError

    with caplog.at_level(logging.ERROR):
        async with engine(FakeShop(1), observer=Broken()) as served:
            await served.generate("one")
    assert "an observer failed in on_started" in caplog.text


@in_loop
async def test_nothing_grows_with_the_requests_served() -> None:
    shop = FakeShop(2, step_ms=0.01)
    async with engine(shop) as served:
        kept = []
        for number in range(30):
            ticket = await served.submit("one", client=f"client {number}")
            await ticket.result()
            kept.append(weakref.ref(ticket))
            del ticket
        await asyncio.sleep(0.02)
        gc.collect()
        assert sum(ref() is not None for ref in kept) <= 1
        scheduler: Any = served._scheduler
        assert not scheduler.queued and not scheduler.leases and not scheduler.waiting.queue._had


@pytest.mark.parametrize("queue", [0, -1, 1.5, True, "64", 1025])
def test_a_queue_that_cannot_be(queue: Any) -> None:
    with pytest.raises(dt.InputError, match="queue must be"):
        engine(FakeShop(), queue=queue)


def test_a_share_that_cannot_be() -> None:
    with pytest.raises(dt.InputError, match="did you mean 'elastic'"):
        engine(FakeShop(), share="elastik")
