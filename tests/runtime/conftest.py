"""What several tests of the runtime need."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
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
