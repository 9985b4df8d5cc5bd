"""`build` and `inspect`: plans of a tiny model, what is refused and how, and builds that are killed."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import psutil
import pytest
import tiny
from onnx import TensorProto, helper

from driffusion_trt import MissingExtraError, ModelError
from driffusion_trt._manifest import write_manifest
from driffusion_trt.cli import main
from driffusion_trt.commands import _targets, build
from driffusion_trt.engines.flavours import FLAVOURS, check_version, installed_version
from driffusion_trt.engines.gpus import Gpu, Gpus
from driffusion_trt.engines.lock import lock_folder, lock_path
from driffusion_trt.engines.manifest import ModelFolder
from driffusion_trt.engines.plans import current_hashes
from driffusion_trt.engines.store import PlanStore
from driffusion_trt.export.plan import PRECISIONS
from driffusion_trt.models import MODELS

COMMAND = [sys.executable, "-m", "driffusion_trt"]
NO_GPU = Gpus((), None, "no NVIDIA driver: libcuda.so.1 cannot be loaded")
HOPPER = Gpus((Gpu(0, "NVIDIA H200", (9, 0), 141 << 30),), (12, 8))


@pytest.fixture(autouse=True)
def without_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The same on every machine; tests that need a GPU say which."""
    monkeypatch.setattr(_targets, "find_gpus", lambda: NO_GPU)
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make_model_folder(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """A model folder with three plans of TensorRT-RTX."""
    pytest.importorskip("tensorrt_rtx")
    folder = tmp_path_factory.mktemp("built") / "model"
    shutil.copytree(tiny_model, folder)
    assert main(["build", "--output", str(folder), "--target", "sm89,sm120", "--jobs", "3"]) == 0
    return folder


@pytest.fixture
def model(tmp_path: Path, tiny_model: Path) -> Path:
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


@pytest.fixture
def planned(tmp_path: Path, built: Path) -> Path:
    return Path(shutil.copytree(built, tmp_path / "model"))


def snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in files}


def leftovers(folder: Path) -> list[Path]:
    found = [path for path in folder.rglob("*") if path.suffix == ".partial"]
    return found + [path for path in (lock_path(folder),) if path.exists()]


# What is said before any work


