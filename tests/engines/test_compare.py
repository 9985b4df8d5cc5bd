"""Plans against ONNX Runtime through polygraphy; for TensorRT's runner, which needs a GPU, stands another."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import tiny

from driffusion_trt import EngineError, ModelError
from driffusion_trt.engines.compare import compare_plan, limit_of, random_inputs, worst_difference
from driffusion_trt.engines.onnx_session import OnnxSession
from driffusion_trt.engines.profiles import Range

SIDES = {"batch": Range(1, 2, 4), "height": Range(8, 16, 16), "width": Range(16, 16, 24)}
INPUTS: dict[str, list[str | int]] = {
    "sample": ["float", "batch", 4, "height", "width"],
    "timestep": ["float", "batch"],
    "encoder_hidden_states": ["float", "batch", 16, 96],
}


@pytest.mark.parametrize(("which", "shape"), [(0, (1, 4, 8, 16)), (1, (2, 4, 16, 16)), (2, (4, 4, 16, 24))])
def test_inputs_are_such_as_occur_in_use(which: int, shape: tuple[int, ...]) -> None:
    given = random_inputs({**INPUTS, "input_ids": ["int64", "batch", 77]}, SIDES, 0, which)
    assert given["sample"].shape == shape and given["sample"].dtype == np.float32
    assert abs(float(given["sample"].std()) - 1) < 0.1
    assert ((given["timestep"] >= 1) & (given["timestep"] < 1000)).all()
    assert given["input_ids"].dtype == np.int64 and given["input_ids"].min() >= 0
    again = random_inputs(INPUTS, SIDES, 0, which)
    np.testing.assert_array_equal(again["sample"], given["sample"])
    assert not np.array_equal(random_inputs(INPUTS, SIDES, 1, which)["sample"], given["sample"])


def test_the_worst_output_counts() -> None:
    exact = {"a": np.array([3.0, 4.0]), "b": np.array([1.0])}
    assert worst_difference(exact, exact) == 0
    assert worst_difference({"a": np.array([3.0, 4.5]), "b": np.array([1.01])}, exact) == pytest.approx(0.1)
    assert worst_difference({"a": np.array([3.0, np.nan]), "b": exact["b"]}, exact) == float("inf")
    assert worst_difference({"a": exact["a"]}, exact) == float("inf")


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("name", ["a", "b"])
def test_what_is_not_finite_is_never_near(name: str, value: float) -> None:
    """On either side, or on both: where the reference overflows too, nothing was compared."""
    fine = {"a": np.array([3.0, 4.0]), "b": np.array([1.0, 2.0])}
    spoilt = fine | {name: np.array([3.0, value])}
    assert worst_difference(spoilt, fine) == float("inf")
    assert worst_difference(fine, spoilt) == float("inf")
    assert worst_difference(spoilt, spoilt) == float("inf")


def test_nothing_is_spread_over_another_shape() -> None:
    assert worst_difference({"a": np.ones((1, 1))}, {"a": np.ones((2, 3))}) == float("inf")
    assert worst_difference({"a": np.zeros(2)}, {"a": np.zeros(2)}) == 0
    assert worst_difference({"a": np.ones(2)}, {"a": np.zeros(2)}) == float("inf")


def test_limits_follow_the_precision_of_the_manifest() -> None:
    assert limit_of("fp32") < limit_of("fp16") < limit_of("bf16")
    assert limit_of("fp16, autoencoder fp32") == limit_of("fp16")


@pytest.fixture
def runs_onnx(monkeypatch: pytest.MonkeyPatch) -> None:
    """What polygraphy is to take for a plan is the bytes of an ONNX file."""
    onnxrt = pytest.importorskip("polygraphy.backend.onnxrt")
    trt = pytest.importorskip("polygraphy.backend.trt")

    class Silent:
        """The parts of TensorRT that are asked for, which need a GPU."""

        ILogger = type("ILogger", (), {"__init__": lambda self: None})

        @staticmethod
        def Runtime(logger: Any) -> Any:
            logger.log(type("Severity", (), {"name": "ERROR"}), "its very own words")
            return logger

    def runner(engine: bytes, name: str) -> Any:
        return onnxrt.OnnxrtRunner(onnxrt.SessionFromOnnx(engine, providers=["cpu"]), name=name)

    def engine(data: bytes, runtime: Any) -> bytes:
        if data == b"no network":
            raise pytest.importorskip("polygraphy.exception").PolygraphyException("cannot deserialize")
        return data

    monkeypatch.setattr(trt, "EngineFromBytes", engine)
    monkeypatch.setattr(trt, "TrtRunner", runner)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", Silent)  # type: ignore[arg-type]


def compare(onnx: Path, plan: Path, precision: str = "fp16") -> float:
    return compare_plan(
        network="denoiser",
        onnx=str(onnx),
        plan=str(plan),
        flavour="tensorrt-rtx",
        precision=precision,
        sides={name: [r.min, r.opt, r.max] for name, r in SIDES.items()},
        inputs=INPUTS,
        report=lambda **facts: None,
    )


@pytest.mark.usefixtures("runs_onnx")
def test_a_plan_that_computes_the_same_has_its_figure(tmp_path: Path) -> None:
    onnx = tiny.make_denoiser(tmp_path / "a.onnx")
    assert compare(onnx, onnx) == 0
    with pytest.raises(
        EngineError, match=r"the plan of denoiser could not be run .*cannot deserialize; .*its very own words"
    ):
        (tmp_path / "plan").write_bytes(b"no network")
        compare(onnx, tmp_path / "plan")


@pytest.mark.usefixtures("runs_onnx")
def test_a_network_in_bfloat16_is_compared_by_its_values(tmp_path: Path) -> None:
    """ONNX Runtime has no product of matrices in bfloat16 on a CPU, so it gets the values in float32."""
    onnx = tiny.make_denoiser(tmp_path / "a.onnx")
    narrow(onnx, tmp_path / "bf16.onnx")
    with pytest.raises(ModelError):
        OnnxSession(tmp_path / "bf16.onnx")
    assert compare(tmp_path / "bf16.onnx", onnx, "bf16") < limit_of("bf16")
    with pytest.raises(ModelError, match="above the limit of 5e-02"):
        compare(tmp_path / "bf16.onnx", tiny.make_denoiser(tmp_path / "b.onnx", seed=1), "bf16")
    assert [path for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    with pytest.raises(EngineError, match=r"could not be run for its check: .*bf16\.onnx"):
        compare(tmp_path / "bf16.onnx", onnx, "fp16")


def narrow(source: Path, target: Path) -> None:
    """The same network with weights and products in bfloat16, as torch exports it."""
    model = onnx.load(source)
    for tensor in model.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT:
            value = onnx.numpy_helper.to_array(tensor)
            made = onnx.helper.make_tensor(
                tensor.name, onnx.TensorProto.BFLOAT16, value.shape, value.flatten()
            )
            tensor.CopyFrom(made)
    nodes = []
    for put in model.graph.input:
        if put.type.tensor_type.elem_type == onnx.TensorProto.FLOAT:
            nodes.append(onnx.helper.make_node("Cast", [put.name], [f"{put.name}_narrow"], to=16))
    for node in model.graph.node:
        names = [f"{n}_narrow" if any(n == put.name for put in model.graph.input) else n for n in node.input]
        node.input[:] = names
        node.output[:] = [
            f"{n}_narrow" if any(n == o.name for o in model.graph.output) else n for n in node.output
        ]
        nodes.append(node)
    for out in model.graph.output:
        nodes.append(onnx.helper.make_node("Cast", [f"{out.name}_narrow"], [out.name], to=1))
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    onnx.save(model, target)


@pytest.mark.usefixtures("runs_onnx")
def test_a_plan_that_computes_something_else_is_refused_with_both_figures(tmp_path: Path) -> None:
    onnx = tiny.make_denoiser(tmp_path / "a.onnx")
    other = tiny.make_denoiser(tmp_path / "b.onnx", seed=1)
    with pytest.raises(
        ModelError,
        match=r"plan of denoiser differs from ONNX Runtime by \d.* and \d.* above the limit of 1e-02",
    ):
        compare(onnx, other)


@pytest.mark.usefixtures("runs_onnx")
def test_numbers_that_are_not_finite_are_told_by_whose_they_are(tmp_path: Path) -> None:
    onnx_file = tiny.make_denoiser(tmp_path / "a.onnx")
    model = onnx.load(onnx_file)
    weight = max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data))
    value = np.full_like(onnx.numpy_helper.to_array(weight), np.inf)
    weight.CopyFrom(onnx.numpy_helper.from_array(value, weight.name))
    onnx.save(model, tmp_path / "spoilt.onnx")
    for reference, plan, who in (("a", "spoilt", "the plan"), ("spoilt", "a", "ONNX Runtime")):
        with pytest.raises(ModelError, match=rf"\({who} gave numbers that are not finite in \w+\); try"):
            compare(tmp_path / f"{reference}.onnx", tmp_path / f"{plan}.onnx")
    with pytest.raises(ModelError, match=r"\(the plan .* and ONNX Runtime gave numbers that are not finite"):
        compare(tmp_path / "spoilt.onnx", tmp_path / "spoilt.onnx")
