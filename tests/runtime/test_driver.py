"""The driver's funnel and owners, over a stand-in for `cuda.bindings.driver` that notes every call.

What only a driver can show (order, races, leaks) is shown on the simulated one.
"""

from __future__ import annotations

import ctypes
import enum
import gc
import itertools
import sys
import threading
import warnings
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from driffusion_trt import DeviceError, InputError, MissingExtraError
from driffusion_trt.runtime import _driver
from driffusion_trt.runtime._device_errors import LOST, device_error
from driffusion_trt.runtime._driver import Device, check, device_count, driver, driver_version, nvrtc
from driffusion_trt.runtime._owner import Owner
from driffusion_trt.runtime._resources import (
    DeviceMemory,
    Event,
    GraphExec,
    Module,
    PinnedMemory,
    Stream,
)


class Result(enum.IntEnum):
    CUDA_SUCCESS = 0
    CUDA_ERROR_INVALID_VALUE = 1
    CUDA_ERROR_OUT_OF_MEMORY = 2
    CUDA_ERROR_NO_DEVICE = 100
    CUDA_ERROR_NOT_READY = 600
    CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED = 704
    CUDA_ERROR_PEER_ACCESS_NOT_ENABLED = 705
    CUDA_ERROR_LAUNCH_FAILED = 719
    CUDA_ERROR_STREAM_CAPTURE_INVALIDATED = 901


MAKERS = {
    "cuDevicePrimaryCtxRetain",
    "cuEventCreate",
    "cuGraphInstantiate",
    "cuMemAlloc",
    "cuModuleGetFunction",
    "cuModuleLoadData",
    "cuStreamCreate",
    "cuStreamEndCapture",
}


class Driver:
    """`cuda.bindings.driver` in small: any call succeeds, is noted, and answers as `answers` says."""

    CUresult = Result
    CUstream_flags = SimpleNamespace(CU_STREAM_NON_BLOCKING=1)
    CUevent_flags = SimpleNamespace(CU_EVENT_DISABLE_TIMING=2, CU_EVENT_BLOCKING_SYNC=1)
    CUdevice_attribute = SimpleNamespace(
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR=9, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR=0
    )
    CUstreamCaptureMode = SimpleNamespace(CU_STREAM_CAPTURE_MODE_THREAD_LOCAL=1)
    CU_MEMHOSTALLOC_PORTABLE, CU_MEMHOSTALLOC_DEVICEMAP = 1, 2

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.fail: dict[str, Result] = {}
        self.buffers: list[Any] = []
        self._numbers = itertools.count(1001)
        self.answers: dict[str, Any] = {
            "cuDeviceGetCount": lambda: (2,),
            "cuDriverGetVersion": lambda: (13040,),
            "cuDeviceGet": lambda ordinal: (ordinal,),
            "cuDeviceGetName": lambda *_: (b"Test GPU\0\0",),
            "cuDeviceGetAttribute": lambda kind, _: (kind,),
            "cuDeviceGetUuid": lambda _: (SimpleNamespace(bytes=bytes(range(16))),),
            "cuDeviceGetPCIBusId": lambda *_: (b"0000:65:00.0\0",),
            "cuMemGetInfo": lambda: (10, 20),
            "cuDeviceCanAccessPeer": lambda *_: (1,),
            "cuEventElapsedTime": lambda *_: (1.5,),
            "cuMemHostAlloc": self._host_memory,
            "cuGetErrorString": lambda status: (f"words of {int(status)}".encode(),),
        }
        self.answers |= dict.fromkeys(MAKERS, self._number)

    def _number(self, *_: Any) -> tuple[int]:
        return (next(self._numbers),)

    def _host_memory(self, size: int, _: int) -> tuple[int]:
        self.buffers.append(ctypes.create_string_buffer(size))
        return (ctypes.addressof(self.buffers[-1]),)

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("cu"):
            raise AttributeError(name)

        def call(*arguments: Any) -> Any:
            self.calls.append((name, *arguments))
            if name in self.fail:
                values = 1 if name in self.answers else 0  # on failure cuda-python returns None for them
                return (self.fail[name], *[None] * values)
            return (Result.CUDA_SUCCESS, *self.answers.get(name, lambda *_: ())(*arguments))

        return call

    def names(self) -> list[str]:
        """The calls since the last look."""
        names = [call[0] for call in self.calls]
        self.calls.clear()
        return names


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[Driver]:
    stand_in = Driver()
    monkeypatch.setattr(_driver, "_driver", stand_in)
    monkeypatch.setattr(_driver, "_success", Result.CUDA_SUCCESS)
    monkeypatch.setattr(_driver, "_local", threading.local())
    yield stand_in


