"""The engine over a real pipeline: a tiny model on CPU lanes."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import calibrated
import numpy as np
import pytest
import tiny
from PIL import Image

import driffusion_trt as dt
from driffusion_trt._kept_costs import KeptCosts
from driffusion_trt.engines.onnx_session import BoundRun
from driffusion_trt.planning.costs import Costs
from driffusion_trt.runtime.host_job import _Call
from driffusion_trt.sampling.recording import Span

PROMPT = "a red fox"
COSTS = calibrated.COSTS
Served = Callable[[dt.Engine], Coroutine[Any, Any, Any]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return calibrated.make_model_folder(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(autouse=True)
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    """Costs of four devices, without a measurement."""
    monkeypatch.setattr(KeptCosts, "read", lambda *_: COSTS)


def serve(folder: Path, work: Served, **options: Any) -> Any:
    """Run something with an engine on four lanes."""

    async def run() -> Any:
        async with dt.Engine.load(folder, **{"devices": ["cpu"] * 4, **options}) as engine:
            return await work(engine)

    return asyncio.run(asyncio.wait_for(run(), 120))


def alone(folder: Path, **settings: Any) -> Any:
    with dt.Pipeline.load(folder, devices=["cpu"] * 4) as pipe:
        return pipe(PROMPT, **settings)


def slow_calls(patch: pytest.MonkeyPatch, seconds: float) -> None:
    """Every prediction takes so much longer; other lanes can work meanwhile."""
    run = BoundRun.__call__

    def slowed(self: BoundRun) -> None:
        time.sleep(seconds)
        run(self)

    patch.setattr(BoundRun, "__call__", slowed)


@pytest.mark.parametrize(
    "settings",
    [
        {"mode": "aggressive"},
        {"mode": "conservative", "lanes": 3},
        {"mode": "tolerance", "tolerance": 0.05},
        {"mode": "window", "split_guidance": True},
        {"mode": "sequential", "num_images": 2, "seed": [3, 4]},
    ],
    ids=str,
)
def test_a_plan_by_name_makes_the_same_picture_whatever_the_load(
    folder: Path, settings: dict[str, Any]
) -> None:
    wanted = alone(folder, steps=8, **settings)

    async def work(engine: dt.Engine) -> Any:
        others = [engine.generate(PROMPT, steps=4, seed=k) for k in range(12)]
        same = [engine.generate(PROMPT, steps=8, **settings) for _ in range(3)]
        return (await asyncio.gather(*others, *same))[-3:]

    for made in serve(folder, work):
        np.testing.assert_array_equal(made.latents, wanted.latents)
        assert made.plan.lanes == wanted.plan.lanes and made.settings == wanted.settings


def test_a_picture_to_start_from_waits_small_and_makes_the_same(tmp_path: Path) -> None:
    folder = tiny.make_model_folder(tmp_path / "tiny", encoder=True)
    side = 20 * tiny.SIDE
    noisy = np.random.default_rng(0).integers(0, 256, (side, side), np.uint8)
    image, mask = Image.fromarray(noisy).convert("RGBA"), Image.fromarray(noisy).convert("P")
    settings: dict[str, Any] = {"image": image, "mask_image": mask, "height": 2 * tiny.SIDE, "steps": 4}
    settings |= {"width": 2 * tiny.SIDE, "mode": "aggressive"}

    async def work(engine: dt.Engine) -> Any:
        ticket = await engine.submit(PROMPT, **settings)
        kept = ticket.order.settings
        assert [one.size for one in (*kept["image"], *kept["mask_image"])] == [(2 * tiny.SIDE,) * 2] * 2
        assert ticket.order.request[0].source is None
        return await ticket.result()

    made, wanted = serve(folder, work), alone(folder, **settings)
    np.testing.assert_array_equal(made.latents, wanted.latents)
    assert made.settings == wanted.settings, "the hashes of picture and mask too"


def test_an_open_plan_goes_by_the_load_and_the_result_records_it(folder: Path) -> None:
    async def work(engine: dt.Engine) -> Any:
        quiet = await engine.generate(PROMPT, steps=20, quality="fast", guidance_scale=3.0)
        crowd = [
            await engine.submit(PROMPT, steps=20, quality="fast", guidance_scale=3.0, seed=k)
            for k in range(40)
        ]
        made = [await ticket.result() for ticket in crowd]
        return quiet, made, [ticket.timeline.lanes for ticket in crowd]

    quiet, made, lanes = serve(folder, work)
    # Of four devices with these costs: pairs of them for the two halves of guidance.
    assert [quiet.settings[0][name] for name in ("mode", "lanes", "split_guidance")] == ["tolerance", 2, True]
    assert lanes[0] == 4 and lanes[10] == 1 and made[0].settings[0]["lanes"] == 2
    assert made[10].settings[0]["mode"] == "sequential"
    for result in (quiet, made[0], made[10]):
        again = alone(folder, **{k: v for k, v in result.call().items() if k != "prompt"})
        np.testing.assert_array_equal(result.latents, again.latents)


def test_lanes_that_idle_in_a_round_serve_another_request(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow_calls(monkeypatch, 0.004)
    one, other = dt.Recorder(), dt.Recorder()

    async def work(engine: dt.Engine) -> Any:
        settings = {"steps": 20, "mode": "conservative", "lanes": 2, "guidance_scale": 3.0}
        tickets = [
            await engine.submit(PROMPT, **settings, recorder=one),
            await engine.submit(PROMPT, **settings, recorder=other),
        ]
        assert engine.status().running == 2, "the first keeps one lane and a half at work"
        return [await ticket.result() for ticket in tickets]

    serve(folder, work, devices=["cpu"] * 2)
    first, second = ([s for s in r.spans if s.name == "predict"] for r in (one, other))
    narrow = [s for s in first if sum(also.round == s.round for also in first) == 1]
    assert len(narrow) >= 6
    served = [s for s in narrow if any(_during(s, also) and also.track != s.track for also in second)]
    assert len(served) >= len(narrow) // 2, "rounds of one prediction leave a lane, which has work of others"


def _during(one: Span, other: Span) -> bool:
    return one.start_s < other.end_s and other.start_s < one.end_s


def test_a_call_that_fails_on_a_lane_is_made_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = alone(folder, steps=8, mode="aggressive")
    call, failing = _Call.work, threading.Event()

    def broken(self: _Call, lane: int) -> None:
        if lane == 1 and failing.is_set():
            failing.clear()
            raise MemoryError("no memory for the lane")
        call(self, lane)

    monkeypatch.setattr(_Call, "work", broken)

    async def work(engine: dt.Engine) -> Any:
        failing.set()
        made = await asyncio.gather(*(engine.generate(PROMPT, steps=8, mode="aggressive") for _ in range(6)))
        assert not failing.is_set(), "one of them failed once"
        return made

    for made in serve(folder, work):
        np.testing.assert_array_equal(made.latents, wanted.latents)


def test_a_lane_that_hangs_is_noticed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    guided, hangs, lets = _Call.work, threading.Event(), threading.Event()

    def hanging(self: _Call, lane: int) -> None:
        if hangs.is_set():
            hangs.clear()
            assert lets.wait(20)
        guided(self, lane)

    monkeypatch.setattr(_Call, "work", hanging)
    settings: dict[str, Any] = {"steps": 4, "mode": "sequential", "guidance_scale": 3.0}

    async def work(engine: dt.Engine) -> Any:
        hangs.set()
        lost = await engine.submit(PROMPT, **settings)
        while hangs.is_set():
            await asyncio.sleep(0.001)
        other = await engine.submit(PROMPT, **settings)
        with pytest.raises(dt.LaneError, match="a lane hangs"):
            await lost.result()
        status = engine.status()
        assert (status.ready, status.lanes, status.lanes_failed) == (False, 3, 1)
        with pytest.raises(dt.NoDeviceError):
            await engine.submit(PROMPT)
        made = await other.result()
        lets.set()
        while not engine.status().ready:
            await asyncio.sleep(0.001)
        return made, await engine.generate(PROMPT, **settings)

    made, after = serve(folder, work, hang_s=3.0)
    np.testing.assert_array_equal(made.latents, after.latents)


def test_deadlines(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By these costs the picture takes 12.9 s with all lanes, 12.3 with looser drafts, 12.1 at the least."""
    slow = Costs(4, (1000.0, 1900.0), 1.05, (10.0, 20.0), 10.0, 500.0)
    monkeypatch.setattr(KeptCosts, "read", lambda *_: slow)

    async def work(engine: dt.Engine) -> Any:
        settings = {"steps": 20, "guidance_scale": 3.0}
        with pytest.raises(dt.DeadlineError) as refused:
            await engine.submit(PROMPT, **settings, deadline_ms=11_500)
        assert 12_000 < refused.value.expected_ms < 12_400
        hurried = await engine.submit(PROMPT, **settings, deadline_ms=12_600)
        with pytest.raises(dt.DeadlineError):
            await engine.submit(PROMPT, **settings, deadline_ms=12_600, quality="high")
        await hurried.result()
        easy = await engine.generate(PROMPT, **settings, deadline_ms=100_000)
        return easy.settings[0], (await hurried.result()).settings[0]

    easy, hurried = serve(folder, work)
    assert easy["tolerance"] == 0.01 and "rounds" not in easy, "the plan that it has without a deadline"
    assert hurried["tolerance"] == 0.03 and hurried["rounds"] <= 12


