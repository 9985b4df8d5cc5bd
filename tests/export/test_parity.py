"""The comparison with torch finds what it is there for, and the check of the graph what ONNX forbids."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from safetensors.torch import load_file, save_file

from driffusion_trt import ModelError
from driffusion_trt.export import onnx_export, parity
from driffusion_trt.export.checkpoint import read_checkpoint
from driffusion_trt.export.families import networks_of
from driffusion_trt.export.network import Network
from driffusion_trt.export.onnx_export import export_network
from driffusion_trt.export.parity import check_parity, relative_l2
from driffusion_trt.models import get_spec

Checkpoints = Callable[[str], Path]


def text_encoder(folder: Path) -> Network:
    return networks_of(read_checkpoint(folder, get_spec("sd21")))[0]


@pytest.fixture(scope="module")
def exported(checkpoints: Checkpoints, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("onnx")
    return export_network(text_encoder(checkpoints("sd21")), torch.float32, (), folder)


def spoilt(path: Path, folder: Path, factor: float) -> Path:
    """A copy whose largest matrix is `factor` times itself."""
    model = onnx.load(path)
    weight = max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data))
    value = (factor * numpy_helper.to_array(weight)).astype(np.float32)
    weight.CopyFrom(numpy_helper.from_array(value, weight.name))
    onnx.save(model, folder / path.name)
    return folder / path.name


def test_relative_l2() -> None:
    assert relative_l2(np.array([3.0, 4.0]), np.array([3.0, 4.5])) == pytest.approx(0.5 / np.hypot(3, 4.5))
    assert np.isnan(relative_l2(np.array([np.nan]), np.array([1.0])))
    assert np.isnan(relative_l2(np.array([1.0, 2.0]), np.array([1.0, np.inf])))
    with pytest.raises(ValueError, match="is compared with"):
        relative_l2(np.ones((1, 1)), np.ones((2, 3)))


@pytest.mark.parametrize("which", [0, 1])
def test_every_output_counts(
    checkpoints: Checkpoints, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, which: int
) -> None:
    """NaN in any of them, where the others are right: `max(1e-7, nan)` is 1e-7."""
    networks = networks_of(read_checkpoint(checkpoints("sd21"), get_spec("sd21")))
    (network,) = (network for network in networks if network.name == "vae_encoder")
    path = export_network(network, torch.float32, (), tmp_path)
    assert check_parity(network, path, "fp32", ()) < 1e-5
    right = parity._run

    def spoilt_run(*arguments: Any) -> Any:
        outputs = right(*arguments)
        outputs[0][which] = np.full_like(outputs[0][which], np.nan)
        return outputs

    monkeypatch.setattr(parity, "_run", spoilt_run)
    with pytest.raises(ModelError, match="vae_encoder in fp32 differs from torch by nan"):
        check_parity(network, path, "fp32", ())


def test_a_right_network_passes(checkpoints: Checkpoints, exported: Path) -> None:
    assert 0 < check_parity(text_encoder(checkpoints("sd21")), exported, "fp32", ()) < 1e-5
    assert [path.name for path in exported.parent.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize("factor", [1.001, np.nan])
def test_a_wrong_one_does_not(
    checkpoints: Checkpoints, exported: Path, tmp_path: Path, factor: float
) -> None:
    path = spoilt(exported, tmp_path, factor)
    with pytest.raises(
        ModelError, match=r"text_encoder in fp32 differs from torch by .* and .* limit of 1e-05"
    ):
        check_parity(text_encoder(checkpoints("sd21")), path, "fp32", ())


def test_numbers_that_leave_the_range_of_fp16(copy_of: Checkpoints, tmp_path: Path) -> None:
    """A channel above 65,504, such as real text encoders and autoencoders have."""
    folder = copy_of("sd21")
    path = folder / "text_encoder" / "model.safetensors"
    tensors = load_file(path)
    name = next(name for name in tensors if name.endswith("layers.1.mlp.fc2.bias"))
    tensors[name][0] += 1e5
    save_file(tensors, path, metadata={"format": "pt"})
    network = text_encoder(folder)
    with pytest.raises(
        ModelError, match=r"fp16 differs from torch by nan and nan .* build it in bf16 or fp32"
    ):
        check_parity(network, export_network(network, torch.float16, (), tmp_path), "fp16", ())
    assert check_parity(network, export_network(network, torch.bfloat16, (), tmp_path), "bf16", ()) < 5e-3


def test_a_file_that_cannot_be_run(checkpoints: Checkpoints, exported: Path, tmp_path: Path) -> None:
    shutil.copy(exported, tmp_path)  # without its weights
    with pytest.raises(ModelError, match="cannot be run by ONNX Runtime"):
        check_parity(text_encoder(checkpoints("sd21")), tmp_path / exported.name, "fp32", ())


def test_invalid_onnx_is_refused(tmp_path: Path) -> None:
    """Two types in one Concat, which the exporter does not mind."""
    half, single = (
        helper.make_tensor_value_info(name, kind, [2])
        for name, kind in (("half", TensorProto.FLOAT16), ("single", TensorProto.FLOAT))
    )
    out = helper.make_tensor_value_info("out", TensorProto.FLOAT, [4])
    node = helper.make_node("Concat", ["half", "single"], ["out"], axis=0)
    graph = helper.make_graph([node], "concat", [half, single], [out])
    opset = [helper.make_opsetid("", onnx_export.OPSET)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=10), tmp_path / "x.onnx")
    with pytest.raises(ModelError, match="the exported denoiser is not valid ONNX"):
        onnx_export.check(tmp_path / "x.onnx", "denoiser")
