"""Devices, contexts, memory, copies, peers, streams and counters of the simulated CUDA driver."""

from __future__ import annotations

import ctypes
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import cudasim
import numpy as np
import pytest
from cudasim.rig import BYTES, NO_TIMING, Gpu, N, Overrun, Scale, clean, driver, floats, launch, ok, status

from driffusion_trt.engines.gpus import find_gpus

pytest_plugins = ("cudasim.fixtures",)
CUresult = driver.CUresult


# The driver as a library.


def test_without_devices_it_is_a_machine_without_a_gpu(simulator: cudasim.Simulator) -> None:
    assert len(find_gpus().found) == 2
    simulator.configure(0)
    found = find_gpus()
    assert found.found == () and "no CUDA-capable device" in found.why_none
    assert status(driver.cuInit(0)) == "NO_DEVICE"


def test_processes_that_a_test_starts_do_not_see_it(simulator: cudasim.Simulator) -> None:
    code = "from driffusion_trt.engines.gpus import find_gpus; print([gpu.name for gpu in find_gpus().found])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "Simulated" not in done.stdout


def test_devices_tell_what_they_were_configured_as(simulator: cudasim.Simulator) -> None:
    simulator.configure([cudasim.Device("A", (9, 0), 5 << 30), cudasim.Device("B", (12, 0), 1 << 30)])
    assert [str(gpu) for gpu in find_gpus().found] == ["A (sm90)", "B (sm120)"]
    assert ok(driver.cuDeviceTotalMem(0)) == 5 << 30
    assert ok(driver.cuDeviceGetUuid(0)).bytes != ok(driver.cuDeviceGetUuid(1)).bytes
    assert ok(driver.cuDeviceGetPCIBusId(16, 1)).startswith(b"0000:02:00.0\0")
    assert status(driver.cuDeviceGet(2)) == "INVALID_DEVICE"
    attribute = driver.CUdevice_attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR
    assert ok(driver.cuDeviceGetAttribute(attribute, 1)) == 12
    assert ok(driver.cuDriverGetVersion()) == 13000


def test_nothing_works_before_it_is_initialised(simulator: cudasim.Simulator) -> None:
    simulator._option("initialised", 0)
    assert status(driver.cuDeviceGetCount()) == "NOT_INITIALIZED"
    assert status(driver.cuMemAlloc(8)) == "NOT_INITIALIZED"
    ok(driver.cuInit(0))
    assert ok(driver.cuDeviceGetCount()) == 2


def test_errors_have_their_names_and_words(simulator: cudasim.Simulator) -> None:
    error = CUresult.CUDA_ERROR_STREAM_CAPTURE_ISOLATION
    assert ok(driver.cuGetErrorName(error)) == b"CUDA_ERROR_STREAM_CAPTURE_ISOLATION"
    assert ok(driver.cuGetErrorString(CUresult.CUDA_ERROR_OUT_OF_MEMORY)) == b"out of memory"
    for each in CUresult:
        assert ok(driver.cuGetErrorName(each)) == each.name.encode()


def test_what_is_not_simulated_fails_with_its_name(
    simulator: cudasim.Simulator, capfd: pytest.CaptureFixture[str]
) -> None:
    assert status(driver.cuMemAllocManaged(8, 1)) == "NOT_SUPPORTED"
    assert "cuMemAllocManaged is not simulated" in capfd.readouterr().err
    assert simulator.unknown_calls() == {"cuMemAllocManaged": 1}


def test_a_look_up_gives_the_newest_form_not_above_the_version_asked_for(
    simulator: cudasim.Simulator,
) -> None:
    library = cudasim.load()

    def looked_up(name: bytes, version: int) -> int:
        found = ctypes.c_void_p()
        assert library.cuGetProcAddress_v2(name, ctypes.byref(found), version, ctypes.c_uint64(0), None) == 0
        return found.value or 0

    def address(symbol: str) -> int:
        return ctypes.cast(getattr(library, symbol), ctypes.c_void_p).value or 0

    second, third = address("cuStreamGetCaptureInfo_v2"), address("cuStreamGetCaptureInfo_v3")
    found = [looked_up(b"cuStreamGetCaptureInfo", version) for version in (11030, 12020, 12030, 13000)]
    assert found == [second, second, third, third]
    assert looked_up(b"cuMemAlloc", 2000) not in (0, address("cuMemAlloc_v2"))  # a stub: 32 bits


