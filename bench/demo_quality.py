"""Whether the demo's pictures show what was asked, and how far each mode drifts from sequential.

`python -m bench.demo_quality` samples held-out prompts in every mode. A classifier that
was trained on drawn pictures reads each picture back: a prompt counts as right where
every label that it names is (what, which colour, where, on which ground). The Fréchet
distance (1706.08500) is taken in the classifier's features, against drawn pictures.
Drift is against the sequential run with the same prompt and seed. Chunks are stored, so
that a run that was cut off goes on where it was.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.progress import track

import driffusion_trt as dt
from driffusion_trt.evaluation.frechet import frechet
from driffusion_trt.evaluation.heldout import Checker, alignment, draw_real, prompt
from driffusion_trt.pictures import psnr

from . import report

CHUNK = 10


@dataclass(frozen=True, slots=True)
class Cell:
    """One row of the table: a mode at a width, over so many prompts."""

    name: str
    prompts: int
    options: dict[str, Any]


def cells(sequential: int, others: int) -> list[Cell]:
    """All rows; direct skip has the budgets of the modes it is held against."""
    rows = [Cell("sequential", sequential, {"mode": "sequential", "lanes": 1})]
    for mode in ("aggressive", "conservative"):
        rows += [Cell(f"{mode} n={n}", others, {"mode": mode, "lanes": n}) for n in (2, 3, 4)]
    budgets = (14, 18, 20, 26, 34)
    return rows + [Cell(f"direct skip to {k}", others, {"mode": "skip", "rounds": k}) for k in budgets]


def run_chunk(pipe: dt.Pipeline, cell: Cell, first: int, scale: float, steps: int) -> dict[str, Any]:
    """Pictures and latents of prompts first..first+CHUNK; prompt k has seed k."""
    indices = list(range(first, first + CHUNK))
    result = pipe(
        [prompt(k)[0] for k in indices], seed=indices, guidance_scale=scale, steps=steps, **cell.options
    )
    return {"pictures": np.stack([np.asarray(image) for image in result.images]), "latents": result.latents}


def sample_cell(pipe: dt.Pipeline, cell: Cell, work: Path, scale: float, steps: int) -> dict[str, np.ndarray]:
    """All pictures of a cell, from the stored chunks as far as they go."""
    chunks = []
    for first in track(range(0, cell.prompts, CHUNK), f"{cell.name:20}"):
        path = work / f"{cell.name.replace(' ', '-')}-{first:04}.npz"
        if not path.exists():
            partial = path.with_suffix(".partial.npz")
            np.savez_compressed(partial, **run_chunk(pipe, cell, first, scale, steps))
            partial.replace(path)
        with np.load(path) as stored:
            chunks.append(dict(stored))
    return {key: np.concatenate([chunk[key] for chunk in chunks]) for key in chunks[0]}


def judge(
    got: dict[str, np.ndarray], base: dict[str, np.ndarray], checker: Checker, real: np.ndarray
) -> dict[str, Any]:
    """Alignment, Fréchet distance and drift of one cell; `base` is the sequential run."""
    read, features = checker(got["pictures"])
    count = len(read)
    wanted = np.array([prompt(k)[1] for k in range(count)])
    latents, reference = got["latents"].reshape(count, -1), base["latents"][:count].reshape(count, -1)
    drift = np.linalg.norm(latents - reference, axis=1) / np.linalg.norm(reference, axis=1)
    ratios = [min(_psnr(a, b), 96.0) for a, b in zip(got["pictures"], base["pictures"], strict=False)]
    return {
        "prompts": count,
        "alignment": alignment(read, wanted),
        "frechet": frechet(features, real),
        "relative_l2": {"mean": float(drift.mean()), "worst": float(drift.max())},
        "psnr_db": {"mean": float(np.mean(ratios)), "worst": float(np.min(ratios))},
    }


def _psnr(one: np.ndarray, other: np.ndarray) -> float:
    return psnr(Image.fromarray(one), Image.fromarray(other))


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--work", type=Path, default=Path("runs/demo-quality"), help="stored chunks")
    parser.add_argument("--sequential-prompts", type=int, default=500)
    parser.add_argument("--prompts", type=int, default=250, help="prompts of every other row")
    parser.add_argument("--guidance-scale", type=float, default=3.0)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--no-write", action="store_true", help="print only, leave bench/results alone")
    options = parser.parse_args(arguments)
    options.work.mkdir(parents=True, exist_ok=True)
    checker = Checker()
    drawn, truth = draw_real(2000)
    read, real = checker(drawn)
    out: dict[str, Any] = {}
    with dt.Pipeline.load(options.model) as pipe:
        base: dict[str, np.ndarray] = {}
        for cell in cells(options.sequential_prompts, options.prompts):
            got = sample_cell(pipe, cell, options.work, options.guidance_scale, options.steps)
            base = base or got
            calls = pipe.plan(steps=options.steps, **cell.options).sequential_calls
            out[cell.name] = {"calls": calls, **judge(got, base, checker, real)}
            if cell.name == "sequential":
                few = {key: value[: options.prompts] for key, value in got.items()}
                out["sequential, fewer"] = {"calls": calls, **judge(few, base, checker, real)}
    # What as many drawn pictures have: few samples alone are a distance.
    counts = {options.sequential_prompts, options.prompts}
    floor = {str(count): frechet(real[:count], real[count:]) for count in sorted(counts)}
    result = {
        "guidance_scale": options.guidance_scale,
        "steps": options.steps,
        "checker_on_drawn_pictures": alignment(read, truth)["all"],
        "frechet_of_drawn_pictures": floor,
        "rows": out,
    }
    print(as_table(out))
    if not options.no_write:
        print(f"written to {report.write('demo_quality', result)}")


def as_table(rows: dict[str, Any]) -> str:
    """The rows as Markdown."""
    head = ["mode", "calls", "prompts", "all right", "Fréchet", "relative L2 (worst)", "PSNR dB (worst)"]
    body = []
    for name, row in rows.items():
        l2, ratio = row["relative_l2"], row["psnr_db"]
        body.append(
            [
                name,
                str(row["calls"]),
                str(row["prompts"]),
                f"{100 * row['alignment']['all']:.1f} %",
                f"{row['frechet']:.2f}",
                f"{l2['mean']:.4f} ({l2['worst']:.3f})",
                f"{ratio['mean']:.1f} ({ratio['worst']:.1f})",
            ]
        )
    return report.table(head, body)


if __name__ == "__main__":
    main()
