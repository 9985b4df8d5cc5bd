"""All that a machine with GPUs can show of this package's speed, in one command: `make bench-gpu`.

    python -m bench.gpu [MODEL ...] [--checkpoints FOLDER ...] [--steps N] [--iterations N] [--minutes N]

For every model, a folder with plans for these GPUs or a bundled name (which is built first): the engine
alone by CUDA events, the host's time for a round, copies between all pairs. Then pictures of every mode and
of split guidance on 1 to N GPUs, interleaved, with their distance from the sequential ones and the memory in
use; then diffusers in torch on one GPU. From the figures the performance model foresees every picture, beside
what it took.

Everything lands in a folder, part by part: the same command goes on where it was stopped. What this machine
cannot show is said in a line each, and left out. `MODEL.machine.json` there is for `plan --costs`.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import Any

import driffusion_trt as dt
from driffusion_trt._machine import circumstances, commit
from driffusion_trt.cli import main as command
from driffusion_trt.engines.gpus import find_gpus
from driffusion_trt.engines.manifest import BUNDLED, ModelFolder

from . import cells, gpu_figures, report
from .gpu_model import Model, name_of
from .parts import Parts

_MODELS_HELP = f"folders with plans, or bundled models (default: {', '.join(BUNDLED)})"
PACKAGES = ("driffusion-trt", "cuda-bindings", "numpy", "tensorrt", "tensorrt-rtx", "torch", "diffusers")


def prepared(name: str, options: argparse.Namespace) -> str:
    """The folder of a model: a bundled one is built for these GPUs, by whatever of it is not there yet."""
    if name not in BUNDLED:
        return name
    folder = options.out / "models" / name
    words = ["build", "--model", name, "--output", str(folder), "--target", "this"]
    flavour = os.environ.get("DRIFFUSION_FLAVOUR")
    status = command([*words, *(["--flavour", flavour] if flavour else [])])
    if status == 130:
        raise KeyboardInterrupt
    if status:
        raise dt.ModelError("it could not be built for these GPUs; see above")
    return str(folder)


def check(options: argparse.Namespace) -> None:
    """Raises InputError or ModelError for what cannot be, before any work."""
    for name, least in (("iterations", 1), ("gpus", 1), ("steps", 1), ("minutes", 0)):
        value = getattr(options, name)
        if value is not None and value < least:
            raise dt.InputError(f"--{name} {value} was given; it must be at least {least}")
    if len(options.checkpoints) > len(options.models):
        raise dt.InputError(
            f"{len(options.checkpoints)} checkpoints for {len(options.models)} models were given"
        )
    names = [name_of(name) for name in options.models]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise dt.InputError(
            f"two models are called {twice[0]}, and so would be their results; rename a folder"
        )
    for name in options.models:
        ModelFolder.open(name)
    for checkpoint in options.checkpoints:
        if not (Path(checkpoint) / "model_index.json").is_file():
            raise dt.InputError(f"{checkpoint} is no diffusers folder: it has no model_index.json")


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measure everything that can be. Raises DeviceError where there is no GPU, and as `check` does."""
    check(options)
    gpus = find_gpus()
    if not gpus.found:
        raise dt.DeviceError(f"bench.gpu measures GPUs, and none was found: {gpus.why_none}")
    most = min(len(gpus.found), options.gpus or len(gpus.found))
    counts = list(range(1, most + 1))
    key = {"gpus": [str(gpu) for gpu in gpus.found[:most]], "cuda": gpus.cuda, "steps": options.steps}
    key |= {"iterations": options.iterations, "guidance_scale": options.guidance_scale}
    key |= {"commit": commit(Path(__file__).parent), "flavour": os.environ.get("DRIFFUSION_FLAVOUR")}
    key = json.loads(json.dumps(key))
    end = time.monotonic() + 60 * options.minutes
    names, where = ", ".join(map(name_of, options.models)), " and ".join(map(str, gpus.found[:most]))
    print(f"{names} on {where}; no part is begun after {options.minutes:g} minutes from now")
    print("bundled models are built first where they are not yet; a picture of each is timed for an estimate")
    general = Parts(options.out / "parts", key, options.minutes, end)
    if most == 1:
        general.skip("copies", "they need two GPUs, and there is one")
    models = _models(options, key, general, end)
    probes = {model.name: probe for model, _ in models if (probe := model.probe_ms()) is not None}
    _say_estimate(models, probes, counts, end)
    links = general("peers", partial(gpu_figures.peers, most)) or []
    made = {model.name: model.run(gpus.found, counts, links) for model, _ in models}
    left_out = [line for parts in (general, *(one for _, one in models)) for line in parts.left_out]
    return {**key, "peers": links, "models": made, "left_out": left_out}