@pytest.fixture
def device(fake: Driver) -> Iterator[Device]:
    with Device(0) as device:
        device.make_current()
        fake.calls.clear()
        yield device


# -- check


def test_check_unpacks_what_came_back(fake: Driver) -> None:
    assert check((Result.CUDA_SUCCESS,), "cuX") is None
    assert check((Result.CUDA_SUCCESS, 0), "cuX") == 0
    assert check((Result.CUDA_SUCCESS, 1, 2), "cuX") == (1, 2)
    assert check((0, "other enumerations too"), "cuX") == "other enumerations too"


@pytest.mark.parametrize("result", [None, False, (), 0, (None,), (False,), (Result.CUDA_SUCCESS, None)])
def test_check_refuses_what_is_no_success(fake: Driver, result: Any) -> None:
    with pytest.raises(DeviceError, match="cuX"):
        check(result, "cuX")


def test_an_error_names_the_call_the_device_and_what_to_do(fake: Driver, device: Device) -> None:
    with pytest.raises(DeviceError) as caught:
        check((Result.CUDA_ERROR_OUT_OF_MEMORY, None), "cuMemAlloc", device)
    assert caught.value.code == "CUDA_ERROR_OUT_OF_MEMORY"
    assert str(caught.value).startswith(
        "cuMemAlloc on GPU 0 (Test GPU) failed with CUDA_ERROR_OUT_OF_MEMORY: words of 2; free memory on it"
    )


def test_every_error_says_what_to_do() -> None:
    unknown = device_error(SimpleNamespace(name="CUDA_ERROR_NEW"), "cuX", None, "")
    assert str(unknown).endswith(
        "failed with CUDA_ERROR_NEW; run `driffusion-trt doctor` to see the state of the GPUs"
    )
    assert "CUDA_ERROR_LAUNCH_FAILED" in LOST
    assert "CUDA_ERROR_OUT_OF_MEMORY" not in LOST


def test_advice_is_for_errors_that_the_driver_has() -> None:
    bindings = pytest.importorskip("cuda.bindings.driver")
    from driffusion_trt.runtime import _device_errors

    assert set(_device_errors._ADVICE) <= {status.name for status in bindings.CUresult}


# -- loading


@pytest.fixture
def unloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_driver, "_driver", None)
    monkeypatch.setattr(_driver, "_success", object())


@pytest.mark.usefixtures("unloaded")
def test_without_cuda_python_the_command_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    for load in (driver, nvrtc):
        with pytest.raises(MissingExtraError, match=r"pip install '\.\[tensorrt\]'"):
            load()


def pretend(monkeypatch: pytest.MonkeyPatch, init: Any) -> Driver:
    module = Driver()
    monkeypatch.setattr(module, "cuInit", init, raising=False)
    monkeypatch.setitem(sys.modules, "cuda.bindings", SimpleNamespace(driver=module))  # type: ignore[arg-type]
    return module


@pytest.mark.usefixtures("unloaded")
@pytest.mark.parametrize("answer", [(None,), (False,), None])
def test_a_driver_that_does_not_answer_is_refused(monkeypatch: pytest.MonkeyPatch, answer: Any) -> None:
    pretend(monkeypatch, lambda _: answer)
    with pytest.raises(DeviceError, match="cuInit"):
        driver()


@pytest.mark.usefixtures("unloaded")
def test_without_a_driver_the_cpu_lanes_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def init(_: int) -> Any:
        raise RuntimeError("libcuda cannot be found")

    pretend(monkeypatch, init)
    with pytest.raises(DeviceError, match=r"no NVIDIA driver was found.*CPU lanes.*libcuda cannot be found"):
        driver()


