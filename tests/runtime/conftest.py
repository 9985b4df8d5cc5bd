"""What several tests of the runtime need."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import standin
import tiny

from driffusion_trt.engines.manifest import ModelFolder
from driffusion_trt.runtime.host import HostLanes


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    """A tiny model in the form of the demo; not to be changed."""
    return ModelFolder.open(tiny.make_model_folder(tmp_path_factory.mktemp("tiny") / "model"))


@pytest.fixture(scope="module")
def host(folder: ModelFolder) -> Iterator[HostLanes]:
    """One CPU lane over its denoiser."""
    with HostLanes(folder.network("denoiser"), 1) as lanes:
        yield lanes


@pytest.fixture
def gpu_machine(
    simulator: Any, kernels_library: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[Any]:
    """Two simulated GPUs, TensorRT's stand-in on them, and the kernels' host build."""
    import cudasim

    image = tmp_path / "kernels.image"
    image.write_bytes(cudasim.kernel_image(kernels_library))
    monkeypatch.setenv("DRIFFUSION_KERNELS", str(image))
    for name in ("tensorrt", "tensorrt_rtx"):
        monkeypatch.setitem(sys.modules, name, standin)
    monkeypatch.setattr(standin, "on_stream", simulator.enqueue)
    yield simulator
    assert simulator.races() == [] and simulator.violations() == []
