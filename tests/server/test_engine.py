"""The engine over pictures of known costs: queue, lanes, deadlines, cancelling, failures, draining."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import itertools
import logging
import threading
import time
import weakref
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from fakeengine import GO, Notes, engine, in_loop, until
from fakeshop import FakeShop

import driffusion_trt as dt
from driffusion_trt.server.admission import Returns
from driffusion_trt.server.observer import Unobserved
from driffusion_trt.server.ticket import Ticket


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
async def test_the_next_request_has_the_lanes_while_the_last_one_is_decoded() -> None:
    shop = FakeShop(2)
    async with engine(shop) as served:
        ends = {name: shop.decoding.setdefault(name, threading.Event()) for name in ("a", "b", "c")}
        tickets = [await served.submit(name) for name in ends]
        await until(lambda: served.status().lanes_in_use == 0 and served.status().running > 1)
        assert not any(ticket.done for ticket in tickets)
        for event in ends.values():
            event.set()
        await asyncio.gather(*(ticket.result() for ticket in tickets))
        assert [ticket.timeline.lanes for ticket in tickets] == [2, 2, 2]


@in_loop
async def test_the_queue_is_bounded() -> None:
    shop, notes = FakeShop(1), Notes()
    async with engine(shop, queue=3, observer=notes) as served:
        gate = shop.hold("held")
        tickets = [await served.submit("held", client=client) for client in "aabc"]
        with pytest.raises(dt.QueueFullError, match="3 requests wait") as refused:
            await served.submit("one more")
        assert 0 < refused.value.retry_after_s < 60
        assert notes.seen[-1] == ("refused", "QueueFullError")
        gate.release(GO)
        await asyncio.gather(*(ticket.result() for ticket in tickets))
        await served.generate("again")
    assert len(shop.made) == 5


@in_loop
async def test_refused_clients_come_again_one_after_another_and_get_their_pictures() -> None:
    """As OpenAI's clients do: twice more, at the time that they are told, and then no more."""
    shop, told = FakeShop(1, step_ms=15.0), []

    async def client(served: dt.Engine, name: str) -> bool:
        for _ in range(3):
            try:
                ticket = await served.submit("one", client=name)
            except dt.QueueFullError as error:
                told.append(error.retry_after_s)
                await asyncio.sleep(error.retry_after_s)
            else:
                await ticket.result()
                return True
        return False

    async with engine(shop, queue=4) as served:
        got = await asyncio.gather(*(client(served, f"client {i}") for i in range(10)))
    apart = [b - a for a, b in itertools.pairwise(told[:5])]
    assert min(apart) > 0.1, "each has a time of its own, as far from the next as pictures are"
    assert sum(got) >= 9 and max(told) < 60


def test_who_is_to_come_again_is_told_a_time_within_what_the_queue_needs() -> None:
    returns = Returns()
    told = [returns.after_s(100.0, 0.2, 0.5, 2.0) for _ in range(40)]
    assert told[:4] == pytest.approx([0.2, 0.7, 1.2, 1.7])
    assert all(0.2 <= one <= 2.0 for one in told[4:]) and len(set(told)) == 40
    assert returns.after_s(101.0, 0.2, 0.5, 2.0) == pytest.approx(1.2), "after the last one that was told"
    assert returns.after_s(200.0, 0.2, 0.5, 2.0) == pytest.approx(0.2), "those are all over"


@in_loop
async def test_checking_a_request_holds_up_nothing_and_takes_a_place() -> None:
    shop = FakeShop(1)
    async with engine(shop, queue=3) as served:
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
        await ticket.result()
        assert ticket.timeline.queue_ms < 30_000, "it was on its way for a minute, and not in the queue"
        assert ticket.deadline_kept
        for wrong in (time.perf_counter() + 60, float("nan"), "now", True):
            with pytest.raises(dt.InputError, match="since_s must be"):
                await served.submit("one", since_s=wrong)  # type: ignore[arg-type]


@in_loop
async def test_the_last_places_are_for_clients_below_their_share() -> None:
    shop = FakeShop(1)
    async with engine(shop, queue=16) as served:
        gate = shop.hold("held")
        tickets = [await served.submit("held", client="flood") for _ in range(1 + 14)]
        with pytest.raises(dt.QueueFullError, match="14 requests of this client wait, and the last 2 places"):
            await served.submit("held", client="flood", user="another name")
        served.admit("quiet")
        tickets += [await served.submit("held", client=client) for client in ("quiet", "calm")]
        with pytest.raises(dt.QueueFullError, match="16 requests wait"):
            served.admit("third")
        gate.release(GO)
        await asyncio.gather(*(ticket.result() for ticket in tickets))
        assert served.status().queued == 0


@pytest.mark.parametrize("queue", range(1, 8))
@in_loop
async def test_a_short_queue_keeps_a_place_too(queue: int) -> None:
    shop, kept = FakeShop(1), min(1, queue - 1)
    async with engine(shop, queue=queue) as served:
        gate = shop.hold("held")
        tickets = [await served.submit("held", client="flood") for _ in range(1 + queue - kept)]
        with pytest.raises(dt.QueueFullError):
            served.admit("flood")
        tickets += [await served.submit("held", client="quiet") for _ in range(kept)]
        with pytest.raises(dt.QueueFullError, match=f"{queue} requests wait"):
            served.admit("third")
        gate.release(GO)
        await asyncio.gather(*(ticket.result() for ticket in tickets))


