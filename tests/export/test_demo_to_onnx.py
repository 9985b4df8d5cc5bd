"""The demo's export: what ONNX Runtime computes is what torch computes, and folders come whole."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime  # type: ignore[import-untyped]
import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer
from transformers import CLIPTextConfig, CLIPTextModel

from driffusion_trt import ModelError
from driffusion_trt.engines.manifest import ModelFolder
from driffusion_trt.engines.onnx_session import OnnxSession
from driffusion_trt.export import graph
from driffusion_trt.export.demo import networks, to_onnx
from driffusion_trt.export.demo.denoiser import DEMOS, weights_name
from driffusion_trt.export.demo.finish import finish


def make_unet() -> UNet2DConditionModel:
    """The demo's blocks, narrower and fewer."""
    return UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(16, 32),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=96,
        attention_head_dim=(2, 4),
        use_linear_projection=True,
        norm_num_groups=8,
    )


def make_vae() -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(8, 8, 16),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=1,
        norm_num_groups=4,
        latent_channels=4,
        sample_size=64,
        scaling_factor=0.75,
        mid_block_add_attention=False,
    )


def make_text_encoder() -> CLIPTextModel:
    config = CLIPTextConfig(
        vocab_size=networks.make_tokenizer().get_vocab_size(),
        hidden_size=96,
        intermediate_size=96,
        projection_dim=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=networks.TEXT_LENGTH,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    return CLIPTextModel(config)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("checkpoint")
    parts = {"unet": make_unet(), "text_encoder": make_text_encoder(), "vae": make_vae()}
    networks.save_checkpoint(folder, parts, networks.make_scheduler(), networks.make_tokenizer())
    return folder


@pytest.fixture(scope="module")
def folder(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return to_onnx.export_demo(checkpoint, tmp_path_factory.mktemp("models") / "demo")


def halved(module: torch.nn.Module) -> torch.nn.Module:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(parameter.half().float())
    return module.eval()


def relative(got: np.ndarray, wanted: torch.Tensor) -> float:
    return float(np.linalg.norm(got - wanted.numpy()) / np.linalg.norm(wanted.numpy()))


def test_the_folder_is_whole(checkpoint: Path, folder: Path) -> None:
    model = ModelFolder.open(folder, verify=True)
    assert model.networks == ("denoiser", "text_encoder", "vae_decoder", "vae_encoder")
    assert (model.manifest.scaling_factor, model.manifest.shift_factor) == (0.75, 0.0)
    assert model.manifest.shapes == {"picture": [3, 64, 64], "latents": [4, 16, 16], "text": [16, 96]}
    assert {"torch", "diffusers", "onnx", "onnxruntime"} <= set(model.manifest.versions)
    assert set(model.manifest.parity) == set(model.networks)
    assert all(0 <= value < 1e-5 for value in model.manifest.parity.values())
    saved = json.loads((checkpoint / "scheduler" / "scheduler_config.json").read_text())
    assert model.scheduler_config() == saved
    assert Tokenizer.from_file(str(model.tokenizer())).get_vocab() == networks.make_tokenizer().get_vocab()
    assert [path.name for path in folder.parent.iterdir()] == ["demo"]  # no leftovers beside it


@pytest.mark.parametrize(("batch", "side"), [(1, 16), (2, 16), (5, 8)])
def test_denoiser_equals_torch(checkpoint: Path, folder: Path, batch: int, side: int) -> None:
    unet = halved(UNet2DConditionModel.from_pretrained(checkpoint / "unet"))
    generator = torch.Generator().manual_seed(3)
    inputs = {
        "sample": torch.randn(batch, 4, side, side, generator=generator),
        "timestep": torch.linspace(1, 981, batch),
        "encoder_hidden_states": torch.randn(batch, 16, 96, generator=generator),
    }
    with torch.no_grad():
        wanted = unet(**inputs).sample
    with OnnxSession(folder / "onnx" / "denoiser.onnx") as session:
        got = session.run({name: value.numpy() for name, value in inputs.items()})
    assert relative(got["out_sample"], wanted) < 1e-5


@pytest.mark.parametrize("batch", [1, 3])
def test_text_encoder_equals_torch(checkpoint: Path, folder: Path, batch: int) -> None:
    model = halved(CLIPTextModel.from_pretrained(checkpoint / "text_encoder"))
    words = ["a red fox left of a blue star", "an owl", "a cat on a green background"][:batch]
    tokens = [encoding.ids for encoding in networks.make_tokenizer().encode_batch(words)]
    with torch.no_grad():
        wanted = model(torch.tensor(tokens)).last_hidden_state
    with OnnxSession(folder / "onnx" / "text_encoder.onnx") as session:
        got = session.run({"input_ids": np.array(tokens), "clip_skip": np.zeros(1, np.int64)})
    assert relative(got["last_hidden_state"], wanted) < 1e-5


@pytest.mark.parametrize("batch", [1, 3])
def test_vae_decoder_equals_torch(checkpoint: Path, folder: Path, batch: int) -> None:
    vae: Any = halved(AutoencoderKL.from_pretrained(checkpoint / "vae"))
    latents = torch.randn(batch, 4, 16, 16, generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        wanted = vae.decode(latents).sample
    with OnnxSession(folder / "onnx" / "vae_decoder.onnx") as session:
        got = session.run({"latents": latents.numpy()})
    assert got["pictures"].shape == (batch, 3, 64, 64)
    assert relative(got["pictures"], wanted) < 1e-5


@pytest.mark.parametrize("name", ["denoiser", "text_encoder", "vae_decoder"])
def test_weights_are_stored_as_float16_and_nothing_else_is_left(folder: Path, name: str) -> None:
    path = folder / "onnx" / f"{name}.onnx"
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    size = {t.name: numpy_helper.to_array(t).size for t in model.graph.initializer}
    single = sum(size[t.name] for t in model.graph.initializer if t.data_type == TensorProto.FLOAT)
    assert single < 0.02 * sum(size.values())
    dims = {d.dim_param for v in model.graph.input for d in v.type.tensor_type.shape.dim if d.dim_param}
    assert dims == ({"batch"} if name == "text_encoder" else {"batch", "height", "width"})
    assert b"site-packages" not in path.read_bytes()  # no stack traces of the exporter's machine


def test_storing_halves_loses_nothing() -> None:
    exact = np.linspace(-8, 8, 33, dtype=np.float32)
    inexact = np.full(33, 0.1, np.float32)
    huge = np.full(33, 1e6, np.float32)
    nodes = helper.make_graph(
        [helper.make_node("Sum", ["x", "exact", "inexact", "huge", "small"], ["y"])],
        "sum",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [33])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [33])],
        [numpy_helper.from_array(v, n) for n, v in [("exact", exact), ("inexact", inexact), ("huge", huge)]]
        + [numpy_helper.from_array(np.array(2, np.float32), "small")],
    )
    model = helper.make_model(nodes, opset_imports=[helper.make_opsetid("", to_onnx.OPSET)], ir_version=10)
    x = np.linspace(0, 1, 33, dtype=np.float32)

    def run() -> np.ndarray:
        session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        return np.asarray(session.run(None, {"x": x})[0])

    before = run()
    graph.store_half(model)
    onnx.checker.check_model(model, full_check=True)
    stored = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    assert stored == {
        "exact_half": TensorProto.FLOAT16,
        "inexact": TensorProto.FLOAT,
        "huge": TensorProto.FLOAT,
        "small": TensorProto.FLOAT,
    }
    np.testing.assert_array_equal(run(), before)


