"""How far each mode ends from the sequential sampler, where the network is known to be right.

`python -m bench.accuracy` samples models whose score is exact: Gaussian mixtures and
the ideal denoiser of real handwritten digits (the posterior mean over a data set). What
is left is the error of drafting alone. The figure of a cell is the mean relative L2
distance of the final sample from the sequential one with the same noise, and then the
geometric mean over the models.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import track
from sklearn.datasets import load_digits

import driffusion_trt as dt
from driffusion_trt.sampling.noise import noise_streams

from . import report

CONFIGS = Path(__file__).parent.parent / "tests" / "sampling" / "configs"
SCHEDULES = {"SD2.1": ("sd21.json", 50), "SDXL": ("sdxl.json", 30), "SD3": ("sd3.json", 28)}
WIDTHS = (2, 3, 4, 8)
SAMPLES = 128
Mean = Callable[[np.ndarray, float, float], np.ndarray]


def mixture(dimensions: int, parts: int, spread: float, seed: int) -> Mean:
    """E[x0 | x] of a mixture of equal, round Gaussians: x = a·x0 + s·ε."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(parts, dimensions))
    return _posterior_mean(centres / centres.std(), spread)


def digits(every: int, spread: float) -> Mean:
    """The ideal denoiser of 8×8 handwritten digits: all of them, or one of `every`."""
    pictures = load_digits().data[::every] / 8 - 1
    return _posterior_mean((pictures - pictures.mean()) / pictures.std(), spread)


def _posterior_mean(centres: np.ndarray, spread: float) -> Mean:
    squares = (centres**2).sum(1)

    def mean(x: np.ndarray, a: float, s: float) -> np.ndarray:
        variance = (a * spread) ** 2 + s**2
        scores = (a * x @ centres.T - 0.5 * a * a * squares) / variance
        weights = np.exp(scores - scores.max(1, keepdims=True))
        nearest = (weights / weights.sum(1, keepdims=True)) @ centres
        shrunk: np.ndarray = nearest + a * spread**2 / variance * (x - a * nearest)
        return shrunk

    return mean


# Dimensions, and how to make it.
MODELS: dict[str, tuple[int, Callable[[], Mean]]] = {
    "mixture of 10 in 16 dimensions": (16, lambda: mixture(16, 10, 0.3, 0)),
    "mixture of 40 in 64 dimensions": (64, lambda: mixture(64, 40, 0.5, 1)),
    "digits, all 1797": (64, lambda: digits(1, 0.1)),
    "digits, 180 of them": (64, lambda: digits(10, 0.1)),
}


def denoiser(schedule: dt.Schedule, mean: Mean) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """A network of the schedule's prediction type that is always right."""
    levels = dict(
        zip(schedule.timesteps, zip(schedule.a, schedule.s, schedule.input_scale, strict=True), strict=True)
    )
    levels = {float(np.float32(timestep)): level for timestep, level in levels.items()}

    def predict(latents: np.ndarray, timestep: np.ndarray) -> np.ndarray:
        a, s, scale = levels[float(timestep[0])]
        x = latents.astype(np.float64) / scale
        x0 = mean(x, a, s)
        eps = (x - a * x0) / s
        kinds = {"epsilon": eps, "v_prediction": a * eps - s * x0, "flow_prediction": eps - x0}
        output: np.ndarray = kinds[schedule.prediction_type].astype(np.float32)
        return output

    return predict


@cache
def samples(family: str, model: str, mode: str = "sequential", **options: Any) -> np.ndarray:
    """Samples of one model with one plan; the noise is the same for all."""
    file, steps = SCHEDULES[family]
    plan = dt.make_plan(dt.Schedule.from_config(CONFIGS / file, steps), mode=mode, **options)
    dimensions, make = MODELS[model]
    noise = noise_streams(list(range(SAMPLES)), SAMPLES).draw((dimensions,))
    return dt.sample(plan, denoiser(plan.schedule, make()), noise)


def cell(family: str, model: str, **options: Any) -> float:
    """Mean relative L2 from the sequential samples."""
    wanted, got = samples(family, model), samples(family, model, **options)
    errors = np.linalg.norm(got - wanted, axis=1) / np.linalg.norm(wanted, axis=1)
    return float(errors.mean())


def measure() -> dict[str, dict[str, dict[str, Any]]]:
    """family -> mode -> width -> errors per model and their geometric mean."""
    columns: dict[str, Callable[[int, int], dict[str, Any]]] = {
        "direct skip, aggressive budget": lambda n, steps: {"mode": "skip", "lanes": n},
        "aggressive": lambda n, steps: {"mode": "aggressive", "lanes": n},
        "window, aggressive budget": lambda n, steps: {"mode": "window", "lanes": n},
        "direct skip, conservative budget": lambda n, steps: {
            "mode": "skip",
            "rounds": _conservative(steps, n),
        },
        "conservative": lambda n, steps: {"mode": "conservative", "lanes": n},
        "window, conservative budget": lambda n, steps: {
            "mode": "window",
            "lanes": n,
            "rounds": _conservative(steps, n),
        },
    }
    work = [(f, m, n) for f in SCHEDULES for m in columns for n in WIDTHS]
    out: dict[str, dict[str, dict[str, Any]]] = {
        family: {mode: {} for mode in columns} for family in SCHEDULES
    }
    for family, mode, n in track(work, "Sampling"):
        options = columns[mode](n, SCHEDULES[family][1])
        errors = {model: cell(family, model, **options) for model in MODELS}
        geometric = math.exp(sum(math.log(max(error, 1e-9)) for error in errors.values()) / len(errors))
        out[family][mode][str(n)] = {"geometric_mean": geometric, "models": errors}
    return out


def _conservative(steps: int, n: int) -> int:
    q, r = divmod(steps, n + 1)
    return 2 * q + min(r, 2)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Error of drafting on models whose score is exact.")
    parser.add_argument("--no-write", action="store_true", help="print only, leave bench/results alone")
    options = parser.parse_args(arguments)
    measured = measure()
    modes = next(iter(measured.values()))
    rows = [
        [mode, *(" / ".join(_thousandths(measured[f][mode][str(n)]) for n in WIDTHS) for f in SCHEDULES)]
        for mode in modes
    ]
    head = ["mean relative L2 ×10³, n = 2/3/4/8", *(f"{f} T{steps}" for f, (_, steps) in SCHEDULES.items())]
    print(report.table(head, rows))
    if not options.no_write:
        result = {"samples": SAMPLES, "unit": "relative L2 of the final sample", "errors": measured}
        print(f"written to {report.write('accuracy', result, ('numpy', 'scikit-learn'))}")


def _thousandths(entry: dict[str, Any]) -> str:
    return f"{1e3 * entry['geometric_mean']:.3g}"


if __name__ == "__main__":
    main()