@in_loop
async def test_a_request_is_no_more_work_than_may_be() -> None:
    """On one lane; as much more as it may take where its size was not measured."""
    shop, notes = FakeShop(4, step_ms=100.0), Notes()
    async with engine(shop, most_s=2.0, observer=notes) as served:
        shop.hold("fits").release(GO)
        await served.generate("fits", steps=20)
        with pytest.raises(dt.InputError, match=r"may be 2 s of work for one lane, and the most here is 2;"):
            await served.submit("more", steps=21)
        shop.times_larger = 3.0
        with pytest.raises(dt.InputError, match="may be 6 s of work"):
            await served.submit("larger", steps=20)
        assert notes.names().count("refused") == 2
    assert [prompt for prompt, _ in shop.made] == ["fits"]
    for wrong in (0, -1.0, float("nan"), True, "1"):
        with pytest.raises(dt.InputError, match="most_s must be"):
            engine(shop, most_s=wrong)
        with pytest.raises(dt.InputError, match="most_area must be"):
            engine(shop, most_area=wrong)


@in_loop
async def test_a_ticket_says_whether_its_deadline_was_kept() -> None:
    shop = FakeShop(1, step_ms=1.0)
    async with engine(shop) as served:
        gate = shop.hold("slow")
        kept = await served.submit("one", deadline_ms=60_000)
        assert kept.deadline_kept is None
        await kept.result()
        without = await served.submit("one")
        await without.result()
        late = await served.submit("slow", deadline_ms=200)
        await asyncio.sleep(0.3)
        gate.release(GO)
        await late.result()
        assert [one.deadline_kept for one in (kept, without, late)] == [True, None, False]


@in_loop
async def test_a_user_leaves_places_to_other_users_of_its_key() -> None:
    shop = FakeShop(1)
    async with engine(shop, queue=16) as served:
        gate = shop.hold("held")
        tickets = [await served.submit("held", client="key", user="flood") for _ in range(1 + 12)]
        with pytest.raises(dt.QueueFullError, match="12 requests of this user wait"):
            await served.submit("held", client="key", user="flood")
        tickets += [await served.submit("held", client="key", user=user) for user in ("quiet", "calm")]
        with pytest.raises(dt.QueueFullError, match="14 requests of this client wait"):
            await served.submit("held", client="key", user="fourth")
        tickets.append(await served.submit("held", client="other key", user="flood"))
        gate.release(GO)
        await asyncio.gather(*(ticket.result() for ticket in tickets))


@in_loop
async def test_requests_that_are_checked_count_for_their_client() -> None:
    shop = FakeShop(1)
    async with engine(shop, queue=16) as served:
        gate, let = shop.hold("held"), shop.checks.setdefault("slow", threading.Event())
        held = await served.submit("held", client="flood")
        slow = [asyncio.ensure_future(served.submit("slow", client="flood")) for _ in range(20)]
        await asyncio.sleep(0)
        served.admit("quiet")
        let.set()
        gate.release(GO)
        found = await asyncio.gather(*slow, return_exceptions=True)
        assert [type(one) for one in found].count(dt.QueueFullError) == 6
        await held.result()


@in_loop
async def test_keys_take_turns_whatever_their_users_are_called() -> None:
    shop = FakeShop(1)
    async with engine(shop) as served:
        gate = shop.hold("first")
        first = await served.submit("first")
        flood = [await served.submit(f"a{k}", client="a", user=f"name {k}") for k in range(6)]
        quiet = [await served.submit(f"b{k}", client="b") for k in range(3)]
        gate.release(GO)
        await asyncio.gather(*(one.result() for one in (first, *flood, *quiet)))
    assert [prompt[0] for prompt, _ in shop.made[1:7]].count("b") == 3


@in_loop
async def test_calls_run_in_the_context_of_who_submits_them(monkeypatch: pytest.MonkeyPatch) -> None:
    shop, trace, seen = FakeShop(2), contextvars.ContextVar("trace", default="none"), set()
    make, order = shop.make, shop.order

    def traced(call: Callable[..., Any], name: str, *args: Any) -> Any:
        seen.add((name, str(args[0].prompt if name == "make" else args[0]), trace.get()))
        return call(*args)

    monkeypatch.setattr(shop, "make", partial(traced, make, "make"))
    monkeypatch.setattr(shop, "order", partial(traced, order, "order"))

    async def client(name: str) -> None:
        trace.set(name)
        await served.generate(name)

    async with engine(shop) as served:
        seen.clear()
        await asyncio.gather(*(asyncio.create_task(client(f"r{k}")) for k in range(6)))
    assert seen == {(step, f"r{k}", f"r{k}") for k in range(6) for step in ("make", "order")}


