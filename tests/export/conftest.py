"""Copies of reduced checkpoints, and exports that run in this process.

In use an export runs in a process of its own, which loads torch for ten seconds; here torch is loaded
already, and warnings are errors. `tests/export/test_build.py` has the tests with real processes.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import reduced

from driffusion_trt.export import build

Checkpoints = Callable[[str], Path]


@pytest.fixture
def copy_of(checkpoints: Checkpoints, tmp_path: Path) -> Checkpoints:
    """A copy of a reduced checkpoint, to be spoilt."""

    def copy(family: str) -> Path:
        return Path(shutil.copytree(checkpoints(family), tmp_path / f"copy-of-{family}"))

    return copy


@pytest.fixture(scope="module")
def here() -> Iterator[None]:
    """The exports of the module that asks for it run in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "_child", reduced.run_here)
        yield
