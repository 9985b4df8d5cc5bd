"""A whole build, from checkpoint to plans, killed at ten random moments. Minutes: `make test-slow`."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
import reduced

import driffusion_trt as dt
from driffusion_trt._manifest import MANIFEST
from driffusion_trt.engines.flavours import FLAVOURS, installed_version
from driffusion_trt.engines.gpus import Gpu
from driffusion_trt.engines.manifest import ModelFolder
from driffusion_trt.engines.plans import current_hashes
from driffusion_trt.engines.store import PlanStore

NETWORKS = ["denoiser", "text_encoder", "vae_decoder", "vae_encoder"]
ADA = Gpu(0, "NVIDIA GeForce RTX 4090", (8, 9), 24 << 30)


def start(checkpoint: Path, output: Path) -> subprocess.Popen[bytes]:
    words = ["--model", "sd21", "--checkpoint", str(checkpoint), "--output", str(output)]
    words += ["--precision", "fp32", "--target", "sm89", "--quiet"]
    return subprocess.Popen([sys.executable, "-m", "driffusion_trt", "build", *words])


def planned(folder: ModelFolder) -> list[str]:
    """Networks whose plan would be taken on a GPU; every one that is taken must be whole."""
    store, hashes = PlanStore(folder.path), current_hashes(folder)
    version = str(installed_version(FLAVOURS["tensorrt-rtx"]))
    taken = []
    for network in folder.networks:
        try:
            plan = store.choose(network, hashes[network], flavour="tensorrt-rtx", version=version, gpu=ADA)
        except dt.ModelError:
            continue
        store.open(plan).close()
        taken.append(network)
    return taken


def accepted(output: Path) -> list[str] | None:
    """None where `run` takes the folder for no model; else what has a plan. Nothing half-made is taken."""
    if not (output / MANIFEST).exists():
        with pytest.raises(dt.ModelError, match=r"not a model folder|no such folder"):
            dt.Pipeline.load(output)
        return None
    folder = ModelFolder.open(output, verify=True)
    assert sorted(folder.networks) == NETWORKS
    assert all(figure is not None and figure < 1e-5 for figure in folder.manifest.parity.values())
    dt.Pipeline.load(output, devices=1).close()
    return planned(folder)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_whole_build_killed_at_ten_random_moments(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    checkpoint = reduced.save_checkpoint("sd21", tmp_path / "checkpoint")
    whole, output = tmp_path / "whole", tmp_path / "model"
    began = time.monotonic()
    assert start(checkpoint, whole).wait() == 0
    seconds = time.monotonic() - began
    assert accepted(whole) == NETWORKS
    dice = random.Random(2603)
    killed, seen = 0, []
    while killed < 10:
        process = start(checkpoint, output)
        try:
            # A build goes on where it was: shorter waits spread the kills over all of it.
            process.wait(dice.uniform(0, seconds / 2))
        except subprocess.TimeoutExpired:
            process.kill()
            killed += 1
        process.wait()
        seen.append(accepted(output))
        if seen[-1] == NETWORKS:  # it came to its end: once more, from a folder that is there already
            touch = checkpoint / dice.choice(["unet", "vae", "text_encoder"]) / "config.json"
            touch.write_text(json.dumps(json.loads(touch.read_text()), indent=dice.randint(1, 8)))
    assert start(checkpoint, output).wait() == 0
    assert accepted(output) == NETWORKS
    assert not [path for path in output.rglob("*") if path.suffix == ".partial"]
    # The weights. Two builds of a plan are not always the same bytes: names of its inner layers have numbers.
    for path in whole.rglob("*.data"):
        assert (output / path.relative_to(whole)).read_bytes() == path.read_bytes(), path.name
