"""Model folders: written whole, checked at open, refused with what to do."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny

import driffusion_trt
from driffusion_trt import ModelError
from driffusion_trt.engines.manifest import ModelFolder, resolve_model, write_manifest


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny.make_model_folder(tmp_path / "model")


def change(folder: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    path = folder / "manifest.json"
    data = json.loads(path.read_text())
    edit(data)
    path.write_text(json.dumps(data))


def write(folder: Path) -> Path:
    return write_manifest(
        folder, family="demo", precision="float32", versions={}, shapes={"text": [16, 96]}, scaling_factor=0.5
    )


def test_what_was_written_is_read(folder: Path) -> None:
    model = ModelFolder.open(folder, verify=True)
    assert model.spec.family == "demo"
    assert model.manifest.shapes == {"picture": [3, 64, 64], "latents": [4, 16, 16], "text": [16, 96]}
    assert (model.manifest.scaling_factor, model.manifest.shift_factor) == (1.0, 0.0)
    assert model.networks == ("denoiser", "text_encoder", "vae_decoder")
    assert model.network("denoiser") == folder / "onnx" / "denoiser.onnx"
    assert model.tokenizer() == folder / "tokenizer" / "tokenizer.json"
    assert model.scheduler_config() == tiny.SCHEDULER


def test_every_file_is_listed_but_plans_and_leftovers(folder: Path) -> None:
    for name in ("plans/gpu/a.plan", ".cache/x", "onnx/half.partial", "onnx/denoiser.onnx.data"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")
    write(folder)
    assert set(ModelFolder.open(folder).manifest.files) == {
        "onnx/denoiser.onnx",
        "onnx/denoiser.onnx.data",
        "onnx/text_encoder.onnx",
        "onnx/vae_decoder.onnx",
        "scheduler/scheduler_config.json",
        "tokenizer/tokenizer.json",
    }


def test_second_tokenizers_have_their_own_folder(folder: Path) -> None:
    (folder / "tokenizer_2").mkdir()
    (folder / "tokenizer_2" / "tokenizer.json").write_text("{}")
    write(folder)
    assert ModelFolder.open(folder).tokenizer("text_encoder_2") == folder / "tokenizer_2" / "tokenizer.json"


def test_an_interrupted_write_leaves_the_old_manifest(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (folder / "manifest.json").read_bytes()

    def interrupted(source: str, target: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write(folder)
    assert (folder / "manifest.json").read_bytes() == before
    assert not list(folder.glob(".manifest*"))


def test_the_manifest_is_readable_by_all(folder: Path) -> None:
    assert (folder / "manifest.json").stat().st_mode & 0o444 == 0o444


def test_a_missing_file_is_named(folder: Path) -> None:
    (folder / "onnx" / "vae_decoder.onnx").unlink()
    with pytest.raises(ModelError, match=r"vae_decoder\.onnx is missing.*reinstall"):
        ModelFolder.open(folder)


def test_a_file_cut_short_is_named(folder: Path) -> None:
    path = folder / "onnx" / "denoiser.onnx"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ModelError, match=r"denoiser\.onnx has .* bytes, manifest\.json says"):
        ModelFolder.open(folder)


def test_an_altered_byte_is_found_by_its_hash(folder: Path) -> None:
    path = folder / "onnx" / "denoiser.onnx"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    model = ModelFolder.open(folder)  # sizes agree: the quick check cannot see it
    with pytest.raises(ModelError, match=r"denoiser\.onnx was altered"):
        model.verify()
    with pytest.raises(ModelError, match=r"denoiser\.onnx was altered"):
        ModelFolder.open(folder, verify=True)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda m: m.update(format=2), "has format 2, this version reads 1"),
        (lambda m: m.pop("format"), "is not a manifest"),
        (lambda m: m.pop("files"), "lacks 'files'"),
        (lambda m: m.update(family="demi"), "does not know; did you mean 'demo'"),
        (lambda m: m.update(family=3), "'family' is 3, of the wrong type"),
        (lambda m: m.update(file={}), "unknown entry 'file'; did you mean 'files'"),
        (lambda m: m["files"].update({"../x": {"sha256": "", "size_bytes": 1}}), "not inside the folder"),
        (lambda m: m["files"].update({"/etc/x": {"sha256": "", "size_bytes": 1}}), "not inside the folder"),
        (lambda m: m["files"].update({"x": {"sha256": ""}}), "'x' must have 'sha256' and 'size_bytes'"),
    ],
)
def test_a_wrong_manifest_is_refused(
    folder: Path, edit: Callable[[dict[str, Any]], object], message: str
) -> None:
    change(folder, edit)
    with pytest.raises(ModelError, match=re.escape(message)):
        ModelFolder.open(folder)


def test_a_manifest_that_is_no_json_is_refused(folder: Path) -> None:
    (folder / "manifest.json").write_text("{")
    with pytest.raises(ModelError, match="cannot be read"):
        ModelFolder.open(folder)


def test_a_folder_without_manifest_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"it has no manifest\.json.*or 'demo'"):
        ModelFolder.open(tmp_path)


def test_unknown_networks_and_tokenizers_are_refused(folder: Path) -> None:
    model = ModelFolder.open(folder)
    with pytest.raises(ModelError, match="no network 'denoisr'; did you mean 'denoiser'"):
        model.network("denoisr")
    with pytest.raises(ModelError, match=r"has no tokenizer_2/tokenizer\.json"):
        model.tokenizer("text_encoder_2")


@pytest.mark.parametrize("text", ["{", "[]"])
def test_a_wrong_scheduler_config_is_refused(folder: Path, text: str) -> None:
    (folder / "scheduler" / "scheduler_config.json").write_text(text)
    write(folder)
    with pytest.raises(ModelError, match=r"scheduler_config\.json"):
        ModelFolder.open(folder).scheduler_config()


def test_the_demo_lies_in_the_package_wherever_the_user_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "demo").mkdir()
    monkeypatch.chdir(tmp_path)
    assert resolve_model("demo") == Path(driffusion_trt.__file__).parent / "demo"
    assert resolve_model("./demo") == Path("demo")
    assert resolve_model(tmp_path) == tmp_path


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("dmeo", "unknown model 'dmeo'.*did you mean 'demo'"),
        ("zzzz", "unknown model 'zzzz'.*known: demo"),
        ("sd21", "'sd21' is not bundled"),
        ("no/such/folder", "there is no folder no/such/folder"),
        ("file.onnx", r"file\.onnx is a file"),
    ],
)
def test_what_is_no_model_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file.onnx").touch()
    with pytest.raises(ModelError, match=message):
        resolve_model(name)


def test_the_hash_of_a_model_covers_weights_beside_the_graph(folder: Path) -> None:
    """Two builds with other weights have the same graph where the weights are in a file of their own."""
    model = ModelFolder.open(folder)
    assert model.model_hash == model.manifest.files["onnx/denoiser.onnx"].sha256[:10]
    hashes = set()
    for weights in (b"one", b"two"):
        data = folder / "onnx" / "denoiser.onnx.data"
        data.write_bytes(weights)

        def add(manifest: dict[str, Any], weights: bytes = weights) -> None:
            entry = {"sha256": hashlib.sha256(weights).hexdigest(), "size_bytes": len(weights)}
            manifest["files"]["onnx/denoiser.onnx.data"] = entry

        change(folder, add)
        hashes.add(ModelFolder.open(folder).model_hash)
    assert len(hashes | {model.model_hash}) == 3
