"""Bare network calls, alone and several at once, and a network that costs nothing."""

from __future__ import annotations

import math
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from driffusion_trt.engines.onnx_session import BoundRun, OnnxSession

from .baselines import shapes_of
from .crowd import Demo, both

__all__ = ["Clock", "Instant", "Watched", "at_once", "bound", "rounds_of"]

Clock = Callable[[], float]  # runs something once and returns its wall-clock seconds
_WARM = 2


def bound(demo: Demo, session: OnnxSession, prompt: int) -> BoundRun:
    """A guided network call: batch 2."""
    shapes = shapes_of(demo, 2)
    run = session.bind(shapes)
    given, without = demo.embeddings([prompt])
    latents, timestep = demo.folder.spec.denoiser_inputs[:2]
    run.inputs[latents][:] = np.random.default_rng(0).normal(size=shapes[latents])
    run.inputs[timestep][:] = 500
    for name, value in both(without, given).items():
        run.inputs[name][:] = value
    return run


def at_once(runs: Sequence[BoundRun], calls: int) -> Clock:
    """Median time of the slowest of `len(runs)` network calls that begin at once, one thread each.

    As lanes do it: the thread that asks makes one of them itself, and those of the others live on.
    """
    barrier = threading.Barrier(len(runs))
    pool = ThreadPoolExecutor(max(1, len(runs) - 1))

    def work(run: BoundRun) -> list[float]:
        took = []
        for _ in range(calls + _WARM):
            barrier.wait()
            begun = time.perf_counter()
            run()
            took.append(time.perf_counter() - begun)
        return took[_WARM:]

    def run() -> float:
        others = [pool.submit(work, one) for one in runs[1:]]
        took = [work(runs[0]), *(other.result() for other in others)]
        return float(statistics.median(max(times) for times in zip(*took, strict=True)))

    return run


class Watched(OnnxSession):
    """A session that takes down when its bound calls begin and end, and nothing more.

    calls: pairs of `time.perf_counter`, in the order of their ends.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.calls: list[tuple[float, float]] = []

    def bind(self, inputs: Any, outputs: Any = None) -> BoundRun:
        plain = super().bind(inputs, outputs)
        return _WatchedRun(self, plain.inputs, plain.outputs)


class _WatchedRun(BoundRun):
    __slots__ = ("_calls",)

    def __init__(self, session: Watched, inputs: Any, outputs: Any) -> None:
        super().__init__(session, inputs, outputs)
        self._calls = session.calls

    def __call__(self) -> None:
        begun = time.perf_counter()
        super().__call__()
        self._calls.append((begun, time.perf_counter()))


def rounds_of(calls: Sequence[tuple[float, float]]) -> list[list[float]]:
    """Seconds of the calls of each round: a round begins when all calls of the one before have ended."""
    rounds: list[list[float]] = []
    ended = -math.inf
    for begin, end in sorted(calls):
        if begin >= ended:
            rounds.append([])
        rounds[-1].append(end - begin)
        ended = max(ended, end)
    return rounds


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