def test_it_can_not_be_reconfigured_under_living_objects(gpu: Gpu, simulator: cudasim.Simulator) -> None:
    with pytest.raises(RuntimeError, match="still alive"):
        simulator.configure(4)


# Contexts and handles.


def test_every_call_wants_a_context(gpu: Gpu, simulator: cudasim.Simulator) -> None:
    simulator.reset()  # takes the current context along
    assert status(driver.cuMemAlloc(8)) == "INVALID_CONTEXT"
    assert status(driver.cuStreamCreate(1)) == "INVALID_CONTEXT"
    assert status(driver.cuEventCreate(0)) == "INVALID_CONTEXT"


def test_the_stack_of_contexts(gpus: tuple[Gpu, Gpu]) -> None:
    ok(driver.cuCtxPushCurrent(gpus[1].context))
    assert int(ok(driver.cuCtxGetDevice())) == 1
    assert int(ok(driver.cuCtxPopCurrent())) == int(gpus[1].context)
    assert int(ok(driver.cuCtxGetCurrent())) == int(gpus[0].context)


def test_a_kernel_or_record_in_the_wrong_context_is_refused(gpus: tuple[Gpu, Gpu]) -> None:
    lead, lane = gpus
    argument = lambda: Scale(int(lane.x), int(lane.y), 1, 0, N)  # noqa: E731
    assert status(launch(lane.kernel, lane.stream, argument())) == "INVALID_HANDLE"  # the lead's is current
    lane.use()
    assert status(launch(lead.kernel, lane.stream, argument())) == "INVALID_HANDLE"
    assert status(driver.cuEventRecord(lead.event, lane.stream)) == "INVALID_HANDLE"
    ok(launch(lane.kernel, lane.stream, argument()))


def test_stale_and_wrong_handles_are_refused_and_told(gpu: Gpu, simulator: cudasim.Simulator) -> None:
    event = ok(driver.cuEventCreate(0))
    ok(driver.cuEventDestroy(event))
    assert status(driver.cuEventRecord(event, gpu.stream)) == "INVALID_HANDLE"
    assert status(driver.cuStreamSynchronize(driver.CUstream(12345))) == "INVALID_HANDLE"
    assert status(driver.cuGraphDestroy(driver.CUgraph(int(gpu.stream)))) == "INVALID_VALUE"
    told = simulator.violations()
    assert "cuEventRecord was given a destroyed handle" in told[0]
    assert "no handle" in told[1] and "another kind" in told[2]


def test_the_default_stream_is_refused_loudly(gpu: Gpu, simulator: cudasim.Simulator) -> None:
    assert status(driver.cuMemsetD8Async(gpu.x, 0, 4, driver.CUstream(0))) == "NOT_SUPPORTED"
    assert "default stream" in simulator.violations()[0]


def test_what_a_context_takes_along_is_counted(gpu: Gpu, simulator: cudasim.Simulator) -> None:
    before = simulator.live_objects()
    assert {name: count for name, count in before.items() if count} == {
        "contexts": 1,
        "streams": 1,
        "events": 1,
        "allocations": 2,
        "modules": 1,
    }
    ok(driver.cuDevicePrimaryCtxRelease(0))
    after = {name: count for name, count in simulator.live_objects().items() if count}
    assert after == {"abandoned": 5}
    assert status(driver.cuMemAlloc(8)) == "CONTEXT_IS_DESTROYED"
    assert simulator.memory_bytes()["device 0"] == 0


def test_orderly_closing_leaves_nothing(gpus: tuple[Gpu, Gpu], simulator: cudasim.Simulator) -> None:
    for each in gpus:
        each.close()
    assert set(simulator.live_objects().values()) == {0}
    clean(simulator)


# Memory.


