"""How far each mode ends from the sequential picture on the demo, and what it takes, by guidance and lanes.

    python -m bench.drift [--pairs 100] [--guidance 3 7.5] [--lanes 2 3 4 8] [--work FOLDER]

Every picture has a prompt and seed of its own, and its plan decides for it alone. Distances are of the final
latents, relative to the sequential ones (L2), with 95 % intervals of the mean by bootstrap over the pictures.
Each cell is stored as soon as it is made, so that a run that was cut off goes on where it was.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import Progress

import driffusion_trt as dt
from driffusion_trt.sampling.window import least_rounds

from . import report
from .crowd import Demo, Made, make_pictures

STEPS, CROWD = 50, 25
Arrays = dict[str, np.ndarray]
FIRST = 1300  # prompts and seeds from here on; the defaults were chosen on 1000 to 1031 and 1197
MODES: dict[str, dict[str, Any]] = {
    "direct skip": {"mode": "skip"},
    "aggressive": {"mode": "aggressive"},
    "window": {"mode": "window"},
    "tolerance 0.01": {"mode": "tolerance", "tolerance": 0.01},
    "paradigms": {"mode": "paradigms"},
}


def asked(name: str, lanes: int, steps: int = STEPS) -> dict[str, Any]:
    """Options of `make_plan` for one of the modes; ParaDiGMS has as many rounds as `aggressive`."""
    rounds = {"rounds": least_rounds(steps, lanes)} if name == "paradigms" else {}
    return {"lanes": lanes, **MODES[name], **rounds}


class Cells:
    """Latents and rounds of all pictures of a mode, made once and kept in a folder."""

    def __init__(self, work: Path, pairs: Sequence[int], progress: Progress) -> None:
        self._work, self.pairs, self._progress = work, list(pairs), progress
        self.demo = Demo(pairs)
        work.mkdir(parents=True, exist_ok=True)

    def __call__(self, guidance: float, **options: Any) -> Arrays:
        """latents (pictures, ...), rounds and predictions (pictures,)."""
        words = "-".join(f"{key}={_short(value)}" for key, value in sorted(options.items()))
        return self.stored(
            f"g{guidance:g}-{words}", lambda: self._made(guidance, options, f"guidance {guidance:g}, {words}")
        )

    def stored(self, name: str, make: Callable[[], Arrays]) -> Arrays:
        """The arrays of this name, made where they are not there."""
        return stored(self._work / f"{name}-{self.pairs[0]}-{len(self.pairs)}.npz", make)

    def _made(self, guidance: float, options: dict[str, Any], title: str) -> Arrays:
        plan = dt.make_plan(self.demo.schedule(STEPS), **options)
        task = self._progress.add_task(title, total=len(self.pairs))
        made = []
        for k in range(0, len(self.pairs), CROWD):
            some = self.pairs[k : k + CROWD]
            made += make_pictures(self.demo, plan, some, guidance, lambda: self._progress.advance(task))
        self._progress.remove_task(task)
        return arrays(made)


def stored(path: Path, make: Callable[[], Arrays]) -> Arrays:
    """The arrays in an .npz, made where it is not there, whole or not at all."""
    if not path.exists():
        partial = path.with_suffix(".partial.npz")
        made: dict[str, Any] = make()
        np.savez_compressed(partial, **made)
        partial.replace(path)
    with np.load(path) as found:
        return dict(found)


def arrays(made: Sequence[Made]) -> Arrays:
    """latents (pictures, ...), rounds and predictions (pictures,)."""
    return {
        "latents": np.stack([one.latents for one in made]),
        "rounds": np.array([one.stats.rounds for one in made]),
        "predictions": np.array([one.stats.predictions for one in made]),
    }


def errors_of(latents: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Relative L2 (pictures,) of latents (pictures, ...) from the sequential ones."""
    got, right = (x.reshape(len(x), -1).astype(np.float64) for x in (latents, wanted))
    return np.asarray(np.linalg.norm(got - right, axis=1) / np.linalg.norm(right, axis=1))


def _short(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def compared(made: dict[str, np.ndarray], wanted: np.ndarray) -> dict[str, Any]:
    """Distances from the sequential pictures, and what was spent."""
    errors = errors_of(made["latents"], wanted)
    resampled = np.random.default_rng(0).choice(errors, (2000, len(errors))).mean(1)
    low, high = np.quantile(resampled, (0.025, 0.975))
    return {
        "mean": float(errors.mean()),
        "interval": [float(low), float(high)],
        "worst": float(errors.max()),
        "rounds": float(made["rounds"].mean()),
        "most_rounds": int(made["rounds"].max()),
        "predictions": float(made["predictions"].mean()),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Make what is missing, print a table for each guidance, write bench/results/drift.json."""
    parser = argparse.ArgumentParser(prog="python -m bench.drift", description=__doc__.split("\n")[0])
    parser.add_argument("--pairs", type=int, default=100)
    parser.add_argument("--guidance", type=float, nargs="+", default=[1.0, 3.0, 5.0, 7.5])
    parser.add_argument("--lanes", type=int, nargs="+", default=[2, 3, 4, 8])
    parser.add_argument("--work", type=Path, default=Path("build/drift"))
    parser.add_argument("--no-write", action="store_true", help="print only, leave bench/results alone")
    options = parser.parse_args(arguments)
    pairs = range(FIRST, FIRST + options.pairs)
    found: dict[str, dict[str, dict[str, Any]]] = {}
    with Progress() as progress:
        cells = Cells(options.work, pairs, progress)
        for guidance in options.guidance:
            wanted = cells(guidance, mode="sequential")["latents"]
            found[f"{guidance:g}"] = {}
            for name in MODES:
                by_lanes = {n: compared(cells(guidance, **asked(name, n)), wanted) for n in options.lanes}
                found[f"{guidance:g}"][name] = {str(n): cell for n, cell in by_lanes.items()}
    for guidance_name, modes in found.items():
        head = [f"guidance {guidance_name}: rounds, mean / worst", *(f"n={n}" for n in options.lanes)]
        rows = [[name, *(_words(cell) for cell in by_lanes.values())] for name, by_lanes in modes.items()]
        print(report.table(head, rows), end="\n\n")
    if not options.no_write:
        result = {
            "pairs": options.pairs,
            "steps": STEPS,
            "unit": "relative L2 of the latents",
            "cells": found,
        }
        print(f"written to {report.write('drift', result, ('numpy', 'onnxruntime'))}")


def _words(cell: dict[str, Any]) -> str:
    return f"{cell['rounds']:.1f}, {cell['mean']:.4f} / {cell['worst']:.3f}"


if __name__ == "__main__":
    main()