def test_names_in_help_are_those_of_the_modules_behind() -> None:
    assert tuple(MODELS) == build.FAMILIES
    assert tuple(FLAVOURS) == build.FLAVOURS
    assert build.PRECISIONS == PRECISIONS


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "give --model, one of sd21"),
        (["--output", "nowhere"], "nowhere is not a built model: give --model"),
        (["--model", "sdxxl", "-o", "x"], "unknown model family 'sdxxl'; did you mean 'sdxl'"),
        (["--model", "sdxl", "-o", "MODEL"], "MODEL is a demo, not a sdxl; name another --output"),
        (["-o", "MODEL", "--precision", "bf16"], "--precision means a new export: give --checkpoint"),
        (["-o", "MODEL", "--lora_path", "a.safetensors"], "--lora-path means a new export"),
        (["-o", "MODEL", "--lora-weight", "0.5"], "0 LoRAs were given with 1 weights"),
        (
            ["-o", "MODEL", "--target", "this"],
            "--target this was asked, and no GPU was found (no NVIDIA driver",
        ),
        (["-o", "MODEL", "--target", "sm90"], "TensorRT-RTX has no target sm90"),
        (["-o", "MODEL", "--target", "cpu,sm89"], "'this' and 'cpu' stand alone"),
        (["-o", "MODEL", "--target", "cpu", "--flavour", "tensorrt"], "--target cpu none; leave one out"),
        (
            ["-o", "MODEL", "--flavour", "tensorrt-rx"],
            "unknown flavour 'tensorrt-rx'; did you mean 'tensorrt-rtx'",
        ),
        (
            ["-o", "MODEL", "--flavor", "tensorrt", "--target", "sm89"],
            "compiles only for the GPU that it runs on",
        ),
        (["-o", "MODEL", "--height", "65"], "height 65 does not suit demo"),
        (["-o", "MODEL", "--opt-shapes", "sample:1x4x16x16"], "greatest batch is 1"),
        (
            ["-o", "MODEL", "--trt_opt_shapes", "sample:2x4x16x16", "--width", "64"],
            "--width and --opt-shapes both",
        ),
        (["-o", "MODEL", "--max-shapes", "16x16"], "is not a list of shapes"),
        (["-o", "MODEL", "--jobs", "0"], "--jobs 0 was asked; it must be at least 1"),
        (["-o", "MODEL", "--optimization-level", "6"], "must be from 0 to 5"),
        (["--model", "demo", "-o", ".", "--precision", "bf16"], "bf16 is for GPUs: on a CPU, ONNX Runtime"),
        (["--model", "demo", "-o", "MODEL/onnx"], "MODEL/onnx exists and is not a model folder"),
        (["--model", "demo", "-o", "MODEL/manifest.json"], "manifest.json exists and is not a model folder"),
        (["-o", "MODEL", "--tarket", "cpu"], "no option --tarket; did you mean '--target'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_misuse_is_refused_before_any_work(
    model: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    before = snapshot(model.parent)
    assert main(["build", *(word.replace("MODEL", str(model)) for word in words)]) == 2
    assert said.replace("MODEL", str(model)) in capsys.readouterr().err
    assert snapshot(model.parent) == before


def test_a_scheduler_that_is_not_supported_is_told_before_the_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from reduced import save_checkpoint

    from driffusion_trt.commands import _building

    def stop(*args: Any) -> None:
        raise ModelError("here the work would begin")

    checkpoint = save_checkpoint("sd21", tmp_path / "checkpoint")
    path = checkpoint / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "_class_name": "UniPCMultistepScheduler"}))
    monkeypatch.setattr(_building, "_check_room", stop)
    words = ["--model", "sd21", "--checkpoint", str(checkpoint), "--output", str(tmp_path / "model")]
    assert main(["build", *words]) == 1
    warned = capsys.readouterr().err
    assert f"warning: {path}: the config names 'UniPCMultistepScheduler', which is not supported" in warned
    assert "choose a scheduler: ddpm, ddim, euler" in warned


def test_without_a_gpu_it_stops_at_onnx_and_says_so_in_a_line(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["build", "--output", str(model)]) == 0
    out, err = capsys.readouterr()
    assert out == f"{model}\n"
    assert err.splitlines()[0] == (
        f"no GPU was found ({NO_GPU.why_none}): stopping at ONNX, which CPU lanes run; "
        "for plans name architectures, such as --target sm89,sm120"
    )
    assert not (model / "plans").exists()


def test_the_flavour_of_a_gpu_that_is_not_installed_names_the_command_for_its_driver(
    model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_targets, "find_gpus", lambda: HOPPER)
    monkeypatch.setattr(_targets, "installed_version", lambda flavour: None)
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    assert main(["build", "--output", str(model)]) == 1
    assert "run: pip install tensorrt-cu12 'cuda-bindings<13'" in capsys.readouterr().err
    assert main(["build", "--output", str(model), "--flavour", "tensorrt-rtx"]) == 2
    assert "does not support NVIDIA H200 (sm90)" in capsys.readouterr().err


