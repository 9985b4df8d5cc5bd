"""The denoising loop on CPU lanes against its rivals and against the ideal, on the bundled models.

`python -m bench.speed` runs everything of a model interleaved in one process and reports ratios taken within
a repeat, with their quartiles: the machine's noise then hits both sides.

- loop: the whole denoising loop (guidance 3, batch 1), without text encoders and VAE, of a held-out prompt.
- rivals: sequential on one thread; sequential with ONNX Runtime on two threads;
  diffusers' own loop in torch on two threads (same architecture, random weights). torch's idle threads wait
  passively, since they would take the cores from what is measured next.
- ideal: Σ over the rounds that were run of t(k), where t(1) is one network call alone and t(2) two at once
  in independent sessions, from the first one's start to the last one's end.
- orchestration: what a round costs when the network costs nothing, with a plan that has made pictures before.
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
from driffusion_trt.engines.manifest import BUNDLED
from driffusion_trt.engines.onnx_session import BoundRun, OnnxSession
from driffusion_trt.runtime.host import HostLanes
from driffusion_trt.sampling.noise import noise_streams
from driffusion_trt.sampling.sample import run_plan

from . import report
from .baselines import shapes_of
from .crowd import Demo, both

MODES = ("aggressive", "conservative", "tolerance")  # the last is what `auto` takes for "balanced"
EXECUTOR = {
    "aggressive": "executor_ms_per_round",
    "window": "executor_ms_per_round_of_window",
    "tolerance": "executor_ms_per_round_of_tolerance",
}
PICTURE, SCALE = 2000, 3.0
Clock = Callable[[], float]  # runs something once and returns its wall-clock seconds


class Loop:
    """One denoising loop with guidance on a job of its own; `widths` are the predictions of its rounds."""

    def __init__(self, demo: Demo, lanes: HostLanes, plan: dt.Plan) -> None:
        given, without = demo.embeddings([PICTURE])
        self._job, self._plan, self._shape = lanes.job(given, SCALE, without), plan, demo.shape
        self.widths: list[int] = []

    def __call__(self) -> float:
        streams = noise_streams([PICTURE], 1)
        noise = streams.draw(self._shape)
        widths: list[int] = []

        def predict(requests: Sequence[tuple[np.ndarray, float]]) -> list[np.ndarray]:
            widths.append(len(requests))
            return self._job.predict(requests)

        start = time.perf_counter()
        run_plan(self._plan, predict, noise, streams)
        seconds = time.perf_counter() - start
        self.widths = widths
        return seconds


def bound(demo: Demo, session: OnnxSession) -> BoundRun:
    """A guided network call: batch 2."""
    shapes = shapes_of(demo, 2)
    run = session.bind(shapes)
    given, without = demo.embeddings([PICTURE])
    latents, timestep = demo.folder.spec.denoiser_inputs[:2]
    run.inputs[latents][:] = np.random.default_rng(0).normal(size=shapes[latents])
    run.inputs[timestep][:] = 500
    for name, value in both(without, given).items():
        run.inputs[name][:] = value
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


def diffusers_loop(demo: Demo, threads: int, steps: int) -> Clock:
    """diffusers' scheduler and network in torch: what one would write today."""
    import torch
    from diffusers.models.attention_processor import AttnProcessor2_0

    from driffusion_trt.export.demo.denoiser import DEMOS, denoiser_of

    torch.set_num_threads(threads)
    kind = DEMOS[demo.folder.spec.family]
    made: Any = kind.make().eval()
    if hasattr(made, "unet"):  # for training they have another, whose backward pass is faster
        made.unet.set_attn_processor(AttnProcessor2_0())
    network, scheduler = denoiser_of(made), kind.scheduler()
    for parameter in network.parameters():  # zero-initialised layers would be no fair load
        torch.nn.init.normal_(parameter, std=0.02)
    given, without = demo.embeddings([PICTURE])
    told = {name: torch.from_numpy(value) for name, value in both(without, given).items()}
    latents_name, time_name = demo.folder.spec.denoiser_inputs[:2]

    @torch.inference_mode()
    def run() -> float:
        latents = torch.randn(1, *demo.shape)
        scheduler.set_timesteps(steps)
        latents *= getattr(scheduler, "init_noise_sigma", 1.0)
        scale = getattr(scheduler, "scale_model_input", lambda sample, timestep: sample)
        start = time.perf_counter()
        for timestep in scheduler.timesteps:
            both = scale(torch.cat([latents, latents]), timestep)
            out = network(**{latents_name: both, time_name: timestep.float().expand(2), **told})
            first, second = out.chunk(2)
            latents = scheduler.step(first + SCALE * (second - first), timestep, latents).prev_sample
        return time.perf_counter() - start

    return run


def orchestration(plan: dt.Plan, shape: tuple[int, ...], repeats: int) -> list[float]:
    """Milliseconds a round of the executor takes when predictions are there at once."""
    ready = np.zeros((1, *shape), np.float32)
    times = []
    for _ in range(repeats):
        streams = noise_streams(0, 1)
        noise = streams.draw(shape)
        start = time.perf_counter()
        made = run_plan(plan, lambda requests: [ready for _ in requests], noise, streams)
        times.append(1e3 * (time.perf_counter() - start) / made.stats.rounds)
    return times[1:]


