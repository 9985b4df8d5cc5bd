"""Plans on a real GPU: built for it, compared, run, captured, refused. `make test-gpu FLAVOUR=tensorrt`

What the rest of the suite shows of engines without a GPU ends where a plan is loaded; these tests go on
from there. The flavour is taken from the environment variable DRIFFUSION_FLAVOUR.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from driffusion_trt import EngineError, ModelError
from driffusion_trt.cli import main
from driffusion_trt.engines.compare import limit_of, random_inputs, worst_difference
from driffusion_trt.engines.flavours import Flavour, installed_version
from driffusion_trt.engines.gpus import Gpu
from driffusion_trt.engines.manifest import ModelFolder
from driffusion_trt.engines.onnx_session import OnnxSession
from driffusion_trt.engines.plans import current_hashes
from driffusion_trt.engines.store import Plan, PlanStore
from driffusion_trt.engines.trt_session import TensorRTSession
from driffusion_trt.models import get_spec

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def plan(reduced_model: Path, flavour: Flavour, gpu: Gpu) -> Plan:
    return PlanStore(reduced_model).choose(
        "denoiser",
        current_hashes(ModelFolder.open(reduced_model))["denoiser"],
        flavour=flavour.name,
        version=str(installed_version(flavour)),
        gpu=gpu,
    )


@pytest.fixture
def session(reduced_model: Path, plan: Plan, flavour: Flavour) -> Iterator[TensorRTSession]:
    with (
        PlanStore(reduced_model).open(plan) as data,
        TensorRTSession(data, flavour, name="denoiser") as loaded,
    ):
        yield loaded


def feeds(plan: Plan, seed: int, which: int = 1) -> dict[str, NDArray[Any]]:
    assert plan.key is not None
    sides = plan.key.profile.sides("denoiser", get_spec("sd21"))
    return random_inputs(plan.facts["inputs"], sides, seed, which)


def test_the_gpu_is_found_with_its_architecture(gpu: Gpu) -> None:
    assert gpu.name and gpu.capability >= (7, 5) and gpu.memory_bytes > 1 << 30


def test_every_plan_was_compared_with_onnx_runtime(reduced_model: Path) -> None:
    plans = list(PlanStore(reduced_model).plans())
    assert {plan.key.network for plan in plans if plan.key} >= {"denoiser", "text_encoder", "vae_decoder"}
    for plan in plans:
        assert plan.key is not None and 0 <= plan.facts["parity"] <= limit_of(plan.key.precision)


def test_a_session_computes_what_onnx_runtime_does(
    reduced_model: Path, plan: Plan, session: TensorRTSession
) -> None:
    from gpu.device import Device

    assert plan.key is not None
    with OnnxSession(ModelFolder.open(reduced_model).network("denoiser")) as reference, Device() as device:
        for which in (0, 1):
            given = feeds(plan, seed=which, which=which)
            wanted = reference.run(given)
            outputs = {name: device.put(np.zeros_like(value)) for name, value in wanted.items()}
            bound = session.bind({name: device.put(value) for name, value in given.items()}, outputs)
            bound.enqueue(int(device.stream))
            got = {name: device.get(buffer) for name, buffer in outputs.items()}
            assert worst_difference(got, wanted) <= limit_of(plan.key.precision)


def test_the_same_inputs_give_the_same_bits_and_a_graph_gives_them_too(
    plan: Plan, session: TensorRTSession
) -> None:
    from gpu.device import Device

    with Device() as device:
        first, second = feeds(plan, seed=1), feeds(plan, seed=2)
        inputs = {name: device.put(value) for name, value in first.items()}
        out = device.put(np.zeros(first["sample"].shape, np.float32))
        bound = session.bind(inputs, {"out_sample": out})
        runs = []
        for given in (first, second, first):
            for name, value in given.items():
                device.write(inputs[name], value)
            bound.enqueue(int(device.stream))
            runs.append(device.get(out))
        np.testing.assert_array_equal(runs[0], runs[2])
        assert not np.array_equal(runs[0], runs[1])
        graph = device.capture(lambda: bound.enqueue(int(device.stream)))
        # Another binding of the same plan must not disturb what was captured.
        small = {name: device.put(value[:1]) for name, value in first.items()}
        session.bind(small, {"out_sample": device.put(runs[0][:1])}).enqueue(int(device.stream))
        for given, wanted in ((second, runs[1]), (first, runs[0])):
            for name, value in given.items():
                device.write(inputs[name], value)
            device.launch(graph)
            np.testing.assert_array_equal(device.get(out), wanted)


def test_a_plan_that_tensorrt_cannot_read_is_refused_in_its_words(flavour: Flavour) -> None:
    with pytest.raises(EngineError, match="loading the plan of denoiser"):
        TensorRTSession(b"no plan at all" * 100, flavour, name="denoiser")


def test_a_plan_of_another_version_is_refused_before_it_is_loaded(
    reduced_model: Path, plan: Plan, flavour: Flavour, gpu: Gpu
) -> None:
    assert plan.key is not None
    with pytest.raises(ModelError, match=r"version 0\.0\.0 is installed"):
        PlanStore(reduced_model).choose(
            "denoiser", plan.key.onnx_sha256, flavour=flavour.name, version="0.0.0", gpu=gpu
        )


def test_rtx_keeps_its_finished_kernels(
    reduced_model: Path, plan: Plan, flavour: Flavour, tmp_path: Path
) -> None:
    from gpu.device import Device

    if not flavour.targets:
        pytest.skip("TensorRT has no kernels to finish at load")
    cache, first_ms = tmp_path / "kernels", []
    for _ in range(2):
        with (
            PlanStore(reduced_model).open(plan) as data,
            TensorRTSession(data, flavour, name="denoiser", jit_cache=cache) as session,
            Device() as device,
        ):
            given = feeds(plan, seed=0)
            out = device.put(np.zeros(given["sample"].shape, np.float32))
            bound = session.bind({n: device.put(v) for n, v in given.items()}, {"out_sample": out})
            start = time.perf_counter()
            bound.enqueue(int(device.stream))
            device.wait()
            first_ms.append(1e3 * (time.perf_counter() - start))
            session.save_kernels()
    assert cache.stat().st_size > 1000
    assert first_ms[1] < first_ms[0], "the first call is no faster with the kernels of the time before"


def test_a_second_build_on_the_gpu_does_nothing(
    reduced_model: Path, flavour: Flavour, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--output", str(reduced_model), "--target", "this", "--flavour", flavour.name]
    words += ["--batch-size", "4", "--json"]
    assert main(["build", *words]) == 0
    assert json.loads(capsys.readouterr().out)["did"] == []


def test_bfloat16_is_built_and_compared(tmp_path: Path, flavour: Flavour, gpu: Gpu) -> None:
    """ONNX Runtime compares by the values in float32, since its CPU kernels have no bfloat16."""
    if gpu.capability < (8, 0):
        pytest.skip(f"{gpu} has no bfloat16")
    from reduced import save_checkpoint

    save_checkpoint("sd21", tmp_path / "checkpoint")
    words = ["--model", "sd21", "--checkpoint", str(tmp_path / "checkpoint"), "-o", str(tmp_path / "model")]
    words += ["--precision", "bf16", "--target", "this", "--flavour", flavour.name]
    assert main(["build", *words]) == 0
    for plan in PlanStore(tmp_path / "model").plans():
        assert 0 <= plan.facts["parity"] <= limit_of("bf16")
