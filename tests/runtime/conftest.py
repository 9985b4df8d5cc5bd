"""What several tests of the runtime need."""

from __future__ import annotations

import shutil
from pathlib import Path

import gpulanes
import pytest


@pytest.fixture(scope="session")
def kernels_library(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The kernels' host build, made by the project's own CMake."""
    if shutil.which("c++") is None or shutil.which("cmake") is None:
        pytest.skip("the kernels' host build needs CMake and a C++ compiler")
    return gpulanes.build_kernels(root, tmp_path_factory.mktemp("kernels"))