class Instant(OnnxSession):
    """A session whose network costs nothing and predicts zeros, to time the lanes' threads alone."""

    def bind(self, inputs: Any, outputs: Any = None) -> Any:
        run = super().bind(inputs, outputs)
        for value in run.outputs.values():
            value[:] = 0

        class Nothing:
            inputs, outputs = run.inputs, run.outputs

            def __call__(self) -> None:
                pass

        return Nothing()


def measure(model: str, repeats: int, steps: int | None) -> dict[str, Any]:
    """Interleaved wall-clock seconds of everything, one list entry a repeat."""
    demo = Demo([PICTURE], model)
    denoiser, schedule = demo.folder.network("denoiser"), demo.schedule(steps)
    plans = {mode: dt.make_plan(schedule, mode=mode, lanes=2) for mode in MODES}
    sequential = dt.make_plan(schedule)
    with contextlib.ExitStack() as stack:
        one = stack.enter_context(HostLanes(denoiser, 1))
        one_wide = stack.enter_context(HostLanes(denoiser, 1, threads_per_lane=2))
        two = stack.enter_context(HostLanes(denoiser, 2))
        runs = [bound(demo, stack.enter_context(OnnxSession(denoiser))) for _ in range(2)]
        clocks: dict[str, Clock] = {
            "t(1)": at_once(runs[:1], 10),
            "aggressive": Loop(demo, two, plans["aggressive"]),
            "t(2)": at_once(runs, 10),
            "conservative": Loop(demo, two, plans["conservative"]),
            "t(1) again": at_once(runs[:1], 10),
            "sequential": Loop(demo, one, sequential),
            "t(2) again": at_once(runs, 10),
            "tolerance": Loop(demo, two, plans["tolerance"]),
            "onnxruntime, 2 threads": Loop(demo, one_wide, sequential),
            "diffusers, 2 threads": diffusers_loop(demo, 2, schedule.steps),
        }
        for clock in clocks.values():  # warm up
            clock()
        times: dict[str, list[float]] = {name: [] for name in clocks}
        for repeat in track(range(repeats), f"Measuring {model}"):
            names = list(clocks)
            for name in names[repeat % len(names) :] + names[: repeat % len(names)]:
                times[name].append(clocks[name]())
        instant = stack.enter_context(HostLanes(lambda: Instant(denoiser), 2))
        lanes_only = Loop(demo, instant, plans["aggressive"])
        lanes_only()
        rounds = plans["aggressive"].sequential_calls
        dispatch = [1e3 * lanes_only() / rounds for _ in range(20)]
    loops = {mode: clock for mode, clock in clocks.items() if isinstance(clock, Loop) and mode in plans}
    return {
        "steps": schedule.steps,
        "seconds": times,
        "widths": {mode: clock.widths for mode, clock in loops.items()},
        **{
            name: orchestration(dt.make_plan(schedule, mode=mode, lanes=2), demo.shape, 21)
            for mode, name in EXECUTOR.items()
        },
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
        "steps": measured["steps"],
        "rounds": {mode: len(widths) for mode, widths in measured["widths"].items()},
        "loop_over_ideal_and_rivals_over_loop": out,
        "t2_over_t1": report.spread([b / a for a, b in zip(single, double, strict=True)]),
        **{name: report.spread(measured[name]) for name in EXECUTOR.values()},
        "executor_and_lanes_ms_per_round": report.spread(measured["executor_and_lanes_ms_per_round"]),
        "median_ms": {name: round(1e3 * statistics.median(values), 2) for name, values in times.items()},
    }


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description="Denoising loop on two CPU lanes against rivals and the ideal."
    )
    parser.add_argument("--models", nargs="+", default=list(BUNDLED))
    parser.add_argument("--repeats", type=int, default=18)
    parser.add_argument("--steps", type=int, help="default: the model's own")
    parser.add_argument("--no-write", action="store_true", help="print only, leave bench/results alone")
    options = parser.parse_args(arguments)
    found = {}
    for model in options.models:
        found[model] = summary(measure(model, options.repeats, options.steps))
        show(model, found[model])
    if not options.no_write:
        result = {"repeats": options.repeats, "guidance_scale": SCALE, "models": found}
        print(f"written to {report.write('speed', result, ('numpy', 'onnxruntime', 'torch', 'diffusers'))}")


def show(model: str, shown: dict[str, Any]) -> None:
    """The ratios as Markdown."""
    rows = []
    for mode, ratios in shown["loop_over_ideal_and_rivals_over_loop"].items():
        cells = [f"{r['median']:.3f} ({r['low']:.3f}–{r['high']:.3f})" for r in ratios.values()]
        rows.append([mode, str(shown["rounds"][mode]), *cells])
    head = [
        f"{model}, {shown['steps']} steps, 2 lanes",
        "rounds",
        "loop / ideal",
        "sequential / loop",
        "ONNX Runtime 2 threads / loop",
        "diffusers 2 threads / loop",
    ]
    print(report.table(head, rows))
    for name in ("t2_over_t1", *EXECUTOR.values(), "executor_and_lanes_ms_per_round"):
        print(f"{name}: {shown[name]['median']:.3f} ({shown[name]['low']:.3f}–{shown[name]['high']:.3f})")


if __name__ == "__main__":
    main()
