"""Memory of simulated devices: what forms of request share, and requests that no device has room for."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from unittest import mock

import cudasim
import gpulanes
import numpy as np
import pytest
import standin
from gpucalls import Asked

import driffusion_trt as dt
from driffusion_trt.engines.manifest import ModelFolder
from driffusion_trt.engines.profiles import Profile
from driffusion_trt.engines.trt_session import TensorRTSession
from driffusion_trt.runtime import gpu_crew
from driffusion_trt.runtime._driver import Device
from driffusion_trt.runtime._resources import DeviceMemory, Event, Stream
from driffusion_trt.runtime.cuda import CudaLanes
from driffusion_trt.runtime.gpu_beside import Beside
from driffusion_trt.runtime.gpu_network import GpuNetwork
from driffusion_trt.runtime.gpu_scratch import Scratch
from driffusion_trt.runtime.gpu_sessions import close_session
from driffusion_trt.runtime.host import HostLanes

ONE = Asked("aggressive", 1, steps=3, guidance_scale=3.0)
PLENTY = cudasim.Device()


@contextmanager
def machine(
    folder: ModelFolder, kernels: Path, devices: Sequence[cudasim.Device]
) -> Iterator[tuple[cudasim.Simulator, CudaLanes]]:
    with gpulanes.machine(devices) as simulator:
        with gpulanes.gpu_lanes(folder, kernels, len(devices), peer_copies=False) as lanes:
            yield simulator, lanes
        gpulanes.clean(simulator)


@pytest.fixture(scope="module")
def needed(folder: ModelFolder, kernels_library: Path) -> int:
    """Bytes that eight pictures at once take on one device."""
    with machine(folder, kernels_library, [PLENTY]) as (simulator, lanes):
        replace(ONE, pictures=8).latents(lanes)
        return simulator.memory_bytes()["device 0"]


@pytest.mark.parametrize("split", [False, True])
def test_guidance_scales_share_one_form(
    folder: ModelFolder, kernels_library: Path, host: HostLanes, split: bool
) -> None:
    asked = Asked("aggressive", 2, steps=5, split=split).again()
    made = mock.Mock(side_effect=standin.IExecutionContext)
    with machine(folder, kernels_library, [PLENTY] * 2) as (simulator, lanes):
        first = asked.latents(lanes)
        with mock.patch.object(standin, "IExecutionContext", made):
            held = simulator.memory_bytes()
            for scale in (0.0, 7.5, 2.0, 3.0):
                one = replace(asked, guidance_scale=scale)
                np.testing.assert_allclose(one.latents(lanes), one.latents(host), rtol=0, atol=1e-5)
            assert simulator.memory_bytes() == held
        np.testing.assert_array_equal(asked.latents(lanes), first)
    assert not made.called


def test_forms_of_request_share_what_lies_between_layers(folder: ModelFolder, kernels_library: Path) -> None:
    sizes: list[int] = []
    lend = Scratch.lend

    def noted(scratch: Scratch, size_bytes: int) -> object:
        loan = lend(scratch, size_bytes)
        sizes.append(loan.address)
        return loan

    with machine(folder, kernels_library, [PLENTY]) as (_, lanes), mock.patch.object(Scratch, "lend", noted):
        for pictures in (3, 2, 1, 4):
            replace(ONE, pictures=pictures).latents(lanes)
    assert len(sizes) == 4 and len(set(sizes)) == 2


def test_scratch_memory_ends_with_its_last_loan() -> None:
    with gpulanes.machine(1) as simulator, Device(0) as device:
        scratch = Scratch(device)
        small, large = scratch.lend(100), scratch.lend(5000)
        again = scratch.lend(4000)
        assert again.address == large.address != small.address
        for loan, left in ((small, 5000), (large, 5000), (again, 0)):
            loan.close()
            assert simulator.memory_bytes()["device 0"] == left
        scratch.lend(5000).close()
        assert simulator.memory_bytes()["device 0"] == 0


def test_a_request_that_no_device_has_room_for_costs_no_device(
    folder: ModelFolder, kernels_library: Path, host: HostLanes, needed: int
) -> None:
    small = cudasim.Device(memory_bytes=needed // 2)
    with machine(folder, kernels_library, [small, small]) as (_, lanes):
        large, asked = replace(ONE, pictures=8), replace(ONE, lanes=2)
        for _ in range(2):
            plan = large.planned()
            for left in (1, 0):
                with pytest.raises(dt.DriffusionError, match="CUDA_ERROR_OUT_OF_MEMORY") as caught:
                    replace(large, plan=plan).latents(lanes)
                if left == 0 or isinstance(caught.value, dt.DeviceError):
                    break
            assert isinstance(caught.value, dt.DeviceError) and "smaller batch or picture" in str(
                caught.value
            )
            assert len(lanes) == 2
            np.testing.assert_array_equal(asked.latents(lanes), asked.latents(host))


def test_a_device_without_room_is_left_out_of_that_request_only(
    folder: ModelFolder, kernels_library: Path, host: HostLanes, needed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = cudasim.Device(memory_bytes=needed // 2)
    large, asked = replace(ONE, pictures=8), replace(ONE, lanes=2)
    with machine(folder, kernels_library, [small, PLENTY]) as (_, lanes):
        with pytest.raises(dt.LaneError, match=r"GPU 0 .*CUDA_ERROR_OUT_OF_MEMORY") as caught:
            large.latents(lanes)
        assert caught.value.lanes_left == 1
        for _ in range(2):  # and it is not asked again
            np.testing.assert_array_equal(large.latents(lanes), large.latents(host))
            assert len(lanes) == 1
        np.testing.assert_array_equal(asked.latents(lanes), asked.latents(host))
        assert len(lanes) == 2
        monkeypatch.setattr(gpu_crew, "_LEFT_OUT_S", -1.0)
        for _ in range(2):  # a minute later it may have room, and is asked again
            with pytest.raises(dt.LaneError):
                large.latents(lanes)


@pytest.mark.parametrize("devices", [2, 3, 5])
def test_a_device_without_room_is_left_out_of_split_requests_only(
    folder: ModelFolder, kernels_library: Path, host: HostLanes, needed: int, devices: int
) -> None:
    """The others form pairs; requests that are not split have all devices, and the lanes of their kind."""
    small = cudasim.Device(memory_bytes=needed // 4)
    large, asked = replace(ONE, pictures=8, split=True), replace(ONE, lanes=devices)
    with machine(folder, kernels_library, [PLENTY, small, *[PLENTY] * (devices - 2)]) as (_, lanes):
        with pytest.raises(dt.LaneError, match=r"GPU 1 .*CUDA_ERROR_OUT_OF_MEMORY") as caught:
            large.latents(lanes)
        assert caught.value.lanes_left == max(1, (devices - 1) // 2)
        for _ in range(2):
            np.testing.assert_allclose(large.latents(lanes), large.latents(host), rtol=0, atol=1e-5)
            assert len(lanes) == devices - 1
        np.testing.assert_array_equal(asked.latents(lanes), asked.latents(host))
        assert len(lanes) == devices


def test_drafts_of_split_requests_that_do_not_fit_need_fewer_lanes(
    folder: ModelFolder, kernels_library: Path, host: HostLanes
) -> None:
    """Three drafts on a pair of devices, of which there are three: as many, but not lanes of this kind."""
    asked = Asked("aggressive", 3, steps=8, pictures=4, split=True)
    one = replace(asked, lanes=1)
    used = []
    for fits in (one, asked):
        with machine(folder, kernels_library, [PLENTY] * 3) as (simulator, lanes):
            fits.latents(lanes)
            used.append(simulator.memory_bytes()["device 0"])
    small = cudasim.Device(memory_bytes=sum(used) // 2)
    with machine(folder, kernels_library, [small] * 3) as (_, lanes):
        with pytest.raises(dt.LaneError, match="CUDA_ERROR_OUT_OF_MEMORY") as caught:
            asked.latents(lanes)
        assert caught.value.lanes_left == 1 and len(lanes) == 3
        np.testing.assert_array_equal(one.latents(lanes), one.latents(host))


def test_drafts_that_do_not_fit_on_one_device_need_fewer_lanes(
    folder: ModelFolder, kernels_library: Path, host: HostLanes, needed: int
) -> None:
    small = cudasim.Device(memory_bytes=needed // 2)
    with machine(folder, kernels_library, [small]) as (_, lanes):
        asked = Asked("aggressive", 4, steps=6, pictures=2)
        with pytest.raises(dt.LaneError, match="CUDA_ERROR_OUT_OF_MEMORY") as caught:
            asked.latents(lanes)
        assert caught.value.lanes_left == 1 == len(lanes)
        one = replace(asked, lanes=1)
        np.testing.assert_array_equal(one.latents(lanes), one.latents(host))


def network(folder: ModelFolder, device: Device, name: str = "vae_decoder") -> GpuNetwork:
    device.make_current()
    plan = gpulanes.stand_in_plan(folder, name, Profile.pictures(folder.spec, batch_size=8))
    return GpuNetwork(device, TensorRTSession(plan, gpulanes.RTX, name=name), deadline_s=0.4)


def test_networks_beside_the_lanes_ask_them_for_room(folder: ModelFolder) -> None:
    latents = np.zeros((1, 4, 16, 16), np.float32)
    with gpulanes.machine([cudasim.Device(memory_bytes=1 << 20)]) as simulator:
        with Device(0) as device, Beside("it", [(device, lambda: network(folder, device))]) as decoder:
            decoder.run({"latents": latents})
            taken = simulator.memory_bytes()["device 0"]
            hog = DeviceMemory(device, (1 << 20) - taken - 256)
            with pytest.raises(dt.DeviceError, match="OUT_OF_MEMORY"):
                decoder.run({"latents": np.zeros((2, 4, 16, 16), np.float32)})
            assert device.usable
            decoder.make_room = lambda device, waiting: hog.close()
            (made,) = decoder.run({"latents": np.zeros((2, 4, 16, 16), np.float32)}).values()
            assert len(made) == 2 and device.usable
        gpulanes.clean(simulator)


def test_a_device_that_is_broken_and_does_not_hang_gives_everything_back(folder: ModelFolder) -> None:
    """Only what hangs keeps what is on it."""
    latents = np.zeros((1, 4, 16, 16), np.float32)
    with gpulanes.machine(2) as simulator:
        with Device(0) as first, Device(1) as second:
            choices = [(device, lambda device=device: network(folder, device)) for device in (first, second)]
            with Beside("it", choices) as decoder:
                simulator.fail("cuMemcpyHtoDAsync", 1, call=1, device=0)
                decoder.run({"latents": latents})
            assert not first.usable and not first.lost and second.usable
        gpulanes.clean(simulator)


def test_a_session_on_a_device_that_hangs_is_left_alone(folder: ModelFolder) -> None:
    """TensorRT would wait for the device, and the program with it."""
    with gpulanes.machine(2) as simulator:
        with Device(0) as device:
            kept = network(folder, device)
            with mock.patch.object(type(kept.session), "close") as close:
                device.lost = True
                close_session(device, kept.session)
                assert not close.called
                device.lost = False
                close_session(device, kept.session)
                assert close.called
            kept.close()
        gpulanes.clean(simulator)


def test_a_picture_may_take_longer_than_the_deadline(
    folder: ModelFolder, kernels_library: Path, host: HostLanes
) -> None:
    """A device hangs where nothing gets done, and not where much is to do."""
    asked = Asked("sequential", 1, steps=12)
    with gpulanes.machine(1) as simulator:
        with gpulanes.gpu_lanes(folder, kernels_library, 1, deadline_s=0.25) as lanes:
            asked.latents(lanes)
            simulator.slow(0, 0.02)
            begun = time.monotonic()
            made = asked.latents(lanes)
            assert time.monotonic() - begun > 0.5, "it was not slow enough to show anything"
            np.testing.assert_array_equal(made, asked.latents(host))
            simulator.slow(0, 0)
        gpulanes.clean(simulator)


def test_a_plan_that_adapts_has_what_is_kept_for_others_let_go(
    folder: ModelFolder, kernels_library: Path, host: HostLanes
) -> None:
    """It gets its memory on the way; its device is not left out for what other requests keep."""
    asked = Asked("tolerance", 1, steps=4, pictures=5).again()
    with machine(folder, kernels_library, [PLENTY]) as (simulator, lanes):
        asked.latents(lanes)
        alone = simulator.memory_bytes()["device 0"]
    with machine(folder, kernels_library, [PLENTY]) as (simulator, lanes):
        for pictures in (8, 2):
            replace(ONE, pictures=pictures).latents(lanes)
        others = simulator.memory_bytes()["device 0"]
    room = max(others + alone // 3, alone * 11 // 10)
    with machine(folder, kernels_library, [cudasim.Device(memory_bytes=room)]) as (_, lanes):
        for pictures in (8, 2):
            replace(ONE, pictures=pictures).latents(lanes)
        with pytest.raises(dt.LaneError, match=r"OUT_OF_MEMORY.*kept for other requests is let go") as caught:
            asked.latents(lanes)
        assert caught.value.lanes_left == 1
        np.testing.assert_array_equal(asked.latents(lanes), asked.latents(host))


def test_a_network_asks_its_own_stream_whether_the_device_works(folder: ModelFolder) -> None:
    """No other stream, whoever has it hanging; and not for longer than the device may take."""
    with gpulanes.machine(1, hang_limit_ms=2000) as simulator:
        with Device(0) as device:
            kept, other = network(folder, device), Stream(device)
            simulator.hang(stream=other.handle)
            event = Event(device)
            event.record(other)
            assert kept.works() and not device.lost and not event.done()
            simulator.let_go()
            simulator.hang(device=0)
            assert not kept.works() and device.lost
            simulator.let_go()
            device.lost = False
            for owner in (event, other, kept):
                owner.close()
        gpulanes.clean(simulator)
