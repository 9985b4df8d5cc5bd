"""The GPU lanes on real GPUs, beside what tests/runtime shows on the simulated driver: `make test-gpu`.

Pictures are compared with those of the CPU lanes within what fp16 leaves; the same request twice must give
the same bits. What needs more GPUs than there are is left out, and named in the end.
"""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import driffusion_trt as dt
from driffusion_trt.engines.gpus import Gpu

pytestmark = pytest.mark.gpu
PROMPT, STEPS = "a red fox, left of a fox-red 4", 10
# Relative L2 of the latents after 10 steps, guidance 3. A network in fp16 is 5e-3 from float32 at most, and
# guidance and steps add up; random weights amplify less than trained ones.
LIMIT = 5e-2


def picture(pipe: dt.Pipeline, **options: Any) -> Any:
    return pipe(PROMPT, **{"steps": STEPS, "seed": 3, "guidance_scale": 3.0, "mode": "aggressive", **options})


def distance(one: Any, other: Any) -> float:
    wanted = other.latents.astype(np.float64)
    return float(np.linalg.norm(one.latents - wanted) / np.linalg.norm(wanted))


@pytest.fixture(scope="module")
def wanted(reduced_model: Path) -> dict[tuple[str, int], Any]:
    """Pictures of the CPU lanes by mode and lanes."""
    with dt.Pipeline.load(reduced_model, devices=["cpu", "cpu"]) as pipe:
        return {
            (mode, lanes): picture(pipe, mode=mode, lanes=lanes)
            for mode in ("sequential", "aggressive", "conservative")
            for lanes in (1, 2, 3, 4)
        }


def devices_of(count: int, gpus: tuple[Gpu, ...]) -> list[str]:
    if len(gpus) < count:
        pytest.skip(f"needs {count} GPUs, this machine has {len(gpus)}")
    return [f"cuda:{gpu.index}" for gpu in gpus[:count]]


@pytest.mark.parametrize("mode", ["sequential", "aggressive", "conservative"])
@pytest.mark.parametrize("count", [1, 2, 3, 4])
@pytest.mark.parametrize("how", ["graphs", "plain", "staged"])
def test_every_mode(
    reduced_model: Path, gpus: tuple[Gpu, ...], wanted: Any, mode: str, count: int, how: str
) -> None:
    options = {"cuda_graphs": how != "plain", "peer_copies": how != "staged"}
    with dt.Pipeline.load(reduced_model, devices=devices_of(count, gpus), **options) as pipe:  # type: ignore[arg-type]
        got = picture(pipe, mode=mode, lanes=count)
        again = picture(pipe, mode=mode, lanes=count)
        lanes: Any = pipe._lanes
        assert lanes.without_graphs == {}, "an engine could not be captured"
    np.testing.assert_array_equal(got.latents, again.latents)
    assert distance(got, wanted[mode, count]) < LIMIT


@pytest.mark.parametrize("lanes", [2, 3, 4])
def test_more_lanes_than_devices(reduced_model: Path, wanted: Any, lanes: int) -> None:
    for devices in (["cuda:0"], ["cuda:0", "cuda:0"]):
        with dt.Pipeline.load(reduced_model, devices=devices) as pipe:
            assert (
                distance(picture(pipe, mode="aggressive", lanes=lanes), wanted["aggressive", lanes]) < LIMIT
            )


