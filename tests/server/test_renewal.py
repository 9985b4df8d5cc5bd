"""A service whose costs were measured beside other work mends them while nothing is asked for."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import calibrated
import numpy as np
import pytest
import tiny
from fakeengine import engine, in_loop, until
from fakeshop import FakeShop

import driffusion_trt as dt
from driffusion_trt import _measured_costs
from driffusion_trt._kept_costs import KeptCosts
from driffusion_trt._measured_costs import MeasuredCosts
from driffusion_trt.engines.onnx_session import BoundRun
from driffusion_trt.planning.costs import Costs
from driffusion_trt.server import leases, renewal

PROMPT = "a red fox"
GOOD = calibrated.COSTS
CROWDED = replace(GOOD, call_ms=(40.0, 76.0), crowded=8.0, disturbed=True)
OPEN: dict[str, Any] = {"steps": 20, "guidance_scale": 3.0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return calibrated.make_model_folder(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(autouse=True)
def soon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(renewal, "_QUIET_S", 0.05)
    monkeypatch.setattr(_measured_costs, "_PAUSES_S", (0.0, 0.0))


class Doubted(FakeShop):
    """What requests take is doubted; measuring it takes until it is let go, or has to give way.

    paces: what each that began was told. ended: how each ended.
    """

    def __init__(self, lanes: int = 2, **how: Any) -> None:
        super().__init__(lanes, **how)
        self.doubted, self.lets = True, threading.Event()
        self.paces, self.ended = list[float](), list[str]()
        self.error: Exception | None = None

    def renewal_in_s(self, pace: float) -> float | None:
        return 0.0 if self.doubted else None

    def renew(self, pace: float, going: Callable[[], None]) -> None:
        self.paces.append(pace)
        if self.error is not None:
            self.doubted, error = False, self.error
            raise error
        while not self.lets.wait(0.002):
            try:
                going()
            except dt.CancelledError:
                self.ended.append("gave way")
                raise
        self.ended.append("renewed")
        self.step_ms, self.doubted = self.step_ms / 10, False


@in_loop
async def test_a_quiet_service_measures_and_goes_by_it() -> None:
    shop = Doubted(step_ms=100.0)  # a second on one lane
    async with engine(shop) as served:
        before = served.status()
        assert before.costs_doubtful
        shop.lets.set()
        await until(lambda: not served.status().costs_doubtful)
        await until(lambda: served.status().expected_ms < before.expected_ms / 2)
        now = served.status()
        assert now.expected_ms == pytest.approx(before.expected_ms / 10)
        assert now.per_second == pytest.approx(10 * before.per_second)
        await served.generate("in time", deadline_ms=400)
        assert served.status().pace < 1.5, "what is learnt is by the new times"
    assert shop.ended == ["renewed"]


@in_loop
async def test_it_gives_way_to_a_request_and_comes_back_after_it() -> None:
    shop = Doubted(step_ms=0.1)
    async with engine(shop) as served:
        await until(lambda: len(shop.paces) == 1)
        gate = shop.hold("held")
        ticket = await served.submit("held")
        await until(lambda: shop.ended == ["gave way"])
        await asyncio.sleep(0.2)
        assert len(shop.paces) == 1, "while a request is under way nothing is measured"
        gate.release(1000)
        await ticket.result()
        await until(lambda: len(shop.paces) == 2)
        served.admit()  # before a body is read
        await until(lambda: shop.ended == ["gave way", "gave way"])
        await until(lambda: len(shop.paces) == 3)
        shop.lets.set()
        await until(lambda: not served.status().costs_doubtful)


@in_loop
async def test_a_request_that_is_being_checked_is_no_quiet_moment() -> None:
    shop = Doubted()
    async with engine(shop) as served:
        await until(lambda: len(shop.paces) == 1)
        checked = shop.checks.setdefault("slow", threading.Event())
        slow = asyncio.ensure_future(served.submit("slow"))
        await until(lambda: shop.ended == ["gave way"])
        await until(lambda: len(shop.paces) == 2)  # it takes long
        checked.set()
        await (await slow).result()
        await until(lambda: shop.ended[:2] == ["gave way"] * 2)


@in_loop
async def test_a_request_at_the_end_of_the_quiet_moment_is_not_overlooked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shop, begun, within = Doubted(), list[int](), renewal.within

    async def just_then(came: asyncio.Event, timeout_s: float | None) -> bool:
        begun.append(len(shop.paces))
        found = await within(came, timeout_s)
        if len(begun) == 1:
            served.admit()
        return found

    monkeypatch.setattr(renewal, "within", just_then)
    async with engine(shop) as served:
        await until(lambda: len(begun) == 2)
        assert begun == [0, 0], "it waits anew"


@in_loop
async def test_it_is_told_the_pace_that_was_seen_at_the_end_of_the_last_request(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Which fades while nothing is asked for."""
    monkeypatch.setattr(leases, "_REMEMBERED_S", 0.01)
    monkeypatch.setattr(leases, "_REMEMBERED", 0)
    monkeypatch.setattr(renewal, "_QUIET_S", 0.5)
    shop = Doubted(step_ms=20.0)
    shop.hold("quick").release(1000)
    async with engine(shop) as served:
        tickets = [await served.submit("quick") for _ in range(20)]
        for ticket in tickets:
            await ticket.result()
        await until(lambda: bool(shop.paces))
        assert shop.paces[0] < 0.8 and served.status().pace > 0.95


@in_loop
async def test_the_end_waits_for_no_measurement() -> None:
    shop = Doubted()
    async with engine(shop):
        await until(lambda: len(shop.paces) == 1)
    await until(lambda: shop.ended == ["gave way"])
    await asyncio.sleep(0.15)
    assert len(shop.paces) == 1