@pytest.mark.usefixtures("unloaded")
def test_a_driver_without_a_gpu_is_told_and_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter([(Result.CUDA_ERROR_NO_DEVICE,), (Result.CUDA_SUCCESS,)])
    module = pretend(monkeypatch, lambda _: next(answers))
    with pytest.raises(DeviceError, match="cuInit failed with CUDA_ERROR_NO_DEVICE; the driver finds no GPU"):
        driver()
    assert driver() is module
    assert driver() is module, "cuInit is called once"


# -- devices


def test_what_a_device_tells(fake: Driver, device: Device) -> None:
    assert (device.title, device.compute_capability) == ("GPU 0 (Test GPU)", (9, 0))
    assert device.memory_bytes() == (10, 20)
    assert device.uuid() == "000102030405060708090a0b0c0d0e0f"
    assert device.pci_bus_id() == "0000:65:00.0"
    assert device_count() == 2
    assert driver_version() == (13, 4)


@pytest.mark.parametrize("ordinal", [-1, 2])
def test_a_gpu_that_is_not_there_is_refused(fake: Driver, ordinal: int) -> None:
    with pytest.raises(DeviceError, match=f"no GPU {ordinal}: 2 can be seen"):
        Device(ordinal)


def test_a_context_is_made_current_once(fake: Driver, device: Device) -> None:
    with Device(1) as other:
        fake.calls.clear()
        for now in (device, device, other, other, device):
            now.make_current()
        assert [call[1] for call in fake.calls] == [other.context, device.context]
        fake.calls.clear()
        device.make_current(again=True)
        assert fake.names() == ["cuCtxSetCurrent"]


def test_what_is_current_is_known_for_each_thread(fake: Driver, device: Device) -> None:
    thread = threading.Thread(target=device.make_current)
    thread.start()
    thread.join()
    assert fake.names() == ["cuCtxSetCurrent"]


def test_peer_access_may_be_there_already(fake: Driver, device: Device) -> None:
    with Device(1) as other:
        assert device.can_access(other)
        fake.fail["cuCtxEnablePeerAccess"] = Result.CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED
        device.enable_peer(other)
        fake.fail["cuCtxEnablePeerAccess"] = Result.CUDA_ERROR_INVALID_VALUE
        with pytest.raises(DeviceError, match=r"cuCtxEnablePeerAccess on GPU 0"):
            device.enable_peer(other)
        fake.fail["cuCtxDisablePeerAccess"] = Result.CUDA_ERROR_PEER_ACCESS_NOT_ENABLED
        device.disable_peer(other)


# -- one method, one call


def test_every_method_that_enqueues_is_one_call(fake: Driver, device: Device) -> None:
    with (
        Device(1) as other,
        Stream(device) as stream,
        Event(device) as event,
        Module(device, b"image") as module,
    ):
        function = module.function("linear")
        graph = GraphExec.capture(stream, lambda: None, module)
        fake.calls.clear()
        s, e = stream.handle, event.handle
        event.record(stream)
        stream.wait(event)
        stream.copy_to_device(1, 2, 3)
        stream.copy_to_host(4, 5, 6)
        stream.copy(7, 8, 9)
        stream.copy_peer(1, other, 2, device, 3)
        stream.fill(1, 0, 4)
        function.launch((1, 2, 3), (4, 5, 6), stream, 7)
        graph.launch(stream)
        assert stream.done() and event.done() and event.wait()
        stream.synchronize()
        assert fake.calls == [
            ("cuEventRecord", e, s),
            ("cuStreamWaitEvent", s, e, 0),
            ("cuMemcpyHtoDAsync", 1, 2, 3, s),
            ("cuMemcpyDtoHAsync", 4, 5, 6, s),
            ("cuMemcpyDtoDAsync", 7, 8, 9, s),
            ("cuMemcpyPeerAsync", 1, other.context, 2, device.context, 3, s),
            ("cuMemsetD8Async", 1, 0, 4, s),
            ("cuLaunchKernel", function.handle, 1, 2, 3, 4, 5, 6, 0, s, 7, 0),
            ("cuGraphLaunch", graph.handle, s),
            ("cuStreamQuery", s),
            ("cuEventQuery", e),
            ("cuEventSynchronize", e),
            ("cuStreamSynchronize", s),
        ]
        graph.close()


