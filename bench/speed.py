"""The denoising loop on CPU lanes against its rivals and against the ideal, on the bundled models.

`python -m bench.speed` runs everything of a model interleaved in one process and reports ratios taken within
a repeat, with their quartiles: the machine's noise then hits both sides. Every repeat has another held-out
prompt.

- loop: the whole denoising loop (guidance 3, batch 1), without text encoders and VAE.
- network: Σ over its rounds of the slowest lane's network call, whose begin and end were taken down in the
  same loop: loop over network is what everything but networks costs.
- ideal: Σ over its rounds of t(k), where t(1) is one network call alone and t(2) the slower of two at once in
  independent sessions, measured outside of loops.
- rivals: sequential on one thread; sequential with ONNX Runtime on two threads, which spin within a call, as
  is its default; diffusers' own loop in torch on two threads (same architecture, random weights). Its idle
  threads wait passively here, since they would take the cores from what is measured next; what that loop
  takes in a process of its own, with torch's defaults, is measured before.
- executor: what a round costs when the network costs nothing, with a plan that has made pictures before.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # torch's idle threads must not spin on the lanes' cores

import argparse
import contextlib
import itertools
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from rich.progress import track

import driffusion_trt as dt
from driffusion_trt.engines.manifest import BUNDLED
from driffusion_trt.engines.onnx_session import OnnxSession
from driffusion_trt.runtime.host import HostLanes
from driffusion_trt.sampling.noise import noise_streams
from driffusion_trt.sampling.sample import run_plan

from . import report
from .calls import Clock, Instant, Watched, at_once, bound, rounds_of
from .crowd import Demo
from .diffusers_loop import diffusers_loop

MODES = ("aggressive", "conservative", "tolerance")  # the last is what `auto` takes for "balanced"
EXECUTOR = {
    "aggressive": "executor_ms_per_round",
    "window": "executor_ms_per_round_of_window",
    "tolerance": "executor_ms_per_round_of_tolerance",
}
DISPATCH = "executor_and_lanes_ms_per_round"
RIVALS = ("sequential", "onnxruntime, 2 threads", "diffusers, 2 threads")
PICTURE, SCALE = 2000, 3.0


class Loop:
    """One denoising loop with guidance, of one held-out prompt after another.

    widths: network calls of each round of the last run. network_s: Σ of the slowest one's seconds in each.
    """

    def __init__(self, demo: Demo, lanes: HostLanes, plan: dt.Plan, watched: Watched | None = None) -> None:
        """watched: the session of the lanes, whose calls are to be told apart."""
        self._demo, self._lanes, self._plan, self._watched = demo, lanes, plan, watched
        self._prompts = itertools.cycle(demo.prompts)
        self.widths: list[int] = []
        self.network_s = 0.0

    def __call__(self) -> float:
        prompt = next(self._prompts)
        given, without = self._demo.embeddings([prompt])
        job = self._lanes.job(given, SCALE, without)
        job.warm_up(self._demo.shape)
        streams = noise_streams([prompt], 1)
        noise = streams.draw(self._demo.shape)
        if self._watched is not None:
            self._watched.calls.clear()
        start = time.perf_counter()
        job.sample(self._plan, noise, streams)
        seconds = time.perf_counter() - start
        if self._watched is not None:
            rounds = rounds_of(self._watched.calls)
            self.widths = [len(calls) for calls in rounds]
            self.network_s = sum(map(max, rounds))
        return seconds


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


def measure(model: str, repeats: int, steps: int | None) -> dict[str, Any]:
    """Interleaved wall-clock seconds of everything, one list entry a repeat."""
    demo = Demo(range(PICTURE, PICTURE + repeats + 1), model)
    denoiser, schedule = demo.folder.network("denoiser"), demo.schedule(steps)
    plans = {mode: dt.make_plan(schedule, mode=mode, lanes=2) for mode in MODES}
    sequential = dt.make_plan(schedule)
    with contextlib.ExitStack() as stack:
        one = stack.enter_context(HostLanes(denoiser, 1))
        one_wide = stack.enter_context(HostLanes(denoiser, 1, threads_per_lane=2))
        watched = Watched(denoiser)  # one session for both lanes, which closes with them
        two = stack.enter_context(HostLanes(lambda: watched, 2))
        runs = [bound(demo, stack.enter_context(OnnxSession(denoiser)), PICTURE) for _ in range(2)]
        loops = {mode: Loop(demo, two, plan, watched) for mode, plan in plans.items()}
        clocks: dict[str, Clock] = {
            "t(1)": at_once(runs[:1], 10),
            "aggressive": loops["aggressive"],
            "t(2)": at_once(runs, 10),
            "conservative": loops["conservative"],
            "t(1) again": at_once(runs[:1], 10),
            "sequential": Loop(demo, one, sequential),
            "t(2) again": at_once(runs, 10),
            "tolerance": loops["tolerance"],
            "onnxruntime, 2 threads": Loop(demo, one_wide, sequential),
            "diffusers, 2 threads": diffusers_loop(demo, SCALE, 2, schedule.steps),
        }
        for clock in clocks.values():  # warm up
            clock()
        times: dict[str, list[float]] = {name: [] for name in clocks}
        network: dict[str, list[float]] = {mode: [] for mode in loops}
        widths: dict[str, list[list[int]]] = {mode: [] for mode in loops}
        for repeat in track(range(repeats), f"Measuring {model}"):
            names = list(clocks)
            for name in names[repeat % len(names) :] + names[: repeat % len(names)]:
                times[name].append(clocks[name]())
                if name in loops:
                    network[name].append(loops[name].network_s)
                    widths[name].append(loops[name].widths)
        instant = stack.enter_context(HostLanes(lambda: Instant(denoiser), 2))
        lanes_only = Loop(demo, instant, plans["aggressive"])
        lanes_only()
        rounds = plans["aggressive"].sequential_calls
        dispatch = [1e3 * lanes_only() / rounds for _ in range(20)]
    executor = {mode: dt.make_plan(schedule, mode=mode, lanes=2) for mode in EXECUTOR}
    return {
        "steps": schedule.steps,
        "seconds": times,
        "network": network,
        "widths": widths,
        **{name: orchestration(executor[mode], demo.shape, 21) for mode, name in EXECUTOR.items()},
        DISPATCH: dispatch,
    }


def summary(measured: dict[str, Any]) -> dict[str, Any]:
    """Ratios within a repeat, with quartiles."""
    times, modes = measured["seconds"], {}
    single = [(a + b) / 2 for a, b in zip(times["t(1)"], times["t(1) again"], strict=True)]
    double = [(a + b) / 2 for a, b in zip(times["t(2)"], times["t(2) again"], strict=True)]
    for mode, widths in measured["widths"].items():
        ideal = [
            sum(one if calls == 1 else two for calls in rounds)
            for rounds, one, two in zip(widths, single, double, strict=True)
        ]
        over = {"loop_over_network": measured["network"][mode], "loop_over_ideal": ideal}
        modes[mode] = {
            "rounds": report.spread([float(len(rounds)) for rounds in widths]),
            **{name: _ratios(times[mode], below) for name, below in over.items()},
            **{f"{rival} / loop": _ratios(times[rival], times[mode]) for rival in RIVALS},
        }
    return {
        "steps": measured["steps"],
        "modes": modes,
        "t2_over_t1": _ratios(double, single),
        **{name: report.spread(measured[name]) for name in (*EXECUTOR.values(), DISPATCH)},
        "median_ms": {name: round(1e3 * statistics.median(values), 2) for name, values in times.items()},
    }


def _ratios(above: Sequence[float], below: Sequence[float]) -> dict[str, float]:
    return report.spread([a / b for a, b in zip(above, below, strict=True)])


def diffusers_alone(model: str, repeats: int) -> dict[str, float]:
    """Milliseconds of diffusers' loop in a process of its own, with torch's own way to wait."""
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    command = [sys.executable, "-m", "bench.diffusers_loop", model, str(SCALE), str(repeats)]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return report.spread(json.loads(ran.stdout))


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
        alone = diffusers_alone(model, options.repeats)
        found[model] = {
            **summary(measure(model, options.repeats, options.steps)),
            "diffusers_alone_ms": alone,
        }
        show(model, found[model])
    if not options.no_write:
        result = {"repeats": options.repeats, "guidance_scale": SCALE, "models": found}
        print(f"written to {report.write('speed', result, ('numpy', 'onnxruntime', 'torch', 'diffusers'))}")


def show(model: str, shown: dict[str, Any]) -> None:
    """The ratios as Markdown."""
    first = next(iter(shown["modes"].values()))
    head = [f"{model}, {shown['steps']} steps, 2 lanes", *(name.replace("_", " ") for name in first)]
    rows = [[mode, *map(_spread, ratios.values())] for mode, ratios in shown["modes"].items()]
    print(report.table(head, rows))
    for name in ("t2_over_t1", *EXECUTOR.values(), DISPATCH, "diffusers_alone_ms"):
        print(f"{name}: {_spread(shown[name])}")


def _spread(found: dict[str, float]) -> str:
    return f"{found['median']:.3f} ({found['low']:.3f}–{found['high']:.3f})"


if __name__ == "__main__":
    main()
