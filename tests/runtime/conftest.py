"""What several tests of the runtime need."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def kernels_library(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The kernels' host build, made by the project's own CMake."""
    if shutil.which("c++") is None or shutil.which("cmake") is None:
        pytest.skip("the kernels' host build needs CMake and a C++ compiler")
    folder = tmp_path_factory.mktemp("kernels")
    options = ["-DDRIFFUSION_FATBIN=OFF", "-DDRIFFUSION_HOST=ON"]
    for command in (
        ["cmake", "-S", str(root), "-B", str(folder), *options],
        ["cmake", "--build", str(folder), "--target", "kernels_host"],
    ):
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "warning" not in done.stdout + done.stderr
    (path,) = folder.rglob("libdriffusion_kernels_host.so")
    return path