def test_memory_runs_out_by_the_devices_size(simulator: cudasim.Simulator) -> None:
    simulator.configure([cudasim.Device(memory_bytes=1 << 20)])
    ok(driver.cuCtxSetCurrent(ok(driver.cuDevicePrimaryCtxRetain(0))))
    first = ok(driver.cuMemAlloc(600 << 10))
    assert status(driver.cuMemAlloc(600 << 10)) == "OUT_OF_MEMORY"
    assert ok(driver.cuMemGetInfo()) == (424 << 10, 1 << 20)
    ok(driver.cuMemFree(first))
    ok(driver.cuMemAlloc(100 << 10))
    assert simulator.memory_bytes()["device 0"] == 100 << 10
    assert simulator.memory_bytes()["device 0 peak"] == 600 << 10
    assert status(driver.cuMemAlloc(0)) == "INVALID_VALUE"


def test_unwritten_and_freed_memory_is_not_a_number(gpu: Gpu) -> None:
    assert np.isnan(floats(gpu.x)).all()
    gpu.fill(gpu.x, 1)
    gpu.wait()
    view = floats(gpu.x)
    assert (view == 1).all()
    ok(driver.cuMemFree(gpu.x))
    assert np.isnan(view).all()


def outside(gpu: Gpu, other: Gpu) -> dict[str, tuple[Callable[[], Any], str]]:
    """Work that touches what it may not, and what is to be said of it."""
    freed = ok(driver.cuMemAlloc(BYTES))
    ok(driver.cuMemFree(freed))
    pinned = ok(driver.cuMemHostAlloc(BYTES, 0))
    stream = gpu.stream
    return {
        "past the end": (lambda: driver.cuMemsetD8Async(gpu.x, 0, BYTES + 1, stream), "past its end"),
        "freed": (lambda: driver.cuMemcpyDtoDAsync(gpu.x, freed, 4, stream), "was freed"),
        "unknown": (lambda: driver.cuMemcpyDtoDAsync(gpu.x, 4096, 4, stream), "no device memory"),
        "peer": (lambda: driver.cuMemcpyDtoDAsync(gpu.x, other.x, 4, stream), "no access to that peer"),
        "peer copy past the end": (
            lambda: driver.cuMemcpyPeerAsync(gpu.x, gpu.context, other.x, other.context, BYTES + 4, stream),
            "past its end",
        ),
        "pinned past the end": (
            lambda: driver.cuMemcpyHtoDAsync(gpu.x, pinned, BYTES + 1, stream),
            "past its end",
        ),
        "kernel": (
            lambda: launch(gpu.kernel, stream, Scale(int(gpu.x), int(gpu.y), 1, 0, N + 1)),
            "kernel scale",
        ),
    }


@pytest.mark.parametrize(
    "case",
    ["past the end", "freed", "unknown", "peer", "peer copy past the end", "pinned past the end", "kernel"],
)
def test_work_outside_its_memory_ruins_the_context(simulator: cudasim.Simulator, case: str) -> None:
    gpu, other = Gpu(0), Gpu(1)
    gpu.use()
    act, words = outside(gpu, other)[case]
    ok(act())
    assert status(driver.cuStreamSynchronize(gpu.stream)) == "ILLEGAL_ADDRESS"
    assert status(driver.cuMemAlloc(8)) == "ILLEGAL_ADDRESS"
    assert words in simulator.violations()[0]
    other.use()
    ok(driver.cuStreamSynchronize(other.stream))  # its context is not touched by that


def test_an_external_operation_stays_inside_its_memory_too(gpu: Gpu, simulator: cudasim.Simulator) -> None:
    assert simulator.enqueue(gpu.stream, lambda: None, writes=[(int(gpu.x) + 4, BYTES)], label="engine") == 0
    assert status(driver.cuStreamSynchronize(gpu.stream)) == "ILLEGAL_ADDRESS"
    assert "engine on stream #1 (device 0) writes bytes 4 to 260" in simulator.violations()[0]


def test_writes_that_a_kernel_does_not_tell_of_are_found_by_guards(
    gpu: Gpu, simulator: cudasim.Simulator
) -> None:
    kernel = ok(driver.cuModuleGetFunction(gpu.module, b"overrun"))
    ok(launch(kernel, gpu.stream, Overrun(int(gpu.y), N)))
    gpu.wait()
    assert "wrote outside the bounds" in simulator.violations()[0]