def test_previews_and_rounds(folder: Path) -> None:
    async def work(engine: dt.Engine) -> Any:
        ticket = await engine.submit(PROMPT, steps=6, mode="sequential", previews=True)
        seen = [one async for one in ticket.rounds()]
        return seen, await ticket.result()

    seen, result = serve(folder, work)
    assert [(one.number, one.state, one.steps) for one in seen] == [(k, k, 6) for k in range(1, 7)]
    assert all(one.preview.size == (tiny.SIDE, tiny.SIDE) for one in seen)
    assert seen[-1].ms < result.timings.total_ms + 10_000


def test_a_client_that_leaves_frees_the_lanes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slow_calls(monkeypatch, 0.02)

    async def work(engine: dt.Engine) -> None:
        task = asyncio.ensure_future(engine.generate(PROMPT, steps=900, mode="sequential"))
        while not engine.status().running:
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        begun = time.perf_counter()
        while engine.status().running:
            await asyncio.sleep(0.001)
        assert time.perf_counter() - begun < 9, "900 steps take 18 s"

    serve(folder, work)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"steps": 0}, "steps"),
        ({"step": 5}, "did you mean 'steps'"),
        ({"cancel": threading.Event()}, r"use Ticket\.cancel"),
        ({"callback_on_round_end": print}, r"read Ticket\.rounds"),
        ({"mode": "agressive"}, "did you mean 'aggressive'"),
        ({"recorder": 3}, "recorder must be"),
        ({"lanes": 0, "mode": "aggressive"}, "lanes"),
    ],
)
def test_wrong_settings_are_refused_before_any_work(
    folder: Path, settings: dict[str, Any], said: str
) -> None:
    async def work(engine: dt.Engine) -> None:
        with pytest.raises(dt.InputError, match=said):
            await engine.submit(PROMPT, **settings)
        assert engine.status().running == engine.status().queued == 0

    serve(folder, work)


