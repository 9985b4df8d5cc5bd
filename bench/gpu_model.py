"""One model's parts of `bench.gpu`: its figures, its pictures on 1 to N GPUs, and what else runs them."""

from __future__ import annotations

import argparse
import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import driffusion_trt as dt
from driffusion_trt.cli import main as command
from driffusion_trt.engines.gpus import Gpu
from driffusion_trt.engines.manifest import ModelFolder
from driffusion_trt.pictures import relative_l2
from driffusion_trt.planning.machine import Machine

from . import cells, gpu_figures, report
from .parts import Parts

__all__ = ["Model", "name_of"]

_INTERRUPTED = 130  # the command's exit status after Ctrl-C
_TORCH_S = 1800  # compiling takes minutes
_TORCH_SLOWER, _TORCH_LOADS_S = 2.0, 150.0  # guesses, for the estimate alone; the second with compiling
_SPLIT = 0.55  # of a round with guidance in one batch, for the estimate alone


def name_of(model: str) -> str:
    """What its parts and files are called."""
    return Path(model).resolve().name


class Model:
    """The parts of one model."""

    def __init__(self, name: str, checkpoint: str | None, parts: Parts, options: argparse.Namespace) -> None:
        self.folder = ModelFolder.open(name)
        self.name, self._checkpoint, self._parts, self._options = name_of(name), checkpoint, parts, options
        self._path = str(self.folder.path)
        spec = self.folder.spec
        self.steps = options.steps or spec.steps
        scale = spec.guidance_scale if options.guidance_scale is None else options.guidance_scale
        self._guided = scale > 1
        self._call = {"prompt": cells.PROMPT, "steps": self.steps, "guidance_scale": scale, "seed": 0}

    def part(self, name: str, make: Callable[[], Any], **own: Any) -> Any:
        """As `Parts` has it, under the model's name."""
        return self._parts(f"{self.name}-{name}", make, **own)

    def probe_ms(self) -> float | None:
        """A first picture on the first GPU, sequential; for the estimate."""
        found = self.part("probe", self._probed)
        return None if found is None else float(found)

    def _probed(self) -> float:
        with dt.Pipeline.load(self._path, devices=["cuda:0"]) as pipe:
            pipe.warm_up()
            twice = [cells.make(pipe, cells.Cell("sequential", 1), self._call) for _ in range(2)]
        return float(min(one.total_ms for one in twice))

    def estimate_ms(self, probe_ms: float, counts: Sequence[int]) -> dict[str, float]:
        """About what the parts of `run` will take, loading and figures aside, from what one picture took."""
        once = 0.0
        for count in counts:
            for one in cells.cells([count], guided=self._guided):
                rounds: float = 1.0 if one.mode == "sequential" else 1.3 / one.lanes + 1 / float(self.steps)
                once += (_SPLIT if one.split else 1.0) * min(1.0, rounds) * probe_ms
        times = 1 + self._options.iterations  # the first warms up
        found = {"pictures": once * times, "driffusion-trt bench": once * times}  # of the same modes
        if self._checkpoint is not None:
            found["diffusers"] = 2 * (_TORCH_SLOWER * probe_ms * (1 + times) + 1e3 * _TORCH_LOADS_S)
        return found

    def run(self, gpus: Sequence[Gpu], counts: Sequence[int], links: list[dict[str, Any]]) -> dict[str, Any]:
        """Everything that is there of it in the end."""
        source = f"{gpus[0].name}, {self.name}, measured by bench.gpu"
        measure = lambda: gpu_figures.figures(self._path, self._call, links, source).to_json()  # noqa: E731
        stored = self.part("figures", measure, links=links)
        machine = None if stored is None else Machine.from_json(stored)
        made = {
            str(n): self.part(f"pictures-{n}", partial(self._pictures, n, machine), figures=stored)
            for n in counts
        }
        return {
            "steps": self.steps,
            "guidance_scale": self._call["guidance_scale"],
            "model_hash": self.folder.model_hash,
            "figures": stored,
            "pictures": {count: value for count, value in made.items() if value is not None},
            "bench": {str(n): found for n in counts if (found := self._command(n)) is not None},
            "diffusers": {kind: one for kind in ("eager", "compiled") if (one := self._diffusers(kind))},
        }

    def _pictures(self, count: int, machine: Machine | None) -> dict[str, Any]:
        """Every mode on so many GPUs, in turns, in one process."""
        devices = range(count)
        before = gpu_figures.used_bytes(devices)
        asked = cells.cells([count], guided=self._guided)
        with dt.Pipeline.load(self._path, devices=[f"cuda:{k}" for k in devices]) as pipe:
            pipe.warm_up()
            for cell in asked:
                cells.make(pipe, cell, self._call)
            took: dict[cells.Cell, list[cells.Took]] = {cell: [] for cell in asked}
            for repeat in range(self._options.iterations):
                turn = repeat % len(asked)
                for cell in (*asked[turn:], *asked[:turn]):
                    took[cell].append(cells.make(pipe, cell, {**self._call, "seed": repeat}))
            after = gpu_figures.used_bytes(devices)
            without_graphs: dict[str, str] = pipe._stages.lanes.without_graphs
            given = machine or Machine((1.0,))
            foreseen = {cell: cells.foresee(given, pipe, cell, self._call) for cell in asked}
        rows = list(cells.compared(foreseen, took))
        for row, cell in zip(rows, asked, strict=True):
            row["drift"] = report.spread(_drift(took[asked[0]], took[cell]))
            if machine is None:  # nothing to foresee it from
                for name in (*(name for name in row if name.startswith("predicted")), "terms_ms"):
                    row[name] = None
                row["rounds"]["expected"] = row["predicted_over_measured"] = None
                continue
            row["predicted_over_measured"] = report.spread(
                [row["predicted_ms"] / one.total_ms for one in took[cell]]
            )
        return {
            "rows": rows,
            "memory_bytes": {name: after[name] - before[name] for name in after},
            "without_graphs": without_graphs,
        }

    def _command(self, count: int) -> Any:
        """`driffusion-trt bench` of the same, with its table, CSV and plot in the folder."""
        name = f"bench-{count}"
        return self.part(name, partial(self._benched, self._options.out / f"{self.name}-{name}", count))

    def _benched(self, stem: Path, count: int) -> Any:
        modes = ["sequential", *(cells.MODES if count > 1 else ())]
        if self._guided and count == 2:
            modes.append("split")
        elif self._guided and count % 2 == 0:
            modes += [f"{mode}:split=yes:lanes={count // 2}" for mode in cells.MODES]
        words = ["bench", "--model", self._path, "--devices", ",".join(f"cuda:{k}" for k in range(count))]
        words += ["--modes", ",".join(modes), "--lanes", str(count), "--steps", str(self.steps)]
        words += ["--guidance-scale", str(self._call["guidance_scale"])]
        words += ["--no-memory"]  # `pictures` has it; here every mode would load the engines anew
        words += ["--iterations", str(self._options.iterations), "--json", f"{stem}.json"]
        words += ["--csv", f"{stem}.csv", "--trace", f"{stem}.trace.json"]
        if importlib.util.find_spec("matplotlib") is not None:
            words += ["--plot", f"{stem}.svg"]
        if (status := command(words)) == _INTERRUPTED:
            raise KeyboardInterrupt
        if status:
            raise dt.InputError(f"driffusion-trt {' '.join(words)} ended with {status}")
        return json.loads(Path(f"{stem}.json").read_text("utf-8"))

    def _diffusers(self, kind: str) -> dict[str, Any] | None:
        name = f"diffusers-{kind}"
        if any(line.startswith(f"{self.name}-diffusers-eager: ") for line in self._parts.left_out):
            return None  # for the same reason
        if self._checkpoint is None:
            self._parts.skip(f"{self.name}-{name}", "no checkpoint of this model; name it with --checkpoints")
            return None
        found: dict[str, Any] | None = self.part(
            name, partial(self._in_torch, kind), checkpoint=self._checkpoint
        )
        return found

    def _in_torch(self, kind: str) -> dict[str, Any]:
        words = [sys.executable, "-m", "bench.gpu_diffusers", str(self._checkpoint)]
        words += ["--steps", str(self.steps), "--iterations", str(self._options.iterations)]
        words += ["--guidance-scale", str(self._call["guidance_scale"])]
        words += ["--size", str(self.folder.shape("picture")[1]), *(["--compile"] * (kind == "compiled"))]
        try:
            done = subprocess.run(words, capture_output=True, text=True, timeout=_TORCH_S)
        except subprocess.TimeoutExpired as error:
            raise dt.EngineError(f"diffusers took more than {_TORCH_S} s") from error
        lines = done.stdout.splitlines()
        if done.returncode or not lines:
            last = (done.stderr.strip().splitlines() or ["nothing was said"])[-1]
            raise dt.EngineError(f"diffusers ended with {done.returncode}: {last}")
        found: dict[str, Any] = json.loads(lines[-1])
        if "left_out" in found:
            raise dt.EngineError(str(found["left_out"]))
        return found


def _drift(exact: Sequence[cells.Took], other: Sequence[cells.Took]) -> list[float]:
    """Relative L2 of the latents from the sequential ones, seed by seed."""
    return [relative_l2(b.latents, a.latents) for a, b in zip(exact, other, strict=True)]