def test_wrong_frees_are_refused(gpu: Gpu, simulator: cudasim.Simulator) -> None:
    ok(driver.cuMemFree(gpu.x))
    assert status(driver.cuMemFree(gpu.x)) == "INVALID_VALUE"
    assert status(driver.cuMemFree(int(gpu.y) + 4)) == "INVALID_VALUE"
    assert status(driver.cuMemFreeHost(int(gpu.y))) == "INVALID_VALUE"
    assert len(simulator.violations()) == 3


def test_a_free_waits_for_the_device(gpu: Gpu, simulator: cudasim.Simulator) -> None:
    done: list[int] = []
    simulator.slow(0, 0.05)
    assert simulator.enqueue(gpu.stream, lambda: done.append(1)) == 0
    ok(driver.cuMemFree(gpu.x))
    assert done == [1]


def test_memory_freed_under_work_is_a_race(gpus: tuple[Gpu, Gpu], simulator: cudasim.Simulator) -> None:
    lead, lane = gpus
    lane.scale(lead.x, lane.y)  # reads the lead's memory
    lead.use()
    ok(driver.cuMemFree(lead.x))
    (race,) = simulator.races()
    assert "cuMemFree on the host" in race and "kernel scale" in race


def test_copies_and_their_bytes(gpus: tuple[Gpu, Gpu], simulator: cudasim.Simulator) -> None:
    lead, lane = gpus
    source = np.arange(N, dtype=np.float32)
    pinned = ok(driver.cuMemHostAlloc(BYTES, 0))
    ok(driver.cuMemcpyHtoDAsync(lead.x, source.ctypes.data, BYTES, lead.stream))
    expected = source.copy()
    source[:] = -1  # ordinary memory was read before the call returned
    ok(driver.cuMemcpyDtoDAsync(lead.y, lead.x, BYTES, lead.stream))
    ok(driver.cuMemcpyPeerAsync(lane.x, lane.context, lead.y, lead.context, BYTES, lead.stream))
    lead.wait()
    ok(driver.cuMemcpyDtoHAsync(pinned, lane.x, BYTES, lane.stream))
    lane.wait()
    np.testing.assert_array_equal(floats(pinned), expected)
    ok(driver.cuMemcpyDtoHAsync(source.ctypes.data, lane.x, BYTES, lane.stream))
    np.testing.assert_array_equal(source, expected)  # waits by itself
    assert simulator.copied_bytes() == {
        "HtoD pageable": BYTES, "DtoD": BYTES, "peer 0->1": BYTES, "DtoH": BYTES, "DtoH pageable": BYTES,
    }  # fmt: skip
    clean(simulator)


# Peers.


def test_peer_access_as_the_matrix_allows(simulator: cudasim.Simulator) -> None:
    simulator.configure(3, peers=[(0, 1), (1, 0), (0, 2)])
    can = [[ok(driver.cuDeviceCanAccessPeer(i, j)) for j in range(3)] for i in range(3)]
    assert can == [[0, 1, 1], [1, 0, 0], [0, 0, 0]]
    zero, one, two = (Gpu(number) for number in range(3))
    zero.use()
    ok(driver.cuCtxEnablePeerAccess(one.context, 0))
    assert status(driver.cuCtxEnablePeerAccess(one.context, 0)) == "PEER_ACCESS_ALREADY_ENABLED"
    assert status(driver.cuCtxEnablePeerAccess(zero.context, 0)) == "INVALID_DEVICE"
    assert status(driver.cuCtxDisablePeerAccess(two.context)) == "PEER_ACCESS_NOT_ENABLED"
    two.use()
    assert status(driver.cuCtxEnablePeerAccess(zero.context, 0)) == "PEER_ACCESS_UNSUPPORTED"
    zero.use()
    ok(driver.cuMemsetD8Async(one.x, 0, 4, zero.stream))  # one way only
    zero.wait()
    ok(driver.cuCtxDisablePeerAccess(one.context))
    ok(driver.cuMemsetD8Async(one.x, 0, 4, zero.stream))
    assert status(driver.cuStreamSynchronize(zero.stream)) == "ILLEGAL_ADDRESS"