@pytest.mark.parametrize(
    ("timing", "blocking", "flags"), [(False, False, 2), (True, False, 0), (False, True, 3), (True, True, 1)]
)
def test_events_have_the_flags_asked_for(
    fake: Driver, device: Device, timing: bool, blocking: bool, flags: int
) -> None:
    with Event(device, timing=timing, blocking=blocking):
        assert fake.calls[-1] == ("cuEventCreate", flags)


def test_waiting_ends_at_the_deadline_or_with_the_work(fake: Driver, device: Device) -> None:
    with Event(device) as event:
        fake.fail["cuEventQuery"] = Result.CUDA_ERROR_NOT_READY
        assert not event.wait(0.01)
        assert not event.wait(0)
        timer = threading.Timer(0.02, fake.fail.clear)
        timer.start()
        assert event.wait(10)
        timer.join()
        fake.fail["cuEventQuery"] = Result.CUDA_ERROR_LAUNCH_FAILED
        with pytest.raises(DeviceError, match="restart, without it"):
            event.wait(10)


def test_times_come_from_timing_events(fake: Driver, device: Device) -> None:
    with Event(device, timing=True) as start, Event(device, timing=True) as end:
        assert end.elapsed_ms(start) == 1.5
        assert fake.calls[-1] == ("cuEventElapsedTime", start.handle, end.handle)


def test_pinned_memory_is_an_array(fake: Driver, device: Device) -> None:
    with PinnedMemory(device, 64) as memory:
        assert fake.calls[-1] == ("cuMemHostAlloc", 64, 3)
        matrix = memory.array(np.float64, (2, 2), offset=32)
        matrix[...] = [[1, 2], [3, 4]]
        assert memory.array(np.float64)[4:].tolist() == [1, 2, 3, 4]
        assert matrix.ctypes.data == memory.address + 32
        with pytest.raises(InputError, match="does not fit into 64 pinned bytes"):
            memory.array(np.float64, (2, 3), offset=32)
    with pytest.raises(InputError, match="PinnedMemory is closed"):
        memory.array()


# -- graphs


def test_a_capture_gives_a_graph(fake: Driver, device: Device) -> None:
    with Stream(device) as stream, Event(device) as event:
        fake.calls.clear()
        graph = GraphExec.capture(stream, lambda: event.record(stream))
        assert fake.names() == [
            "cuStreamBeginCapture",
            "cuEventRecord",
            "cuStreamEndCapture",
            "cuGraphInstantiate",
            "cuGraphDestroy",
        ]
        graph.close()


def test_a_capture_that_fails_frees_the_stream(fake: Driver, device: Device) -> None:
    def wrong() -> None:
        raise KeyError("mine")

    with Stream(device) as stream:
        fake.calls.clear()
        with pytest.raises(KeyError, match="mine"):
            GraphExec.capture(stream, wrong)
        assert fake.names() == ["cuStreamBeginCapture", "cuStreamEndCapture", "cuGraphDestroy"]
        fake.fail["cuStreamEndCapture"] = Result.CUDA_ERROR_STREAM_CAPTURE_INVALIDATED
        with pytest.raises(KeyError, match="mine"):
            GraphExec.capture(stream, wrong)
        assert fake.names() == ["cuStreamBeginCapture", "cuStreamEndCapture"]
        with pytest.raises(DeviceError, match="cuStreamEndCapture"):
            GraphExec.capture(stream, lambda: None)
        fake.fail = {"cuGraphInstantiate": Result.CUDA_ERROR_OUT_OF_MEMORY}
        fake.calls.clear()
        with pytest.raises(DeviceError, match="cuGraphInstantiate"):
            GraphExec.capture(stream, lambda: None)
        assert fake.names()[-1] == "cuGraphDestroy"


# -- owners


def owners(device: Device) -> list[Owner]:
    stream = Stream(device)
    memory, module = DeviceMemory(device, 256), Module(device, b"image")
    graph = GraphExec.capture(stream, lambda: None, memory, module)
    return [stream, Event(device), memory, PinnedMemory(device, 8), module, graph]