def test_a_wrong_network_is_not_written(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An ONNX file that does not compute what torch does stops the export; no folder appears."""
    store = graph.store_half

    def spoil(model: onnx.ModelProto) -> None:
        weight = max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data))
        weight.CopyFrom(numpy_helper.from_array(1.001 * numpy_helper.to_array(weight), weight.name))
        store(model)

    monkeypatch.setattr(to_onnx, "store_half", spoil)
    with pytest.raises(ModelError, match=r"text_encoder\.onnx differs from torch by .* above 1e-05"):
        to_onnx.export_demo(checkpoint, tmp_path / "demo")
    assert list(tmp_path.iterdir()) == []


def test_a_model_folder_is_replaced_and_nothing_else_is(
    checkpoint: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(to_onnx, "_write", lambda checkpoint, folder, networks: copy(folder, b"new"))
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("mine")
    with pytest.raises(ModelError, match="mine exists and is not a model folder"):
        to_onnx.export_demo(checkpoint, mine)
    with pytest.raises(ModelError, match="exists and is not a model folder"):
        to_onnx.export_demo(checkpoint, mine / "thesis.txt")
    assert [path.name for path in mine.iterdir()] == ["thesis.txt"]
    old = copy(tmp_path / "old", b"old")
    assert to_onnx.export_demo(checkpoint, old) == old
    assert (old / "manifest.json").read_bytes() == b"new"


def copy(folder: Path, text: bytes) -> Path:
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_bytes(text)
    return folder


def test_an_incomplete_checkpoint_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text_encoder").mkdir()
    with pytest.raises(ModelError, match="is not a diffusers folder"):
        to_onnx.export_demo(tmp_path, tmp_path / "out")


@pytest.mark.slow
@pytest.mark.parametrize("family", DEMOS)
def test_the_demos_own_networks_fit_the_wheel(family: str, tmp_path: Path) -> None:
    """What the recipe writes is exported whole, and is small; the last layers start at zero, which has no
    relative error."""
    torch.manual_seed(0)
    model: Any = DEMOS[family].make()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape))
    torch.save(model.state_dict(), tmp_path / f"{weights_name(family)}.pt")
    torch.save(networks.make_vae().state_dict(), tmp_path / "vae_whitened.pt")
    finish(tmp_path, tmp_path / family, family)
    folder = ModelFolder.open(tmp_path / family, verify=True)
    assert folder.manifest.family == family
    assert "vae_encoder" in folder.networks
    assert sum(entry.size_bytes for entry in folder.manifest.files.values()) < 20e6
