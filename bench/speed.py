"""The denoising loop on CPU lanes against its rivals and against the ideal.

`python -m bench.speed` runs everything interleaved in one process and reports ratios
taken within a repeat, with their quartiles: the machine's noise then hits both sides.

- loop: the whole denoising loop of the demo (guidance, batch 1), without text encoder and VAE.
- rivals: sequential on one thread; sequential with ONNX Runtime on two threads;
  diffusers' own loop in torch on two threads (same architecture, random weights).
- ideal: Σ over the plan's rounds of t(k), where t(1) is one network call alone and t(2)
  two at once in independent sessions, from the first one's start to the last one's end.
- orchestration: what a round costs when the network costs nothing.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # torch's idle threads must not spin on the lanes' cores

import argparse
import contextlib
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from rich.progress import track

import driffusion_trt as dt
from driffusion_trt.engines.manifest import ModelFolder
from driffusion_trt.engines.onnx_session import BoundRun, OnnxSession
from driffusion_trt.runtime.host import HostLanes
from driffusion_trt.sampling.noise import noise_streams
from driffusion_trt.sampling.sample import run_plan

from . import report

STEPS = 50
SHAPE = (4, 16, 16)
Clock = Callable[[], float]  # runs something once and returns its wall-clock seconds


def loop(lanes: HostLanes, plan: dt.Plan) -> Clock:
    """One denoising loop with guidance on a job of its own."""
    embeddings = np.random.default_rng(0).normal(size=(1, 16, 96)).astype(np.float32)
    job = lanes.job(embeddings, 3.0, np.zeros_like(embeddings))

    def run() -> float:
        streams = noise_streams(0, 1)
        noise = streams.draw(SHAPE)
        start = time.perf_counter()
        run_plan(plan, job.predict, noise, streams)
        return time.perf_counter() - start

    return run


def bound(session: OnnxSession) -> BoundRun:
    """A guided network call: batch 2."""
    run = session.bind({"sample": (2, *SHAPE), "timestep": (2,), "encoder_hidden_states": (2, 16, 96)})
    run.inputs["sample"][:] = np.random.default_rng(0).normal(size=(2, *SHAPE))
    run.inputs["timestep"][:] = 500
    return run


def at_once(runs: Sequence[BoundRun], calls: int) -> Clock:
    """Mean time of `len(runs)` network calls made at once, one thread each."""
    barrier = threading.Barrier(len(runs))
    starts, ends = np.zeros((len(runs), calls)), np.zeros((len(runs), calls))

    def work(lane: int) -> None:
        for call in range(calls):
            barrier.wait()
            starts[lane, call] = time.perf_counter()
            runs[lane]()
            ends[lane, call] = time.perf_counter()

    def run() -> float:
        threads = [threading.Thread(target=work, args=(lane,)) for lane in range(len(runs))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return float((ends.max(0) - starts.min(0)).mean())

    return run


def diffusers_loop(threads: int) -> Clock:
    """diffusers' scheduler and UNet in torch: what one would write today."""
    import torch

    from driffusion_trt.export.demo.networks import make_scheduler, make_unet

    torch.set_num_threads(threads)
    unet, scheduler = make_unet().eval(), make_scheduler()
    for parameter in unet.parameters():  # zero-initialised layers would be no fair load
        torch.nn.init.normal_(parameter, std=0.02)
    words = torch.randn(2, 16, 96)

    @torch.inference_mode()
    def run() -> float:
        latents = torch.randn(1, *SHAPE)
        scheduler.set_timesteps(STEPS)
        start = time.perf_counter()
        for timestep in scheduler.timesteps:
            both = unet(torch.cat([latents, latents]), timestep, encoder_hidden_states=words).sample
            without, with_prompt = both.chunk(2)
            latents = scheduler.step(without + 3.0 * (with_prompt - without), timestep, latents).prev_sample
        return time.perf_counter() - start

    return run


def orchestration(plan: dt.Plan, repeats: int) -> list[float]:
    """Milliseconds a round of the executor takes when predictions are there at once."""
    ready = np.zeros((1, *SHAPE), np.float32)
    times = []
    for _ in range(repeats):
        streams = noise_streams(0, 1)
        noise = streams.draw(SHAPE)
        start = time.perf_counter()
        run_plan(plan, lambda requests: [ready for _ in requests], noise, streams)
        times.append(1e3 * (time.perf_counter() - start) / plan.sequential_calls)
    return times


class _Instant(OnnxSession):
    """A session whose network costs nothing, to time the lanes' threads alone."""

    def bind(self, inputs: Any, outputs: Any = None) -> Any:
        run = super().bind(inputs, outputs)

        class Nothing:
            inputs, outputs = run.inputs, run.outputs

            def __call__(self) -> None:
                pass

        return Nothing()