def test_a_peer_copy_without_access_is_staged_by_the_driver(simulator: cudasim.Simulator) -> None:
    lead, lane = Gpu(0), Gpu(1)
    lead.use()
    lead.fill(lead.x, 3)
    ok(driver.cuMemcpyPeerAsync(lane.x, lane.context, lead.x, lead.context, BYTES, lead.stream))
    lead.wait()
    assert (floats(lane.x) == 3).all()
    assert simulator.copied_bytes() == {"staged 0->1": BYTES}
    swapped = driver.cuMemcpyPeerAsync(lane.x, lead.context, lead.x, lane.context, BYTES, lead.stream)
    assert status(swapped) == "INVALID_VALUE"
    assert "not that of its pointer's device" in simulator.violations()[0]


# Kernels and external operations.


def test_a_kernel_computes_with_the_arguments_it_was_given(gpu: Gpu, simulator: cudasim.Simulator) -> None:
    gpu.fill(gpu.x, 2)
    gpu.scale(gpu.x, gpu.y, a=3, b=1)
    gpu.wait()
    assert (floats(gpu.y) == 7).all()
    clean(simulator)


def test_modules_and_launches_are_checked(gpu: Gpu) -> None:
    assert status(driver.cuModuleLoadData(b"\x7fELF" + bytes(64))) == "INVALID_IMAGE"
    assert status(driver.cuModuleLoadData(b"CUDASIM\0/nowhere.so\0")) == "INVALID_IMAGE"
    assert status(driver.cuModuleGetFunction(gpu.module, b"unknown")) == "NOT_FOUND"
    assert status(driver.cuModuleGetFunction(gpu.module, b"partial")) == "NOT_FOUND"
    argument = Scale(int(gpu.x), int(gpu.y), 1, 0, N)
    params = (ctypes.c_void_p * 1)(ctypes.addressof(argument))
    for grid, block in ((0, 32), (1, 0), (1, 1025)):
        wrong = driver.cuLaunchKernel(
            gpu.kernel, grid, 1, 1, block, 1, 1, 0, gpu.stream, ctypes.addressof(params), 0
        )
        assert status(wrong) == "INVALID_VALUE"


def test_an_external_operation_runs_in_its_turn(gpu: Gpu, simulator: cudasim.Simulator) -> None:
    def double() -> None:
        floats(gpu.y)[:] = 2 * floats(gpu.x)

    gpu.fill(gpu.x, 5)
    reads, writes = [(int(gpu.x), BYTES)], [(int(gpu.y), BYTES)]
    assert simulator.enqueue(gpu.stream, double, reads=reads, writes=writes) == 0
    gpu.scale(gpu.y, gpu.x, b=1)
    gpu.wait()
    assert (floats(gpu.x) == 11).all()
    clean(simulator)


def test_an_external_operation_that_raises_fails_the_stream(gpu: Gpu, simulator: cudasim.Simulator) -> None:
    def broken() -> None:
        raise ValueError("no such tensor")

    simulator.enqueue(gpu.stream, broken)
    assert status(driver.cuStreamSynchronize(gpu.stream)) == "LAUNCH_FAILED"
    assert "no such tensor" in simulator.violations()[0]


# Streams and events.


def test_streams_run_side_by_side_and_wait_for_the_record_of_the_moment(
    gpu: Gpu, simulator: cudasim.Simulator
) -> None:
    """A wait holds the record that was the latest when it was enqueued, not a later one."""
    other = ok(driver.cuStreamCreate(1))
    never, release = ok(driver.cuEventCreate(NO_TIMING)), threading.Event()
    ok(driver.cuStreamWaitEvent(other, never, 0))  # was never recorded: nothing to wait for
    gpu.fill(gpu.x, 1)
    ok(driver.cuEventRecord(gpu.event, gpu.stream))
    ok(driver.cuStreamWaitEvent(other, gpu.event, 0))
    simulator.enqueue(gpu.stream, lambda: release.wait(20) or None)  # type: ignore[func-returns-value]
    ok(driver.cuEventRecord(gpu.event, gpu.stream))
    gpu.scale(gpu.x, gpu.y, stream=other)
    ok(driver.cuStreamSynchronize(other))  # not held up by what came after the first record
    assert status(driver.cuEventQuery(gpu.event)) == "NOT_READY"
    assert status(driver.cuStreamQuery(gpu.stream)) == "NOT_READY"
    release.set()
    ok(driver.cuEventSynchronize(gpu.event))
    ok(driver.cuEventQuery(gpu.event))
    clean(simulator)