@in_loop
async def test_one_that_fails_is_logged_and_the_next_request_is_served() -> None:
    shop, records = Doubted(), list[str]()
    shop.error = dt.LaneError("lane 1 of 2 failed")
    handler = logging.Handler()
    handler.emit = lambda record: records.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("driffusion_trt.engine").addHandler(handler)
    try:
        async with engine(shop) as served:
            await until(lambda: bool(records))
            assert records == ["costs could not be measured anew"]
            await served.generate("next")
            shop.doubted, shop.error = True, None
            await served.generate("another")
            shop.lets.set()
            await until(lambda: shop.ended == ["renewed"])
    finally:
        logging.getLogger("driffusion_trt.engine").removeHandler(handler)


@in_loop
async def test_where_a_lane_hangs_nothing_is_measured() -> None:
    shop = Doubted()
    async with engine(shop, hang_s=0.1) as served:
        gate = shop.hold("hangs")
        hanging = await served.submit("hangs", steps=1, mode="by name")
        with pytest.raises(dt.LaneError, match="hangs"):
            await hanging.result()
        await asyncio.sleep(0.2)
        assert not shop.paces, "though nothing is queued or running"
        gate.release(1000)
        await until(lambda: served.status().ready)
        await served.generate("next")
        await until(lambda: bool(shop.paces))


def test_a_service_that_began_on_a_busy_machine_mends_itself(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Its plans, what it admits, and what later processes read."""
    found, go = [CROWDED, GOOD], threading.Event()

    def measured(costs: MeasuredCosts, size: Any, told: Any, going: Any) -> Costs:
        while going is not None and not go.wait(0.002):
            going()
        return found.pop(0)

    monkeypatch.setattr(MeasuredCosts, "_measured", measured)
    caplog.set_level(logging.INFO, "driffusion_trt.costs")

    async def run() -> None:
        async with dt.Engine.load(folder, devices=["cpu"] * 4) as served:
            made = await served.generate(PROMPT, **OPEN, seed=3)
            assert made.settings[0]["mode"] == "sequential" and served.status().costs_doubtful
            with pytest.raises(dt.DeadlineError):
                await served.submit(PROMPT, **OPEN, deadline_ms=500)
            before = served.status().expected_ms
            go.set()
            await until(lambda: served.status().expected_ms < before / 3)
            assert not served.status().costs_doubtful and not found
            quick = await served.generate(PROMPT, **OPEN, deadline_ms=2000, seed=3)
            assert quick.settings[0]["mode"] == "tolerance"
            again = await served.generate(**made.call())
            np.testing.assert_array_equal(again.latents, made.latents)

    asyncio.run(asyncio.wait_for(run(), 90))
    assert any(line.startswith("costs were measured anew: a round on all") for line in caplog.messages)
    with dt.Pipeline.load(folder, devices=["cpu"] * 4) as pipe:
        assert pipe.measure() == GOOD


def test_of_two_sizes_one_may_be_measured_and_the_other_not(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then the first one's new costs are used all the same."""
    side = 4 * tiny.SIDE

    def measured(costs: MeasuredCosts, size: Any, told: Any, going: Any) -> Costs:
        if going is None:
            return CROWDED
        if size == (side, side):
            return GOOD
        raise dt.CancelledError("a request came")

    monkeypatch.setattr(MeasuredCosts, "_measured", measured)

    async def run() -> None:
        async with dt.Engine.load(folder, devices=["cpu"] * 4) as served:
            served.pipe.measure(side // 2, side)
            before = served.status().expected_ms
            await until(lambda: served.status().expected_ms < before / 3)
            assert served.pipe.measure() == GOOD and served.pipe.measure(side // 2, side) == CROWDED
            assert (await served.generate(PROMPT, **OPEN)).settings[0]["mode"] == "tolerance"

    asyncio.run(asyncio.wait_for(run(), 90))


@pytest.mark.parametrize(("lanes", "most"), [(1, 2), (2, 1)])
def test_a_request_waits_for_one_call_of_a_slow_network_at_most(
    folder: Path, monkeypatch: pytest.MonkeyPatch, lanes: int, most: int
) -> None:
    """Which takes 0.3 s here, its measurement most of a minute. A single lane may have two in a round."""
    steps = 3
    began: list[float] = []
    begun_before: list[int] = []  # by the request that comes
    run, give_way = BoundRun.__call__, renewal.Renewal.give_way

    def slow(self: BoundRun) -> None:
        began.append(time.perf_counter())
        time.sleep(0.3)
        run(self)

    def told(self: renewal.Renewal) -> None:
        begun_before.append(len(began))
        give_way(self)

    monkeypatch.setattr(BoundRun, "__call__", slow)
    monkeypatch.setattr(renewal.Renewal, "give_way", told)
    monkeypatch.setattr(KeptCosts, "read", lambda *_: replace(CROWDED, devices=lanes))

    async def serve() -> None:
        async with dt.Engine.load(folder, devices=["cpu"] * lanes) as served:
            for wait_s in (0.0, 0.1, 0.25):
                before = len(began)
                await until(lambda n=before: len(began) > n + 4)  # type: ignore[misc]
                await asyncio.sleep(wait_s)
                begun_before.clear()
                result = await served.generate(PROMPT, steps=steps, mode="sequential", guidance_scale=1.0)
                assert result.stats.rounds == steps
                # Its own, and those of the round that was under way or about to begin.
                assert len(began) - begun_before[0] <= steps + max(lanes, most), "no more are begun"
            assert served.status().costs_doubtful

    asyncio.run(asyncio.wait_for(serve(), 90))
