"""Facts that results are kept with: which sources they are of above all."""

from __future__ import annotations

import importlib.metadata
import subprocess
from pathlib import Path

import pytest

from driffusion_trt import _machine
from driffusion_trt._kept_costs import KeptCosts
from driffusion_trt.benchmark.report import _PACKAGES
from driffusion_trt.engines.manifest import ModelFolder
from driffusion_trt.runtime.devices import Devices
from driffusion_trt.runtime.networks import GpuOptions


def git(folder: Path, *words: str) -> str:
    who = ("-c", "user.name=a", "-c", "user.email=a@b")
    return subprocess.run(
        ["git", *who, *words], cwd=folder, check=True, capture_output=True, text=True
    ).stdout


def test_the_commit_of_a_folder(tmp_path: Path) -> None:
    assert _machine.commit(tmp_path) == "unknown", "no repository"
    code, installed = tmp_path / "code", tmp_path / ".venv"
    for folder in (code, installed):
        folder.mkdir()
        (folder / "file.py").write_text("1\n")
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", "code")
    assert _machine.commit(code) == "unknown", "no commit yet"
    git(tmp_path, "commit", "-qm", "One")
    head = git(tmp_path, "rev-parse", "HEAD")[:12]
    assert _machine.commit(code) == head
    assert _machine.commit(installed) == "unknown", "an installed copy in somebody else's repository"
    (code / "file.py").write_text("2\n")
    assert _machine.commit(code) == f"{head}+changes"


def test_without_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert _machine.commit(Path(__file__).parent) == "unknown"


def test_versions_are_of_what_is_installed() -> None:
    found = _machine.versions(["numpy", "no-such-package"])
    assert set(found) == {"python", "numpy"} and found["numpy"][0].isdecimal()
    assert _machine.installed(("no-such-package", "numpy")) == found["numpy"]


def test_tensorrt_is_found_whichever_cuda_its_wheel_is_named_after(monkeypatch: pytest.MonkeyPatch) -> None:
    there = {"tensorrt_cu13_bindings": "11.4.0", "tensorrt_rtx_cu12": "1.7.1", "numpy": "2.0"}

    def version(name: str) -> str:
        if name in there:
            return there[name]
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    found = _machine.versions(_PACKAGES)
    assert (found["tensorrt"], found["tensorrt-rtx"], found["numpy"]) == ("11.4.0", "1.7.1", "2.0")


def test_this_machine() -> None:
    found = _machine.machine()
    assert found["cores"] >= 1 and found["processor"] and found["system"]
    assert found["memory_bytes"] is None or found["memory_bytes"] > 1 << 28


def test_costs_of_lanes_with_several_threads_are_others() -> None:
    folder, devices = ModelFolder.open("demo"), Devices(1)
    one, also, two = (
        KeptCosts(folder, devices, GpuOptions(threads_per_lane=count)).path((64, 64)) for count in (1, 1, 2)
    )
    assert one == also != two
