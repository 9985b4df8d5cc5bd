"""What the tests on real GPUs share: the flavour, the GPUs, and a reduced model that was built for them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from driffusion_trt.cli import main
from driffusion_trt.engines.flavours import Flavour, get_flavour
from driffusion_trt.engines.gpus import Gpu, find_gpus


@pytest.fixture(scope="session")
def flavour() -> Flavour:
    return get_flavour(os.environ.get("DRIFFUSION_FLAVOUR", "tensorrt"))


@pytest.fixture(scope="session", autouse=True)
def gpus() -> tuple[Gpu, ...]:
    found = find_gpus()
    if not found.found:
        pytest.exit(f"these tests need a GPU, and none was found: {found.why_none}", returncode=1)
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


# What needs more than GPUs to be shown, whatever they are.
_NEVER = (
    "a GPU or a link that fails or hangs (simulated only: tests/runtime/test_gpu_faults.py)",
    "races: a real driver has no detector (simulated only: tests/runtime/test_gpu_mutations.py)",
    "pictures of trained SD2.1, SDXL and SD3 networks: the networks here are small and random",
    "speed",
)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """What was not shown, beside what was."""
    skipped: dict[str, list[str]] = {}
    for report in terminalreporter.stats.get("skipped", []):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        skipped.setdefault(reason.removeprefix("Skipped: "), []).append(report.nodeid.split("::")[-1])
    terminalreporter.section("not shown on this machine")
    for reason, names in skipped.items():
        terminalreporter.write_line(f"{reason}: {', '.join(names)}")
    for text in _NEVER:
        terminalreporter.write_line(text)
