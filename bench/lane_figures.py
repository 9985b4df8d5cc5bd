"""The performance model's figures of CPU lanes, each measured apart from the pictures that it foresees."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

import driffusion_trt as dt
from driffusion_trt.planning.machine import Machine
from driffusion_trt.runtime.host import HostLanes
from driffusion_trt.sampling.noise import noise_streams
from driffusion_trt.sampling.sample import Sampled

from .calls import Instant, at_once
from .cells import beside_ms, host_pair, request_of

__all__ = ["LaneFigures"]

_CALLS = 12  # of one measurement of a network
_TIMES = 5  # everything else is measured so often, and the median counts
_TWO = 2  # lanes


class LaneFigures:
    """What one lane, two at once, the executor with its threads, and the stages beside the loop take.

    Two lanes share memory and clock, so that what a call takes more while both are at work is a figure too.
    """

    def __init__(self, stack: contextlib.ExitStack, pipe: dt.Pipeline, call: Mapping[str, Any]) -> None:
        """pipe: on two CPU lanes. call: arguments of its calls, steps and a guidance above 1 among them."""
        self._pipe, self._steps = pipe, int(call["steps"])
        self._request = request_of(pipe, call)
        self._stages = pipe._stages
        self._shape = self._stages._shape(self._request)
        given, without = self._stages.conditioner(self._request)
        guided = self._stages.lanes.job(given, self._request.guidance_scale, without)
        alone = self._stages.lanes.job(given, 1.0)
        # Bound on this thread; a bound call may run on any.
        self._runs = {
            rows: [job._bound(lane, 0, (1, *self._shape)) for lane in range(_TWO)]
            for rows, job in ((1, alone), (2, guided))
        }
        for runs in self._runs.values():
            for run in runs:
                run.inputs[self._stages.lanes._latents][:] = np.float32(0.1)
                run.inputs["timestep"][:] = 500
        instant = lambda: Instant(pipe.folder.network("denoiser"))  # noqa: E731
        self._instant = {
            lanes: stack.enter_context(HostLanes(instant, lanes)).job(
                given, self._request.guidance_scale, without
            )
            for lanes in (1, _TWO)
        }

    def __call__(self) -> Machine:
        """Measure all of them once."""
        one = 1e3 * at_once(self._runs[1][:1], _CALLS)()
        two = 1e3 * at_once(self._runs[2][:1], _CALLS)()
        both = 1e3 * at_once(self._runs[2], _CALLS)()
        again = 1e3 * at_once(self._runs[2][:1], _CALLS)()
        two = (two + again) / 2  # before and after, since the clock moves
        host_one, host_two, looking = (self._round_us(*how) for how in _HOW)
        beside = [beside_ms(self._pipe, self._request) for _ in range(_TIMES)]
        encode_ms, decode_ms = (statistics.median(times) for times in zip(*beside, strict=True))
        host = host_pair(host_one, host_two)
        return Machine(
            (one, max(one, two)),
            host_us=host,
            ahead=False,
            look_us=max(0.0, looking - host[0] - _TWO * host[1]),
            encode_ms=encode_ms,
            decode_ms=decode_ms,
            crowded=max(1.0, both / two),
            source="CPU lanes",
        )

    def _round_us(self, mode: str, lanes: int) -> float:
        """Of a picture whose network calls cost nothing."""
        schedule = dt.Schedule.from_config(self._pipe.folder.scheduler_config(), self._steps)
        plan = dt.make_plan(schedule, mode=mode, lanes=lanes)
        streams = noise_streams(0, 1)
        noise = streams.draw(self._shape)
        job = self._instant[lanes]

        def run() -> Sampled:
            return job.sample(plan, noise, streams)

        run()
        times = []
        for _ in range(_TIMES):
            begun = time.perf_counter()
            rounds = int(run().stats.rounds)
            times.append(1e6 * (time.perf_counter() - begun) / rounds)
        return statistics.median(times)


_HOW = (("sequential", 1), ("aggressive", _TWO), ("tolerance", _TWO))
