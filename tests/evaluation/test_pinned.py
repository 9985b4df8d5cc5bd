"""What a work folder is pinned to: every file of the model, and the kind of its devices with their plans."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import tiny

from driffusion_trt.engines.gpus import Gpu
from driffusion_trt.engines.manifest import ModelFolder
from driffusion_trt.evaluation import pinned
from driffusion_trt.runtime.devices import Devices


def test_every_file_and_factor_of_the_model_counts(tmp_path: Path) -> None:
    folder = tiny.make_model_folder(tmp_path / "tiny")
    first = pinned.model_facts(ModelFolder.open(folder))
    manifest = json.loads((folder / "manifest.json").read_text())
    seen = {first["model_sha256"]}
    for name in manifest["files"]:
        changed = json.loads(json.dumps(manifest))
        changed["files"][name]["sha256"] = "0" * 64
        (folder / "manifest.json").write_text(json.dumps(changed))
        seen.add(pinned.model_facts(ModelFolder.open(folder))["model_sha256"])
    for name in ("scaling_factor", "shift_factor"):
        (folder / "manifest.json").write_text(json.dumps({**manifest, name: 0.123}))
        seen.add(pinned.model_facts(ModelFolder.open(folder))["model_sha256"])
    assert len(seen) == 1 + len(manifest["files"]) + 2
    (folder / "manifest.json").write_text(json.dumps({**manifest, "parity": {}, "versions": {"torch": "9"}}))
    assert pinned.model_facts(ModelFolder.open(folder)) == first, "what it was built with is not what it is"
    (folder / "calibration.json").write_text("{}")
    assert "calibration_sha256" in pinned.model_facts(ModelFolder.open(folder))


def test_devices_are_known_by_kind_and_plans(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = ModelFolder.open(tiny.make_model_folder(tmp_path / "tiny"))
    assert pinned.devices_facts(folder, Devices(1)) == pinned.devices_facts(folder, Devices(4))
    gpu = Gpu(0, "NVIDIA L4", (8, 9), 1)
    assert pinned.devices_facts(folder, Devices(1, (gpu,)))["plans"] == {"NVIDIA L4 (sm89)": {}}
    monkeypatch.setattr(
        pinned,
        "choose_plan",
        lambda _, name, gpu: (SimpleNamespace(key=SimpleNamespace(digest=f"{name}-{gpu.target}")), None),
    )
    one, other = Gpu(0, "NVIDIA L4", (8, 9), 1), Gpu(1, "NVIDIA H200", (9, 0), 1)
    alone = pinned.devices_facts(folder, Devices(1, (one,)))
    assert alone["device"] == "NVIDIA L4 (sm89)"
    assert alone["plans"]["NVIDIA L4 (sm89)"]["denoiser"] == "denoiser-sm89"
    assert set(alone["plans"]["NVIDIA L4 (sm89)"]) == set(folder.networks)
    assert pinned.devices_facts(folder, Devices(2, (one, one))) == alone, "how many there are is left open"
    assert pinned.devices_facts(folder, Devices(2, (one, other))) != alone