ENDS = {
    "cuStreamDestroy",
    "cuEventDestroy",
    "cuMemFree",
    "cuMemFreeHost",
    "cuModuleUnload",
    "cuGraphExecDestroy",
    "cuDevicePrimaryCtxRelease",
}


@pytest.mark.parametrize("order", list(itertools.permutations(range(7)))[::97])
def test_any_order_of_closing_gives_everything_back_once(fake: Driver, order: tuple[int, ...]) -> None:
    device = Device(0)
    things = [*owners(device), device]
    fake.calls.clear()
    for at in order:
        things[at].close()
        things[at].close()
    ends = [name for name in fake.names() if name in ENDS]
    assert sorted(ends) == sorted(ENDS)
    assert ends[-1] == "cuDevicePrimaryCtxRelease"
    assert ends.index("cuGraphExecDestroy") < min(ends.index("cuMemFree"), ends.index("cuModuleUnload"))


def test_closing_happens_in_the_context_of_the_device(fake: Driver, device: Device) -> None:
    with Device(1) as other:
        stream = Stream(device)
        other.make_current()
        fake.calls.clear()
        stream.close()
        assert fake.calls == [("cuCtxSetCurrent", device.context), ("cuStreamDestroy", stream.handle)]


def test_a_lost_device_is_given_up_without_a_call(fake: Driver) -> None:
    device = Device(0)
    things = [*owners(device), device]
    device.lost = True
    fake.calls.clear()
    for thing in things:
        thing.close()
    assert fake.calls == []


def test_a_close_that_fails_gives_back_the_rest(fake: Driver) -> None:
    device = Device(0)
    stream = Stream(device)
    device.close()
    fake.fail["cuStreamDestroy"] = Result.CUDA_ERROR_LAUNCH_FAILED
    fake.calls.clear()
    with pytest.raises(DeviceError, match="cuStreamDestroy on GPU 0"):
        stream.close()
    stream.close()
    assert fake.names().count("cuDevicePrimaryCtxRelease") == 1


def test_what_could_not_be_made_leaves_nothing(fake: Driver, device: Device) -> None:
    fake.fail["cuMemAlloc"] = Result.CUDA_ERROR_OUT_OF_MEMORY
    with pytest.raises(DeviceError, match="smaller batch or picture"):
        DeviceMemory(device, 1 << 40)
    fake.calls.clear()
    device.close()
    assert "cuDevicePrimaryCtxRelease" in fake.names()


def test_nothing_is_made_on_a_closed_device(fake: Driver) -> None:
    device = Device(0)
    device.close()
    for make in (Stream, Event, lambda on: DeviceMemory(on, 1), lambda on: Module(on, b"")):
        with pytest.raises(InputError, match="Device is closed"):
            make(device)


def test_nothing_is_made_on_a_closed_device_that_others_still_use(fake: Driver) -> None:
    device = Device(0)
    with Stream(device):
        device.close()
        with pytest.raises(InputError, match="Device is closed"):
            Event(device)


def test_what_nobody_closed_is_told_and_given_back(fake: Driver, device: Device) -> None:
    stream: Stream | None = Stream(device)
    fake.calls.clear()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        stream = None
        gc.collect()
    assert stream is None
    assert [str(warning.message) for warning in caught] == ["Stream was not closed"]
    assert fake.names() == ["cuStreamDestroy"]


def test_what_is_given_back_slowly_holds_up_nobody_else() -> None:
    """A driver waits for a device, perhaps, before it takes memory back; others make and close theirs."""
    begun, go_on = threading.Event(), threading.Event()
    ended: list[str] = []

    class Slow(Owner):
        def _destroy(self) -> None:
            begun.set()
            assert go_on.wait(10)
            ended.append("slow")

    class Base(Owner):
        def _destroy(self) -> None:
            ended.append("base")

    base = Base()
    slow = Slow(base)
    thread = threading.Thread(target=slow.close)
    thread.start()
    assert begun.wait(10)
    try:
        slow.close()  # once is enough
        base.close()  # it is in use until the other one has ended
        with Base():
            pass
        assert ended == ["base"] and base.in_use
    finally:
        go_on.set()
        thread.join(10)
    assert ended == ["base", "slow", "base"] and not base.in_use