@pytest.mark.parametrize("count", [2, 4])
def test_split_guidance(reduced_model: Path, gpus: tuple[Gpu, ...], wanted: Any, count: int) -> None:
    with dt.Pipeline.load(reduced_model, devices=devices_of(count, gpus)) as pipe:
        pipe.warm_up(split_guidance=True)
        asked: dict[str, Any] = {"mode": "aggressive", "lanes": count // 2}
        whole = picture(pipe, **asked)
        got = picture(pipe, **asked, split_guidance=True)
        np.testing.assert_array_equal(picture(pipe, **asked).latents, whole.latents)
        np.testing.assert_array_equal(picture(pipe, **asked, split_guidance=True).latents, got.latents)
        assert picture(pipe, split_guidance=True).plan.lanes == count // 2
    assert distance(got, wanted["aggressive", count // 2]) < LIMIT


def test_split_guidance_on_one_gpu(reduced_model: Path, wanted: Any) -> None:
    with dt.Pipeline.load(reduced_model, devices=["cuda:0", "cuda:0"]) as pipe:
        assert distance(picture(pipe, lanes=1, split_guidance=True), wanted["sequential", 1]) < LIMIT


def test_sequential_has_the_same_bits_for_any_number_of_devices(
    reduced_model: Path, gpus: tuple[Gpu, ...]
) -> None:
    alike = [gpu for gpu in gpus if (gpu.name, gpu.capability) == (gpus[0].name, gpus[0].capability)]
    if len(alike) < 2:
        pytest.skip(f"needs 2 GPUs of one kind, this machine has {len(alike)}")
    pictures = []
    for count in (1, len(alike)):
        with dt.Pipeline.load(reduced_model, devices=devices_of(count, tuple(alike))) as pipe:
            pictures.append(picture(pipe, mode="sequential").latents)
    np.testing.assert_array_equal(*pictures)


def test_groups_of_gpus_at_the_same_time(reduced_model: Path, gpus: tuple[Gpu, ...]) -> None:
    """Requests have GPUs to themselves, and the bits that they have alone; graphs are captured meanwhile.

    Each is encoded and decoded on the first of its own.
    """
    alike = [gpu for gpu in gpus if (gpu.name, gpu.capability) == (gpus[0].name, gpus[0].capability)]
    if len(alike) < 2:
        pytest.skip(f"needs 2 GPUs of one kind, this machine has {len(alike)}")
    devices = devices_of(len(alike), tuple(alike))
    calls: list[dict[str, Any]] = [
        {"steps": STEPS, "mode": "sequential", "seed": [k], "guidance_scale": (1.0, 3.0)[k % 2]}
        for k in range(4 * len(alike))
    ]
    calls[1] = {"steps": STEPS, "mode": "aggressive", "lanes": 2, "num_images": 2, "seed": [1, 2]}
    calls[-2] = {**calls[1], "mode": "conservative"}
    with dt.Pipeline.load(reduced_model, devices=devices) as pipe:
        wanted = [pipe(PROMPT, **call) for call in calls]

    async def work() -> list[Any]:
        async with dt.Engine.load(reduced_model, devices=devices) as engine:
            tickets = [await engine.submit(PROMPT, **call) for call in calls]
            running = engine.status().running
            made = [await ticket.result() for ticket in tickets]
            lanes: Any = engine.pipe._lanes
            assert running > 1 and lanes.without_graphs == {} and len(lanes) == len(devices)
            for network in engine.pipe._stages._beside:
                assert all(place.made is not None for place in network._places.values())
            return made

    for one, right in zip(asyncio.run(work()), wanted, strict=True):
        np.testing.assert_array_equal(one.latents, right.latents)
        assert [image.tobytes() for image in one.images] == [image.tobytes() for image in right.images]


def test_peer_copies_bring_every_byte(gpus: tuple[Gpu, ...]) -> None:
    from contextlib import ExitStack

    from driffusion_trt.runtime._driver import Device
    from driffusion_trt.runtime.peers import check_peers

    if len(gpus) < 2:
        pytest.skip("needs 2 GPUs, this machine has 1")
    with ExitStack() as stack:
        links = check_peers([stack.enter_context(Device(gpu.index)) for gpu in gpus], measure=True)
    for link in links.values():
        print(link)
    assert all(link.verified for link in links.values())


def test_no_memory_is_lost_over_pictures(reduced_model: Path) -> None:
    from driffusion_trt.runtime._driver import Device

    with dt.Pipeline.load(reduced_model, devices=["cuda:0"]) as pipe, Device(0) as device:
        picture(pipe)
        before, _ = device.memory_bytes()
        for seed in range(20):
            picture(pipe, seed=seed)
        assert device.memory_bytes()[0] >= before - (1 << 20)


def test_guidance_scales_take_no_memory_of_their_own(reduced_model: Path) -> None:
    from driffusion_trt.runtime._driver import Device

    with dt.Pipeline.load(reduced_model, devices=["cuda:0"]) as pipe, Device(0) as device:
        first = picture(pipe)
        before, _ = device.memory_bytes()
        pictures = [picture(pipe, guidance_scale=scale) for scale in (2.0, 5.0, 7.5)]
        assert device.memory_bytes()[0] >= before - (1 << 20)
        np.testing.assert_array_equal(picture(pipe).latents, first.latents)
    assert all((one.latents != first.latents).any() for one in pictures)


def test_a_request_without_room_costs_no_gpu(reduced_model: Path) -> None:
    """All memory but a little is held by somebody else, for a while."""
    from driffusion_trt.runtime._driver import Device
    from driffusion_trt.runtime._resources import DeviceMemory

    with dt.Pipeline.load(reduced_model, devices=["cuda:0"]) as pipe, Device(0) as device:
        first = picture(pipe)
        held = []
        for size in (1 << 30, 1 << 24, 1 << 20):
            with contextlib.suppress(dt.DeviceError):
                while True:
                    held.append(DeviceMemory(device, size))
        with pytest.raises((dt.DeviceError, dt.EngineError)):
            picture(pipe, num_images=4)
        while held:
            held.pop().close()
        picture(pipe, num_images=4)
        np.testing.assert_array_equal(picture(pipe).latents, first.latents)
