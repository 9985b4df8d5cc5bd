"""LoRAs of diffusers and of kohya: fused weights are W + scale · (alpha / rank) · B · A, layer by layer."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from peft import LoraConfig
from safetensors.torch import load_file, save_file

from driffusion_trt import InputError
from driffusion_trt.engines.onnx_session import OnnxSession
from driffusion_trt.export.checkpoint import Checkpoint, read_checkpoint
from driffusion_trt.export.families import networks_of
from driffusion_trt.export.load import load_module
from driffusion_trt.export.lora_files import check_loras, touching
from driffusion_trt.export.onnx_export import export_network
from driffusion_trt.export.plan import plan_export
from driffusion_trt.models import get_spec

Checkpoints = Callable[[str], Path]
RANK, SCALE = 3, 0.7

# Layers by the names that kohya's trainer gives them, and where they are in our modules. In SDXL it
# counts the UNet's blocks as its authors do.
KOHYA_SDXL = {
    "lora_unet_input_blocks_3_1_transformer_blocks_0_attn1_to_q": (
        "unet",
        "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q",
    ),
    "lora_unet_middle_block_1_transformer_blocks_1_ff_net_0_proj": (
        "unet",
        "mid_block.attentions.0.transformer_blocks.1.ff.net.0.proj",
    ),
    "lora_te1_text_model_encoder_layers_0_self_attn_q_proj": (
        "text_encoder",
        "encoder.layers.0.self_attn.q_proj",
    ),
    "lora_te1_text_model_encoder_layers_1_mlp_fc1": ("text_encoder", "encoder.layers.1.mlp.fc1"),
    "lora_te2_text_model_encoder_layers_1_mlp_fc2": (
        "text_encoder_2",
        "text_model.encoder.layers.1.mlp.fc2",
    ),
}
KOHYA_SD21 = {
    "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k": (
        "unet",
        "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k",
    ),
    "lora_te_text_model_encoder_layers_2_self_attn_out_proj": (
        "text_encoder",
        "encoder.layers.2.self_attn.out_proj",
    ),
}


def opened(folder: Path, family: str) -> Checkpoint:
    return read_checkpoint(folder, get_spec(family))


def fused(checkpoint: Checkpoint, part: str, path: Path, scale: float = SCALE) -> Mapping[str, torch.Tensor]:
    loras = touching([(path, scale)], part, checkpoint.spec)
    return load_module(checkpoint.components[part], torch.float32, loras).state_dict()


def kohya_file(checkpoint: Checkpoint, layers: Mapping[str, tuple[str, str]], path: Path) -> dict[str, Any]:
    """A LoRA file over these layers, with an alpha of its own in each; returns W + s·(α/r)·B·A by hand."""
    random = torch.Generator().manual_seed(5)
    tensors, wanted = {}, {}
    for i, (name, (part, layer)) in enumerate(layers.items()):
        weight = load_module(checkpoint.components[part], torch.float32).state_dict()[f"{layer}.weight"]
        down = torch.randn(RANK, weight.shape[1], generator=random)
        up = torch.randn(weight.shape[0], RANK, generator=random)
        alpha = 1.0 + i
        tensors |= {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up}
        tensors[f"{name}.alpha"] = torch.tensor(alpha)
        wanted[part, layer] = weight + SCALE * alpha / RANK * up @ down
    save_file(tensors, path)
    return wanted


@pytest.mark.parametrize(("family", "layers"), [("sdxl", KOHYA_SDXL), ("sd21", KOHYA_SD21)])
def test_kohya(
    checkpoints: Checkpoints, tmp_path: Path, family: str, layers: Mapping[str, tuple[str, str]]
) -> None:
    checkpoint = opened(checkpoints(family), family)
    wanted = kohya_file(checkpoint, layers, tmp_path / "lora.safetensors")
    for part in dict.fromkeys(part for part, _ in layers.values()):
        plain = load_module(checkpoint.components[part], torch.float32).state_dict()
        got = fused(checkpoint, part, tmp_path / "lora.safetensors")
        assert got.keys() == plain.keys()
        for name, tensor in got.items():
            expected = wanted.get((part, name.removesuffix(".weight")), plain[name])
            torch.testing.assert_close(tensor, expected, rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.parametrize("metadata", [True, False])
def test_diffusers(checkpoints: Checkpoints, tmp_path: Path, metadata: bool) -> None:
    """The same as the pipeline that loads the file, at a scale; with and without its settings in the file."""
    checkpoint = opened(checkpoints("sdxl"), "sdxl")
    alpha = 2 * RANK if metadata else RANK  # without settings alpha is the rank
    torch.manual_seed(1)
    layers, settings = {}, {}
    for part, targets in (("unet", ["to_q", "to_out.0", "conv1"]), ("text_encoder", ["q_proj"])):
        config = LoraConfig(r=RANK, lora_alpha=alpha, target_modules=targets, init_lora_weights=False)
        module: Any = load_module(checkpoint.components[part], torch.float32)
        module.add_adapter(config)
        state = module.state_dict()
        layers[part] = {
            name.replace(".default.", "."): tensor for name, tensor in state.items() if ".lora_" in name
        }
        settings[part] = config.to_dict()
    more = {f"{part}_lora_adapter_metadata": settings[part] for part in layers} if metadata else {}
    StableDiffusionXLPipeline.save_lora_weights(
        tmp_path,
        unet_lora_layers=layers["unet"],
        text_encoder_lora_layers=layers["text_encoder"],
        weight_name="lora.safetensors",
        **more,
    )
    for part, state in layers.items():
        plain = load_module(checkpoint.components[part], torch.float32).state_dict()
        got = fused(checkpoint, part, tmp_path / "lora.safetensors")
        changed = 0
        for name, tensor in got.items():
            layer = name.removesuffix(".weight")
            expected = plain[name]
            if f"{layer}.lora_A.weight" in state:
                changed += 1
                down, up = state[f"{layer}.lora_A.weight"], state[f"{layer}.lora_B.weight"]
                product = (up.flatten(1) @ down.flatten(1)).reshape(expected.shape)
                expected = expected + SCALE * alpha / RANK * product
            torch.testing.assert_close(tensor, expected, rtol=1e-5, atol=1e-6, msg=name)
        assert 2 * changed == len(state)


def test_several_add_up(checkpoints: Checkpoints, tmp_path: Path) -> None:
    checkpoint = opened(checkpoints("sd21"), "sd21")
    wanted = kohya_file(checkpoint, KOHYA_SD21, tmp_path / "lora.safetensors")
    ((part, layer), target), *_ = wanted.items()
    path = tmp_path / "lora.safetensors"
    halves = [(path, SCALE / 2), (path, SCALE / 2)]
    got = load_module(checkpoint.components[part], torch.float32, halves).state_dict()
    torch.testing.assert_close(got[f"{layer}.weight"], target, rtol=1e-5, atol=1e-6)


@pytest.mark.filterwarnings("default::DeprecationWarning")
def test_it_reaches_the_onnx_file(checkpoints: Checkpoints, tmp_path: Path) -> None:
    checkpoint = opened(checkpoints("sd21"), "sd21")
    wanted = kohya_file(checkpoint, KOHYA_SD21, tmp_path / "lora.safetensors")
    network = next(n for n in networks_of(checkpoint) if n.name == "text_encoder")
    model: Any = load_module(checkpoint.components["text_encoder"], torch.float32)
    ((_, layer),) = (key for key in wanted if key[0] == "text_encoder")
    model.get_submodule(layer).weight.data = wanted["text_encoder", layer]
    path = export_network(network, torch.float32, [(tmp_path / "lora.safetensors", SCALE)], tmp_path)
    inputs = {
        **network.random_inputs(network.sizes(), seed=3),
        "clip_skip": torch.zeros(1, dtype=torch.int64),
    }
    with OnnxSession(path) as session, torch.no_grad():
        (got,) = session.run({name: value.numpy() for name, value in inputs.items()}).values()
        expected = model(inputs["input_ids"]).last_hidden_state.numpy()
    assert np.linalg.norm(got - expected) < 1e-5 * np.linalg.norm(expected)


def test_only_what_a_lora_changes_is_made_anew(checkpoints: Checkpoints, tmp_path: Path) -> None:
    folder = checkpoints("sdxl")
    only_unet = {name: where for name, where in KOHYA_SDXL.items() if where[0] == "unet"}
    kohya_file(opened(folder, "sdxl"), only_unet, tmp_path / "lora.safetensors")
    plain = plan_export("sdxl", folder, tmp_path / "m").sources
    sources = {
        scale: plan_export(
            "sdxl", folder, tmp_path / "m", lora=[(tmp_path / "lora.safetensors", scale)]
        ).sources
        for scale in (1.0, 0.5)
    }
    assert [name for name in plain if sources[1.0][name] != plain[name]] == ["denoiser"]
    assert [name for name in plain if sources[1.0][name] != sources[0.5][name]] == ["denoiser"]


# Refusals


def test_a_lora_of_another_family_is_refused(checkpoints: Checkpoints, tmp_path: Path) -> None:
    path = tmp_path / "lora.safetensors"
    kohya_file(opened(checkpoints("sdxl"), "sdxl"), KOHYA_SDXL, path)
    with pytest.raises(InputError, match=r"lora\.safetensors is not one for sd21: it has 'lora_te2_"):
        check_loras([(path, 1.0)], get_spec("sd21"))
    with pytest.raises(InputError, match="is not one for sd3: it has 'lora_te1_"):
        check_loras([(path, 1.0)], get_spec("sd3"))
    layers = {name: tensor for name, tensor in load_file(path).items() if "lora_unet_middle" in name}
    save_file(layers, path)  # of the UNet alone: only the layers themselves show it
    loras = check_loras([(path, 1.0)], get_spec("sd21"))
    with pytest.raises(InputError, match=r"does not fit the unet of this checkpoint|which has 0 of them"):
        load_module(opened(checkpoints("sd21"), "sd21").components["unet"], torch.float32, loras)


def test_a_lora_of_another_width_is_refused(checkpoints: Checkpoints, tmp_path: Path) -> None:
    path = tmp_path / "lora.safetensors"
    kohya_file(opened(checkpoints("sd21"), "sd21"), KOHYA_SD21, path)
    save_file(
        {
            name: tensor[..., :1].contiguous() if name.endswith("lora_down.weight") else tensor
            for name, tensor in load_file(path).items()
        },
        path,
    )
    with pytest.raises(InputError, match=r"does not fit the text_encoder of this checkpoint"):
        fused(opened(checkpoints("sd21"), "sd21"), "text_encoder", path)


@pytest.mark.parametrize(
    "name", ["lora_unet_mid_block.hada_w1_a", "unet.conv_in.lokr_w1", "lora_unet_conv_in.dora_scale"]
)
def test_other_kinds_of_adapter_are_refused(tmp_path: Path, name: str) -> None:
    save_file({name: torch.zeros(2, 2)}, tmp_path / "lora.safetensors")
    with pytest.raises(InputError, match="no matrix of a plain LoRA"):
        check_loras([(tmp_path / "lora.safetensors", 1.0)], get_spec("sdxl"))


def test_files_and_scales_that_cannot_be(tmp_path: Path) -> None:
    spec = get_spec("sdxl")
    with pytest.raises(InputError, match="does not exist"):
        check_loras([(tmp_path / "none.safetensors", 1.0)], spec)
    (tmp_path / "lora.bin").write_bytes(b"pickle")
    with pytest.raises(InputError, match="is no safetensors file"):
        check_loras([(tmp_path / "lora.bin", 1.0)], spec)
    for scale in (math.nan, math.inf, "1", True):
        with pytest.raises(InputError, match="must be a finite number"):
            check_loras([(tmp_path / "lora.safetensors", scale)], spec)
