"""Owners, kernels and messages on the simulated driver: two devices exchange a draft and its prediction."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import cudasim
import numpy as np
import pytest

from driffusion_trt import DeviceError
from driffusion_trt.runtime import _images
from driffusion_trt.runtime import kernels as k
from driffusion_trt.runtime._device_errors import LOST
from driffusion_trt.runtime._driver import Device, device_count
from driffusion_trt.runtime._resources import (
    DeviceMemory,
    Event,
    GraphExec,
    Module,
    PinnedMemory,
    Stream,
)
from driffusion_trt.runtime.kernels import Kernels, Launch, Source, Target, find_kernels

pytest.importorskip("cuda.bindings.driver", reason="cuda-bindings is not installed")
BATCH, ELEMENTS = 2, 10
SIZE = 4 * BATCH * ELEMENTS
MESSAGE = k.message_bytes(1, BATCH, ELEMENTS)


@pytest.fixture
def simulator() -> Iterator[cudasim.Simulator]:
    with cudasim.Simulator(devices=2, hang_limit_ms=2000) as machine:
        yield machine


@pytest.fixture
def image(kernels_library: Path) -> bytes:
    return cudasim.kernel_image(kernels_library)


def clean(simulator: cudasim.Simulator) -> None:
    assert simulator.races() == []
    assert simulator.violations() == []
    assert simulator.unknown_calls() == {}
    assert {kind: count for kind, count in simulator.live_objects().items() if count} == {}


class Pair:
    """A lead and a lane: the lead drafts, the lane answers with a graph, the lead refines."""

    def __init__(self, image: bytes) -> None:
        with ExitStack() as stack:
            own = stack.enter_context
            self.lead, self.lane = own(Device(0)), own(Device(1))
            self.streams = [own(Stream(device)) for device in (self.lead, self.lane)]
            self.drafted, self.answered = own(Event(self.lead)), own(Event(self.lane))
            self.done = own(Event(self.lead, blocking=True))
            self.state, self.outbox = (
                own(DeviceMemory(self.lead, SIZE)),
                own(DeviceMemory(self.lead, MESSAGE)),
            )
            self.slot = own(DeviceMemory(self.lead, SIZE))
            self.inbox, self.answer = (
                own(DeviceMemory(self.lane, MESSAGE)),
                own(DeviceMemory(self.lane, SIZE)),
            )
            self.timesteps = own(DeviceMemory(self.lane, 8 * BATCH))
            self.pinned = own(PinnedMemory(self.lead, SIZE))
            self.modules = [own(Module(device, image)) for device in (self.lead, self.lane)]
            self._prepare(*map(Kernels, self.modules))
            self.lane.make_current()
            self.graph = own(GraphExec.capture(self.streams[1], self.work, self.modules[1], self.inbox))
            self.lead.enable_peer(self.lane)
            self.lane.enable_peer(self.lead)
            self._stack = stack.pop_all()

    def _prepare(self, lead: Kernels, lane: Kernels) -> None:
        whole = {"elements": ELEMENTS, "batch": BATCH}
        draft, known = self.outbox.address + k.MESSAGE_HEADER_BYTES, Source(self.state.address)
        target = Target(draft, message=self.outbox.address, timestep=981.0)
        self.draft = lead.linear([known], [target], np.array([[0.9]]), round=3, **whole)
        latents = Source(self.inbox.address + k.MESSAGE_HEADER_BYTES)
        self.lane_work = [
            lane.fill_timestep(self.inbox.address, self.timesteps.address, pictures=BATCH, branches=2),
            lane.scale(latents, [Target(self.answer.address)], 0.5, **whole),
        ]
        sources = [known, Source(self.slot.address)]
        self.refine = lead.linear(sources, [Target(self.state.address)], np.array([[0.8, -0.1]]), **whole)

    def work(self) -> None:
        for launch in self.lane_work:
            launch(self.streams[1])

    def round(self) -> None:
        lead, lane = self.streams
        self.lead.make_current()
        self.draft(lead)
        self.drafted.record(lead)
        self.lane.make_current()
        lane.wait(self.drafted)
        lane.copy_peer(self.inbox.address, self.lane, self.outbox.address, self.lead, MESSAGE)
        self.graph.launch(lane)
        lane.copy_peer(self.slot.address, self.lead, self.answer.address, self.lane, SIZE)
        self.answered.record(lane)
        self.lead.make_current()
        lead.wait(self.answered)
        self.refine(lead)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()


def test_an_exchange_is_right_free_of_races_and_leaves_nothing(
    simulator: cudasim.Simulator, image: bytes
) -> None:
    start = np.random.default_rng(0).standard_normal((BATCH, ELEMENTS)).astype(np.float32)
    expected = start
    with Pair(image) as pair:
        lead = pair.streams[0]
        host = pair.pinned.array(np.float32, (BATCH, ELEMENTS))
        host[...] = start
        pair.lead.make_current()
        lead.copy_to_device(pair.state.address, pair.pinned.address, SIZE)
        for _ in range(3):
            pair.round()
            answer = expected * np.float32(0.9) * np.float32(0.5)
            expected = expected * np.float32(0.8) + answer * np.float32(-0.1)
        lead.copy_to_host(pair.pinned.address, pair.state.address, SIZE)
        pair.done.record(lead)
        assert pair.done.wait(5)
        assert host.tobytes() == expected.tobytes()
        del host
    clean(simulator)


def test_a_round_has_as_many_driver_calls_as_it_says(simulator: cudasim.Simulator, image: bytes) -> None:
    with Pair(image) as pair:
        for _ in range(2):
            before = dict(simulator.calls())
            pair.round()
            made = {
                name: count - before.get(name, 0)
                for name, count in simulator.calls().items()
                if count != before.get(name, 0)
            }
        pair.lead.synchronize()
    assert made == {
        "cuLaunchKernel": 2,
        "cuGraphLaunch": 1,
        "cuMemcpyPeerAsync": 2,
        "cuEventRecord": 2,
        "cuStreamWaitEvent": 2,
        "cuCtxSetCurrent": 2,
    }
    clean(simulator)


def test_a_missing_wait_is_a_race_by_the_kernels_own_ranges(
    simulator: cudasim.Simulator, image: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Stream, "wait", lambda *_: None)
    with Pair(image) as pair:
        pair.round()
        for device in (pair.lead, pair.lane):
            device.synchronize()
    assert any("linear" in race for race in simulator.races())


@pytest.mark.parametrize("build", ["gram", "nonfinite", "to_pixels"])
def test_the_other_kernels_stay_within_their_memory(
    simulator: cudasim.Simulator, image: bytes, build: str
) -> None:
    with (
        Device(0) as device,
        Stream(device) as stream,
        Module(device, image) as module,
        DeviceMemory(device, 3 * SIZE) as data,
        PinnedMemory(device, 3 * SIZE) as pinned,
        DeviceMemory(device, k.gram_partials_bytes(BATCH, 1)) as partials,
    ):
        device.make_current()
        stream.fill(data.address, 0, 3 * SIZE)
        made, whole = Kernels(module), {"elements": ELEMENTS, "batch": BATCH}
        sources, ones, target = [Source(data.address)], np.ones((1, 1)), pinned.address
        launches: dict[str, Any] = {
            "gram": lambda: made.gram(sources, ones, partials=partials.address, target=target, **whole),
            "nonfinite": lambda: [made.nonfinite(data.address, target, **whole)],
            "to_pixels": lambda: [
                made.to_pixels(data.address, target, height=2, width=ELEMENTS // 2, batch=BATCH)
            ],
        }
        chosen: list[Launch] = launches[build]()
        pinned.array()[...] = 0
        for launch in chosen:
            launch(stream)
        stream.synchronize()
        if build == "to_pixels":
            assert pinned.array(np.uint8, (60,)).tolist() == [128] * 60  # rint(127.5) is even
        else:
            assert not pinned.array().any()
    clean(simulator)


# -- errors


def test_an_image_for_another_machine_is_refused(simulator: cudasim.Simulator) -> None:
    with (
        Device(0) as device,
        pytest.raises(DeviceError, match=r"cuModuleLoadData on GPU 0 \(Simulated GPU\)"),
    ):
        Module(device, b"\x7fELF no kernels")
    clean(simulator)


def test_the_image_of_the_simulator_can_be_named(
    simulator: cudasim.Simulator, image: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "image"
    path.write_bytes(image)
    monkeypatch.setenv(_images.IMAGE_VARIABLE, str(path))
    with Device(0) as device, Module(device, find_kernels(device.compute_capability)) as module:
        Kernels(module)
    clean(simulator)


def test_more_memory_than_there_is(simulator: cudasim.Simulator) -> None:
    with Device(0) as device:
        free, total = device.memory_bytes()
        assert 0 < free <= total
        with pytest.raises(DeviceError, match="nvidia-smi shows who holds it") as caught:
            DeviceMemory(device, 2 * total)
        assert caught.value.code == "CUDA_ERROR_OUT_OF_MEMORY"
    clean(simulator)


def test_work_that_fails_is_told_at_the_next_call(simulator: cudasim.Simulator, image: bytes) -> None:
    illegal_address = 700
    simulator.fail("cuLaunchKernel", illegal_address, asynchronous=True)
    with (
        Device(0) as device,
        Stream(device) as stream,
        Event(device) as event,
        Module(device, image) as module,
        DeviceMemory(device, SIZE) as memory,
    ):
        whole = {"elements": ELEMENTS, "batch": BATCH}
        device.make_current()
        Kernels(module).scale(Source(memory.address), [Target(memory.address)], 1.0, **whole)(stream)
        with pytest.raises(DeviceError, match=r"GPU 0 .*CUDA_ERROR_ILLEGAL_ADDRESS") as caught:
            event.record(stream)  # told by whichever call comes after the work was done
            event.wait(5)
        assert caught.value.code in LOST
        device.lost = True


def test_a_hang_is_seen_by_its_deadline_and_given_up(simulator: cudasim.Simulator) -> None:
    with Device(0) as device, Stream(device) as stream, Event(device) as event:
        device.make_current()
        simulator.hang(stream=stream.handle)
        event.record(stream)
        assert not event.wait(0.05)
        device.lost = True
    assert "cuStreamDestroy" not in simulator.calls()
    simulator.let_go()


def test_a_peer_copy_is_refused_in_a_capture(simulator: cudasim.Simulator) -> None:
    with (
        Device(0) as lead,
        Device(1) as lane,
        DeviceMemory(lead, 16) as one,
        DeviceMemory(lane, 16) as other,
        Stream(lane) as stream,
    ):
        copy = (one.address, lead, other.address, lane, 16)
        with pytest.raises(DeviceError, match="cuMemcpyPeerAsync"):
            GraphExec.capture(stream, lambda: stream.copy_peer(*copy))
        stream.copy_peer(*copy)  # the stream is free again
        stream.synchronize()
    clean(simulator)


def test_peer_access_is_asked_of_the_driver(simulator: cudasim.Simulator) -> None:
    simulator.deny_peer(0, 1)
    with Device(0) as lead, Device(1) as lane:
        assert (lead.can_access(lane), lane.can_access(lead)) == (False, True)
        lane.enable_peer(lead)
        lane.enable_peer(lead)
        with pytest.raises(DeviceError, match="by way of the host"):
            lead.enable_peer(lane)
        lane.disable_peer(lead)
        lane.disable_peer(lead)
        assert device_count() == 2
        assert lead.uuid() != lane.uuid()
        assert lead.pci_bus_id() != lane.pci_bus_id()
    clean(simulator)


def test_timing_events_measure(simulator: cudasim.Simulator) -> None:
    with (
        Device(0) as device,
        Stream(device) as stream,
        Event(device, timing=True) as start,
        Event(device, timing=True) as end,
    ):
        device.make_current()
        simulator.slow(0, 0.02)
        start.record(stream)
        end.record(stream)
        end.wait()
        assert end.elapsed_ms(start) >= 10
    clean(simulator)


@pytest.mark.parametrize("kind", [DeviceMemory, PinnedMemory])
def test_memory_of_a_device_that_is_held_up_is_used_again(simulator: cudasim.Simulator, kind: Any) -> None:
    """Where the driver would wait with who gives it back; the smallest piece that will do, if one will."""
    name = {DeviceMemory: "allocations", PinnedMemory: "pinned"}[kind]
    with Device(0) as device:
        large, small = kind(device, 4096), kind(device, 1024)
        handles = large.handle, small.handle
        rest = threading.Event()
        device.held_up.add("stream", rest.is_set)
        for memory in (large, small):
            memory.close()
        assert device.held_bytes == 0 and simulator.live_objects()[name] == 2
        again, new, other = kind(device, 1000), kind(device, 1000), kind(device, 3000)
        assert (again.handle, other.handle) == handles[::-1] and again.size_bytes == 1000
        assert simulator.live_objects()[name] == 3, "a piece of four times the size is left alone"
        other.close()
        entry = {DeviceMemory: "cuMemAlloc", PinnedMemory: "cuMemHostAlloc"}[kind]
        simulator.fail(entry, 2)
        any_size = kind(device, 100)
        assert any_size.handle == handles[0], "but where there is no other"
        simulator.fail(entry, 2)
        with pytest.raises(DeviceError, match="OUT_OF_MEMORY"):
            kind(device, 100)
        for memory in (any_size, again, new):
            memory.close()
        device.give_back()
        assert simulator.live_objects()[name] == 3
        rest.set()
        assert not device.held_up
        device.give_back()
        assert simulator.live_objects()[name] == 0 and device.held_bytes == 0
        kind(device, 1024).close()
        assert simulator.live_objects()[name] == 0
