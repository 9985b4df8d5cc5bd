"""The host's time for a round of the GPU lanes, without that of the simulated driver itself.

Nothing but enqueueing is timed, up to the host's wait for the picture, while every stream is held by a work
that lasts until then: no other thread is awake. Two pictures that differ in their rounds alone give the
time of one round. Two figures:

host      what passed, less what the simulator spent in its entry points, which it takes itself: all that
          Python and cuda-python need
python    the same calls where every entry point of cuda-python is a function that does nothing: what is
          left without cuda-python

Sizes take turns, so that a busy machine is busy for all of them. What a real driver needs for its calls
comes on top.
"""

from __future__ import annotations

import contextlib
import gc
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any
from unittest import mock

from driffusion_trt.runtime import gpu_run
from driffusion_trt.runtime._driver import driver
from driffusion_trt.runtime._resources import Function
from driffusion_trt.runtime.cuda import CudaLanes

from . import report
from .sim_lanes import SMALL, Bench, picture

__all__ = ["host_times"]

FEW, MANY = 3, 23  # rounds of the two pictures that are compared
_CALLS = (
    "cuCtxSetCurrent",
    "cuEventQuery",
    "cuEventRecord",
    "cuGraphLaunch",
    "cuMemcpyDtoDAsync",
    "cuMemcpyDtoHAsync",
    "cuMemcpyHtoDAsync",
    "cuMemcpyPeerAsync",
    "cuMemsetD8Async",
    "cuStreamQuery",
    "cuStreamWaitEvent",
)


def _enqueued(simulator: Any, lanes: CudaLanes, run: Callable[[], object]) -> tuple[float, float]:
    """Seconds from the start of a picture to the host's wait: all of them, and those of the simulator."""
    marks: list[tuple[float, float]] = []
    wait = gpu_run._Run._wait
    gate = threading.Event()

    def arrived(this: Any, event: Any) -> None:
        marks.append((time.perf_counter(), simulator.spent_seconds()))
        gate.set()
        wait(this, event)

    streams = [worker.stream for worker in lanes.workers]
    if lanes.workers:
        streams.append(lanes._team.lead.stream)
    entered = threading.Semaphore(0)

    def hold() -> None:
        entered.release()
        gate.wait()

    for stream in streams:
        simulator.enqueue(stream.pointer, hold)
    for _ in streams:
        entered.acquire()
    time.sleep(1e-3)  # until all of them sleep
    with mock.patch.object(gpu_run._Run, "_wait", arrived):
        start = time.perf_counter(), simulator.spent_seconds()
        run()
    (end,) = marks
    return end[0] - start[0], end[1] - start[1]


def _unanswered(run: Callable[[], object], lanes: CudaLanes) -> float:
    """Seconds of a picture whose driver calls do nothing at all: Python's part, without cuda-python."""
    api = driver()
    done = (api.CUresult.CUDA_SUCCESS,)

    def nothing(*arguments: object) -> tuple[object]:
        return done

    kernels = [f for all_of_it in lanes._kernels.values() for f in vars(all_of_it).values()]
    functions = [f for f in kernels if isinstance(f, Function)]
    with contextlib.ExitStack() as stack:
        for name in _CALLS:
            stack.enter_context(mock.patch.object(api, name, nothing))
        for function in functions:  # which keep the entry point at hand
            stack.enter_context(mock.patch.object(function, "_launch", nothing))
        run()  # the first one after a change is slower
        start = time.perf_counter()
        run()
        return time.perf_counter() - start


def host_times(bench: Bench, counts_of_lanes: Sequence[int], repeats: int = 40) -> list[dict[str, Any]]:
    """The host's time for a round: a row for every number of lanes."""
    rounds = MANY - FEW
    with contextlib.ExitStack() as stack:
        simulator = stack.enter_context(bench.machine(max(counts_of_lanes)))
        prepared = {}
        for count in counts_of_lanes:
            lanes = stack.enter_context(bench.lanes(SMALL, count))
            pair = [picture(SMALL, lanes, number) for number in (FEW, MANY)]
            for run in (*pair, *pair):
                run()
            prepared[count] = lanes, pair
        taken: dict[int, list[tuple[float, float, float]]] = {count: [] for count in counts_of_lanes}
        gc.disable()  # a collection in the middle would be one round's bad luck
        stack.callback(gc.enable)
        for _ in range(repeats):
            for count, (lanes, pair) in prepared.items():
                pair[0]()  # what another size left in the caches is not this one's
                few, many = (_enqueued(simulator, lanes, run) for run in pair)
                least = [_unanswered(run, lanes) for run in pair]
                differences = (many[0] - few[0], many[1] - few[1], least[1] - least[0])
                whole, own, python = (1e6 * seconds / rounds for seconds in differences)
                taken[count].append((whole - own, own, python))
            gc.collect()
    names = ("host_us", "simulator_us", "python_us")
    return [
        {
            "lanes": count,
            **{
                name: report.spread(column)
                for name, column in zip(names, zip(*times, strict=True), strict=True)
            },
        }
        for count, times in taken.items()
    ]
