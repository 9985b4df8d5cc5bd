"""Captures and graphs of the simulated CUDA driver."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import cudasim
import numpy as np
import pytest
from cudasim.rig import BYTES, NO_TIMING, THREAD_LOCAL, Gpu, N, captured, clean, driver, floats, ok, status

pytest_plugins = ("cudasim.fixtures",)
GLOBAL = driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_GLOBAL
RELAXED = driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_RELAXED


def test_a_graph_replays_kernels_copies_and_external_operations(
    gpu: Gpu, simulator: cudasim.Simulator
) -> None:
    calls = []

    def bump() -> None:
        calls.append(1)
        floats(gpu.x)[:] += 1

    def work() -> None:
        ok(driver.cuMemcpyDtoDAsync(gpu.y, gpu.x, BYTES, gpu.stream))
        gpu.scale(gpu.y, gpu.x, a=2)
        spans = [(int(gpu.x), BYTES)]
        assert simulator.enqueue(gpu.stream, bump, reads=spans, writes=spans) == 0
        captured_status, _, graph, *_ = ok(driver.cuStreamGetCaptureInfo(gpu.stream))
        assert captured_status == driver.CUstreamCaptureStatus.CU_STREAM_CAPTURE_STATUS_ACTIVE
        assert int(graph)

    gpu.fill(gpu.x, 1)
    graph = captured(gpu, work)
    assert calls == [] and not ok(driver.cuStreamIsCapturing(gpu.stream))
    nodes, count = ok(driver.cuGraphGetNodes(graph, 8))
    kinds = [ok(driver.cuGraphNodeGetType(node)) for node in nodes[:count]]
    assert [kind.name.rsplit("_", 1)[1] for kind in kinds] == ["MEMCPY", "KERNEL", "KERNEL"]
    execs = [ok(driver.cuGraphInstantiate(graph, 0))]
    params = driver.CUDA_GRAPH_INSTANTIATE_PARAMS()
    execs.append(ok(driver.cuGraphInstantiateWithParams(graph, params)))
    ok(driver.cuGraphDestroy(graph))
    for each in execs:
        ok(driver.cuGraphLaunch(each, gpu.stream))
        ok(driver.cuGraphLaunch(each, gpu.stream))
    gpu.wait()
    assert (floats(gpu.x) == 31).all() and len(calls) == 4  # 1 -> 3 -> 7 -> 15 -> 31
    assert simulator.live_objects()["graph_execs"] == 2
    for each in execs:
        ok(driver.cuGraphExecDestroy(each))
    clean(simulator)


def test_a_callable_lives_as_long_as_a_graph_holds_it(gpu: Gpu, simulator: cudasim.Simulator) -> None:
    from cudasim import _simulator

    def bump() -> None: ...

    graph = captured(gpu, lambda: simulator.enqueue(gpu.stream, bump) and None)
    launchable = ok(driver.cuGraphInstantiate(graph, 0))
    ok(driver.cuGraphDestroy(graph))
    _simulator._drop_released()
    assert bump in _simulator._functions.values()
    ok(driver.cuGraphExecDestroy(launchable))
    _simulator._drop_released()
    assert bump not in _simulator._functions.values()


def test_branches_of_a_capture_fork_and_join_by_events(gpu: Gpu, simulator: cudasim.Simulator) -> None:
    side, joined = ok(driver.cuStreamCreate(1)), ok(driver.cuEventCreate(NO_TIMING))
    ok(driver.cuStreamBeginCapture(gpu.stream, THREAD_LOCAL))
    gpu.fill(gpu.x, 1)
    ok(driver.cuEventRecord(gpu.event, gpu.stream))
    ok(driver.cuStreamWaitEvent(side, gpu.event, 0))
    gpu.scale(gpu.x, gpu.y, b=1, stream=side)
    ok(driver.cuEventRecord(joined, side))
    ok(driver.cuStreamWaitEvent(gpu.stream, joined, 0))
    gpu.scale(gpu.y, gpu.x, b=1)
    graph = ok(driver.cuStreamEndCapture(gpu.stream))
    ok(driver.cuGraphLaunch(ok(driver.cuGraphInstantiate(graph, 0)), gpu.stream))
    gpu.wait()
    assert (floats(gpu.x) == 3).all()
    assert not ok(driver.cuStreamIsCapturing(side))
    clean(simulator)


def test_branches_that_meet_in_memory_are_a_race(gpu: Gpu, simulator: cudasim.Simulator) -> None:
    side, joined = ok(driver.cuStreamCreate(1)), ok(driver.cuEventCreate(NO_TIMING))
    ok(driver.cuStreamBeginCapture(gpu.stream, THREAD_LOCAL))
    ok(driver.cuEventRecord(gpu.event, gpu.stream))
    ok(driver.cuStreamWaitEvent(side, gpu.event, 0))
    gpu.fill(gpu.x, 1)
    gpu.scale(gpu.x, gpu.y, stream=side)
    ok(driver.cuEventRecord(joined, side))
    ok(driver.cuStreamWaitEvent(gpu.stream, joined, 0))
    ok(driver.cuGraphInstantiate(ok(driver.cuStreamEndCapture(gpu.stream)), 0))
    (race,) = simulator.races()
    assert "in one graph" in race and "neither branch waits" in race


def test_a_fork_that_is_not_joined_is_an_error(gpu: Gpu) -> None:
    side = ok(driver.cuStreamCreate(1))
    ok(driver.cuStreamBeginCapture(gpu.stream, THREAD_LOCAL))
    ok(driver.cuEventRecord(gpu.event, gpu.stream))
    ok(driver.cuStreamWaitEvent(side, gpu.event, 0))
    gpu.scale(gpu.x, gpu.y, stream=side)
    assert status(driver.cuStreamEndCapture(gpu.stream)) == "STREAM_CAPTURE_UNJOINED"
    assert not ok(driver.cuStreamIsCapturing(side))


def forbidden(gpu: Gpu) -> dict[str, Callable[[], Any]]:
    other = ok(driver.cuStreamCreate(1))
    plain = ok(driver.cuEventCreate(NO_TIMING))
    ok(driver.cuEventRecord(plain, other))
    host = np.zeros(N, np.float32)
    return {
        "cuStreamSynchronize": lambda: driver.cuStreamSynchronize(gpu.stream),
        "cuStreamQuery": lambda: driver.cuStreamQuery(gpu.stream),
        "cuCtxSynchronize": lambda: driver.cuCtxSynchronize(),
        "cuMemAlloc": lambda: driver.cuMemAlloc(8),
        "cuEventSynchronize": lambda: driver.cuEventSynchronize(plain),
        "pageable copy": lambda: driver.cuMemcpyHtoDAsync(gpu.x, host.ctypes.data, BYTES, gpu.stream),
        "cuMemcpyPeerAsync": lambda: driver.cuMemcpyPeerAsync(
            gpu.x, gpu.context, gpu.y, gpu.context, BYTES, gpu.stream
        ),
        "wait for other work": lambda: driver.cuStreamWaitEvent(gpu.stream, plain, 0),
    }


@pytest.mark.parametrize(
    ("act", "error"),
    [
        ("cuStreamSynchronize", "STREAM_CAPTURE_UNSUPPORTED"),
        ("cuStreamQuery", "STREAM_CAPTURE_UNSUPPORTED"),
        ("cuCtxSynchronize", "STREAM_CAPTURE_UNSUPPORTED"),
        ("cuMemAlloc", "STREAM_CAPTURE_UNSUPPORTED"),
        ("cuEventSynchronize", "STREAM_CAPTURE_UNSUPPORTED"),
        ("pageable copy", "STREAM_CAPTURE_UNSUPPORTED"),
        ("cuMemcpyPeerAsync", "STREAM_CAPTURE_UNSUPPORTED"),
        ("wait for other work", "STREAM_CAPTURE_ISOLATION"),
    ],
)
def test_what_a_capture_forbids_spoils_it(gpu: Gpu, act: str, error: str) -> None:
    acts = forbidden(gpu)
    ok(driver.cuStreamBeginCapture(gpu.stream, THREAD_LOCAL))
    assert status(acts[act]()) == error
    assert status(driver.cuMemsetD8Async(gpu.x, 0, 4, gpu.stream)) == "STREAM_CAPTURE_INVALIDATED"
    assert status(driver.cuStreamEndCapture(gpu.stream)) == "STREAM_CAPTURE_INVALIDATED"
    gpu.fill(gpu.x, 0)
    gpu.wait()  # the stream is free again


def test_a_global_capture_forbids_other_threads_too(gpu: Gpu) -> None:
    seen: list[str] = []

    def other() -> None:
        gpu.use()
        seen.append(status(driver.cuMemAlloc(8)))

    for mode in (THREAD_LOCAL, GLOBAL):
        ok(driver.cuStreamBeginCapture(gpu.stream, mode))
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        seen.append(status(driver.cuStreamEndCapture(gpu.stream)))
    assert seen == ["SUCCESS", "SUCCESS", "STREAM_CAPTURE_UNSUPPORTED", "STREAM_CAPTURE_INVALIDATED"]


def test_an_event_of_a_capture_is_of_no_use_outside_until_recorded_anew(gpu: Gpu) -> None:
    captured(gpu, lambda: ok(driver.cuEventRecord(gpu.event, gpu.stream)))
    other = ok(driver.cuStreamCreate(1))
    assert status(driver.cuStreamWaitEvent(other, gpu.event, 0)) == "CAPTURED_EVENT"
    assert status(driver.cuEventQuery(gpu.event)) == "CAPTURED_EVENT"
    ok(driver.cuEventRecord(gpu.event, gpu.stream))
    ok(driver.cuStreamWaitEvent(other, gpu.event, 0))
    ok(driver.cuEventSynchronize(gpu.event))


def test_a_relaxed_capture_allows_memory_to_be_made(gpu: Gpu) -> None:
    captured(gpu, lambda: ok(driver.cuMemAlloc(8)), RELAXED)


def test_a_relaxed_capture_is_not_waited_for_either(gpu: Gpu) -> None:
    waits = (lambda: driver.cuStreamSynchronize(gpu.stream), driver.cuCtxSynchronize)
    for wait in waits:
        ok(driver.cuStreamBeginCapture(gpu.stream, RELAXED))
        assert status(wait()) == "STREAM_CAPTURE_UNSUPPORTED"
        assert status(driver.cuStreamEndCapture(gpu.stream)) == "STREAM_CAPTURE_INVALIDATED"


def test_a_stream_that_ends_spoils_its_capture(gpu: Gpu) -> None:
    side = ok(driver.cuStreamCreate(1))
    ok(driver.cuStreamBeginCapture(gpu.stream, THREAD_LOCAL))
    ok(driver.cuEventRecord(gpu.event, gpu.stream))
    ok(driver.cuStreamWaitEvent(side, gpu.event, 0))
    ok(driver.cuStreamDestroy(side))
    assert status(driver.cuStreamEndCapture(gpu.stream)) == "STREAM_CAPTURE_INVALIDATED"


def test_a_peer_copy_is_captured_where_that_is_asked_for(simulator: cudasim.Simulator) -> None:
    simulator.configure(2, capture_peer_copies=True)
    lead, lane = Gpu(0), Gpu(1)
    lead.use()
    lead.fill(lead.x, 4)

    def work() -> None:
        ok(driver.cuMemcpyPeerAsync(lane.x, lane.context, lead.x, lead.context, BYTES, lead.stream))

    graph = captured(lead, work)
    ok(driver.cuGraphLaunch(ok(driver.cuGraphInstantiate(graph, 0)), lead.stream))
    lead.wait()
    assert (floats(lane.x) == 4).all()


def test_a_capture_ends_where_and_by_whom_it_began(gpu: Gpu) -> None:
    side = ok(driver.cuStreamCreate(1))
    assert status(driver.cuStreamEndCapture(side)) == "ILLEGAL_STATE"
    ok(driver.cuStreamBeginCapture(gpu.stream, THREAD_LOCAL))
    assert status(driver.cuStreamBeginCapture(gpu.stream, THREAD_LOCAL)) == "ILLEGAL_STATE"
    ok(driver.cuEventRecord(gpu.event, gpu.stream))
    assert status(driver.cuEventQuery(gpu.event)) == "CAPTURED_EVENT"
    assert status(driver.cuStreamEndCapture(gpu.stream)) == "STREAM_CAPTURE_INVALIDATED"
    ok(driver.cuStreamBeginCapture(gpu.stream, THREAD_LOCAL))
    ok(driver.cuEventRecord(gpu.event, gpu.stream))
    ok(driver.cuStreamWaitEvent(side, gpu.event, 0))
    assert status(driver.cuStreamEndCapture(side)) == "STREAM_CAPTURE_UNMATCHED"
    ends: list[str] = []

    def other() -> None:
        gpu.use()
        ends.append(status(driver.cuStreamEndCapture(gpu.stream)))

    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    assert ends == ["STREAM_CAPTURE_WRONG_THREAD"]


def test_two_captures_do_not_merge(gpu: Gpu) -> None:
    side = ok(driver.cuStreamCreate(1))
    ok(driver.cuStreamBeginCapture(gpu.stream, THREAD_LOCAL))
    ok(driver.cuStreamBeginCapture(side, THREAD_LOCAL))
    ok(driver.cuEventRecord(gpu.event, gpu.stream))
    assert status(driver.cuStreamWaitEvent(side, gpu.event, 0)) == "STREAM_CAPTURE_MERGE"
    assert status(driver.cuStreamEndCapture(side)) == "STREAM_CAPTURE_INVALIDATED"


def test_a_graph_ends_with_the_context_of_its_work(gpus: tuple[Gpu, Gpu]) -> None:
    lead, lane = gpus
    graph = captured(lane, lambda: lane.scale(lane.x, lane.y))
    launchable = ok(driver.cuGraphInstantiate(graph, 0))
    ok(driver.cuGraphLaunch(launchable, lead.stream))
    lead.use()
    ok(driver.cuDevicePrimaryCtxRelease(1))
    assert status(driver.cuGraphLaunch(launchable, lead.stream)) == "CONTEXT_IS_DESTROYED"
    lead.wait()


def test_a_graph_is_checked_at_every_launch(gpu: Gpu, simulator: cudasim.Simulator) -> None:
    spare = ok(driver.cuMemAlloc(BYTES))
    graph = captured(gpu, lambda: gpu.scale(gpu.x, spare))
    launchable = ok(driver.cuGraphInstantiate(graph, 0))
    ok(driver.cuGraphLaunch(launchable, gpu.stream))
    gpu.wait()
    ok(driver.cuMemFree(spare))
    ok(driver.cuGraphLaunch(launchable, gpu.stream))
    assert status(driver.cuStreamSynchronize(gpu.stream)) == "ILLEGAL_ADDRESS"
    assert "graph's kernel scale" in simulator.violations()[0]
    assert "was freed" in simulator.violations()[0]