def measure(folder: ModelFolder, repeats: int, steps: int) -> dict[str, Any]:
    """Interleaved wall-clock seconds of everything, one list entry a repeat."""
    denoiser, config = folder.network("denoiser"), folder.scheduler_config()
    schedule = dt.Schedule.from_config(config, steps)
    plans = {mode: dt.make_plan(schedule, mode=mode, lanes=2) for mode in ("aggressive", "conservative")}
    sequential = dt.make_plan(schedule)
    with contextlib.ExitStack() as stack:
        one = stack.enter_context(HostLanes(denoiser, 1))
        one_wide = stack.enter_context(HostLanes(denoiser, 1, threads_per_lane=2))
        two = stack.enter_context(HostLanes(denoiser, 2))
        runs = [bound(stack.enter_context(OnnxSession(denoiser))) for _ in range(2)]
        clocks: dict[str, Clock] = {
            "t(1)": at_once(runs[:1], 10),
            "aggressive": loop(two, plans["aggressive"]),
            "t(2)": at_once(runs, 10),
            "conservative": loop(two, plans["conservative"]),
            "t(1) again": at_once(runs[:1], 10),
            "sequential": loop(one, sequential),
            "t(2) again": at_once(runs, 10),
            "onnxruntime, 2 threads": loop(one_wide, sequential),
            "diffusers, 2 threads": diffusers_loop(2),
        }
        for clock in clocks.values():  # warm up
            clock()
        times: dict[str, list[float]] = {name: [] for name in clocks}
        for repeat in track(range(repeats), "Measuring"):
            names = list(clocks)
            for name in names[repeat % len(names) :] + names[: repeat % len(names)]:
                times[name].append(clocks[name]())
        instant = stack.enter_context(HostLanes(lambda: _Instant(denoiser), 2))
        lanes_only = loop(instant, plans["aggressive"])
        lanes_only()
        rounds = plans["aggressive"].sequential_calls
        dispatch = [1e3 * lanes_only() / rounds for _ in range(20)]
    widths = {mode: [len(item.predict) for item in plan.rounds] for mode, plan in plans.items()}
    return {
        "seconds": times,
        "widths": widths,
        "executor_ms_per_round": orchestration(plans["aggressive"], 20),
        "executor_and_lanes_ms_per_round": dispatch,
    }


def summary(measured: dict[str, Any]) -> dict[str, Any]:
    """Ratios within a repeat, with quartiles."""
    times, out = measured["seconds"], {}
    single = [(a + b) / 2 for a, b in zip(times["t(1)"], times["t(1) again"], strict=True)]
    double = [(a + b) / 2 for a, b in zip(times["t(2)"], times["t(2) again"], strict=True)]
    for mode, widths in measured["widths"].items():
        ideal = [
            sum(one if width == 1 else two for width in widths)
            for one, two in zip(single, double, strict=True)
        ]
        against = {
            "ideal": [t / i for t, i in zip(times[mode], ideal, strict=True)],
            **{
                rival: [r / t for t, r in zip(times[mode], times[rival], strict=True)]
                for rival in ("sequential", "onnxruntime, 2 threads", "diffusers, 2 threads")
            },
        }
        out[mode] = {name: report.spread(ratios) for name, ratios in against.items()}
    return {
        "loop_over_ideal_and_rivals_over_loop": out,
        "t2_over_t1": report.spread([b / a for a, b in zip(single, double, strict=True)]),
        "executor_ms_per_round": report.spread(measured["executor_ms_per_round"]),
        "executor_and_lanes_ms_per_round": report.spread(measured["executor_and_lanes_ms_per_round"]),
        "median_ms": {name: round(1e3 * statistics.median(values), 2) for name, values in times.items()},
    }


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description="Denoising loop on two CPU lanes against rivals and the ideal."
    )
    parser.add_argument("--model", default="demo")
    parser.add_argument("--repeats", type=int, default=18)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--no-write", action="store_true", help="print only, leave bench/results alone")
    options = parser.parse_args(arguments)
    shown = summary(measure(ModelFolder.open(options.model), options.repeats, options.steps))
    rows = []
    for mode, ratios in shown["loop_over_ideal_and_rivals_over_loop"].items():
        cells = [f"{r['median']:.3f} ({r['low']:.3f}–{r['high']:.3f})" for r in ratios.values()]
        rows.append([mode, *cells])
    head = [
        "2 lanes",
        "loop / ideal",
        "sequential / loop",
        "ONNX Runtime 2 threads / loop",
        "diffusers 2 threads / loop",
    ]
    print(report.table(head, rows))
    for name in ("t2_over_t1", "executor_ms_per_round", "executor_and_lanes_ms_per_round"):
        print(f"{name}: {shown[name]['median']:.3f} ({shown[name]['low']:.3f}–{shown[name]['high']:.3f})")
    if not options.no_write:
        result = {"repeats": options.repeats, "steps": options.steps, **shown}
        print(f"written to {report.write('speed', result, ('numpy', 'onnxruntime', 'torch', 'diffusers'))}")


if __name__ == "__main__":
    main()
