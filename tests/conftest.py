"""Settings for the whole suite, made before any test module imports numpy or torch."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from hypothesis.internal.conjecture import providers
from shared import Shared

ROOT = Path(__file__).resolve().parent.parent

# One thread everywhere: bits and timings then do not depend on the cores of the machine.
for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[variable] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # some test modules import ONNX Runtime before the package
# What a program keeps on this machine is another one's for the tests, and for the processes they start.
os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="driffusion-cache-")
atexit.register(shutil.rmtree, os.environ["XDG_CACHE_HOME"], ignore_errors=True)
# No test may reach a model hub: what it needs is in the tree, or is made with random weights.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"
# Processes that tests start import the sources of this tree too, whatever their working folder is.
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))

# The same examples on every run, and none refused for being slow on a busy machine.
hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None, print_blob=True)
hypothesis.settings.load_profile("repeatable")
# It also draws numbers that it finds in modules of ours: in those that happen to be loaded by then, which
# depends on the tests that ran before in this process.
providers._get_local_constants = lambda: providers._local_constants


# Begun first, so that the processes of a run end at about the same time: `make test` hands out whole files in
# this order. The second one exports the families that others wait for.
LONG = (
    *("test_build_killed", "test_start_from_image", "test_gpu_mutations", "test_loops", "test_gpu_faults"),
    *("test_demo_to_onnx", "test_gpu_lanes", "test_families", "test_equal_to_diffusers", "test_gpu_families"),
    *("test_images", "test_parity", "test_heldout", "test_starting", "test_schedule", "test_lora"),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sort them so; what is not named keeps its order."""
    items.sort(key=lambda item: LONG.index(item.path.stem) if item.path.stem in LONG else len(LONG))


@pytest.fixture(scope="session")
def root() -> Path:
    """The top folder of the sources."""
    return ROOT


@pytest.fixture(scope="session")
def shared_folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shared]:
    """Folders that are made once for all processes of a run; not to be changed."""
    folders = Shared(tmp_path_factory)
    yield folders
    assert folders.changed() == []


@pytest.fixture(scope="session")
def kernels_library(root: Path, shared_folders: Shared) -> Path:
    """The kernels' host build, made by the project's own CMake."""
    if shutil.which("c++") is None or shutil.which("cmake") is None:
        pytest.skip("the kernels' host build needs CMake and a C++ compiler")
    import gpulanes

    folder = shared_folders("kernels", partial(gpulanes.build_kernels, root))
    return gpulanes.kernels_in(folder)


@pytest.fixture(scope="session")
def checkpoints(shared_folders: Shared) -> Callable[[str], Path]:
    """A reduced checkpoint of a family; not to be changed."""
    import reduced  # loads torch

    return lambda family: shared_folders(f"checkpoint-{family}", partial(reduced.save_checkpoint, family))


@pytest.fixture(scope="session")
def families(shared_folders: Shared, checkpoints: Callable[[str], Path]) -> Callable[[str], Path]:
    """For a family a folder with a reduced `checkpoint` and its `model` in float32; not to be changed."""
    import reduced

    def make(family: str, folder: Path) -> None:
        folder.mkdir()
        (folder / "checkpoint").symlink_to(checkpoints(family))
        reduced.model_folder(family, folder / "checkpoint", folder / "model")

    return lambda family: shared_folders(f"family-{family}", partial(make, family))


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
