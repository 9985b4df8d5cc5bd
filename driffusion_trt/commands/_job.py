"""What one `driffusion-trt run` is to make, and what it has made so far."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .._call import Timings
from ..runtime.devices import Asked
from ..sampling.plan import Plan
from ..sampling.sample import Stats
from ._compare import Comparison


@dataclass(frozen=True, slots=True)
class Picture:
    """One picture to make."""

    prompt: str
    seed: int
    path: Path


@dataclass(frozen=True, slots=True)
class Job:
    """A run with everything checked: what to load, what to ask, which pictures in which batches."""

    model: str
    devices: Asked
    options: dict[str, Any]
    plan: Plan
    settings: dict[str, Any]
    start: dict[str, str]  # hashes of what it starts from
    batches: list[list[Picture]]
    compare: bool


@dataclass(slots=True)
class Done:
    """What a run has made so far; not the pictures themselves, of which there may be many."""

    settings: list[dict[str, Any]] = field(default_factory=list)
    batches: list[Timings] = field(default_factory=list)
    stats: list[Stats] = field(default_factory=list)
    paths: list[Path] = field(default_factory=list)
    comparisons: list[Comparison] = field(default_factory=list)
    devices: int = 0
    choose_ms: float | None = None  # of mode auto: measuring, where it was not done before, and choosing

    def timings(self, load_ms: float, start: float) -> dict[str, float]:
        """Milliseconds, summed over the batches; `round_ms` is the median round."""
        rounds = [ms for item in self.batches for ms in item.rounds_ms]
        return {
            "load_ms": load_ms,
            **({} if self.choose_ms is None else {"choose_ms": self.choose_ms}),
            "encode_ms": sum(item.encode_ms for item in self.batches),
            "denoise_ms": sum(item.denoise_ms for item in self.batches),
            "rounds": len(rounds),
            "round_ms": sorted(rounds)[len(rounds) // 2],
            "decode_ms": sum(item.decode_ms for item in self.batches),
            "total_ms": 1e3 * (time.perf_counter() - start),
        }
