"""Settings for the whole suite, made before any test module imports numpy or torch."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest

ROOT = Path(__file__).resolve().parent.parent

# One thread everywhere: bits and timings then do not depend on the cores of the machine.
for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[variable] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
# What a program keeps on this machine is another one's for the tests, and for the processes they start.
os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="driffusion-cache-")
# No test may reach a model hub: what it needs is in the tree, or is made with random weights.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"
# Processes that tests start import the sources of this tree too, whatever their working folder is.
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))

# The same examples on every run, and none refused for being slow on a busy machine.
hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None, print_blob=True)
hypothesis.settings.load_profile("repeatable")


@pytest.fixture(scope="session")
def root() -> Path:
    """The top folder of the sources."""
    return ROOT


@pytest.fixture(scope="session")
def families(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """For a family a folder with a reduced `checkpoint` and its `model` in float32; not to be changed."""
    import reduced  # loads torch

    root = tmp_path_factory.mktemp("families")

    def make(family: str) -> Path:
        folder = root / family
        if not (folder / "model" / "manifest.json").exists():
            checkpoint = reduced.save_checkpoint(family, folder / "checkpoint")
            reduced.model_folder(family, checkpoint, folder / "model")
        return folder

    return make


@pytest.fixture(scope="session")
def both(families: Callable[[str], Path]) -> Iterator[Callable[[str], Any]]:
    """A family's pipeline here, and diffusers', from one reduced checkpoint."""
    import parity  # brings torch

    made: dict[str, parity.Made] = {}

    def make(family: str) -> parity.Made:
        if family not in made:
            made[family] = parity.load(families(family))
        return made[family]

    yield make
    for one in made.values():
        one.ours.close()