def _models(
    options: argparse.Namespace, key: dict[str, Any], general: Parts, end: float
) -> list[tuple[Model, Parts]]:
    """Those that can be measured, built; all parts end at the same time."""
    models = []
    for name, checkpoint in zip_longest(options.models, options.checkpoints):
        if name in BUNDLED and general.over:
            general.skip(name, general.over)
            continue
        begun = time.monotonic()
        try:
            folder = prepared(name, options)
        except dt.DriffusionError as error:
            general.skip(name, str(error))
            continue
        if name in BUNDLED:
            print(f"{name}: built, or found so, in {(time.monotonic() - begun) / 60:.1f} minutes")
        own = key | {"model_hash": ModelFolder.open(folder).model_hash}
        parts = Parts(options.out / "parts", own, options.minutes, end)
        models.append((Model(folder, checkpoint, parts, options), parts))
    return models


def _say_estimate(
    models: Sequence[tuple[Model, Parts]], probes: dict[str, float], counts: list[int], end: float
) -> None:
    total: dict[str, float] = {}
    for model, _ in models:
        if model.name in probes:
            for what, ms in model.estimate_ms(probes[model.name], counts).items():
                total[what] = total.get(what, 0.0) + ms / 6e4
    shares = ", ".join(f"{what} {minutes:.1f}" for what, minutes in total.items()) or "no picture was timed"
    left = max(0.0, end - time.monotonic()) / 60
    print(
        f"estimate: {sum(total.values()):.1f} minutes ({shares}), besides loading and figures, for 1 to ",
        end="",
    )
    print(f"{counts[-1]} GPUs; no part is begun after {left:.1f} minutes from now")


def show(result: dict[str, Any], out: Path) -> None:
    """Tables on the terminal, and the figures of each model as a file of its own."""
    for name, model in result["models"].items():
        if model["figures"] is not None:
            path = out / f"{name}.machine.json"
            path.write_text(json.dumps(model["figures"], indent=1) + "\n")
            print(f"\n{name}: figures in {path}, for `driffusion-trt plan --costs`")
        for count, found in model["pictures"].items():
            where = f"{count} GPU{'s' * (count != '1')}"
            print(f"\n{name}, {where}, {model['steps']} steps, guidance {model['guidance_scale']:g}\n")
            print(
                cells.table(
                    found["rows"], {"predicted_over_measured": "predicted / measured", "drift": "drift"}
                )
            )
    print("\nleft out:" if result["left_out"] else "\nnothing was left out")
    for line in result["left_out"]:
        print(f"- {line}")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("models", nargs="*", metavar="MODEL", help=_MODELS_HELP)
    parser.add_argument("--checkpoints", nargs="*", default=[], help="diffusers folders of these models")
    parser.add_argument("--steps", type=int, default=None, help="default: the models' own")
    parser.add_argument("--guidance-scale", type=float, default=None, help="default: the models' own")
    parser.add_argument("--iterations", type=int, default=7)
    parser.add_argument("--gpus", type=int, default=None, help="so many at most (default: all)")
    parser.add_argument("--minutes", type=float, default=60.0, help="begin no part after so many")
    parser.add_argument("--out", type=Path, default=Path("runs/bench-gpu"))
    parser.add_argument("--write", action="store_true", help="also write bench/results/gpu.json")
    options = parser.parse_args(arguments)
    options.models = options.models or list(BUNDLED)
    try:
        result = run(options)
    except dt.DriffusionError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; what is done is kept, and the same command goes on from there", file=sys.stderr)
        return 130
    whole = {**circumstances(Path(__file__).parent, PACKAGES), **result}
    path = options.out / "bench-gpu.json"
    partial_path = path.with_suffix(".partial")
    partial_path.write_text(json.dumps(whole, indent=1) + "\n")
    os.replace(partial_path, path)
    show(result, options.out)
    print(f"written to {path}")
    if not any(model["figures"] or model["pictures"] for model in result["models"].values()):
        print("nothing was measured; see what was left out, above", file=sys.stderr)
        return 1
    if options.write:
        print(f"written to {report.write('gpu', result, PACKAGES)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
