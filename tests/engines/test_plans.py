"""Which plans are asked for, what they cost, and which builds run side by side."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny

from driffusion_trt import DriffusionError, EngineError, ModelError
from driffusion_trt._child import Children, Event
from driffusion_trt.engines.flavours import FLAVOURS
from driffusion_trt.engines.gpus import Gpu
from driffusion_trt.engines.manifest import ModelFolder
from driffusion_trt.engines.plans import (
    PlanRequest,
    _environment,
    _next,
    build_plans,
    plan_cost,
    plan_requests,
)
from driffusion_trt.engines.profiles import Profile
from driffusion_trt.engines.store import PlanStore

RTX, PLAIN = FLAVOURS["tensorrt-rtx"], FLAVOURS["tensorrt"]
ADA = Gpu(0, "NVIDIA L4", (8, 9), 24 << 30)
HOPPER = Gpu(1, "NVIDIA H200", (9, 0), 141 << 30)
GB = 10**9


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    return ModelFolder.open(tiny.make_model_folder(tmp_path_factory.mktemp("tiny") / "model"))


def requests(folder: ModelFolder, gpu: Gpu | None = None) -> list[PlanRequest]:
    profile = Profile.pictures(folder.spec)
    if gpu is None:
        return plan_requests(folder, profile, RTX, "1.7", targets=["sm89", "sm120"])
    return plan_requests(folder, profile, PLAIN, "11.4", gpu=gpu)


def test_one_request_for_every_network_largest_first(folder: ModelFolder) -> None:
    made = requests(folder)
    assert [request.key.network for request in made] == ["denoiser", "text_encoder", "vae_decoder"]
    assert made[0].sides == {
        "batch": [1, 2, 2], "height": [16, 16, 16], "width": [16, 16, 16], "sequence": [16, 16, 16]
    }  # fmt: skip
    assert made[0].key.platform.targets == ("sm89", "sm120") and made[0].key.platform.gpu == ""
    assert made[0].name == "denoiser for sm89, sm120"


def test_plain_tensorrt_is_bound_to_the_gpu_and_rtx_to_its_architecture(folder: ModelFolder) -> None:
    assert requests(folder, HOPPER)[0].key.platform.gpu == "NVIDIA H200"
    (request, *_) = plan_requests(folder, Profile.pictures(folder.spec), RTX, "1.7", gpu=ADA)
    assert request.key.platform.gpu == "" and request.key.platform.targets == ("sm89",)


def test_float32_is_asked_to_be_float32(tmp_path: Path) -> None:
    def options(precision: str) -> object:
        path = tiny.make_model_folder(tmp_path / precision)
        text = (path / "manifest.json").read_text()
        (path / "manifest.json").write_text(text.replace("float16 weights, float32 arithmetic", precision))
        return requests(ModelFolder.open(path))[0].key.options["tf32"]

    assert options("fp32") is False
    assert options("fp16") is True


def test_costs_grow_with_the_network_and_t5_is_left_out() -> None:
    small, large = (plan_cost("denoiser", size, "tensorrt-rtx") for size in (GB, 5 * GB))
    assert small and large
    assert large.memory_bytes - small.memory_bytes > 3 * 4 * GB and large.disk_bytes > 5 * GB
    assert plan_cost("text_encoder_3", GB, "tensorrt-rtx") is None


def test_builds_run_side_by_side_as_memory_allows(folder: ModelFolder) -> None:
    first, second, third = requests(folder)
    both = first.cost.memory_bytes + second.cost.memory_bytes
    assert third.cost.memory_bytes < second.cost.memory_bytes
    assert _next([first], [], 1, 0) is first, "one can always start, or nothing would ever be built"
    assert _next([second], [first], 1, None) is None, "no more than --jobs"
    assert _next([second, third], [first], 2, both - 10**6) is None
    assert _next([second, third], [first], 2, both) is second
    assert _next([second, third], [first], 2, both - 1) is third
    assert _next([], [], 2, None) is None


def test_one_build_at_a_time_where_kernels_are_timed(folder: ModelFolder) -> None:
    on_one, on_other = requests(folder, HOPPER), requests(folder, ADA)
    assert _next(on_one[1:], on_one[:1], 4, None) is None
    assert _next([*on_one[1:], *on_other], on_one[:1], 4, None) is on_other[0]


@pytest.mark.parametrize(
    ("visible", "seen"), [(None, "1"), ("", "1"), ("3,5", "5"), ("GPU-aa,GPU-bb", "GPU-bb")]
)
def test_a_child_sees_its_gpu_only(
    folder: ModelFolder, monkeypatch: pytest.MonkeyPatch, visible: str | None, seen: str
) -> None:
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    environment = _environment(requests(folder, HOPPER)[0])
    assert environment.pop("LD_LIBRARY_PATH") == os.environ.get("LD_LIBRARY_PATH", "")
    assert environment == {"POLYGRAPHY_USE_TENSORRT_RTX": "0", "CUDA_VISIBLE_DEVICES": seen}
    assert _environment(requests(folder)[0]) == {"POLYGRAPHY_USE_TENSORRT_RTX": "1"}


def test_a_child_finds_the_runtime_of_cuda_where_its_wheel_has_it(
    folder: ModelFolder, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    library = tmp_path / "nvidia" / "cu13" / "lib" / "libcudart.so.13"
    library.parent.mkdir(parents=True)
    library.touch()
    info = tmp_path / "nvidia_cuda_runtime-13.0.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: nvidia-cuda-runtime\nVersion: 13.0.0\n")
    (info / "RECORD").write_text("nvidia/cu13/lib/libcudart.so.13,,\nnvidia/cu13/include/cuda.h,,\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("LD_LIBRARY_PATH", "/opt/theirs")
    environment = _environment(requests(folder, HOPPER)[0])
    assert environment["LD_LIBRARY_PATH"] == f"/opt/theirs{os.pathsep}{library.parent}"


VERDICTS: list[Any] = []


@pytest.fixture
def compared(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What children were asked for; builds succeed, and comparisons end as VERDICTS has them, in turn."""
    asked: list[dict[str, Any]] = []

    def start(self: Children, name: str, function: str, arguments: Any, **_: Any) -> None:
        asked.append({"name": name, "function": function.partition(":")[2], **arguments})
        if function.endswith("build_plan"):
            Path(arguments["plan"]).write_bytes(b"a plan")
            result: Any = {"inputs": {"input_ids": ["int64", 1, 16]}, "seconds": 1.0, "warnings": []}
            self._events.put(Event(name, done=True, result=result))
        else:
            verdict = VERDICTS.pop(0)
            failed = verdict if isinstance(verdict, DriffusionError) else None
            self._events.put(Event(name, done=True, result=verdict, error=failed))

    monkeypatch.setattr(Children, "start", start)
    monkeypatch.setattr(Children, "_forget", lambda self, name: None)
    return asked


