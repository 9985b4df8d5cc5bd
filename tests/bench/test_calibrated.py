"""What bench.calibrated compares."""

from __future__ import annotations

import pytest

import driffusion_trt as dt
from bench.calibrated import plans_of
from driffusion_trt.calibration import Calibration
from driffusion_trt.engines.manifest import ModelFolder


@pytest.mark.parametrize(("rounds", "own"), [(14, True), (20, False)])
def test_every_plan_has_the_rounds_that_it_is_compared_at(rounds: int, own: bool) -> None:
    folder = ModelFolder.open("demo")
    schedule = dt.Schedule.from_config(folder.scheduler_config(), 50)
    entry = Calibration.read(folder).find(solver="ddim", steps=50, guidance_scale=3.0, lanes=4)
    assert entry is not None
    plans = plans_of(schedule, entry, rounds)
    assert ("aggressive, the paper's" in plans) == own and len(plans) == 4 + own
    for how in plans.values():
        assert dt.make_plan(schedule, lanes=4, **how).sequential_calls == rounds
    assert plans["window, calibrated"]["blocks"] == entry.blocks(rounds) != plans["window, even"]["blocks"]
