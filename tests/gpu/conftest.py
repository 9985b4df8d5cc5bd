"""What the tests on real GPUs share: the flavour, the GPUs, and a reduced model that was built for them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from driffusion_trt.cli import main
from driffusion_trt.engines.flavours import Flavour, get_flavour
from driffusion_trt.engines.gpus import Gpu, find_gpus


@pytest.fixture(scope="session")
def flavour() -> Flavour:
    return get_flavour(os.environ.get("DRIFFUSION_FLAVOUR", "tensorrt"))


@pytest.fixture(scope="session")
def gpus() -> tuple[Gpu, ...]:
    found = find_gpus()
    assert found.found, found.why_none
    return found.found


@pytest.fixture(scope="session")
def gpu(gpus: tuple[Gpu, ...]) -> Gpu:
    return gpus[0]


@pytest.fixture(scope="session")
def reduced_model(tmp_path_factory: pytest.TempPathFactory, flavour: Flavour) -> Path:
    """A reduced SD2.1, exported and built for these GPUs; the build compares each plan with ONNX Runtime.

    Its plans take batches of up to 4 pictures with guidance, which lanes > devices needs.
    """
    from reduced import save_checkpoint

    folder = tmp_path_factory.mktemp("models")
    save_checkpoint("sd21", folder / "checkpoint")
    words = ["--model", "sd21", "--checkpoint", str(folder / "checkpoint"), "--output", str(folder / "model")]
    assert main(["build", *words, "--target", "this", "--flavour", flavour.name, "--batch-size", "4"]) == 0
    return folder / "model"
