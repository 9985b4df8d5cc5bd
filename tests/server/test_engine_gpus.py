"""The engine over simulated GPUs: requests that have some of them each, and devices that fail under load."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any
from unittest import mock

import calibrated
import cudasim
import gpulanes
import numpy as np
import pytest
import standin
import tiny

import driffusion_trt as dt
from driffusion_trt._kept_costs import KeptCosts
from driffusion_trt.engines.manifest import ModelFolder
from driffusion_trt.runtime.gpu_network import GpuNetwork
from driffusion_trt.server.observer import Unobserved
from driffusion_trt.server.orders import PipelineShop

pytest_plugins = ("cudasim.fixtures",)

PROMPT, STEPS = "a red fox left of a blue star", 8
COSTS = calibrated.COSTS


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with plans of the stand-in for sm89."""
    folder = tiny.make_model_folder(tmp_path_factory.mktemp("planned") / "model")
    gpulanes.add_plans(ModelFolder.open(folder))
    return folder


@pytest.fixture(autouse=True)
def machine(gpu_machine: Any) -> Any:
    return gpu_machine


@pytest.fixture
def four(machine: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Four GPUs of known costs."""
    machine.configure([cudasim.Device()] * 4)
    monkeypatch.setattr(KeptCosts, "read", lambda *_: COSTS)
    return machine


class Losses(Unobserved):
    def __init__(self) -> None:
        self.left: list[int] = []

    def on_lanes_lost(self, lost: int, left: int) -> None:
        self.left.append(left)


def serve(planned: Path, work: Any, **options: Any) -> Any:
    async def run() -> Any:
        async with dt.Engine.load(planned, devices="cuda", **options) as engine:
            return await work(engine)

    return asyncio.run(asyncio.wait_for(run(), 120))


def test_a_plan_by_name_has_all_its_gpus_or_waits(planned: Path, machine: Any) -> None:
    with dt.Pipeline.load(planned, devices=["cpu"] * 2) as pipe:
        wanted = pipe(PROMPT, steps=STEPS, mode="aggressive", lanes=2)

    async def work(engine: dt.Engine) -> Any:
        tickets = [await engine.submit(PROMPT, steps=STEPS, mode="aggressive") for _ in range(4)]
        assert engine.status().running == 1 and engine.status().lanes_in_use == 2
        return [(await ticket.result(), ticket.timeline.lanes) for ticket in tickets]

    for made, lanes in serve(planned, work):
        assert lanes == 2
        np.testing.assert_array_equal(made.latents, wanted.latents)
    assert {k: v for k, v in machine.live_objects().items() if v} == {}


def alone(planned: Path, calls: list[dict[str, Any]]) -> list[Any]:
    with dt.Pipeline.load(planned, devices="cuda") as pipe:
        return [pipe(PROMPT, **call) for call in calls]


def test_requests_of_one_gpu_each_are_made_at_the_same_time(planned: Path, four: Any) -> None:
    calls = [{"steps": STEPS, "mode": "sequential", "seed": seed} for seed in range(12)]
    calls[5] = {"steps": STEPS, "mode": "aggressive", "lanes": 2, "split_guidance": True}
    calls[8] = {"steps": STEPS, "mode": "aggressive", "lanes": 2}
    wanted, together = alone(planned, calls), threading.Barrier(4)

    met: list[int] = []

    def preview(shop: PipelineShop, done: Any) -> None:
        if done.round == 1:
            together.wait(30)
            met.append(len(shop._pipe._lanes._leases.taken))
            together.wait(30)

    async def work(engine: dt.Engine) -> Any:
        tickets = [
            await engine.submit(PROMPT, **call, previews=number < 4) for number, call in enumerate(calls)
        ]
        status = engine.status()
        assert (status.running, status.lanes_in_use) == (4, 4)
        made = [(await ticket.result(), ticket.timeline.lanes) for ticket in tickets]
        assert engine.status().lanes == 4
        return made

    with mock.patch.object(PipelineShop, "preview", preview):
        made = serve(planned, work)
    assert met == [4] * 4, "each waited in its first round for the three others"
    for (one, lanes), right, call in zip(made, wanted, calls, strict=True):
        assert lanes == call.get("lanes", 1) * (2 if "split_guidance" in call else 1)
        np.testing.assert_array_equal(one.latents, right.latents)
        assert one.images[0].tobytes() == right.images[0].tobytes()
    assert {k: v for k, v in four.live_objects().items() if v} == {}


@pytest.mark.parametrize(("requests", "lanes"), [(2, 2), (4, 1)])
def test_requests_decode_at_the_same_time_each_on_its_own_gpus(
    planned: Path, four: Any, requests: int, lanes: int
) -> None:
    """Each decode waits, as work of its own GPU, until all of them are there."""
    calls = [{"steps": STEPS, "mode": "aggressive", "lanes": lanes, "seed": k} for k in range(requests)]
    wanted, together = alone(planned, calls), threading.Barrier(requests)
    run, decode, places = standin.IExecutionContext._run, GpuNetwork.run, list[int]()

    def meet(context: standin.IExecutionContext) -> None:
        if Path(context.engine.session.path).stem == "vae_decoder":
            together.wait(30)
        run(context)

    def noted(network: GpuNetwork, inputs: Any) -> Any:
        if network.session.name == "vae_decoder":
            places.append(network.device.ordinal)
        return decode(network, inputs)

    async def work(engine: dt.Engine) -> Any:
        with (
            mock.patch.object(standin.IExecutionContext, "_run", meet),
            mock.patch.object(GpuNetwork, "run", noted),
        ):
            tickets = [await engine.submit(PROMPT, **call) for call in calls]
            return [await ticket.result() for ticket in tickets]

    for one, right in zip(serve(planned, work), wanted, strict=True):
        assert one.images[0].tobytes() == right.images[0].tobytes()
    assert sorted(places) == [lanes * k for k in range(requests)]
    assert {k: v for k, v in four.live_objects().items() if v} == {}


def test_a_lone_request_has_all_gpus_and_a_crowd_one_each(planned: Path, four: Any) -> None:
    async def work(engine: dt.Engine) -> Any:
        lone = await engine.submit(PROMPT, steps=30, seed=1)
        made = [(await lone.result(), lone.timeline.lanes)]
        crowd = [await engine.submit(PROMPT, steps=30, seed=seed) for seed in range(2, 14)]
        return made + [(await ticket.result(), ticket.timeline.lanes) for ticket in crowd]

    made = serve(planned, work, queue=16)
    assert made[0][1] == 4 and min(lanes for _, lanes in made[1:]) == 1
    with dt.Pipeline.load(planned, devices="cuda") as pipe:
        for one, lanes in made:
            assert one.plan.lanes <= max(1, lanes) and one.settings[0]["steps"] == 30
            np.testing.assert_array_equal(pipe(**one.call()).latents, one.latents)


@pytest.mark.parametrize(("share", "at_once"), [("all", 1), ("one", 4)])
def test_a_fixed_number_of_gpus(planned: Path, four: Any, share: str, at_once: int) -> None:
    async def work(engine: dt.Engine) -> Any:
        tickets = [await engine.submit(PROMPT, steps=20, seed=seed) for seed in range(6)]
        assert engine.status().running == at_once
        return [(await ticket.result(), ticket.timeline.lanes)[1] for ticket in tickets]

    assert serve(planned, work, share=share) == [4 // at_once] * 6


def test_who_leaves_gives_its_gpu_to_the_next_and_disturbs_nobody(planned: Path, four: Any) -> None:
    calls = [{"steps": STEPS, "mode": "sequential", "seed": seed} for seed in range(6)]
    wanted = alone(planned, calls)

    async def work(engine: dt.Engine) -> Any:
        tickets = [await engine.submit(PROMPT, **call) for call in calls]
        gone = await engine.submit(PROMPT, steps=500, mode="sequential")
        async for _ in gone.rounds():
            gone.cancel()
            break
        with pytest.raises(dt.CancelledError):
            await gone.result()
        return [await ticket.result() for ticket in tickets]

    for one, right in zip(serve(planned, work), wanted, strict=True):
        np.testing.assert_array_equal(one.latents, right.latents)


@pytest.mark.filterwarnings("ignore::driffusion_trt.pipeline.LaneWarning")
@pytest.mark.parametrize("hangs", [False, True])
def test_a_gpu_that_is_lost_costs_only_its_own_request_time(planned: Path, four: Any, hangs: bool) -> None:
    calls = [{"steps": STEPS, "mode": "sequential", "seed": seed} for seed in range(8)]
    wanted, losses = alone(planned, calls), Losses()

    async def work(engine: dt.Engine) -> Any:
        await engine.generate(PROMPT, **calls[0])
        if hangs:
            four.hang(device=2)
        else:
            four.fail("cuGraphLaunch", 719, call=3, device=2)
        tickets = [await engine.submit(PROMPT, **call) for call in calls]
        made = [await ticket.result() for ticket in tickets]
        status = engine.status()
        assert (status.ready, status.lanes, status.lanes_failed) == (True, 3, 1)
        four.let_go()
        return made

    for one, right in zip(serve(planned, work, observer=losses, deadline_s=1.0), wanted, strict=True):
        np.testing.assert_array_equal(one.latents, right.latents)
    assert losses.left == [3]


@pytest.mark.filterwarnings("ignore::driffusion_trt.pipeline.LaneWarning")
def test_a_plan_of_more_gpus_than_are_left_is_made_for_those(planned: Path, four: Any) -> None:
    async def work(engine: dt.Engine) -> Any:
        four.fail("cuGraphLaunch", 719, call=3, device=1)
        tickets = [await engine.submit(PROMPT, steps=40, mode="aggressive", seed=seed) for seed in range(3)]
        return [(await ticket.result()).plan.lanes for ticket in tickets]

    assert serve(planned, work) == [3, 3, 3]


@pytest.mark.filterwarnings("ignore::driffusion_trt.pipeline.LaneWarning")
def test_a_gpu_that_fails_under_load_loses_no_request(planned: Path, machine: Any) -> None:
    losses = Losses()

    async def work(engine: dt.Engine) -> Any:
        await engine.generate(PROMPT, steps=STEPS, mode="aggressive")
        machine.fail("cuGraphLaunch", 719, call=3, device=1)
        tickets = [await engine.submit(PROMPT, steps=STEPS, mode="aggressive") for _ in range(4)]
        made = [await ticket.result() for ticket in tickets]
        status = engine.status()
        assert (status.ready, status.lanes, status.lanes_failed) == (True, 1, 1)
        return made

    made = serve(planned, work, observer=losses)
    assert len(made) == 4 and losses.left == [1]
    assert made[-1].settings[0]["lanes"] == 1
    for one in made[1:]:
        np.testing.assert_array_equal(one.latents, made[0].latents)


def test_without_any_gpu_left_all_requests_fail_with_the_error(planned: Path, machine: Any) -> None:
    losses = Losses()

    async def work(engine: dt.Engine) -> None:
        await engine.generate(PROMPT, steps=STEPS, mode="sequential")
        for device in range(2):
            machine.fail("cuGraphLaunch", 719, call=1, device=device)
        tickets = [await engine.submit(PROMPT, steps=STEPS, mode="aggressive") for _ in range(3)]
        for ticket in tickets:
            with pytest.raises(dt.LaneError):
                await ticket.result()
        assert not engine.status().ready and engine.status().lanes == 0
        with pytest.raises(dt.LaneError):
            await engine.submit(PROMPT)

    with pytest.warns(dt.pipeline.LaneWarning):  # type: ignore[attr-defined]
        serve(planned, work, observer=losses)
    assert losses.left[-1] == 0


def test_gpus_have_their_own_time_to_find_out_what_hangs(planned: Path) -> None:
    """Each of them, one after another, before the engine gives up their request."""

    async def work(engine: dt.Engine) -> float:
        return engine._shop.patience_s

    assert serve(planned, work, deadline_s=7.0) == 14.0
