"""Reduced checkpoints of every family, written once, and exports that run in this process.

In use an export runs in a process of its own, which loads torch for ten seconds; here torch is loaded
already, and warnings are errors. `tests/export/test_build.py` has the tests with real processes.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import reduced

from driffusion_trt.export import build, worker

Checkpoints = Callable[[str], Path]

# torch writes a trace of every export to whoever listens, which here would be pytest: half of the time.
logging.getLogger("torch.__trace").propagate = False


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Checkpoints:
    """A reduced checkpoint of a family; not to be changed."""
    made: dict[str, Path] = {}

    def make(family: str) -> Path:
        if family not in made:
            made[family] = reduced.save_checkpoint(family, tmp_path_factory.mktemp("checkpoint") / family)
        return made[family]

    return make


@pytest.fixture
def copy_of(checkpoints: Checkpoints, tmp_path: Path) -> Checkpoints:
    """A copy of a reduced checkpoint, to be spoilt."""

    def copy(family: str) -> Path:
        return Path(shutil.copytree(checkpoints(family), tmp_path / f"copy-of-{family}"))

    return copy


def run_here(work: str, orders: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """What a child does, in this process."""
    reports: list[dict[str, Any]] = []
    getattr(worker, work)(**orders, report=lambda **facts: reports.append(facts))
    yield from reports


@pytest.fixture(scope="module")
def here() -> Iterator[None]:
    """The exports of the module that asks for it run in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "_child", run_here)
        yield
