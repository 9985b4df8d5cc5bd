"""The performance model's figures of GPUs, each measured apart from the pictures that it foresees.

- engine: CUDA events around launches of a lane's graph on the lead's own stream, nothing else at work.
- host: what it takes to enqueue a round, by the clock from a picture's start to the wait for it, of two
  pictures that differ in their rounds alone. The devices are at earlier rounds meanwhile.
- looks: rounds that are looked at against the same ones that are not.
- copies: between every pair, of large and of small pieces, as `driffusion-trt doctor` measures them.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from typing import Any
from unittest import mock

import numpy as np

import driffusion_trt as dt
from driffusion_trt._trial import Trial
from driffusion_trt.planning.machine import Machine
from driffusion_trt.planning.measuring import ROUNDS, Shape
from driffusion_trt.runtime import gpu_run
from driffusion_trt.runtime._driver import Device
from driffusion_trt.runtime._resources import Event
from driffusion_trt.runtime.gpu_links import requested
from driffusion_trt.runtime.peers import check_peers
from driffusion_trt.sampling.noise import noise_streams

from .cells import beside_ms, host_pair, request_of

__all__ = ["engine_ms", "figures", "host_us", "look_us", "peers", "used_bytes"]

FEW, MANY = 3, 23  # rounds of the two pictures whose enqueueing is compared
_REPEATS = 5


def engine_ms(pipe: dt.Pipeline, call: Mapping[str, Any], calls: int = 20) -> dict[int, float]:
    """Milliseconds of a network call on the lead by its rows, as far as its plan takes them: 1, 2 and 4."""
    request, stages = request_of(pipe, call), pipe._stages
    given, without = stages.conditioner(request)
    jobs = {1: stages.lanes.job(given, 1.0), 2: stages.lanes.job(given, 2.0, without)}
    found: dict[int, float] = {}
    for drafts, branches in ((1, 1), (1, 2), (2, 2)):
        rows = drafts * branches
        if stages.rows is not None and not stages.rows.min <= rows <= stages.rows.max:
            continue
        form = jobs[branches]._form(stages._shape(request))
        with stages.lanes.turn(form):
            lane = stages.lanes.lanes_for(form)[0]
            found[rows] = _event_ms(lane[0], requested(lane, form, drafts), calls)
    return found


def _event_ms(worker: Any, form: Any, calls: int) -> float:
    one = worker.request(form)
    worker.device.make_current(again=True)
    with ExitStack() as stack:
        events = [Event(worker.device, timing=True) for _ in range(calls + 1)]
        for event in events:
            stack.callback(event.close)
        for _ in range(3):  # warm up
            one.enqueue()
        events[0].record(worker.stream)
        for event in events[1:]:
            one.enqueue()
            event.record(worker.stream)
        worker.settle()
        pairs = zip(events[1:], events, strict=False)
        return statistics.median(after.elapsed_ms(before) for after, before in pairs)


def host_us(pipe: dt.Pipeline, call: Mapping[str, Any], lanes: int) -> float:
    """Microseconds of the host for a round on so many lanes."""
    request, stages = request_of(pipe, call), pipe._stages
    job, shape = stages._job(request), stages._shape(request)
    config, mode = pipe.folder.scheduler_config(), "sequential" if lanes == 1 else "aggressive"
    plans = [
        dt.make_plan(dt.Schedule.from_config(config, 1 + lanes * (rounds - 1)), mode=mode, lanes=lanes)
        for rounds in (FEW, MANY)
    ]
    marks: list[float] = []
    wait = gpu_run._Run._wait

    def arrived(this: Any, event: Any) -> None:
        marks.append(time.perf_counter())
        wait(this, event)

    took: list[list[float]] = [[], []]
    with mock.patch.object(gpu_run._Run, "_wait", arrived):
        for repeat in range(1 + _REPEATS):  # the first compiles
            for plan, times in zip(plans, took, strict=True):
                streams = noise_streams(0, 1)
                noise = streams.draw(shape)
                marks.clear()
                begun = time.perf_counter()
                job.sample(plan, noise, streams)
                if repeat:
                    times.append(marks[0] - begun)
    few, many = (statistics.median(times) for times in took)
    return max(0.0, 1e6 * (many - few) / (MANY - FEW))


def look_us(pipe: dt.Pipeline, call: Mapping[str, Any]) -> float:
    """Microseconds that a round on two lanes takes more where it is looked at."""
    request, stages = request_of(pipe, call), pipe._stages
    given, _ = stages.conditioner(request)
    trial = Trial(
        {False: stages.lanes.job(given, 1.0)},
        stages._shape(request),
        lambda steps: dt.Schedule.from_config(pipe.folder.scheduler_config(), steps),
    )
    shapes = Shape(2, False, True), Shape(2, False)
    for shape in shapes:
        trial.timed(shape)
    looking, blind = (min(trial.timed(shape) for _ in range(_REPEATS)) for shape in shapes)
    return max(0.0, 1e3 * (looking - blind) / ROUNDS)


def peers(count: int) -> list[dict[str, Any]]:
    """What copies between the first so many GPUs are like, for every ordered pair."""
    if count < 2:
        return []
    with ExitStack() as stack:
        links = check_peers([stack.enter_context(Device(k)) for k in range(count)], measure=True)
    return [asdict(link) for link in links.values()]


def used_bytes(devices: Sequence[int]) -> dict[str, int]:
    """Memory in use on each GPU by whoever uses it, this process included."""
    found = {}
    for ordinal in devices:
        with Device(ordinal) as device:
            free, total = device.memory_bytes()
            found[f"GPU {ordinal}"] = total - free
    return found


def figures(model: str, call: Mapping[str, Any], links: Sequence[Mapping[str, Any]], source: str) -> Machine:
    """All of them, on the first GPU alone: as two lanes it has the host's work of two devices.

    links: what `peers` gave; copies cost nothing where there is none.
    """
    with dt.Pipeline.load(model, devices=["cuda:0", "cuda:0"]) as pipe:
        pipe.warm_up()
        by_rows = engine_ms(pipe, call)
        one, two = (host_us(pipe, {**call, "guidance_scale": 1.0}, lanes) for lanes in (1, 2))
        host = host_pair(one, two)
        looking = look_us(pipe, call)
        request = request_of(pipe, call)
        beside = [beside_ms(pipe, request) for _ in range(1 + _REPEATS)][1:]
        rows = pipe._stages.rows
        latents_bytes = 4 * int(np.prod(pipe._stages._shape(request)))
    encode_ms, decode_ms = (statistics.median(column) for column in zip(*beside, strict=True))
    of_lead = [link for link in links if 0 in (link["source"], link["target"]) and link["latency_us"]]
    return Machine(
        _call_ms(by_rows),
        latents_bytes,
        max((link["latency_us"] for link in of_lead), default=0.0),
        min((link["bandwidth_gb_s"] for link in of_lead), default=None),
        host,
        look_us=max(
            0.0, looking - host[0] - 2 * host[1]
        ),  # a look waits for that too, and `Machine` counts it
        encode_ms=encode_ms,
        decode_ms=decode_ms,
        rows=(1, 0) if rows is None else (rows.min, rows.max),
        source=source,
    )


def _call_ms(by_rows: Mapping[int, float]) -> tuple[float, ...]:
    """By rows 1, 2, 3, ...; what a plan does not take stands for itself or lies between.

    Raises EngineError where nothing was timed.
    """
    if not by_rows:
        raise dt.EngineError(
            "its plan takes no call of 1, 2 or 4 rows, and figures are of those; see `inspect`"
        )
    least = by_rows[min(by_rows)]
    times = [by_rows.get(1, least), max(by_rows.get(2, least), least)]
    if 4 in by_rows:
        four = max(by_rows[4], times[1])
        times += [(times[1] + four) / 2, four]
    return tuple(times)
