"""How far skip, ParaDiGMS and AsyncDiff end from the sequential picture on the demo, beside our modes.

    python -m bench.baselines [--pairs 32] [--guidance 3 7.5] [--lanes 2 3 4] [--work FOLDER]

n is the number of lanes, for AsyncDiff that of components. Calls are network calls that wait for one another;
a batch of AsyncDiff counts as the share of a call that its slowest component takes, by a thread's CPU time.
Distances are those of bench.drift. Cells are stored, so that a run that was cut off goes on where it was.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import Progress

from driffusion_trt.baselines.asyncdiff import AsyncDiffLanes
from driffusion_trt.baselines.split import split_network
from driffusion_trt.engines.onnx_session import OnnxSession
from driffusion_trt.sampling.noise import noise_streams

from . import report
from .crowd import Demo
from .drift import FIRST, STEPS, Cells, asked, compared

PLANS = ("direct skip", "paradigms", "aggressive", "window", "tolerance 0.01")
BATCH = 8  # pictures that AsyncDiff makes at once; a batch changes the last bits and nothing else
REPEATS = 31
# Warm-up and stride; 9 and 2 are those of the authors' example of Stable Diffusion, and take a lane more.
ASYNC = ((1, 1), (9, 1), (9, 2))


def shapes_of(demo: Demo, rows: int) -> dict[str, tuple[int, ...]]:
    """Of the denoiser's inputs."""
    given, _ = demo.embeddings(demo.prompts[:1])
    told = {name: (rows, *value.shape[1:]) for name, value in given.items()}
    return {demo.folder.spec.denoiser_inputs[0]: (rows, *demo.shape), "timestep": (rows,), **told}


def shares(demo: Demo, components: int) -> dict[str, list[float]]:
    """What each component is of the whole network: by its work, and by CPU time, for one guided picture."""
    path, shapes = demo.folder.network("denoiser"), shapes_of(demo, 2)
    given: dict[str, np.ndarray] = {name: np.ones(shape, np.float32) for name, shape in shapes.items()}
    with tempfile.TemporaryDirectory() as folder, OnnxSession(path) as whole:
        split = split_network(path, components, folder, shapes)
        times: list[list[float]] = []
        sessions = [OnnxSession(one.path) for one in split.components]
        for _ in range(REPEATS):  # interleaved
            held, spent = dict(given), []
            for session in (whole, *sessions):
                begun = time.thread_time()
                made = session.run({name: held[name] for name in session.inputs})
                spent.append(time.thread_time() - begun)
                held |= made if session is not whole else {}
            times.append([one / spent[0] for one in spent[1:]])
        for session in sessions:
            session.close()
    measured = [statistics.median(column) for column in zip(*times, strict=True)]
    return {"work": [one.share for one in split.components], "time": measured}


def asyncdiff(
    demo: Demo, pairs: Sequence[int], guidance: float, components: int, warm_up: int, stride: int
) -> dict[str, np.ndarray]:
    """Latents of all pictures, as `Cells` gives them."""
    schedule, made = demo.schedule(STEPS), []
    with AsyncDiffLanes(
        demo.folder.network("denoiser"),
        components,
        shapes=shapes_of(demo, 2),
        warm_up=warm_up,
        stride=stride,
    ) as lanes:
        for k in range(0, len(pairs), BATCH):
            some = list(pairs[k : k + BATCH])
            text, empty = demo.embeddings(some)
            noise = np.concatenate([demo.noise(index) for index in some])
            job = lanes.job(text, guidance, empty)
            made.append(job.sample(schedule, noise, noise_streams(some, len(some))).latents)
    ones = np.ones(len(pairs))
    return {"latents": np.concatenate(made), "rounds": STEPS * ones, "predictions": STEPS * ones}


def calls(warm_up: int, stride: int, slowest: float) -> float:
    """Sequential network calls of AsyncDiff in units of a whole one."""
    return warm_up + -(-(STEPS - warm_up) // stride) * slowest


def measure(
    cells: Cells, guidance: float, lanes: Sequence[int], of_network: dict[int, dict[str, list[float]]]
) -> dict[str, dict[str, dict[str, Any]]]:
    """method -> n -> distances, and sequential calls."""
    wanted = cells(guidance, mode="sequential")["latents"]
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for name in PLANS:
        found[name] = {str(n): compared(cells(guidance, **asked(name, n)), wanted) for n in lanes}
    most = max(lanes)  # with the authors' tolerance, it takes more rounds than any other
    tolerant = compared(cells(guidance, mode="paradigms", lanes=most, tolerance=0.1), wanted)
    found["paradigms, tolerance 0.1"] = {str(most): tolerant}
    for by_lanes in found.values():
        for cell in by_lanes.values():
            cell["calls"] = cell["rounds"]
    for warm_up, stride in ASYNC:
        row = found[f"asyncdiff, warm-up {warm_up}, stride {stride}"] = {}
        for n in lanes:
            make = partial(asyncdiff, cells.demo, cells.pairs, guidance, n, warm_up, stride)
            made = cells.stored(f"g{guidance:g}-asyncdiff-{n}-{warm_up}-{stride}", make)
            row[str(n)] = compared(made, wanted)
            row[str(n)]["calls"] = calls(warm_up, stride, max(of_network[n]["time"]))
            row[str(n)]["lanes"] = n + stride - 1
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Make what is missing, print a table for each guidance, write bench/results/baselines.json."""
    parser = argparse.ArgumentParser(prog="python -m bench.baselines", description=__doc__.split("\n")[0])
    parser.add_argument("--pairs", type=int, default=32)
    parser.add_argument("--guidance", type=float, nargs="+", default=[3.0, 7.5])
    parser.add_argument("--lanes", type=int, nargs="+", default=[2, 3, 4])
    parser.add_argument("--work", type=Path, default=Path("build/baselines"))
    parser.add_argument("--no-write", action="store_true", help="print only, leave bench/results alone")
    options = parser.parse_args(arguments)
    with Progress() as progress:
        cells = Cells(options.work, range(FIRST, FIRST + options.pairs), progress)
        of_network = {n: shares(cells.demo, n) for n in options.lanes}
        found = {f"{g:g}": measure(cells, g, options.lanes, of_network) for g in options.guidance}
    for guidance, rows in found.items():
        head = [f"guidance {guidance}: calls, mean / worst", *(f"n={n}" for n in options.lanes)]
        body = [[name, *(words(row.get(str(n))) for n in options.lanes)] for name, row in rows.items()]
        print(report.table(head, body), end="\n\n")
    for n, one in of_network.items():
        print(f"{n} components, share of a call: {', '.join(f'{share:.3f}' for share in one['time'])}")
    if not options.no_write:
        result = {
            "pairs": options.pairs,
            "steps": STEPS,
            "unit": "relative L2 of the latents",
            "components": {str(n): one for n, one in of_network.items()},
            "cells": found,
        }
        print(f"written to {report.write('baselines', result, ('numpy', 'onnx', 'onnxruntime'))}")


def words(cell: dict[str, Any] | None) -> str:
    return "–" if cell is None else f"{cell['calls']:.1f}, {cell['mean']:.4f} / {cell['worst']:.3f}"


if __name__ == "__main__":
    main()
