"""The engine over simulated GPUs: one picture at a time over all, and devices that fail under load."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import gpulanes
import numpy as np
import pytest
import tiny

import driffusion_trt as dt
from driffusion_trt.engines.manifest import ModelFolder
from driffusion_trt.server.observer import Unobserved

pytest_plugins = ("cudasim.fixtures",)

PROMPT, STEPS = "a red fox left of a blue star", 8


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with plans of the stand-in for sm89."""
    folder = tiny.make_model_folder(tmp_path_factory.mktemp("planned") / "model")
    gpulanes.add_plans(ModelFolder.open(folder))
    return folder


@pytest.fixture(autouse=True)
def machine(gpu_machine: Any) -> Any:
    return gpu_machine


class Losses(Unobserved):
    def __init__(self) -> None:
        self.left: list[int] = []

    def on_lane_lost(self, left: int) -> None:
        self.left.append(left)


def serve(planned: Path, work: Any, **options: Any) -> Any:
    async def run() -> Any:
        async with dt.Engine.load(planned, devices="cuda", **options) as engine:
            return await work(engine)

    return asyncio.run(asyncio.wait_for(run(), 120))


def test_one_picture_at_a_time_gets_all_gpus(planned: Path, machine: Any) -> None:
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
