"""`doctor`: what it finds on machines with and without GPUs, what it advises, and its exit status."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import tiny

from driffusion_trt import Schedule, _machine, make_plan
from driffusion_trt._errors import MissingExtraError
from driffusion_trt.cli import main
from driffusion_trt.commands import _doctor_gpus, _doctor_machine, _doctor_model
from driffusion_trt.engines.flavours import FLAVOURS
from driffusion_trt.engines.gpus import Gpu, Gpus
from driffusion_trt.engines.key import PlanKey, Platform, onnx_hash
from driffusion_trt.engines.manifest import ModelFolder
from driffusion_trt.engines.profiles import Profile
from driffusion_trt.engines.store import PlanStore
from driffusion_trt.runtime import _peer_trial
from driffusion_trt.runtime.host import auto_lanes
from driffusion_trt.runtime.peers import PeerLink, check_peers

NO_GPU = Gpus((), None, "no NVIDIA driver: libcuda.so.1 cannot be loaded")
ADA = Gpu(0, "NVIDIA GeForce RTX 4090", (8, 9), 24 << 30)
VERSIONS = {"tensorrt": None, "tensorrt-rtx": "1.7.1"}


@pytest.fixture(autouse=True)
def plain(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The same machine everywhere: no GPU, TensorRT-RTX alone, a terminal of 80 columns."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(_doctor_machine, "find_gpus", lambda: NO_GPU)
    monkeypatch.setattr(_doctor_machine, "_nvidia_on_pci", lambda path: False)
    install(monkeypatch, VERSIONS)


def install(monkeypatch: pytest.MonkeyPatch, versions: dict[str, str | None]) -> None:
    """Pretend that these flavours of TensorRT, and no others, are installed and load."""
    from driffusion_trt.engines import flavours

    for module in (flavours, _doctor_machine):
        monkeypatch.setattr(module, "installed_version", lambda flavour: versions[flavour.name])
    real = importlib.import_module
    names = {flavour.module for flavour in FLAVOURS.values()}
    fake = lambda name, package=None: None if name in names else real(name, package)  # noqa: E731
    monkeypatch.setattr(importlib, "import_module", fake)


def find(monkeypatch: pytest.MonkeyPatch, gpus: Gpus) -> None:
    monkeypatch.setattr(_doctor_machine, "find_gpus", lambda: gpus)


@pytest.fixture
def simulator(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    """Four GPUs of the simulated driver, with kernels."""
    pytest.importorskip("cuda.bindings.driver", reason="cuda-bindings is not installed")
    import cudasim

    from driffusion_trt.engines.gpus import find_gpus

    monkeypatch.setattr(_doctor_machine, "find_gpus", find_gpus)
    with cudasim.Simulator(devices=[cudasim.Device(ADA.name)] * 4, hang_limit_ms=2000) as machine:
        image = tmp_path / "kernels.image"
        image.write_bytes(cudasim.kernel_image(cudasim.build() / "libcudasim_kernels.so"))
        monkeypatch.setenv("DRIFFUSION_KERNELS", str(image))
        # Its speed means nothing, so it need not be taken often.
        monkeypatch.setattr(_peer_trial, "_LARGE", 2 << 20)
        monkeypatch.setattr(_peer_trial, "_REPEATS", 1)
        yield machine


def clean(simulator: Any) -> None:
    assert simulator.races() == []
    assert simulator.violations() == []
    assert {kind: count for kind, count in simulator.live_objects().items() if count} == {}


def report(capsys: pytest.CaptureFixture[str], *words: str, status: int = 0) -> Any:
    """The JSON object of one run."""
    assert main(["doctor", "--json", *words]) == status
    return json.loads(capsys.readouterr().out)


def text(capsys: pytest.CaptureFixture[str], *words: str, status: int = 0) -> str:
    """The report for people, its paragraphs on one line each, after its width was checked."""
    assert main(["doctor", *words]) == status
    out = capsys.readouterr().out
    # A long path is not cut, so that it can be copied.
    assert [x for x in out.splitlines() if len(x) > 80 and max(map(len, x.split())) < 50] == []
    return " ".join(out.split())


# A machine without GPUs


def test_without_a_gpu_it_says_what_works_and_what_is_missing(capsys: pytest.CaptureFixture[str]) -> None:
    out = text(capsys)
    assert "none (no NVIDIA driver: libcuda.so.1 cannot be loaded); pictures are made on CPU lanes" in out
    assert f"CPU lanes {auto_lanes()}, with ONNX Runtime" in out
    assert "TensorRT-RTX 1.7.1; not installed: TensorRT " in out
    assert "install NVIDIA's driver 580 or newer" in out and "pip install '.[tensorrt]'" in out
    assert "aggressive 50 1.00x 26 1.92x 14 3.57x 8 6.25x" in out
    assert "Calculated, not measured" in out
    assert "problem:" not in out
    assert out.endswith(
        'no problems were found; for a picture: driffusion-trt run "a red circle above a blue square"'
    )


def test_the_form_of_the_json_is_stable(capsys: pytest.CaptureFixture[str]) -> None:
    found = report(capsys)
    assert {name: sorted(part) if isinstance(part, dict) else type(part) for name, part in found.items()} == {
        "version": str,
        "host": [
            "cores",
            "cpu_lanes",
            "free_memory_bytes",
            "memory_bytes",
            "onnxruntime",
            "python",
            "system",
        ],
        "disk": ["free_bytes", "path"],
        "packages": ["cuda-bindings", "nvidia-cuda-nvrtc", "polygraphy", "tensorrt", "tensorrt-rtx"],
        "driver": ["cuda", "version", "why_no_gpu"],
        "gpus": list,
        "peers": list,
        "model": sorted(["folder", "family", "precision", "weights_bytes", "plans", "fits", "build"]),
        "expected": sorted(["scheduler", "steps", "gpus", "cpu_lanes", "gains", "exchanges"]),
        "notes": list,
        "problems": list,
        "ok": bool,
    }
    assert found["ok"] and found["gpus"] == found["peers"] == found["problems"] == []
    assert found["driver"] == {
        "version": found["driver"]["version"],
        "cuda": None,
        "why_no_gpu": NO_GPU.why_none,
    }
    assert found["disk"]["path"] == str(Path("models").absolute()) and found["disk"]["free_bytes"] > 0


def test_the_base_dependencies_are_enough() -> None:
    code = """