def test_prompts_of_clients_are_no_warnings(folder: Path) -> None:
    """They would be kept for ever, each of them; and turned into errors they would fail requests."""

    async def work(engine: dt.Engine) -> Any:
        return await engine.generate("a quokka", steps=3)

    assert serve(folder, work).settings[0]["prompt"] == "a quokka"


def test_seeds_that_can_be_read_once(folder: Path) -> None:
    async def work(engine: dt.Engine) -> Any:
        return await engine.generate(PROMPT, steps=3, num_images=2, seed=iter([7, 8]))

    assert [row["seed"] for row in serve(folder, work).settings] == [7, 8]


def test_the_pipeline_is_closed_where_the_engine_cannot_be_made(folder: Path) -> None:
    with pytest.raises(dt.InputError, match="queue must be"):
        dt.Engine.load(folder, devices=1, queue=0)


def test_it_needs_no_server_packages() -> None:
    assert dt.Engine.__module__ == "driffusion_trt.server.engine"
    source = Path(__import__("driffusion_trt.server.engine", fromlist=["x"]).__file__).read_text()
    assert not any(name in source for name in ("starlette", "uvicorn", "prometheus"))


def test_costs_of_a_size_that_was_not_measured_are_guessed(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They grow with the area, and what it takes may with its square."""
    monkeypatch.setattr(KeptCosts, "read", lambda _, size: COSTS if size == (64, 64) else None)

    async def work(engine: dt.Engine) -> Any:
        sizes = ({}, {"height": 128, "width": 128}, {"height": 32})
        tickets = [await engine.submit(PROMPT, steps=2, mode="sequential", **size) for size in sizes]
        for ticket in tickets:
            await ticket.result()
        return [ticket.order for ticket in tickets]

    own, large, small = serve(folder, work)
    assert [one.times_larger for one in (own, large, small)] == [1.0, 4.0, 0.5]
    assert [one.longer for one in (own, large, small)] == [1.0, 4.0, 1.0]
    assert large.work_ms == pytest.approx(4 * own.work_ms, rel=0.2)


def test_the_bound_of_work_is_of_the_pipeline_s_costs(folder: Path) -> None:
    async def work(engine: dt.Engine) -> None:
        await engine.generate(PROMPT, steps=10, mode="sequential")
        with pytest.raises(dt.InputError, match="s of work for one lane"):
            await engine.submit(PROMPT, steps=200, mode="sequential")

    serve(folder, work, most_s=1.0)


def test_the_area_of_a_request_is_bounded(folder: Path) -> None:
    """By itself to 16 pictures of the model's own size: they are made in one batch, in memory."""

    async def work(engine: dt.Engine) -> None:
        small = {"height": 32, "width": 32}
        result = await engine.generate(PROMPT, steps=2, mode="sequential", num_images=64, **small)
        assert len(result.images) == 64
        for settings in ({"num_images": 17}, {"num_images": 65, **small}, {"num_images": 10**12}):
            with pytest.raises(
                dt.InputError, match=r"the most here is 16 of 64 x 64 \(most_area\); ask for fewer"
            ):
                await engine.submit(PROMPT, steps=2, **settings)
        with pytest.raises(dt.InputError, match="pixels in all"):
            await engine.submit([PROMPT] * 17, steps=2)
        with pytest.raises(dt.InputError, match="num_images must be"):
            await engine.submit(PROMPT, num_images="many")

    serve(folder, work)

    async def any_number(engine: dt.Engine) -> None:
        assert len((await engine.generate(PROMPT, steps=1, mode="sequential", num_images=20)).images) == 20

    serve(folder, any_number, most_area=None)
