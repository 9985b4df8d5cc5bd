"""`driffusion-trt run --compare`: the same pictures by the sequential mode, and how far they are apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .._call import Result
from ..pictures import psnr, relative_l2, save_png, side_by_side

# What one comparison is worth as a measurement; it goes with every figure.
HOW_MEASURED = "one run each, after a warm-up prediction on every lane"


@dataclass(frozen=True, slots=True)
class Comparison:
    """One picture against sequential; times are of the denoising of its whole batch, in milliseconds.

    psnr_db: of the 8-bit pictures; infinite where they are equal.
    relative_l2: ‖latents − sequential‖ / ‖sequential‖.
    """

    path: Path
    psnr_db: float
    relative_l2: float
    denoise_ms: float
    sequential_ms: float

    @property
    def speedup(self) -> float:
        return self.sequential_ms / self.denoise_ms

    def facts(self) -> dict[str, Any]:
        """As JSON; a PSNR that is infinite is null."""
        return {
            "path": str(self.path),
            "psnr_db": self.psnr_db if np.isfinite(self.psnr_db) else None,
            "relative_l2": self.relative_l2,
            "denoise_ms": self.denoise_ms,
            "sequential_ms": self.sequential_ms,
            "measured_speedup": self.speedup,
        }


def compare(result: Result, sequential: Result, paths: Sequence[Path]) -> list[Comparison]:
    """Compare two results of the same pictures, and write both side by side to `paths`.

    Raises OSError where they cannot be written.
    """
    found = []
    for k, path in enumerate(paths):
        image, exact = result.images[k], sequential.images[k]
        item = Comparison(
            path,
            psnr(image, exact),
            relative_l2(result.latents[k], sequential.latents[k]),
            result.timings.denoise_ms,
            sequential.timings.denoise_ms,
        )
        titles = (
            f"{_title(result)}\nPSNR {item.psnr_db:.1f} dB, {item.speedup:.2f} times as fast",
            f"{_title(sequential)}\n",
        )
        save_png(side_by_side([image, exact], titles), path, {**result.settings[k], "compared": item.facts()})
        found.append(item)
    return found


def _title(result: Result) -> str:
    plan = result.plan
    lanes = "" if plan.mode == "sequential" else f", {plan.lanes} lanes"
    return f"{plan.mode}{lanes}: {result.stats.rounds} rounds, {result.timings.denoise_ms:.0f} ms"