import importlib.metadata, sys
absent = {"cuda", "polygraphy", "tensorrt", "tensorrt_rtx", "torch"}
sys.modules.update(dict.fromkeys(absent))
real = importlib.metadata.version
def version(name):
    if name.replace("_", "-").startswith(("cuda", "nvidia", "polygraphy", "tensorrt", "torch")):
        raise importlib.metadata.PackageNotFoundError(name)
    return real(name)
importlib.metadata.version = version
import driffusion_trt.engines.gpus as gpus
gpus._LIBRARY = "libno-such-driver.so"
from driffusion_trt.cli import main
sys.exit(main(["doctor"]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    out = " ".join(done.stdout.split())
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    absent = "not installed: cuda-bindings, nvidia-cuda-nvrtc, polygraphy, TensorRT, TensorRT-RTX"
    assert absent in out and "libno-such-driver.so cannot be loaded" in out
    assert "no problems were found" in out


def test_a_gpu_without_a_driver_is_seen_on_the_bus(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.undo()
    for name, vendor, kind in (
        ("a", "0x8086", "0x030000"),
        ("b", "0x10de", "0x030200"),
        ("c", "0x10de", "0x04"),
    ):
        folder = tmp_path / name / name
        folder.mkdir(parents=True)
        (folder / "vendor").write_text(f"{vendor}\n")
        (folder / "class").write_text(f"{kind}\n")
    (tmp_path / "b" / "empty").mkdir()
    assert [_doctor_machine._nvidia_on_pci(tmp_path / name) for name in "abc?"] == [False, True, False, False]
    monkeypatch.setattr(_doctor_machine, "find_gpus", lambda: NO_GPU)
    monkeypatch.setattr(_doctor_machine, "_nvidia_on_pci", lambda path: True)
    assert "there is an NVIDIA GPU in this machine, and no driver for it" in report(capsys)["notes"][0]


def test_the_drivers_version_is_read(tmp_path: Path) -> None:
    path = tmp_path / "version"
    assert _machine.driver_version(path) is None
    path.write_text(
        "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build\nGCC 12\n"
    )
    assert _machine.driver_version(path) == "580.65.06"


# Things that are broken


def problems(found: Any) -> list[str]:
    assert found["ok"] is False
    return list(found["problems"])


def test_a_package_that_does_not_load_is_a_problem(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = importlib.import_module

    def broken(name: str, package: str | None = None) -> Any:
        if name in ("tensorrt_rtx", "onnxruntime"):
            raise OSError(f"lib{name}.so.1: cannot open shared object file")
        return real(name, package)

    monkeypatch.setattr(importlib, "import_module", broken)
    found = report(capsys, status=1)
    assert found["host"]["onnxruntime"] is None
    rtx, host = problems(found)
    assert rtx == (
        "TensorRT-RTX 1.7.1 is installed and cannot be loaded (libtensorrt_rtx.so.1: cannot open shared "
        "object file); run: pip install --force-reinstall '.[tensorrt-rtx]' in a clone of driffusion-trt"
    )
    assert host.startswith("ONNX Runtime, which CPU lanes run on, cannot be loaded (libonnxruntime")
    out = text(capsys, status=1)
    assert "CPU lanes none: ONNX Runtime does not load" in out and "no problems" not in out


@pytest.mark.parametrize(
    ("cuda", "bindings", "expected"),
    [
        ((11, 8), None, "the NVIDIA driver supports CUDA 11.8, which is too old; update the driver to 580"),
        (
            (12, 4),
            "13.4.4",
            "supports CUDA 12.4, and cuda-bindings 13.4.4 needs 13; update the driver to 580",
        ),
        ((12, 4), "12.9.0", None),
        ((12, 4), None, None),
        ((13, 0), "13.4.4", None),
    ],
)
def test_a_driver_that_is_too_old(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    cuda: tuple[int, int],
    bindings: str | None,
    expected: str | None,
) -> None:
    find(monkeypatch, Gpus((ADA,), cuda))
    monkeypatch.setattr(_doctor_machine, "installed", lambda names: bindings)
    monkeypatch.setattr(_doctor_machine, "examine_gpus", lambda gpus, *_: ((_doctor_gpus.GpuState(ADA),), ()))
    found = report(capsys, status=1 if expected else 0)
    assert found["driver"]["cuda"] == "{}.{}".format(*cuda)
    if expected:
        (problem,) = problems(found)
        assert expected in problem
        assert ("'cuda-bindings<13' nvidia-cuda-nvrtc-cu12" in problem) == (cuda[0] == 12)


def test_a_driver_that_fails_is_a_problem_and_one_without_gpus_is_not(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent() -> None:
        raise MissingExtraError("cuda-bindings", "tensorrt")

    monkeypatch.setattr(_doctor_machine, "driver", absent)
    find(
        monkeypatch, Gpus((), None, "the NVIDIA driver's cuInit failed with 802 (system not yet initialized)")
    )
    (problem,) = problems(report(capsys, status=1))
    assert problem.startswith("the NVIDIA driver's cuInit failed with 802") and "nvidia-smi" in problem
    find(monkeypatch, Gpus((), None, "the NVIDIA driver's cuInit failed with 100 (no CUDA-capable device)"))
    assert "CUDA_VISIBLE_DEVICES" in report(capsys)["notes"][0]


def test_a_missing_or_damaged_model_is_told_with_all_the_rest(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    found = report(capsys, "--model", "models/none", status=1)
    assert "there is no folder models/none" in problems(found)[0]
    assert found["model"] is None and found["expected"] is None
    folder = tiny.make_model_folder(tmp_path / "tiny")
    (folder / "onnx" / "denoiser.onnx").unlink()
    found = report(capsys, "--model", str(folder), status=1)
    assert "denoiser.onnx is missing" in problems(found)[0]
    out = text(capsys, "--model", str(folder), status=1)
    assert out.rindex("problem: ") > out.index("note: ") and "no problems" not in out


# Simulated GPUs


@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_every_pair_of_gpus_is_tried_and_timed(
    simulator: Any, capsys: pytest.CaptureFixture[str], count: int
) -> None:
    import cudasim

    simulator.configure([cudasim.Device(ADA.name)] * count)
    found = report(capsys)
    assert found["driver"]["cuda"] == "13.0"
    assert [gpu["index"] for gpu in found["gpus"]] == list(range(count))
    for gpu in found["gpus"]:
        assert gpu["usable"] and gpu["target"] == "sm89" and 0 < gpu["free_bytes"] <= gpu["memory_bytes"]
        assert gpu["kernels"] == f"from {os.environ['DRIFFUSION_KERNELS']}"
    assert len(found["peers"]) == count * (count - 1)
    for link in found["peers"]:
        assert link["usable"] and link["verified"] and link["bandwidth_gb_s"] > 0 and link["latency_us"] > 0
    assert found["expected"]["gpus"] == count
    lanes = {gain["lanes"] for gain in found["expected"]["gains"]}
    assert lanes == {1, 2, 4, 8, count}
    assert [item["lanes"] for item in found["expected"]["exchanges"]] == [
        n for n in sorted(lanes) if 1 < n <= count
    ]
    out = text(capsys)
    assert f"this machine has {count} GPU{'s' if count > 1 else ''}." in out
    assert ("What messages between lanes cost is not known here: there is one GPU" in out) == (count == 1)
    clean(simulator)


def test_a_corrupting_pair_is_a_problem_that_stands_last(
    simulator: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    simulator.corrupt_copies(1, 2)
    assert main(["doctor"]) == 1
    out, err = capsys.readouterr()
    last = " ".join(out[out.index("problem: ") :].split())
    assert last.startswith("problem: 4 of 4,210,688 bytes were wrong after copies from GPU 1 (NVIDIA GeForce")
    assert "to GPU 2 (NVIDIA" in last and "turn off PCIe ACS" in last and last.count("problem: ") == 1
    assert err == "driffusion-trt: error: 1 problem was found; see the end of the report\n"
    table = [line.split() for line in out.splitlines() if line.startswith("GPU 1 ")]
    assert [row[4] for row in table if row[3:5] and row[4] == "BAD"] == ["BAD"]
    found = report(capsys, status=1)
    assert [(link["source"], link["target"]) for link in found["peers"] if not link["usable"]] == [(1, 2)]
    assert len(found["expected"]["exchanges"]) == 2, "the lead's own copies are right"
    clean(simulator)


def test_copies_of_the_lead_without_figures_end_the_estimate(
    simulator: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    simulator.corrupt_copies(2, 0)
    assert [item["lanes"] for item in report(capsys, status=1)["expected"]["exchanges"]] == [2]
    simulator.corrupt_copies(0, 1)
    assert report(capsys, status=1)["expected"]["exchanges"] == []
    assert "not known here: copies were not measured" in text(capsys, status=1)


def test_missing_access_is_a_note(simulator: Any, capsys: pytest.CaptureFixture[str]) -> None:
    simulator.deny_peer(3, 0)
    found = report(capsys)
    (note,) = (note for note in found["notes"] if "direct access" in note)
    assert note.startswith("no direct access between GPUs 0 and 3: their copies go through the host's memory")
    denied = {(link["source"], link["target"]) for link in found["peers"] if not link["access"]}
    assert denied == {(0, 3), (3, 0)}
    assert "*: through the host" in text(capsys)
    clean(simulator)


def test_a_gpu_that_hangs_is_left_out_and_named(
    simulator: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_doctor_gpus, "check_peers", partial(check_peers, timeout_s=0.8))
    simulator.hang(device=3)
    found = report(capsys, status=1)
    (problem,) = problems(found)
    assert "GPU 3 (NVIDIA GeForce RTX 4090) did not end in time; leave it out" in problem
    assert [gpu["usable"] for gpu in found["gpus"]] == [True, True, True, False]
    assert found["expected"]["gpus"] == 3
    assert simulator.violations() == [] and simulator.races() == []


def test_a_gpu_that_cannot_be_opened_does_not_hide_the_others(
    simulator: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    simulator.fail("cuDevicePrimaryCtxRetain", 46)
    found = report(capsys, status=1)
    (problem,) = problems(found)
    assert "GPU 0 (NVIDIA GeForce RTX 4090) failed with CUDA_ERROR_DEVICE_UNAVAILABLE" in problem
    assert [gpu["usable"] for gpu in found["gpus"]] == [False, True, True, True]
    assert len(found["peers"]) == 6
    clean(simulator)


def test_kernels_that_cannot_be_loaded(
    simulator: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "text").write_bytes(b"no image of kernels")
    for name, words, count in (("text", "CUDA_ERROR_INVALID_IMAGE", 4), ("none", "cannot be read", 1)):
        monkeypatch.setenv("DRIFFUSION_KERNELS", str(tmp_path / name))
        found = report(capsys, status=1)
        assert all(words in problem for problem in problems(found)) and len(found["problems"]) == count
        assert not any(gpu["usable"] or gpu["kernels"] for gpu in found["gpus"])

    def absent(compute_capability: tuple[int, int]) -> bytes:
        raise MissingExtraError("nvidia-cuda-nvrtc", "tensorrt", command="pip install nvidia-cuda-nvrtc")

    monkeypatch.setattr(_doctor_gpus, "find_kernels", absent)
    assert any("run: pip install nvidia-cuda-nvrtc" in note for note in report(capsys)["notes"])
    clean(simulator)


def test_without_cuda_bindings_gpus_are_listed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent() -> None:
        raise MissingExtraError("cuda-bindings", "tensorrt")

    monkeypatch.setattr(_doctor_gpus, "driver", absent)
    for cuda, command in (
        ((13, 0), "pip install '.[tensorrt-rtx]' in a clone of driffusion-trt"),
        (
            (12, 4),
            "pip install tensorrt-rtx-cu12 'cuda-bindings<13' nvidia-cuda-nvrtc-cu12 "
            "nvidia-cuda-runtime-cu12 polygraphy",
        ),
    ):
        find(monkeypatch, Gpus((ADA,), cuda))
        monkeypatch.setattr(_doctor_machine, "installed", lambda names: None)
        found = report(capsys)
        assert (
            f"the GPUs could only be listed, since cuda-bindings is not installed; run: {command}"
            in (found["notes"])
        )
        (gpu,) = found["gpus"]
        assert gpu["memory_bytes"] == 24 << 30 and gpu["free_bytes"] is None and not gpu["usable"]


# Plans


def made(folder: Path, network: str, version: str, target: str = "sm89") -> str:
    """A plan of some bytes in a model folder, of TensorRT-RTX."""
    model = ModelFolder.open(folder)
    profile = Profile.pictures(model.spec, height=model.spec.height, width=model.spec.width)
    platform = Platform("tensorrt-rtx", version, (target,))
    key = PlanKey(network, onnx_hash(model, network), model.manifest.precision, profile, platform)
    store = PlanStore(folder)
    store.temporary(key).write_bytes(b"a plan")
    return store.commit(key, {}).path.relative_to(folder).as_posix()


def test_plans_that_fit_are_told_from_those_that_do_not(
    simulator: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    folder = tiny.make_model_folder(tmp_path / "tiny")
    fitting = made(folder, "denoiser", "1.7.1")
    made(folder, "text_encoder", "1.6.0")
    made(folder, "vae_decoder", "1.7.1", "sm120")
    found = report(capsys, "--model", str(folder))
    fits = {fit["network"]: fit for fit in found["model"]["fits"]}
    assert found["model"]["plans"] == 3 and set(fits) == {"denoiser", "text_encoder", "vae_decoder"}
    assert fits["denoiser"]["plan"] == fitting and fits["denoiser"]["why_not"] == ""
    assert "version 1.7.1 is installed" in fits["text_encoder"]["why_not"]
    assert f"this GPU is {ADA}" in fits["vae_decoder"]["why_not"]
    command = f"driffusion-trt build --output {folder} --target this"
    assert found["model"]["build"] == command
    assert any(
        note == f"no plan of text_encoder, vae_decoder of {folder} runs on {ADA}; run: {command}"
        for note in found["notes"]
    )
    made(folder, "text_encoder", "1.7.1")
    made(folder, "vae_decoder", "1.7.1")
    assert not any("no plan" in note for note in report(capsys, "--model", str(folder))["notes"])


def test_without_tensorrt_that_comes_first(
    simulator: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, {"tensorrt": None, "tensorrt-rtx": None})
    found = report(capsys)
    assert {fit["why_not"] for fit in found["model"]["fits"]} == {"TensorRT is not installed"}
    (note,) = found["notes"]
    assert note.startswith(f"for {ADA}: TensorRT is needed") and "pip install '.[tensorrt]'" in note
    assert found["model"]["build"] == "driffusion-trt build --model demo --target this"


@pytest.mark.parametrize(
    ("small", "share", "remedy"),
    [
        (1, 0.5, "free some, or leave it out with CUDA_VISIBLE_DEVICES"),
        (1, 1.0, "free some, or GPU 0 encodes and decodes what serve has it lead"),
        (0, 1.0, "free some, or leave it out with CUDA_VISIBLE_DEVICES"),
    ],
)
def test_a_gpu_too_small_for_the_model_is_noted(
    simulator: Any, capsys: pytest.CaptureFixture[str], small: int, share: float, remedy: str
) -> None:
    """share: of the denoiser's weights that it has room for."""
    import cudasim

    files = ModelFolder.open("demo").files_of("denoiser").values()
    denoiser_bytes = sum(file.size_bytes for file in files)
    memory = [1 << 30, 1 << 30]
    memory[small] = int(share * denoiser_bytes)
    simulator.configure([cudasim.Device(ADA.name, memory_bytes=size) for size in memory])
    found = report(capsys)
    assert any(f"GPU {small} has" in note and remedy in note for note in found["notes"])
    assert not any(f"GPU {1 - small} has" in note for note in found["notes"])
    clean(simulator)


# What is expected of lanes


def test_gains_are_those_of_the_plans(capsys: pytest.CaptureFixture[str]) -> None:
    found = report(capsys)["expected"]
    folder = ModelFolder.open("demo")
    schedule = Schedule.from_config(folder.scheduler_config(), folder.spec.steps)
    assert found["steps"] == 50 and found["cpu_lanes"] == auto_lanes() and found["gpus"] == 0
    for gain in found["gains"]:
        plan = make_plan(schedule, mode=gain["mode"], lanes=gain["lanes"])
        assert (gain["rounds"], gain["ideal_speedup"]) == (plan.sequential_calls, plan.ideal_speedup)


def link(source: int, target: int, latency_us: float, bandwidth_gb_s: float = 10.0) -> PeerLink:
    return PeerLink(source, target, True, True, "", bandwidth_gb_s, latency_us)


def test_fewer_lanes_are_faster_below_the_call_that_is_named() -> None:
    gains = [_doctor_model.Gain("aggressive", n, r, 50 / r) for n, r in ((1, 50), (2, 26), (4, 14), (8, 8))]
    links = [link(*pair, 5000.0 if 3 in pair else 1000.0) for k in range(1, 4) for pair in ((0, k), (k, 0))]
    two, four = _doctor_model._exchanges([0, 1, 2, 3], links, 1_000_000, gains)
    # There and back to each: 1 ms of latency and 4 MB at 10 GB/s; the message has a header of 256 bytes.
    assert two.round_ms == pytest.approx(2 * 1.4 + 256 / 1e7)
    assert four.round_ms == pytest.approx(4 * 1.4 + 2 * 5.4 + 3 * 256 / 1e7)
    rounds, cost = {1: 50, 2: 26, 4: 14}, {1: 0.0, 2: two.round_ms, 4: four.round_ms}

    def best(call_ms: float) -> int:
        return min(rounds, key=lambda n: rounds[n] * (call_ms + cost[n]))

    assert two.faster_above_ms is not None and four.faster_above_ms is not None
    assert [best(two.faster_above_ms * f) for f in (0.99, 1.01)] == [1, 2]
    assert [best(four.faster_above_ms * f) for f in (0.99, 1.01)] == [2, 4]


def test_lanes_that_save_no_round_are_never_faster() -> None:
    gains = [_doctor_model.Gain("aggressive", n, 1, 1.0) for n in (1, 2)]
    (only,) = _doctor_model._exchanges([4, 7], [link(4, 7, 1.0), link(7, 4, 1.0)], 10, gains)
    assert only.lanes == 2 and only.faster_above_ms is None