def delayed_ms(simulator: cudasim.Simulator, seed: int | None) -> float:
    """How long four operations take with a seed's delays, at least, since the machine may be busy."""
    took = []
    for _ in range(4):
        simulator.reset()
        simulator.configure(1, delays=seed, delay_us=100_000)
        gpu, first, last = Gpu(0), ok(driver.cuEventCreate(0)), ok(driver.cuEventCreate(0))
        ok(driver.cuEventRecord(first, gpu.stream))
        for _ in range(4):
            gpu.fill(gpu.x, 0)
        ok(driver.cuEventRecord(last, gpu.stream))
        gpu.wait()
        took.append(float(ok(driver.cuEventElapsedTime(first, last))))
    return min(took)


def test_delays_come_from_their_seed(simulator: cudasim.Simulator) -> None:
    one, again, other, none = (delayed_ms(simulator, seed) for seed in (1, 1, 3, None))
    assert one == pytest.approx(again, abs=20)
    assert other > one + 40  # 118 against 31 ms
    assert none < 10


def test_events_with_timing_measure(gpu: Gpu, simulator: cudasim.Simulator) -> None:
    simulator.slow(0, 0.02)
    first, last = ok(driver.cuEventCreate(0)), ok(driver.cuEventCreate(0))
    assert status(driver.cuEventElapsedTime(first, last)) == "INVALID_HANDLE"  # not recorded
    ok(driver.cuEventRecord(first, gpu.stream))
    gpu.fill(gpu.x, 0)
    ok(driver.cuEventRecord(last, gpu.stream))
    assert status(driver.cuEventElapsedTime(first, last)) == "NOT_READY"
    ok(driver.cuEventRecord(gpu.event, gpu.stream))
    gpu.wait()
    assert 38 < ok(driver.cuEventElapsedTime(first, last)) < 2000
    assert status(driver.cuEventElapsedTime(first, gpu.event)) == "INVALID_HANDLE"  # made without timing


# Counters.


def test_calls_are_counted_by_name(gpu: Gpu, simulator: cudasim.Simulator) -> None:
    before = simulator.calls()
    for _ in range(5):
        gpu.scale(gpu.x, gpu.y)
    gpu.wait()
    after = simulator.calls()
    made = {name: after[name] - before.get(name, 0) for name in after if after[name] != before.get(name, 0)}
    assert made == {"cuLaunchKernel": 5, "cuCtxSetCurrent": 5, "cuStreamSynchronize": 1}
    simulator.reset()
    assert simulator.calls() == {}


def test_time_spent_leaves_waits_out(gpu: Gpu, simulator: cudasim.Simulator) -> None:
    simulator.slow(0, 0.2)
    gpu.fill(gpu.x, 0)
    before = simulator.spent_seconds()
    gpu.wait()
    assert 0 < simulator.spent_seconds() - before < 0.15


def test_pinned_memory_is_counted_and_reached_by_all(
    gpus: tuple[Gpu, Gpu], simulator: cudasim.Simulator
) -> None:
    pinned = ok(driver.cuMemHostAlloc(BYTES, 0))
    assert simulator.live_objects()["pinned"] == 1 and simulator.memory_bytes()["pinned"] == BYTES
    lane = gpus[1]
    lane.use()
    lane.fill(lane.x, 6)
    lane.scale(lane.x, ok(driver.cuMemHostGetDevicePointer(pinned, 0)))
    lane.wait()
    assert (floats(pinned) == 6).all()
    ok(driver.cuMemFreeHost(pinned))
    assert simulator.live_objects()["pinned"] == 0
    assert simulator.memory_bytes()["pinned peak"] == BYTES
    clean(simulator)
