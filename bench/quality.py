"""What each mode makes of the bundled models' pictures: whether they show what was asked, and their drift.

    python -m bench.quality [--models demo demo-xl] [--guidance 3 7.5] [--lanes 2 3 4] [--pictures 200]

Every picture has a held-out prompt and a seed of its own. A classifier that was trained on drawn pictures
reads it back: right is a picture with all that its prompt names. The Fréchet distance (1706.08500) is taken
in the classifier's features, against drawn pictures; drift is from the sequential picture of the same seed.
Fixed numbers of rounds are those of `aggressive` with as many lanes, but for `conservative`. Calls are those
that wait for one another; a batch of AsyncDiff counts as the share of a call that its slowest component has.
Pictures come in chunks over all cells, each stored as soon as it is made: a run that was cut off goes on
where it was, and one with more pictures adds to it.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.progress import Progress

import driffusion_trt as dt
from driffusion_trt.baselines.asyncdiff import AsyncDiffLanes
from driffusion_trt.engines.manifest import BUNDLED, ModelFolder
from driffusion_trt.engines.onnx_session import OnnxSession
from driffusion_trt.evaluation.heldout import Checker
from driffusion_trt.evaluation.making import MOST_PSNR_DB
from driffusion_trt.pictures import psnr, to_images
from driffusion_trt.sampling.noise import noise_streams

from . import drift, quality_table
from .baselines import shapes_of
from .crowd import Demo, make_pictures
from .drift import Arrays

METHODS = (
    "direct skip", "paradigms", "asyncdiff", "aggressive", "conservative", "window", "tolerance 0.01",
)  # fmt: skip
CHUNK = 25
FIRST = 2000  # prompts and seeds from here on, which no default was chosen on


@dataclass(frozen=True, slots=True)
class Cell:
    """One method with so many lanes; the sequential one has `lanes` 1."""

    method: str
    lanes: int

    def options(self, steps: int) -> dict[str, Any]:
        """Of `make_plan`."""
        if self.method == "sequential":
            return {"mode": "sequential"}
        if self.method == "conservative":
            return {"mode": "conservative", "lanes": self.lanes}
        return drift.asked(self.method, self.lanes, steps)


class Maker:
    """Chunks of pictures of one model at one guidance scale, made once and kept in a folder."""

    def __init__(self, model: str, guidance: float, work: Path, checker: Checker) -> None:
        self.model, self.guidance, self._checker = model, guidance, checker
        folder = ModelFolder.open(model)
        self.model_hash = folder.model_hash
        self._work = work / f"{model}-{self.model_hash}" / f"g{guidance:g}"
        self._work.mkdir(parents=True, exist_ok=True)
        self._resources = ExitStack()
        self._decoder = self._resources.enter_context(OnnxSession(folder.network("vae_decoder")))
        self._demo: Demo | None = None
        self._base: tuple[int, np.ndarray, list[Image.Image]] | None = None
        self._async: dict[int, AsyncDiffLanes] = {}

    def chunk(self, cell: Cell, first: int) -> Arrays:
        """Of CHUNK pictures from `first` on: labels, features, rounds, predictions, distances."""
        path = self._work / f"{cell.method.replace(' ', '-')}-{cell.lanes}-{first}.npz"
        return drift.stored(path, lambda: self._judged(cell, first))

    def _judged(self, cell: Cell, first: int) -> Arrays:
        made = self._latents(cell, range(first, first + CHUNK))
        pictures = self._pictures(made["latents"])
        read, features = self._checker(np.stack([np.asarray(image) for image in pictures]))
        out: Arrays = {"labels": read.astype(np.int8), "features": features.astype(np.float32), **made}
        if cell.method == "sequential":
            return out
        base, exact = self._sequential(first)
        out["relative_l2"] = drift.errors_of(out.pop("latents"), base)
        pairs = zip(pictures, exact, strict=True)
        out["psnr_db"] = np.array([min(psnr(one, other), MOST_PSNR_DB) for one, other in pairs])
        return out

    def _sequential(self, first: int) -> tuple[np.ndarray, list[Image.Image]]:
        """Latents and pictures, which all cells of a chunk are compared with, one after another."""
        if self._base is None or self._base[0] != first:
            latents = self.chunk(Cell("sequential", 1), first)["latents"]
            self._base = (first, latents, self._pictures(latents))
        return self._base[1:]

    def _pictures(self, latents: np.ndarray) -> list[Image.Image]:
        # The autoencoders of the bundled models have a scaling factor of 1 and no shift.
        return [image for one in latents for image in to_images(self._decode(one[None]))]

    def _decode(self, latents: np.ndarray) -> np.ndarray:
        (out,) = self._decoder.run({"latents": latents}).values()
        return out

    def _latents(self, cell: Cell, indices: range) -> Arrays:
        demo = self._demo = self._demo or Demo((), self.model)
        demo.learn(indices)
        if cell.method == "asyncdiff":
            return self._asyncdiff(demo, cell.lanes, indices)
        plan = dt.make_plan(demo.schedule(), **cell.options(demo.folder.spec.steps))
        return drift.arrays(make_pictures(demo, plan, indices, self.guidance))

    def _asyncdiff(self, demo: Demo, components: int, indices: range) -> Arrays:
        """With a warm-up of one step and a stride of one, as many lanes as components."""
        if components not in self._async:
            lanes = AsyncDiffLanes(demo.folder.network("denoiser"), components, shapes=shapes_of(demo, 2))
            self._async[components] = self._resources.enter_context(lanes)
        given, without = demo.embeddings(indices)
        noise = np.concatenate([demo.noise(index) for index in indices])
        job = self._async[components].job(given, self.guidance, without)
        made = job.sample(demo.schedule(), noise, noise_streams(list(indices), len(indices)))
        ones, steps = np.ones(len(indices)), demo.folder.spec.steps
        calls = self._async[components].sequential_calls(steps)
        return {"latents": made.latents, "rounds": calls * ones, "predictions": steps * ones}

    def close(self) -> None:
        self._resources.close()


def cells(lanes: Sequence[int]) -> list[Cell]:
    """The sequential one first."""
    return [Cell("sequential", 1), *(Cell(method, n) for method in METHODS for n in lanes)]


def made_chunks(
    makers: Sequence[Maker], todo: Sequence[Cell], pictures: int, progress: Progress
) -> Iterator[tuple[Maker, Cell, Arrays]]:
    """Chunk after chunk over all makers and cells, so that what was made is even at any time."""
    chunks = range(FIRST, FIRST + pictures, CHUNK)
    task = progress.add_task("pictures", total=len(chunks) * len(makers) * len(todo) * CHUNK)
    for first in chunks:
        for maker in makers:
            for cell in todo:
                words = f"{maker.model}, guidance {maker.guidance:g}, {cell.method}, n={cell.lanes}"
                progress.update(task, description=words)
                yield maker, cell, maker.chunk(cell, first)
                progress.advance(task, CHUNK)


def gathered(parts: Sequence[Mapping[str, np.ndarray]]) -> Arrays:
    """Chunks of one cell after one another."""
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def main(arguments: Sequence[str] | None = None) -> None:
    """Make what is missing, print a table for each model and guidance, write bench/results/quality.json."""
    parser = argparse.ArgumentParser(prog="python -m bench.quality", description=__doc__.split("\n")[0])
    parser.add_argument("--models", nargs="+", default=list(BUNDLED))
    parser.add_argument("--guidance", type=float, nargs="+", default=[3.0, 7.5])
    parser.add_argument("--lanes", type=int, nargs="+", default=[2, 3, 4])
    parser.add_argument("--pictures", type=int, default=200, help=f"of each cell, in chunks of {CHUNK}")
    parser.add_argument("--work", type=Path, default=Path("build/quality"), help="stored chunks")
    parser.add_argument("--no-write", action="store_true", help="print only, leave bench/results alone")
    options = parser.parse_args(arguments)
    checker, todo = Checker(), cells(options.lanes)
    parts: dict[tuple[str, float, Cell], list[Arrays]] = {}
    with Progress() as progress, ExitStack() as stack:
        makers = [Maker(m, g, options.work, checker) for m in options.models for g in options.guidance]
        for maker in makers:
            stack.callback(maker.close)
        for maker, cell, arrays in made_chunks(makers, todo, options.pictures, progress):
            parts.setdefault((maker.model, maker.guidance, cell), []).append(arrays)
    found = {key: gathered(some) for key, some in parts.items()}
    hashes = {maker.model: maker.model_hash for maker in makers}
    quality_table.report_all(found, hashes, checker, FIRST, write=not options.no_write)


if __name__ == "__main__":
    main()
