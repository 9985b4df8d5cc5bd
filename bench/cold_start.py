"""From the start of a process to a picture on disk: the demo here against the same networks in diffusers.

`python -m bench.cold_start` starts every rival anew, interleaved, and reports medians and quartiles of
start-up (interpreter and imports), loading, sampling with the decoder, and of the whole. diffusers' networks
have the demo's architecture and random weights, saved as a checkpoint is.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from rich.progress import track

from . import report

STAGES = ("start-up", "loading", "sampling", "total")
RIVALS: dict[str, tuple[str, ...]] = {
    "driffusion-trt, aggressive on 2 lanes": ("driffusion", "--mode", "aggressive"),
    "driffusion-trt, sequential": ("driffusion", "--mode", "sequential"),
    "diffusers, 2 threads": ("diffusers",),
}


def save_for_diffusers(folder: Path) -> None:
    """The demo's architecture as a checkpoint that diffusers loads."""
    import torch
    from diffusers import StableDiffusionPipeline
    from transformers import PreTrainedTokenizerFast

    from driffusion_trt.export.demo import networks

    torch.manual_seed(0)
    tokenizer = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=networks.make_tokenizer(),
        model_max_length=networks.TEXT_LENGTH,
        pad_token=networks.SPECIAL[0],
    )
    pipe = StableDiffusionPipeline(
        vae=networks.make_vae(),
        text_encoder=networks.make_text_encoder(len(tokenizer)),
        tokenizer=tokenizer,
        unet=networks.make_unet(),
        scheduler=networks.make_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.save_pretrained(folder)


def picture(words: Sequence[str], folder: str, out: Path) -> dict[str, float]:
    """One process; what `one_picture` prints."""
    begun = time.time()
    who, *more = words
    done = subprocess.run(
        [sys.executable, "-m", "bench.one_picture", who, folder, str(out), *more],
        capture_output=True,
        text=True,
        # torch's idle threads must not spin on the cores of those that work
        env={"OMP_WAIT_POLICY": "passive", **os.environ, "BENCH_START": repr(begun)},
    )
    if done.returncode:
        sys.exit(f"bench.one_picture {' '.join(words)} failed:\n{done.stderr}")
    marks: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return marks


def stages(marks: dict[str, float]) -> dict[str, float]:
    """Seconds of each stage from the marks of one process."""
    return {
        "start-up": marks["imported"],
        "loading": marks["loaded"] - marks["imported"],
        "sampling": marks["made"] - marks["loaded"],
        "total": marks["written"],
    }


def measure(repeats: int, steps: int) -> dict[str, dict[str, dict[str, float]]]:
    found: dict[str, list[dict[str, float]]] = {name: [] for name in RIVALS}
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work) / "checkpoint"
        save_for_diffusers(folder)
        names = list(RIVALS)
        for repeat in track(range(-1, repeats), "Measuring"):
            at = repeat % len(names)
            for name in names[at:] + names[:at]:
                who = RIVALS[name]
                model = "demo" if who[0] == "driffusion" else str(folder)
                marks = picture((*who, "--steps", str(steps)), model, Path(work) / "out.png")
                if repeat >= 0:  # the first of each brings its files into memory
                    found[name].append(stages(marks))
    return {
        name: {stage: report.spread([one[stage] for one in runs]) for stage in STAGES}
        for name, runs in found.items()
    }


def rows(measured: dict[str, dict[str, dict[str, float]]]) -> list[list[str]]:
    return [
        [
            name,
            *(f"{s[stage]['median']:.2f} ({s[stage]['low']:.2f}–{s[stage]['high']:.2f})" for stage in STAGES),
        ]
        for name, s in measured.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--no-write", action="store_true")
    options = parser.parse_args()
    measured = measure(options.repeats, options.steps)
    print(report.table(["seconds", *STAGES], rows(measured)))
    if not options.no_write:
        result = {"repeats": options.repeats, "steps": options.steps, "seconds": measured}
        path = report.write(
            "cold_start", result, ("numpy", "onnxruntime", "torch", "diffusers", "transformers")
        )
        print(f"written to {path}")


if __name__ == "__main__":
    main()
