"""Fixtures for tests on simulated devices: `pytest_plugins = ("cudasim.fixtures",)` in a test module."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ._build import MissingToolError, kernel_image
from ._simulator import Simulator
from .rig import Gpu, driver, ok


@pytest.fixture
def simulator() -> Iterator[Simulator]:
    """A machine with two devices; a test may configure another."""
    try:
        machine = Simulator(devices=2)
    except MissingToolError as error:
        pytest.skip(str(error))
    with machine:
        ok(driver.cuInit(0))
        yield machine


@pytest.fixture
def gpu(simulator: Simulator) -> Gpu:
    """The first device, its context current."""
    return Gpu(0)


@pytest.fixture
def gpus(simulator: Simulator) -> tuple[Gpu, Gpu]:
    """Two devices that may reach each other's memory; the first is current."""
    pair = Gpu(0), Gpu(1)
    for one, other in (pair, pair[::-1]):
        one.use()
        ok(driver.cuCtxEnablePeerAccess(other.context, 0))
    pair[0].use()
    return pair


@pytest.fixture
def gpu_machine(
    simulator: Simulator, kernels_library: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[Simulator]:
    """Two simulated GPUs, TensorRT's stand-in on them, and the kernels' host build."""
    import standin  # loads ONNX Runtime

    image = tmp_path / "kernels.image"
    image.write_bytes(kernel_image(kernels_library))
    monkeypatch.setenv("DRIFFUSION_KERNELS", str(image))
    for name in ("tensorrt", "tensorrt_rtx"):
        monkeypatch.setitem(sys.modules, name, standin)
    monkeypatch.setattr(standin, "on_stream", simulator.enqueue)
    yield simulator
    assert simulator.races() == [] and simulator.violations() == []
