"""What several tests of the runtime need."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gpulanes
import pytest
import standin


@pytest.fixture(scope="session")
def kernels_library(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The kernels' host build, made by the project's own CMake."""
    if shutil.which("c++") is None or shutil.which("cmake") is None:
        pytest.skip("the kernels' host build needs CMake and a C++ compiler")
    return gpulanes.build_kernels(root, tmp_path_factory.mktemp("kernels"))


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
