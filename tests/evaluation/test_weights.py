"""Where weights are looked for, and what is said where they are not; nothing here reaches a network."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import scorers
import torch

from driffusion_trt import InputError, MissingExtraError, ModelError
from driffusion_trt.evaluation import weights
from driffusion_trt.evaluation.captions import prompts_of_file
from driffusion_trt.evaluation.clip import ClipScore
from driffusion_trt.evaluation.metrics import Places, prepared


@pytest.fixture(autouse=True)
def empty_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The caches of the hub and of torch are empty, and torch fetches nothing."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))

    def refuse(url: str, *_args: object, **_more: object) -> None:
        raise URLError(f"no route to {url.split('/')[2]}")

    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    return tmp_path


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    return scorers.save_clip(tmp_path / "clip")


def test_a_clip_folder_with_all_that_matters(clip: Path) -> None:
    folder, beside, files = weights.clip_folder(str(clip), weights.CLIP, "--clip")
    assert folder == beside == clip
    names = {"config.json", "preprocessor_config.json", "tokenizer.json", "tokenizer_config.json"}
    assert {"model.safetensors", *names} <= {file.name for file in files}
    before = weights.key_of(*files)
    assert before != weights.key_of(*reversed(files))
    for name in sorted(names):
        (clip / name).write_text((clip / name).read_text() + " ")
        after = weights.key_of(*weights.clip_folder(str(clip), weights.CLIP, "--clip")[-1])
        assert after != before, f"another {name} is another metric"
        before = after
    (clip / "special_tokens_map.json").write_text("{}")
    assert weights.key_of(*weights.clip_folder(str(clip), weights.CLIP, "--clip")[-1]) != before


def test_pickscore_takes_its_processor_and_tokenizer_from_what_it_was_tuned_from(
    clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bare, asked = tmp_path / "bare", []
    bare.mkdir()
    for name in ("config.json", "model.safetensors"):
        (bare / name).write_bytes((clip / name).read_bytes())

    def fetch(name: str, *, allow_patterns: list[str]) -> str:
        asked.append(name)
        assert name == weights.PICKSCORE or "model.safetensors" not in allow_patterns
        return str({weights.PICKSCORE: bare, weights.VIT_H: clip}[name])

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    (metric,) = prepared(["pickscore"], prompts_of_file("p", ["red"]), Places(device="cpu"))
    assert asked == [weights.PICKSCORE, "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"]
    pictures = scorers.pictures(2, 30, 40)
    whole = ClipScore(clip, clip, "cpu", preference=True)
    assert np.array_equal(metric.load()(pictures, ["red", "a"], 0), whole(pictures, ["red", "a"], 0))
    with pytest.raises(InputError, match=r"--clip: .*bare has no preprocessor_config\.json, tokenizer\.json"):
        weights.clip_folder(str(bare), weights.CLIP, "--clip")


@pytest.mark.parametrize(
    "name", ["config.json", "preprocessor_config.json", "model.safetensors", "tokenizer.json"]
)
def test_a_folder_that_lacks_something_is_refused(clip: Path, name: str) -> None:
    (clip / name).unlink()
    with pytest.raises(InputError, match=f"--clip: .*clip has no .*{name}"):
        weights.clip_folder(str(clip), weights.CLIP, "--clip")


def test_weights_in_parts_and_old_tokenizers_are_found(clip: Path) -> None:
    (clip / "model.safetensors").rename(clip / "model-00001-of-00001.safetensors")
    (clip / "model.safetensors.index.json").write_text("{}")
    (clip / "tokenizer.json").unlink()
    for name in ("vocab.json", "merges.txt"):
        (clip / name).write_text("")
    *_, files = weights.clip_folder(str(clip), weights.CLIP, "--clip")
    names = {file.name for file in files}
    assert {"model-00001-of-00001.safetensors", "vocab.json", "merges.txt"} <= names


def test_a_mistyped_folder_is_no_hub_id(tmp_path: Path) -> None:
    for name in ("nowhere", str(tmp_path / "nowhere"), "./a/b"):
        with pytest.raises(InputError, match="there is no such folder; give one, or a hub id"):
            weights.clip_folder(name, weights.CLIP, "--clip")


@pytest.mark.parametrize(
    ("look", "message"),
    [
        (
            lambda: weights.clip_folder(None, weights.PICKSCORE, "--pickscore"),
            r"yuvalkirstain/PickScore_v1 is not in the hub's cache \(.*hub\).*hf download .*by --pickscore",
        ),
        (lambda: weights.hps_files(None, "--hpsv2"), r"xswu/HPSv2 is not in the hub's cache.*by --hpsv2"),
        (
            lambda: weights.inception_file(None, "--inception"),
            r"pt_inception-2015-12-05-6726825d\.pth or weights-.*is not in .*torch/hub/checkpoints.*no route",
        ),
    ],
    ids=["pickscore", "hpsv2", "inception"],
)
def test_weights_that_are_nowhere(look: Callable[[], object], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        look()


def test_paths_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--hpsv2: there is no .*HPS_v2\.1_compressed\.pt"):
        weights.hps_files(str(tmp_path), "--hpsv2")
    with pytest.raises(InputError, match=r"--inception: there is no file .*x; pt_inception.*github"):
        weights.inception_file(str(tmp_path / "x"), "--inception")


def test_a_checkpoint_of_hps_needs_a_tokenizer(tmp_path: Path) -> None:
    path = tmp_path / weights.HPS_FILE
    path.write_bytes(b"")
    with pytest.raises(ModelError, match="laion/CLIP-ViT-H-14-laion2B-s32B-b79K is not in the hub's cache"):
        weights.hps_files(str(path), "--hpsv2")
    scorers.tokenizer().save_pretrained(tmp_path)
    for given in (path, tmp_path):
        found, folder, files = weights.hps_files(str(given), "--hpsv2")
        assert (found, folder) == (path, tmp_path)
        assert [file.name for file in files] == [path.name, "tokenizer.json", "tokenizer_config.json"]


@pytest.mark.parametrize(
    "name", ["pt_inception-2015-12-05-6726825d.pth", "weights-inception-2015-12-05-6726825d.pth"]
)
def test_inception_is_found_in_torchs_cache_under_both_names(empty_caches: Path, name: str) -> None:
    path = empty_caches / "torch" / "hub" / "checkpoints" / name
    path.parent.mkdir(parents=True)
    path.write_bytes(b"weights")
    assert weights.inception_file(None, "--inception") == path
    assert weights.key_of(path) == hashlib.sha256(b"weights").hexdigest()


def test_a_package_that_is_missing_is_named_with_its_extra() -> None:
    weights.need("json", "numpy")
    with pytest.raises(MissingExtraError, match=r"no_such_package is needed .*'\.\[eval\]'"):
        weights.need("json", "no_such_package")


def test_safetensors_come_first_from_the_hub(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that is there in the older form alone is fetched in it."""
    asked: list[tuple[str, list[str]]] = []

    def fetch(name: str, *, allow_patterns: list[str]) -> str:
        asked.append((name, allow_patterns))
        if "pytorch_model.bin" in allow_patterns:
            (clip / "pytorch_model.bin").write_bytes(b"weights")
        return str(clip)

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    weights.clip_folder(None, weights.CLIP, "--clip")
    (name, patterns), *rest = asked
    assert (name, rest) == (weights.CLIP, [])
    assert "model.safetensors" in patterns and not [one for one in patterns if one.endswith(".bin")]
    (clip / "model.safetensors").unlink()
    *_, files = weights.clip_folder("someone/else", weights.CLIP, "--clip")
    assert [name for name, _ in asked[1:]] == ["someone/else"] * 2
    assert "pytorch_model.bin" in asked[2][1] and files[0] == clip / "pytorch_model.bin"
