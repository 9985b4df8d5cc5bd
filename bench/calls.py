"""Bare network calls, alone and several at once, and a network that costs nothing."""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from driffusion_trt.engines.onnx_session import BoundRun, OnnxSession

from .baselines import shapes_of
from .crowd import Demo, both

__all__ = ["Clock", "Instant", "at_once", "bound"]

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
