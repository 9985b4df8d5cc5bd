"""Checkpoints by the id of a hub: only what is needed, from the cache where the hub cannot be reached."""

from __future__ import annotations

import fnmatch
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from driffusion_trt import InputError, ModelError
from driffusion_trt.export.checkpoint import read_checkpoint
from driffusion_trt.export.hub import find_checkpoint
from driffusion_trt.models import get_spec

SDXL = get_spec("sdxl")
WEIGHTS = "diffusion_pytorch_model"


class Hub:
    """A hub with one model: what `snapshot_download` gives for its patterns, and what was asked."""

    def __init__(self, source: Path, cache: Path) -> None:
        self.source, self.cache = source, cache

    def __call__(self, name: str, *, allow_patterns: Sequence[str], **more: Any) -> str:
        assert name == "someone/sdxl-tuned"
        for path in self.source.rglob("*"):
            relative = path.relative_to(self.source).as_posix()
            if path.is_file() and any(fnmatch.fnmatch(relative, pattern) for pattern in allow_patterns):
                (self.cache / relative).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, self.cache / relative)
        return str(self.cache)

    @property
    def got(self) -> set[str]:
        return {p.relative_to(self.cache).as_posix() for p in self.cache.rglob("*") if p.is_file()}


@pytest.fixture
def hub(copy_of: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """It has full weights, half ones for two parts, and pickles of everything, as hubs do."""
    source = copy_of("sdxl")
    for weights in [*source.rglob("*.safetensors")]:
        shutil.copy(weights, weights.with_suffix(".bin"))
    for part, stem in (("unet", WEIGHTS), ("vae", WEIGHTS), ("text_encoder", "model")):
        shutil.copy(source / part / f"{stem}.safetensors", source / part / f"{stem}.fp16.safetensors")
    (source / "unet" / "model.onnx").write_bytes(b"large")
    hub = Hub(source, tmp_path / "cache")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", hub)
    return hub


def test_half_weights_are_taken_for_fp16_where_there_are_some(hub: Hub) -> None:
    folder = find_checkpoint("someone/sdxl-tuned", SDXL, precision="fp16")
    weights = {name for name in hub.got if not name.endswith((".json", ".txt"))}
    assert weights == {
        f"unet/{WEIGHTS}.fp16.safetensors",
        f"vae/{WEIGHTS}.fp16.safetensors",
        "text_encoder/model.fp16.safetensors",
        "text_encoder_2/model.safetensors",
    }
    assert read_checkpoint(folder, SDXL).components["unet"].variant == "fp16"


def test_full_weights_are_taken_for_fp32(hub: Hub) -> None:
    folder = find_checkpoint("someone/sdxl-tuned", SDXL, precision="fp32")
    assert not any("fp16" in name or name.endswith((".bin", ".onnx")) for name in hub.got)
    assert {part.variant for part in read_checkpoint(folder, SDXL).components.values()} == {None}


def test_pickles_come_only_when_they_are_allowed(hub: Hub) -> None:
    for weights in [*(hub.source / "unet").glob("*.safetensors")]:
        weights.unlink()
    with pytest.raises(ModelError, match="no weights"):
        read_checkpoint(find_checkpoint("someone/sdxl-tuned", SDXL), SDXL)
    assert not any(name.endswith(".bin") for name in hub.got)
    folder = find_checkpoint("someone/sdxl-tuned", SDXL, allow_pickle=True)
    assert [name for name in hub.got if name.endswith(".bin")] == [f"unet/{WEIGHTS}.bin"]
    assert read_checkpoint(folder, SDXL, allow_pickle=True).components["unet"].pickled


def test_shards(hub: Hub) -> None:
    unet = hub.source / "unet"
    for form in ("-00001-of-00002", "-00002-of-00002"):
        shutil.copy(unet / f"{WEIGHTS}.safetensors", unet / f"{WEIGHTS}{form}.safetensors")
    (unet / f"{WEIGHTS}.safetensors").unlink()
    (unet / f"{WEIGHTS}.fp16.safetensors").unlink()
    files = {"a": f"{WEIGHTS}-00001-of-00002.safetensors", "b": f"{WEIGHTS}-00002-of-00002.safetensors"}
    (unet / f"{WEIGHTS}.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    folder = find_checkpoint("someone/sdxl-tuned", SDXL)
    assert len(read_checkpoint(folder, SDXL).components["unet"].weights) == 2


def test_offline_and_not_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the hub's own package, which the suite keeps off the network."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match="'someone/nothing' is no folder, and cannot be had from the hub"):
        find_checkpoint("someone/nothing", SDXL)


def test_a_folder_that_was_mistyped_is_no_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    for name in ("models/sdlx", "sdxl", "./models/x", "/nowhere/sdxl", "a/b/c"):
        with pytest.raises(InputError, match=f"there is no folder '{name}'; .* or a hub id such as 'stabil"):
            find_checkpoint(name, SDXL)
    assert find_checkpoint("models", SDXL) == Path("models")