def one_request(folder: ModelFolder) -> PlanRequest:
    (found,) = [request for request in requests(folder, HOPPER) if request.key.network == "text_encoder"]
    return found


def test_a_plan_that_could_not_be_compared_is_kept_and_compared_by_the_next_build(
    tmp_path: Path, compared: list[dict[str, Any]]
) -> None:
    folder = ModelFolder.open(tiny.make_model_folder(tmp_path / "model"))
    request, store = one_request(folder), PlanStore(folder.path)
    VERDICTS[:] = [EngineError("no libcudart"), 2e-4]
    with pytest.raises(EngineError, match=r"no libcudart; the plan is kept, and the same command compares"):
        build_plans(store, [request])
    there = store.find(request.key)
    assert there is not None and "parity" not in there.facts
    compared.clear()
    (plan,) = build_plans(store, [replace(request, built=there)])
    assert [(one["function"], one["plan"]) for one in compared] == [("compare_plan", str(there.path))]
    assert plan.facts["parity"] == 2e-4 and plan.facts["inputs"] == there.facts["inputs"]
    assert store.find(request.key) == plan


@pytest.mark.parametrize("already", [False, True])
def test_a_plan_that_computes_something_else_is_not_kept(
    tmp_path: Path, compared: list[dict[str, Any]], already: bool
) -> None:
    folder = ModelFolder.open(tiny.make_model_folder(tmp_path / "model"))
    request, store = one_request(folder), PlanStore(folder.path)
    if already:
        build_plans(store, [replace(request, verify=False)])
        request = replace(request, built=store.find(request.key))
    VERDICTS[:] = [ModelError("it differs")]
    with pytest.raises(ModelError, match=r"^it differs$"):
        build_plans(store, [request])
    assert [path for path in store.root.rglob("*") if path.is_file()] == []


def test_a_build_that_fails_stops_the_others_and_leaves_nothing_half_made(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    path = tiny.make_model_folder(tmp_path / "model")
    made = requests(ModelFolder.open(path))
    (path / "onnx" / "vae_decoder.onnx").write_bytes(b"no network")
    store = PlanStore(path)
    with pytest.raises(EngineError, match=r"there is no network in it|cannot read"):
        build_plans(store, made, jobs=3)
    assert [p for p in store.root.rglob("*") if p.suffix == ".partial"] == []


def test_what_is_done_is_told_and_stored(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    folder = ModelFolder.open(tiny.make_model_folder(tmp_path / "model"))
    (request,) = [request for request in requests(folder) if request.key.network == "text_encoder"]
    store, phases, done = PlanStore(folder.path), [], []
    (plan,) = build_plans(
        store,
        [request],
        on_phase=lambda name, phase: phases.append(phase),
        on_done=lambda request, plan: done.append((request, plan)),
    )
    assert done == [(request, plan)] and store.has(request.key)
    assert phases[0] == "starting" and "Building engine" in phases
    assert plan.facts["inputs"] == {"input_ids": ["int64", "batch", 16]}
