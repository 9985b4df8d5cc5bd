"""Plans by their key: found whole, refused with the reason, never half made."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from driffusion_trt import InputError, ModelError
from driffusion_trt.engines.gpus import Gpu
from driffusion_trt.engines.key import PlanKey, Platform, onnx_hash
from driffusion_trt.engines.manifest import ModelFolder, write_manifest
from driffusion_trt.engines.plans import current_hashes
from driffusion_trt.engines.profiles import Profile
from driffusion_trt.engines.store import Plan, PlanStore
from driffusion_trt.models import get_spec

ADA = Gpu(0, "NVIDIA GeForce RTX 4090", (8, 9), 24 << 30)
HERE: dict[str, Any] = {"flavour": "tensorrt-rtx", "version": "1.7.1.116", "gpu": ADA}
KEY = PlanKey(
    network="denoiser",
    onnx_sha256="ab" * 32,
    precision="fp16",
    profile=Profile.pictures(get_spec("sd21")),
    platform=Platform("tensorrt-rtx", "1.7.1.116", ("sm89", "sm120")),
    options={"optimization_level": None},
)


@pytest.fixture
def store(tmp_path: Path) -> PlanStore:
    return PlanStore(tmp_path / "model")


def add(store: PlanStore, key: PlanKey = KEY, content: bytes = b"plan" * 100) -> Plan:
    store.temporary(key).write_bytes(content)
    return store.commit(key, {"seconds": 1.5})


def choose(store: PlanStore, **other: Any) -> Plan:
    return store.choose("denoiser", KEY.onnx_sha256, **{**HERE, **other})


def test_what_was_committed_is_found_and_read(store: PlanStore) -> None:
    plan = add(store)
    assert plan.path.parent.name == "sm89-sm120-tensorrt-rtx-1.7.1.116"
    assert plan.facts == {"seconds": 1.5} and plan.problem == ""
    assert store.has(KEY)
    assert choose(store) == plan
    with store.open(plan) as data:
        assert bytes(data) == b"plan" * 100
    assert [path.suffix for path in sorted(plan.path.parent.iterdir())] == [".json", ".plan"]


def test_a_key_survives_json() -> None:
    assert PlanKey.from_json(json.loads(json.dumps(KEY.to_json()))) == KEY


@pytest.mark.parametrize(
    "change",
    [
        {"network": "vae_decoder"},
        {"onnx_sha256": "cd" * 32},
        {"precision": "bf16"},
        {"profile": Profile.pictures(get_spec("sd21"), batch_size=2)},
        {"platform": Platform("tensorrt-rtx", "1.7.1.117", ("sm89", "sm120"))},
        {"platform": Platform("tensorrt-rtx", "1.7.1.116", ("sm89",))},
        {"platform": Platform("tensorrt", "1.7.1.116", ("sm89", "sm120"))},
        {"platform": Platform("tensorrt-rtx", "1.7.1.116", ("sm89", "sm120"), "NVIDIA L4")},
        {"options": {"optimization_level": 5}},
        {"recipe": 2},
    ],
    ids=lambda change: next(iter(change)),
)
def test_every_part_of_a_key_counts(store: PlanStore, change: dict[str, Any]) -> None:
    other = replace(KEY, **change)
    assert other.digest != KEY.digest
    add(store)
    assert not store.has(other)
    add(store, other)
    assert store.has(other) and store.has(KEY)


def test_plans_of_one_gpu_kind_have_their_own_folder() -> None:
    platform = Platform("tensorrt", "11.4.0.106", ("sm90",), "NVIDIA H200")
    assert platform.folder == "nvidia-h200-sm90-tensorrt-11.4.0.106"
    assert str(platform) == "TensorRT 11.4.0.106 for NVIDIA H200 (sm90)"


@pytest.mark.parametrize(
    ("here", "reason"),
    [
        ({"flavour": "tensorrt"}, r"of TensorRT-RTX 1.7.1.116 for sm89, sm120, and this is TensorRT"),
        ({"version": "1.8.0.1"}, r"and version 1.8.0.1 is installed"),
        ({"gpu": Gpu(0, "NVIDIA H200", (9, 0), 1)}, r"and this GPU is NVIDIA H200 \(sm90\)"),
    ],
)
def test_a_plan_of_another_platform_is_refused_with_the_reason(
    store: PlanStore, here: dict[str, Any], reason: str
) -> None:
    add(store)
    with pytest.raises(ModelError, match=reason) as caught:
        choose(store, **here)
    assert "driffusion-trt build" in str(caught.value) and "--target this" in str(caught.value)


def test_a_plan_for_another_gpu_of_the_same_architecture(store: PlanStore) -> None:
    """Plain TensorRT times its kernels on the GPU it builds on; an RTX plan fits every GPU of its targets."""
    ada = Platform("tensorrt", "11.4.0.106", ("sm89",), "NVIDIA L4")
    add(store, replace(KEY, platform=ada))
    with pytest.raises(ModelError, match=r"NVIDIA L4 .*, and this GPU is a NVIDIA GeForce RTX 4090"):
        choose(store, flavour="tensorrt", version="11.4.0.106")
    assert choose(store, flavour="tensorrt", version="11.4.0.106", gpu=replace(ADA, name="NVIDIA L4"))


def test_a_plan_of_other_onnx_is_refused(store: PlanStore) -> None:
    add(store)
    with pytest.raises(ModelError, match="built from another ONNX file"):
        store.choose("denoiser", "00" * 32, **HERE)


def test_no_plan_at_all(store: PlanStore) -> None:
    add(store, replace(KEY, network="vae_decoder"))
    with pytest.raises(ModelError, match=r"no plan of 'denoiser' for TensorRT-RTX .* \(there are none\)"):
        choose(store)


def test_the_plan_is_chosen_by_the_sizes_that_it_takes(store: PlanStore) -> None:
    small = add(store)
    large = add(store, replace(KEY, profile=Profile.pictures(get_spec("sd21"), batch_size=4, dynamic=True)))
    assert choose(store) == choose(store, sizes=(2, 96, 96)) == small
    assert choose(store, sizes=(8, 96, 96)) == choose(store, sizes=(2, 64, 96)) == large
    with pytest.raises(InputError, match=r"batch of 1\.\.2, and 16 was asked"):
        choose(store, sizes=(16, 96, 96))


def cut(path: Path) -> None:
    os.truncate(path, 100)


def alter(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[200] ^= 1
    path.write_bytes(data)


def test_a_plan_that_is_cut_short_is_refused(store: PlanStore) -> None:
    plan = add(store)
    cut(plan.path)
    assert not store.has(KEY)
    with pytest.raises(ModelError, match="it has 100 bytes and was built with 400"):
        choose(store)


def test_a_plan_that_was_altered_is_refused_when_it_is_opened(store: PlanStore) -> None:
    plan = add(store)
    assert store.verify(plan) == ""
    alter(plan.path)
    assert "altered" in store.verify(plan)
    with pytest.raises(ModelError, match=r"altered.*build it again: driffusion-trt build"):
        store.open(plan)


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ("{", "cannot be read"),
        ("[]", "cannot be read"),
        ('{"format": 2}', "has format 2, not 1"),
        ('{"format": 1, "key": {}}', "cannot be read"),
        (None, "is missing: its build was interrupted"),
    ],
)
def test_a_plan_with_no_sound_record_is_not_used(store: PlanStore, record: str | None, words: str) -> None:
    path = add(store).path
    if record is None:
        path.with_suffix(".json").unlink()
    else:
        path.with_suffix(".json").write_text(record)
    assert not store.has(KEY)
    with pytest.raises(ModelError, match=words):
        choose(store)


@pytest.mark.parametrize("interrupted", [1, 2])
def test_a_commit_that_is_interrupted_leaves_nothing_that_is_used(
    store: PlanStore, monkeypatch: pytest.MonkeyPatch, interrupted: int
) -> None:
    real, calls = os.replace, 0

    def stop(source: Any, target: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == interrupted:
            raise KeyboardInterrupt
        real(source, target)

    monkeypatch.setattr(os, "replace", stop)
    with pytest.raises(KeyboardInterrupt):
        add(store)
    monkeypatch.undo()
    assert not store.has(KEY)
    with pytest.raises(ModelError):
        choose(store)
    assert store.sweep({"denoiser": KEY.onnx_sha256}) != []
    assert [path for path in store.root.rglob("*") if path.is_file()] == []
    assert add(store) == choose(store)


def test_sweep_keeps_what_is_good_and_removes_the_rest(store: PlanStore) -> None:
    good = add(store)
    other = add(store, replace(KEY, precision="bf16"))
    stale = add(store, replace(KEY, onnx_sha256="cd" * 32))
    broken = add(store, replace(KEY, precision="fp32"))
    cut(broken.path)
    half = store.temporary(replace(KEY, network="vae_decoder"))
    half.write_bytes(b"half")
    timings = half.with_name("denoiser.timings")
    timings.write_bytes(b"kept")
    removed = store.sweep({"denoiser": KEY.onnx_sha256})
    assert {stale.path, broken.path, half} <= set(removed)
    kept = {path for path in store.root.rglob("*") if path.is_file()}
    assert kept == {
        timings, *(p.with_suffix(end) for p in (good.path, other.path) for end in (".plan", ".json"))
    }  # fmt: skip


def test_a_network_is_its_onnx_file_and_its_weights(tmp_path: Path) -> None:
    def hashes(**content: str) -> dict[str, str]:
        folder = tmp_path / "".join(content.values())
        names = {"graph": "denoiser.onnx", "weights": "denoiser.onnx.data", "other": "denoiser_2.onnx"}
        (folder / "onnx").mkdir(parents=True)
        for part, name in names.items():
            (folder / "onnx" / name).write_text(content.get(part, part))
        write_manifest(folder, family="demo", precision="fp16", versions={}, shapes={}, scaling_factor=1.0)
        return current_hashes(ModelFolder.open(folder))

    base = hashes()
    assert set(base) == {"denoiser", "denoiser_2"}
    for part in ("graph", "weights"):
        changed = hashes(**{part: f"new {part}"})
        assert changed["denoiser"] != base["denoiser"] and changed["denoiser_2"] == base["denoiser_2"]
    assert hashes(other="x")["denoiser"] == base["denoiser"]
    with pytest.raises(ModelError, match="no network 'vae'"):
        onnx_hash(ModelFolder.open(tmp_path), "vae")
