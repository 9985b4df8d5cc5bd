"""How far each mode ends from the sequential sampler, where the network is known to be right.

`python -m bench.accuracy` samples the models of `bench.exact_models` without a prompt and with
classifier-free guidance, each sample to a class of its own. What is left is the error of drafting alone.
The figure of a cell is the mean relative L2 distance of the final sample from the sequential one with the
same noise, class and guidance, and then the geometric mean over the models. Mode `tolerance` decides for
each sample by itself: its cells have the mean number of rounds too.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import track

import driffusion_trt as dt
from driffusion_trt.sampling.noise import noise_streams

from . import report
from .exact_models import MODELS, denoiser

CONFIGS = Path(__file__).parent.parent / "tests" / "sampling" / "configs"
SCHEDULES = {"SD2.1": ("sd21.json", 50), "SDXL": ("sdxl.json", 30), "SD3": ("sd3.json", 28)}
WIDTHS = (2, 3, 4, 8)
GUIDANCE = (None, 1.0, 3.0, 7.5)  # without a class; class-conditional; guided
TOLERANCE = 0.01
SAMPLES = 128
# Windows by what they are compared with at equal calls.
RIVALS = {"aggressive": "window, aggressive budget", "conservative": "window, conservative budget"}


def _conservative(steps: int, n: int) -> int:
    q, r = divmod(steps, n + 1)
    return 2 * q + min(r, 2)


# Arguments of the plan for n lanes and so many steps.
COLUMNS: dict[str, Callable[[int, int], dict[str, Any]]] = {
    "direct skip, aggressive budget": lambda n, _: {"mode": "skip", "lanes": n},
    "aggressive": lambda n, _: {"mode": "aggressive", "lanes": n},
    "window, aggressive budget": lambda n, _: {"mode": "window", "lanes": n},
    "window of x0, aggressive budget": lambda n, _: {"mode": "window", "lanes": n, "carry": "x0"},
    "direct skip, conservative budget": lambda n, steps: {"mode": "skip", "rounds": _conservative(steps, n)},
    "conservative": lambda n, _: {"mode": "conservative", "lanes": n},
    "window, conservative budget": lambda n, steps: {
        "mode": "window",
        "lanes": n,
        "rounds": _conservative(steps, n),
    },
    "window of x0, conservative budget": lambda n, steps: {
        "mode": "window",
        "lanes": n,
        "rounds": _conservative(steps, n),
        "carry": "x0",
    },
    f"tolerance {TOLERANCE:g}": lambda n, _: {"mode": "tolerance", "lanes": n, "tolerance": TOLERANCE},
}


def samples(
    family: str, model: str, guidance: float | None, *, mode: str = "sequential", **options: Any
) -> tuple[np.ndarray, float]:
    """Samples of one model with one plan, and their mean rounds; noise and classes are the same for all."""
    file, steps = SCHEDULES[family]
    plan = dt.make_plan(dt.Schedule.from_config(CONFIGS / file, steps), mode=mode, **options)
    exact = MODELS[model]()
    noise = noise_streams(list(range(SAMPLES)), SAMPLES).draw(exact.centres.shape[1:])
    classes = exact.classes_of(SAMPLES)
    # The samples of a batch go on together: with a tolerance as far as the worst of them allows.
    batches = np.array_split(np.arange(SAMPLES), SAMPLES if mode == "tolerance" else 1)
    made = [
        dt.sample(
            plan,
            denoiser(plan.schedule, exact, guidance, classes[batch]),
            noise[batch],
            return_stats=True,
        )
        for batch in batches
    ]
    return np.concatenate([one.latents for one in made]), float(np.mean([one.stats.rounds for one in made]))


_sequential = cache(samples)


def cell(family: str, model: str, guidance: float | None = None, **options: Any) -> tuple[float, float]:
    """Mean relative L2 from the sequential samples, and mean rounds."""
    wanted, _ = _sequential(family, model, guidance)
    got, rounds = samples(family, model, guidance, **options)
    errors = np.linalg.norm(got - wanted, axis=1) / np.linalg.norm(wanted, axis=1)
    return float(errors.mean()), rounds


def measure() -> dict[str, dict[str, dict[str, dict[str, Any]]]]:
    """guidance -> family -> column -> width -> errors per model, their geometric mean, mean rounds."""
    work = [(g, f, c, n) for g in GUIDANCE for f in SCHEDULES for c in COLUMNS for n in WIDTHS]
    out: dict[str, dict[str, dict[str, dict[str, Any]]]] = {}
    for guidance, family, column, n in track(work, "Sampling"):
        options = COLUMNS[column](n, SCHEDULES[family][1])
        found = {model: cell(family, model, guidance, **options) for model in MODELS}
        errors = {model: error for model, (error, _) in found.items()}
        modes = out.setdefault(_named(guidance), {}).setdefault(family, {})
        modes.setdefault(column, {})[str(n)] = {
            "geometric_mean": math.exp(sum(math.log(max(e, 1e-9)) for e in errors.values()) / len(errors)),
            "rounds": sum(rounds for _, rounds in found.values()) / len(found),
            "models": errors,
        }
    return out


def factors(modes: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> dict[str, dict[str, float]]:
    """How many times nearer windows end than the paper's modes at equal calls: mode -> width -> factor."""
    return {
        mode: {n: modes[mode][n]["geometric_mean"] / modes[window][n]["geometric_mean"] for n in modes[mode]}
        for mode, window in RIVALS.items()
    }


def _named(guidance: float | None) -> str:
    return "none" if guidance is None else f"{guidance:g}"


def main(arguments: list[str] | None = None) -> None:
    """Measure, print a table for each guidance and the factors, write bench/results/accuracy.json."""
    parser = argparse.ArgumentParser(description="Error of drafting on models whose score is exact.")
    parser.add_argument("--no-write", action="store_true", help="print only, leave bench/results alone")
    options = parser.parse_args(arguments)
    measured = measure()
    nearer = {g: {f: factors(modes) for f, modes in families.items()} for g, families in measured.items()}
    schedules = [f"{family} T{steps}" for family, (_, steps) in SCHEDULES.items()]
    for guidance, families in measured.items():
        head = [f"guidance {guidance}: mean relative L2 ×10³, n = {'/'.join(map(str, WIDTHS))}", *schedules]
        rows = [[c, *(_words(c, modes[c].values()) for modes in families.values())] for c in COLUMNS]
        rows += [
            [f"{mode} / window", *(" / ".join(f"{x:.2f}" for x in of[mode].values()) for of in by.values())]
            for by in [nearer[guidance]]
            for mode in RIVALS
        ]
        print(report.table(head, rows), end="\n\n")
    if not options.no_write:
        result = {
            "samples": SAMPLES,
            "unit": "relative L2 of the final sample",
            "errors": measured,
            "times_nearer_than": nearer,
        }
        print(f"written to {report.write('accuracy', result, ('numpy', 'scikit-learn'))}")


def _words(column: str, cells: Any) -> str:
    """Errors by width; where rounds are the sampler's choice, those after them."""
    chosen = column.startswith("tolerance")
    return " / ".join(
        f"{1e3 * one['geometric_mean']:.3g}" + (f" in {one['rounds']:.1f}" if chosen else "") for one in cells
    )


if __name__ == "__main__":
    main()