@in_loop
async def test_others_pass_a_request_that_waits_for_more_lanes_than_are_free() -> None:
    """Of four lanes one is in use, for 100 s; the head takes 500 s on four, and 667 s on three of them."""
    shop = FakeShop(4, step_ms=1000.0)
    async with engine(shop) as served:
        gates = [shop.hold(prompt) for prompt in ("long", "head", "short")]
        long = await served.submit("long", steps=400)
        scheduler: Any = served._scheduler
        lease, settings = scheduler.leases._of[long], {"steps": 2000, "quality": "high"}
        settings["deadline_ms"] = 640_000
        lease.keeps, lease.expected_ms = 1, 400_000.0
        with pytest.raises(dt.DeadlineError) as refused:
            await served.submit("head", **settings, client="a")
        assert refused.value.expected_ms == pytest.approx(900_750, rel=0.01), "when the lane is given back"
        lease.expected_ms = 100_000.0
        head = await served.submit("head", **settings, client="a")
        assert head.position == 1, "it waits for the fourth lane"
        short = await served.submit("short", steps=2, client="b")
        large = await served.submit("large", steps=1000, client="b")
        assert short.position == 0, "it is over before the head can begin"
        assert [head.position, large.position] == [1, 2], "it would delay the head"
        large.cancel()
        for gate in gates:
            gate.release(GO)
        await asyncio.gather(long.result(), head.result(), short.result())


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
    shop = FakeShop(2, step_ms=1000.0)  # 10 steps are 5.5 s on both lanes, 2.75 with fewer rounds
    async with engine(shop) as served:
        for prompt in ("one", "long"):
            shop.hold(prompt).release(GO)  # so that they take no time
        with pytest.raises(dt.DeadlineError, match="was to be there in 2000 ms") as refused:
            await served.submit("one", deadline_ms=2000)
        assert 2750 <= refused.value.expected_ms < 3500
        with pytest.raises(dt.DeadlineError, match="in 4000 ms"):
            await served.submit("one", deadline_ms=4000, quality="high")
        ticket = await served.submit("one", deadline_ms=4000)
        assert ticket.timeline.expected_ms == pytest.approx(3250, abs=600), "a plan with fewer rounds"
        await ticket.result()
        ticket = await served.submit("one", deadline_ms=500_000)
        assert ticket.timeline.expected_ms == pytest.approx(5500, abs=1), "the plan that it has without"
        await ticket.result()
        gate = shop.hold("long")
        long = await served.submit("long", steps=100)
        with pytest.raises(dt.DeadlineError):
            await served.submit("one", deadline_ms=10_000)
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
        assert time.perf_counter() - begun < 10 and error.value.expected_ms >= 100
        assert late.timeline.lanes == 0 and late.timeline.queue_ms > 0
        gate.release(GO)
        await held.result()
        assert ("failed", "DeadlineError") in notes.seen and ("started", ("late", 1)) not in notes.seen


@in_loop
async def test_a_deadline_takes_more_lanes_where_they_are_free() -> None:
    """It takes 40 s on one lane, 20.5 on two and 14 on three, of which it has 12 if the pace stays."""
    shop = FakeShop(4, step_ms=1000.0)
    async with engine(shop) as served:
        gates = [shop.hold(prompt) for prompt in ("held", "hurry", "many")]  # then they take no time
        held = await served.submit("held", steps=4)
        many = [await served.submit("many", steps=4) for _ in range(20)]
        hurry = await served.submit("hurry", steps=40, deadline_ms=13_800, quality="high", client="other")
        for gate in gates:
            gate.release(GO)
        await asyncio.gather(held.result(), hurry.result(), *(one.result() for one in many))
        assert hurry.timeline.lanes >= 3 and sorted(one.timeline.lanes for one in many)[10] == 1


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
        assert notes.names().count("lanes lost") == 1 and "failed" not in notes.names()


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
        assert notes.seen.count(("lanes lost", (1, 0))) == 1
    assert shop.made == []


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
async def test_an_observer_may_cancel_whatever_it_is_told_of() -> None:
    """In the middle of a step too: each request ends once, and none is started only to be cancelled."""

    class Canceller(Notes):
        def on_failed(self, ticket: Ticket, error: BaseException) -> None:
            super().on_failed(ticket, error)
            for one in tickets:
                one.cancel()

        def on_started(self, ticket: Ticket) -> None:
            super().on_started(ticket)
            if ticket.order.prompt == "cancelled":
                ticket.cancel()

    shop, notes = FakeShop(1), Canceller()
    async with engine(shop, observer=notes) as served:
        gate, tickets = shop.hold("held"), list[Ticket]()
        held = await served.submit("held")
        for prompt, deadline_ms in (("late", 150), ("late", 150), ("waits", None), ("waits", None)):
            tickets.append(await served.submit(prompt, deadline_ms=deadline_ms))
        await until(lambda: all(ticket.done for ticket in tickets))
        gate.release(GO)
        await held.result()
        assert notes.names().count("failed") == 4 and notes.names().count("started") == 1
        with pytest.raises(dt.CancelledError):
            await served.generate("cancelled")
    assert notes.names().count("failed") == 5


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
