"""Real plans of TensorRT-RTX, built on the CPU; and what it says where it cannot."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx
import pytest
import tiny
from onnx import TensorProto, helper

from driffusion_trt import EngineError, InputError
from driffusion_trt.engines import builder
from driffusion_trt.engines.builder import build_plan
from driffusion_trt.engines.profiles import Profile
from driffusion_trt.models import get_spec

trt = pytest.importorskip("tensorrt_rtx")

SIDES = {
    name: [r.min, r.opt, r.max]
    for name, r in Profile.pictures(get_spec("demo")).sides("denoiser", get_spec("demo")).items()
}


def save(path: Path, nodes: Sequence[Any], shape: Sequence[int | str | None] = ("batch", 4)) -> Path:
    """A network from `x` to `y`, float32."""
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in "xy"]
    graph = helper.make_graph(list(nodes), "g", value[:1], value[1:])
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("ours", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)
    return path


class Heard:
    """A `report` that keeps what it was told."""

    def __init__(self) -> None:
        self.facts: list[dict[str, Any]] = []

    def __call__(self, **facts: Any) -> None:
        self.facts.append(facts)

    def said(self, what: str) -> list[Any]:
        return [facts[what] for facts in self.facts if what in facts]


def build(onnx_path: Path, plan: Path, heard: Heard | None = None, **other: Any) -> dict[str, Any]:
    settings: dict[str, Any] = {"flavour": "tensorrt-rtx", "targets": ["sm89"], "sides": SIDES}
    return build_plan(onnx=str(onnx_path), plan=str(plan), **{**settings, **other}, report=heard or Heard())


def test_a_denoiser_becomes_a_plan_of_two_targets(tmp_path: Path) -> None:
    heard = Heard()
    path = tiny.make_denoiser(tmp_path / "denoiser.onnx")
    facts = build(path, tmp_path / "a.plan.partial", heard, targets=["sm89", "sm120"])
    assert (tmp_path / "a.plan.partial").stat().st_size > 10_000
    assert facts["inputs"] == {
        "sample": ["float", "batch", 4, "height", "width"],
        "timestep": ["float", "batch"],
        "encoder_hidden_states": ["float", "batch", 16, 96],
    }
    assert facts["outputs"]["out_sample"][0] == "float"
    assert facts["seconds"] > 0 and facts["peak_memory_bytes"] > 1 << 20
    assert "Building engine" in heard.said("phase")
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["a.plan.partial", "denoiser.onnx"]


def test_targets_and_sizes_make_other_plans_and_the_same_make_the_same(tmp_path: Path) -> None:
    path = save(tmp_path / "add.onnx", [helper.make_node("Add", ["x", "x"], ["y"])])
    plans = {}
    for name, settings in {
        "one": {},
        "again": {},
        "targets": {"targets": ["sm89", "sm120"]},
        "sizes": {"sides": {"batch": [1, 3, 7]}},
    }.items():
        build(path, tmp_path / name, **settings)
        plans[name] = (tmp_path / name).read_bytes()
    assert plans["one"] == plans["again"]
    assert plans["one"] not in (plans["targets"], plans["sizes"])


def attention(path: Path, heads: int, width: int) -> Path:
    shape = ("batch", heads, "height", width)
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT16, shape) for name in "qkvy"]
    graph = helper.make_graph([helper.make_node("Attention", list("qkv"), ["y"])], "g", value[:3], value[3:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10), path)
    return path


def test_attention_keeps_its_fused_kernel_or_is_taken_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TensorRT has none for heads as wide as the autoencoder's."""
    sides = {"batch": [1, 2, 2], "height": [16, 64, 64]}
    usual = attention(tmp_path / "usual.onnx", 4, 64)
    wide = attention(tmp_path / "wide.onnx", 1, 512)
    build(wide, tmp_path / "wide", sides=sides)
    # TensorRT numbers inner values in one of two orders, so that one build has one of two sequences of bytes,
    # and one of them may be rare.
    plans: set[bytes] = set()
    fused: set[bytes] = set()
    for _ in range(15):
        build(usual, tmp_path / "plan", sides=sides)
        plans.add((tmp_path / "plan").read_bytes())
        with monkeypatch.context() as kept:
            kept.setattr(builder, "_let_attention_decompose", lambda module, network: None)
            build(usual, tmp_path / "fused", sides=sides)
        fused.add((tmp_path / "fused").read_bytes())
        if plans & fused:
            break
    assert plans & fused
    monkeypatch.setattr(builder, "_let_attention_decompose", lambda module, network: None)
    with pytest.raises(EngineError, match="not supported by a dedicated kernel"):
        build(wide, tmp_path / "never", sides=sides)


def test_a_network_that_cannot_be_read_is_told_with_its_node(tmp_path: Path) -> None:
    path = save(
        tmp_path / "bad.onnx", [helper.make_node("Frobnicate", ["x"], ["y"], "strange", domain="ours")]
    )
    with pytest.raises(
        EngineError, match=r"cannot read .*bad.onnx: node 0 'strange' \(Frobnicate\): .*Plugin not found"
    ):
        build(path, tmp_path / "plan")
    assert not (tmp_path / "plan").exists()


@pytest.mark.parametrize("content", [None, b"", b"this is no ONNX file"])
def test_what_is_no_network(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "x.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(EngineError, match=r"cannot read .*x.onnx: .+"):
        build(path, tmp_path / "plan")


def test_a_network_that_cannot_be_built_is_told_in_tensorrts_words(tmp_path: Path) -> None:
    """Read well, but no batch of this profile can be cut into three."""
    nodes = [
        helper.make_node("Constant", [], ["shape"], value_ints=[3, 5]),
        helper.make_node("Reshape", ["x", "shape"], ["z"]),
        helper.make_node("ReduceSum", ["z"], ["s"], keepdims=0),
        helper.make_node("Add", ["x", "s"], ["y"]),
    ]
    heard = Heard()
    with pytest.raises(EngineError, match=r"TensorRT-RTX's build of x.onnx for sm89 failed: .*[Rr]eshape"):
        build(save(tmp_path / "x.onnx", nodes), tmp_path / "plan", heard)
    assert "error" in heard.said("severity")
    assert not (tmp_path / "plan").exists()


def test_a_side_without_a_size_is_refused_before_the_build(tmp_path: Path) -> None:
    path = save(tmp_path / "x.onnx", [helper.make_node("Add", ["x", "x"], ["y"])], ("frames", 4))
    with pytest.raises(InputError, match="side 0 of the input 'x' varies and is called 'frames'"):
        build(path, tmp_path / "plan")


def test_a_target_that_the_package_does_not_have(tmp_path: Path) -> None:
    path = save(tmp_path / "x.onnx", [helper.make_node("Add", ["x", "x"], ["y"])])
    with pytest.raises(EngineError, match="has no target sm999"):
        build(path, tmp_path / "plan", targets=["sm999"])
