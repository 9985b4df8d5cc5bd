"""A measuring walk on simulated GPU lanes finds what it finds on CPU lanes, and so do a plan's own blocks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import gpulanes
import numpy as np
import pytest
import tiny
from gpucalls import SCHEDULES, Asked

import driffusion_trt as dt
from driffusion_trt.engines.manifest import ModelFolder
from driffusion_trt.runtime.host import HostLanes
from driffusion_trt.sampling.measure import MeasuringPlan


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    return ModelFolder.open(tiny.make_model_folder(tmp_path_factory.mktemp("tiny") / "model"))


@pytest.fixture(autouse=True)
def _short_trials() -> Iterator[None]:
    with gpulanes.short_trials():
        yield


@pytest.mark.parametrize("name", ["ddim", "dpm-solver++", "ddim, eta 0.7"])
@pytest.mark.parametrize("devices", [1, 3])
def test_it_finds_the_same(folder: ModelFolder, kernels_library: Path, name: str, devices: int) -> None:
    config, eta = SCHEDULES[name]
    schedule = dt.Schedule.from_config(config, 9, eta=eta)
    plans = [MeasuringPlan.of(schedule, 4, "G", 0 if eta else 1, 1) for _ in range(2)]
    on_host, on_gpus = (Asked(schedule=name, pictures=2, plan=plan) for plan in plans)
    with HostLanes(folder.network("denoiser"), 1) as host:
        wanted = on_host.latents(host)
        sequential = Asked("sequential", 1, name, 9, pictures=2).latents(host)
    with (
        gpulanes.machine(devices, delays=1, delay_us=50) as simulator,
        gpulanes.gpu_lanes(folder, kernels_library, devices) as lanes,
    ):
        made = on_gpus.latents(lanes)
        told: list[int] = []
        again = on_gpus.latents(lanes, lambda done: told.append(done.latents().size))
    gpulanes.clean(simulator)
    np.testing.assert_array_equal(wanted, sequential)
    for one in (made, again):
        np.testing.assert_allclose(one, wanted, rtol=0, atol=2e-6 * np.abs(wanted).max())
    assert len(told) == plans[1].sequential_calls
    assert plans[0].found.keys() == plans[1].found.keys() != set()
    for case, distance in plans[0].found.items():
        np.testing.assert_allclose(plans[1].found[case], distance, rtol=2e-3, atol=1e-6)


@pytest.mark.parametrize("mode", ["window", "aggressive"])
def test_blocks_by_hand_make_the_picture_of_the_cpu(
    folder: ModelFolder, kernels_library: Path, mode: str
) -> None:
    config, eta = SCHEDULES["ddim"]
    schedule = dt.Schedule.from_config(config, 9, eta=eta)
    asked = Asked(plan=dt.make_plan(schedule, mode=mode, lanes=3, blocks=(1, 3, 1, 3)))
    with HostLanes(folder.network("denoiser"), 1) as host:
        wanted = asked.latents(host)
    with (
        gpulanes.machine(3, delays=1, delay_us=50) as simulator,
        gpulanes.gpu_lanes(folder, kernels_library, 3) as lanes,
    ):
        np.testing.assert_array_equal(asked.latents(lanes), wanted)
    gpulanes.clean(simulator)
