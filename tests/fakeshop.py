"""Pictures of known costs, for tests of an engine: no network, rounds that take as long as was said."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
import queueing
from PIL import Image

from driffusion_trt._errors import CancelledError, InputError
from driffusion_trt.sampling.sample import RoundDone
from driffusion_trt.server.orders import Order


class FakeShop:
    """Settings: `steps`, `mode` (by name: as many lanes as there are), `quality` and what a test looks for.

    gates: requests with these prompts wait before every round for a semaphore; those in `decoding` after the
    last one; those in `checks` are checked once their event is set. fails: by prompt the errors of its next
    calls. most, peak: calls at once, now and at most.
    """

    def __init__(self, lanes: int = 2, *, step_ms: float = 1.0) -> None:
        self.lanes, self.step_ms = lanes, step_ms
        self.gates: dict[str, threading.Semaphore] = {}
        self.decoding: dict[str, threading.Event] = {}
        self.checks: dict[str, threading.Event] = {}
        self.fails: dict[str, list[BaseException]] = {}
        self.made: list[tuple[str, int]] = []
        self.now = self.peak = 0
        self.opened = self.closed = 0
        self.times_larger = 1.0
        self._lock = threading.Lock()

    patience_s = 0.0

    def open(self) -> None:
        self.opened += 1

    def renewal_in_s(self, pace: float) -> float | None:
        return None

    def renew(self, pace: float, going: Callable[[], None]) -> None:
        raise AssertionError("nothing is doubted")

    def close(self) -> None:
        self.closed += 1

    def hold(self, prompt: str) -> threading.Semaphore:
        """Requests with this prompt wait at every round until it is released."""
        self.gates[prompt] = threading.Semaphore(0)
        return self.gates[prompt]

    def order(self, prompt: Any, settings: Mapping[str, Any]) -> Order:
        if prompt in self.checks:
            assert self.checks[prompt].wait(60), "a test forgot to let a request be checked"
        steps = settings.get("steps", 10)
        if not isinstance(steps, int) or steps < 1:
            raise InputError(f"steps must be a whole number of at least 1, not {steps!r}")
        profile = queueing.profile(max(1, self.lanes), steps=steps, step_ms=self.step_ms)
        named = settings.get("mode", "auto") != "auto"
        hurried = not named and settings.get("quality") is None
        least = profile.least_ms * (0.5 if hurried else 1.0)
        return Order(prompt, settings, profile, least, not named, steps, self.times_larger)

    def call(self, order: Order, lanes: int, within_ms: float | None) -> tuple[dict[str, Any], float]:
        ms = order.profile.ms_on(lanes)
        if within_ms is not None and ms > within_ms:
            if order.least_ms == order.profile.least_ms or ms / 2 > within_ms:
                raise InputError("there is no plan in time")
            ms /= 2
        return {**order.settings, "lanes": lanes, "ms": ms}, ms

    def make(self, order: Order, settings: dict[str, Any], on_round: Callable[[RoundDone], None]) -> Any:
        with self._lock:
            self.now += 1
            self.peak = max(self.peak, self.now)
        try:
            return self._make(str(order.prompt), order.request, settings, on_round)
        finally:
            with self._lock:
                self.now -= 1

    def _make(self, prompt: str, steps: int, settings: dict[str, Any], on_round: Any) -> Any:
        gate, cancel = self.gates.get(prompt), settings["cancel"]
        rounds = max(1, -(-steps // settings["lanes"]))
        for number in range(1, rounds + 1):
            if gate is None:
                time.sleep(1e-3 * settings["ms"] / rounds)
            else:
                assert gate.acquire(timeout=60), "a test forgot to let a request go on"
            if self.fails.get(prompt):
                raise self.fails[prompt].pop(0)
            state = min(steps, number * settings["lanes"])
            on_round(RoundDone(number, rounds, state, steps, lambda: np.zeros((1, 4, 2, 2), np.float32)))
            if cancel.is_set():
                raise CancelledError("cancel was set")
        if prompt in self.decoding:
            assert self.decoding[prompt].wait(60), "a test forgot to let a request end"
        with self._lock:
            self.made.append((prompt, settings["lanes"]))
        return SimpleNamespace(prompt=prompt, lanes=settings["lanes"], settings=(settings,))

    def preview(self, done: RoundDone) -> Image.Image:
        return Image.new("RGB", (2, 2), (done.round, 0, 0))
