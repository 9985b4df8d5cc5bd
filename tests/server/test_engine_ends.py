"""The engine's end, and lanes that hang: nobody waits for ever, and nothing is taken that cannot be made."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from fakeengine import GO, Notes, engine, in_loop, until
from fakeshop import FakeShop

import driffusion_trt as dt
from driffusion_trt.server.ticket import Ticket

ROOT = Path(__file__).resolve().parents[2]


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
    shop, notes = FakeShop(1), Notes()
    async with engine(shop, observer=notes) as served:
        gate = shop.hold("held")
        runs, *waits = [await served.submit("held") for _ in range(3)]
        drained = asyncio.ensure_future(served.drain(0.05))
        await until(lambda: waits[-1].done)
        gate.release()
        await drained
        for one, when in zip((runs, *waits), ("after the round", "while it", "while it"), strict=True):
            with pytest.raises(dt.CancelledError, match=f"since the engine ends,.* {when}"):
                await one.result()
    assert notes.names().count("started") == 1, "none is started only to be cancelled"


@pytest.mark.parametrize("timeout_s", [0.0, 0.05])
def test_draining_does_not_wait_for_what_hangs(timeout_s: float) -> None:
    async def run() -> None:
        shop = FakeShop(1)
        async with engine(shop) as served:
            gate = shop.hold("hangs")
            ticket, begun = await served.submit("hangs"), time.monotonic()
            await served.drain(timeout_s)
            assert 0.9 < time.monotonic() - begun < 9, "the round has a second to end"
            with pytest.raises(dt.CancelledError, match="did not end in time"):
                await ticket.result()
        assert shop.closed == 1
        gate.release(GO)

    asyncio.run(asyncio.wait_for(run(), 90))


@in_loop
async def test_a_shop_that_does_not_close_is_left_alone(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    shop, closes = FakeShop(1), threading.Event()
    monkeypatch.setattr("driffusion_trt.server.engine._CLOSING_S", 0.05)
    monkeypatch.setattr(shop, "close", lambda: closes.wait(20))
    async with engine(shop):
        pass
    assert "was not closed within" in caplog.text
    closes.set()


@in_loop
async def test_an_error_of_closing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    shop = FakeShop(1)

    def broken() -> None:
        raise dt.DeviceError("the driver is gone")

    monkeypatch.setattr(shop, "close", broken)
    with pytest.raises(dt.DeviceError, match="the driver is gone"):
        async with engine(shop):
            pass


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


def test_a_process_ends_with_a_lane_that_hangs() -> None:
    """No thread of a call, nor of the end, is waited for by the interpreter."""
    code = """
        import asyncio, threading
        from fakeshop import FakeShop
        from driffusion_trt.server import engine as module

        module._CLOSING_S = 0.1
        shop, never = FakeShop(1), threading.Event()
        shop.close = shop._make = lambda *_: never.wait()

        async def main():
            async with module.Engine(None, shop=shop) as engine:
                ticket = await engine.submit("hangs")
                await engine.drain(0.0)
                assert ticket.done

        asyncio.run(main())
        print("ended")
    """
    found = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], cwd=ROOT / "tests", timeout=180, text=True,
        env={"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "PATH": ""}, capture_output=True, check=True,
    )  # fmt: skip
    assert found.stdout == "ended\n"


@in_loop
async def test_a_request_that_hangs_is_given_up_and_no_others_are_taken_meanwhile() -> None:
    shop, notes = FakeShop(2), Notes()
    async with engine(shop, hang_s=1.0, observer=notes, share="one") as served:
        gate = shop.hold("hangs")
        hangs, waits = await served.submit("hangs"), shop.hold("waits")
        others = [await served.submit("waits", steps=5000), await served.submit("next", steps=100)]
        with pytest.raises(dt.LaneError, match=r"where 0\.0 s were expected.* a lane hangs"):
            await hangs.result()
        status = served.status()
        assert (status.ready, status.hanging, status.lanes, status.lanes_failed) == (False, 1, 1, 1)
        with pytest.raises(dt.NoDeviceError, match="a lane hangs, and no requests are taken"):
            await served.submit("late")
        waits.release(5000)
        await asyncio.gather(*(one.result() for one in others))  # on the lane that is left
        gate.release(GO)
        await until(lambda: served.status().ready)
        status = served.status()
        assert (status.hanging, status.lanes, status.lanes_failed) == (0, 2, 0)
        await served.generate("again")
    assert ("lanes lost", (1, 1)) in notes.seen
    assert "hangs" not in [prompt for prompt, _ in shop.made], "its call was cancelled"


@in_loop
async def test_where_every_lane_hangs_nothing_waits_and_the_end_comes() -> None:
    shop = FakeShop(1)
    async with engine(shop, hang_s=0.2) as served:
        gate = shop.hold("hangs")
        hangs, *others = [await served.submit("hangs") for _ in range(4)]
        with pytest.raises(dt.LaneError, match="a lane hangs"):
            await hangs.result()
        for one in others:
            with pytest.raises(dt.NoDeviceError, match="no lane is left"):
                await one.result()
        status = served.status()
        assert (status.queued, status.running, status.lanes, status.ready) == (0, 0, 0, False)
        await served.drain()  # without a timeout
    gate.release(GO)


@in_loop
async def test_an_observer_may_call_back_while_several_hang() -> None:
    class Canceller(Notes):
        def on_failed(self, ticket: Ticket, error: BaseException) -> None:
            super().on_failed(ticket, error)
            for one in tickets:
                one.cancel()

    shop, notes, wrong = FakeShop(2), Canceller(), list[Any]()
    asyncio.get_running_loop().set_exception_handler(lambda _, what: wrong.append(what))
    async with engine(shop, hang_s=0.2, observer=notes, share="one") as served:
        gate = shop.hold("hangs")
        tickets = [await served.submit("hangs") for _ in range(4)]
        scheduler: Any = served._scheduler
        first, second = scheduler.leases._of.values()
        second.started_s = first.started_s  # so that one step finds both
        await until(lambda: all(ticket.done for ticket in tickets))
        assert notes.names().count("failed") == 4 and served.status().hanging == 2
        for ticket, kind in zip(tickets, [dt.LaneError] * 2 + [dt.CancelledError] * 2, strict=True):
            with pytest.raises(kind):
                await ticket.result()
    gate.release(GO)
    assert not wrong


@in_loop
async def test_what_only_takes_long_does_not_hang() -> None:
    shop = FakeShop(1, step_ms=50.0)
    async with engine(shop, hang_s=0.001) as served:
        gate = shop.hold("slow")
        slow = await served.submit("slow")  # half a second is expected, ten are far longer
        await asyncio.sleep(0.2)
        assert not slow.done and served.status().ready
        gate.release(GO)
        await slow.result()


@pytest.mark.parametrize("hang_s", [0, -1.0, float("nan"), float("inf"), "30", True])
def test_a_time_that_cannot_be(hang_s: Any) -> None:
    with pytest.raises(dt.InputError, match="hang_s must be"):
        engine(FakeShop(), hang_s=hang_s)