def test_a_bundled_model_is_copied(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from driffusion_trt.engines import manifest

    monkeypatch.setattr(manifest, "resolve_model", lambda name: tiny_model if name == "demo" else Path(name))
    assert main(["build", "--model", "demo", "--output", str(tmp_path / "demo")]) == 0
    ModelFolder.open(tmp_path / "demo", verify=True)
    assert leftovers(tmp_path / "demo") == []


@pytest.mark.parametrize(
    ("what", "said"),
    [("disk", "of disk, and"), ("memory", "of memory, and")],
)
def test_too_little_room_is_known_before(
    model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, what: str, said: str
) -> None:
    pytest.importorskip("tensorrt_rtx")
    if what == "disk":
        usage = shutil.disk_usage(model)._replace(free=1000)
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    else:
        monkeypatch.setattr("driffusion_trt.export.estimate.available_memory_bytes", lambda: 1000)
    assert main(["build", "--output", str(model), "--target", "sm89"]) == 1
    assert said in capsys.readouterr().err
    assert not (model / "plans").exists()


# Plans


def test_a_plan_for_every_network_and_nothing_else(built: Path) -> None:
    plans = list(PlanStore(built).plans())
    assert [plan.key.network for plan in plans if plan.key] == ["denoiser", "text_encoder", "vae_decoder"]
    for plan in plans:
        assert plan.problem == "" and PlanStore(built).verify(plan) == ""
        assert plan.path.parent.name.startswith("sm89-sm120-tensorrt-rtx-")
        assert plan.facts["seconds"] > 0
    assert leftovers(built) == []


def test_a_second_build_does_nothing_in_under_two_seconds(built: Path) -> None:
    before = snapshot(built)
    words = ["build", "--output", str(built), "--target", "sm120,sm89", "--json"]
    usage = _child_seconds()
    done = subprocess.run([*COMMAND, *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    # Processor time, since other work may be going on.
    assert _child_seconds() - usage < 2
    result = json.loads(done.stdout)
    assert result["did"] == [] and len(result["plans"]) == 3
    assert "nothing to do" in done.stderr
    assert snapshot(built) == before


def _child_seconds() -> float:
    import resource

    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def truncate(path: Path) -> None:
    os.truncate(path, 1000)


def alter(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def remove(path: Path) -> None:
    path.unlink()


def test_a_plan_that_is_cut_short_is_built_again_and_only_that(
    planned: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = PlanStore(planned)
    (good, bad, other) = [plan.path for plan in store.plans()]
    wanted = bad.read_bytes()
    truncate(bad)
    kept = {path: path.stat().st_mtime_ns for path in (good, other)}
    assert main(["build", "--output", str(planned), "--target", "sm89,sm120", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["did"] == [f"plan {bad.stem}"]
    assert bad.read_bytes() == wanted
    assert {path: path.stat().st_mtime_ns for path in kept} == kept


def test_an_altered_plan_of_the_same_size_is_built_again(
    planned: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = next(iter(PlanStore(planned).plans())).path
    wanted = path.read_bytes()
    alter(path)
    assert main(["build", "--output", str(planned), "--target", "sm89,sm120", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["did"] == [f"plan {path.stem}"]
    assert path.read_bytes() == wanted


def test_copied_plans_are_known_by_their_contents(planned: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for plan in PlanStore(planned).plans():
        os.utime(plan.path)
    assert main(["build", "--output", str(planned), "--target", "sm89,sm120", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["did"] == []


def test_gpus_of_one_architecture_share_plans(
    planned: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    two = (Gpu(0, "NVIDIA L4", (8, 9), 24 << 30), Gpu(1, "NVIDIA L40", (8, 9), 48 << 30))
    monkeypatch.setattr(_targets, "find_gpus", lambda: Gpus(two, (13, 0), ""))
    asked: list[str] = []

    def build_plans(store: PlanStore, requests: Any, **_: Any) -> list[Any]:
        asked.extend(request.name for request in requests)
        return []

    monkeypatch.setattr("driffusion_trt.commands._building.build_plans", build_plans)
    assert main(["build", "-o", str(planned), "--flavour", "tensorrt-rtx", "--target", "this"]) == 0
    assert sorted(asked) == [f"{name} for sm89" for name in ("denoiser", "text_encoder", "vae_decoder")]


def test_sm75_has_no_products_in_float32(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("tensorrt_rtx")
    manifest = json.loads((model / "manifest.json").read_text())
    (model / "manifest.json").write_text(json.dumps({**manifest, "precision": "fp32"}))
    assert main(["build", "-o", str(model), "--target", "sm75,sm89"]) == 2
    assert "has no matrix products in fp32 for sm75" in capsys.readouterr().err
    assert list(PlanStore(model).plans()) == []


@pytest.mark.parametrize(("name", "version"), [("tensorrt", "10.9.0.34"), ("tensorrt-rtx", "1.2.0")])
def test_an_older_tensorrt_is_refused(name: str, version: str) -> None:
    said = rf"\({version} is installed\).*pip install --upgrade '{name}-cu13>="
    with pytest.raises(MissingExtraError, match=said):
        check_version(FLAVOURS[name], version)
    check_version(FLAVOURS[name], ".".join(map(str, FLAVOURS[name].least_version)) + ".1")


def test_a_damaged_folder_is_not_replaced_by_the_bundled_model(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (model / ".export.json").write_text("{}")
    (model / "manifest.json").write_text("{")
    before = snapshot(model)
    assert main(["build", "--model", "demo", "-o", str(model), "--target", "cpu"]) == 1
    assert "manifest.json cannot be read" in capsys.readouterr().err
    assert snapshot(model) == before


def test_an_altered_network_is_refused_and_not_built_from(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("tensorrt_rtx")
    alter(model / "onnx" / "denoiser.onnx")
    assert main(["build", "--output", str(model), "--target", "sm89"]) == 1
    assert "denoiser.onnx was altered" in capsys.readouterr().err
    assert list(PlanStore(model).plans()) == []


def test_a_network_that_tensorrt_refuses_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("tensorrt_rtx")
    folder = one_network(tmp_path / "model", "Frobnicate", domain="ours")
    assert main(["build", "--output", str(folder), "--target", "sm89"]) == 1
    err = capsys.readouterr().err
    assert "cannot read" in err and "Frobnicate" in err and "Plugin not found" in err
    assert list(PlanStore(folder).plans()) == [] and leftovers(folder) == []


def test_two_builds_at_once(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with lock_folder(model):
        assert main(["build", "--output", str(model), "--target", "cpu"]) == 1
    assert f"{model} is being built by another (process {os.getpid()}" in capsys.readouterr().err


# Inspect


def test_inspect_shows_what_there_is(built: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(built)]) == 0
    out = capsys.readouterr().out
    for text in (
        "demo",
        "onnx/denoiser.onnx",
        "plans of TensorRT-RTX",
        "sm89, sm120",
        "batch 1..2",
        "as built",
    ):
        assert text in out


def test_inspect_for_programs(built: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(built), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["family"] == "demo" and {item["problem"] for item in found["files"]} == {None}
    assert [item["key"]["network"] for item in found["plans"]] == ["denoiser", "text_encoder", "vae_decoder"]
    assert all(item["size_bytes"] == (built / item["path"]).stat().st_size for item in found["plans"])


def test_inspect_says_where_a_plan_can_run(
    built: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = Gpus((Gpu(0, "NVIDIA L4", (8, 9), 1), Gpu(1, "NVIDIA H200", (9, 0), 1)), (13, 0))
    monkeypatch.setattr("driffusion_trt.engines.gpus.find_gpus", lambda: found)
    assert main(["inspect", str(built), "--json"]) == 0
    here = json.loads(capsys.readouterr().out)["plans"][0]["here"]
    assert here["NVIDIA L4 (sm89)"] == "runs here"
    assert "this GPU is NVIDIA H200 (sm90)" in here["NVIDIA H200 (sm90)"]


@pytest.mark.parametrize(
    ("harm", "words"),
    [(truncate, "cut short"), (alter, "altered"), (remove, ("missing", "No such file"))],
)
@pytest.mark.parametrize("which", ["onnx/denoiser.onnx", "plan"])
def test_inspect_finds_every_file_that_is_not_what_was_built(
    planned: Path, capsys: pytest.CaptureFixture[str], harm: Callable[[Path], None], words: Any, which: str
) -> None:
    path = next(PlanStore(planned).plans()).path if which == "plan" else planned / which
    alter(planned / "tokenizer" / "tokenizer.json")
    harm(path)
    assert main(["inspect", str(planned)]) == 1
    out, err = capsys.readouterr()
    assert any(text in out for text in ([words] if isinstance(words, str) else words))
    assert "onnx/vae_decoder.onnx" in out, "the rest is shown all the same"
    assert "tokenizer/tokenizer.json" in err and path.name in err


def test_inspect_of_no_model_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(tmp_path)]) == 1
    assert "is not a model folder (it has no manifest.json)" in capsys.readouterr().err


# Builds that are stopped


def one_network(folder: Path, kind: str, **node: Any) -> Path:
    """A model folder with one network of one operator, which TensorRT builds in a moment."""
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ("batch", 4)) for name in "xy"]
    graph = helper.make_graph([helper.make_node(kind, ["x"], ["y"], **node)], "g", value[:1], value[1:])
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("ours", 1)]
    (folder / "onnx").mkdir(parents=True)
    onnx.save(
        helper.make_model(graph, opset_imports=opsets, ir_version=10), folder / "onnx" / "denoiser.onnx"
    )
    write_manifest(
        folder,
        family="demo",
        precision="fp16",
        versions={},
        shapes={"picture": [3, 64, 64]},
        scaling_factor=1.0,
    )
    return folder


def start(folder: Path) -> subprocess.Popen[bytes]:
    words = ["build", "--output", str(folder), "--target", "sm89"]
    return subprocess.Popen([*COMMAND, *words], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)


def usable(folder: Path) -> bool:
    """Whether the plan would be taken; what is taken must be whole."""
    folder_now = ModelFolder.open(folder, verify=True)
    store = PlanStore(folder)
    gpu = Gpu(0, "NVIDIA GeForce RTX 4090", (8, 9), 24 << 30)
    version = installed_version(FLAVOURS["tensorrt-rtx"])
    try:
        plan = store.choose(
            "denoiser",
            current_hashes(folder_now)["denoiser"],
            flavour="tensorrt-rtx",
            version=str(version),
            gpu=gpu,
        )
    except ModelError:
        return False
    store.open(plan).close()
    return True


def test_killed_at_ten_random_moments(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    whole = one_network(tmp_path / "whole", "Relu")
    began = time.monotonic()
    assert start(whole).wait() == 0
    seconds = time.monotonic() - began
    (plan,) = PlanStore(whole).plans()
    folder = one_network(tmp_path / "model", "Relu")
    dice = random.Random(2603)
    for _ in range(10):
        process = start(folder)
        try:
            process.wait(dice.uniform(0, seconds))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if usable(folder):  # it came far enough: once more from the start
            shutil.rmtree(folder / "plans")
    assert start(folder).wait() == 0
    assert usable(folder) and leftovers(folder) == []
    (again,) = PlanStore(folder).plans()
    assert again.path.read_bytes() == plan.path.read_bytes()


def test_ctrl_c_is_clean_and_keeps_what_is_done(model: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    words = ["build", "--output", str(model), "--target", "sm89", "--jobs", "1"]
    with subprocess.Popen(
        [*COMMAND, *words],
        stderr=subprocess.PIPE,
        text=True,
        # Where the tests run in the background of a shell it is ignored, and that is inherited.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        assert process.stderr is not None
        lines = []
        for line in process.stderr:
            lines.append(line)
            if line.startswith("plan of"):
                break
        children = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGINT)
        lines += list(process.stderr)
        assert process.wait() == 130, lines
    assert "stopped; what is done is kept" in lines[-2] and lines[-1] == "driffusion-trt: interrupted\n"
    assert psutil.wait_procs(children, timeout=10)[1] == []
    assert leftovers(model) == []
    assert len(list(PlanStore(model).plans())) == 1
