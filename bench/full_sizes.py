"""Checkpoints of the real sizes with random weights: nothing has to be downloaded to build engines of them.

The configs are those that the models are published with. Weights are drawn tensor by tensor in float16,
scaled so that activations stay in range; a tenth of a second tells nothing of their quality.
"""

from __future__ import annotations

import json
import math
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, SD3Transformer2DModel, UNet2DConditionModel
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

ROOT = Path(__file__).resolve().parent.parent

FAMILIES = ("sd21", "sdxl", "sd3")

_CROSS, _PLAIN = "CrossAttn", ""


def _unet(down: str, **more: Any) -> dict[str, Any]:
    """`down`: x where a block has attention, . where not."""
    return {
        "layers_per_block": 2,
        "use_linear_projection": True,
        "down_block_types": [f"{_CROSS if b == 'x' else _PLAIN}Down{'Block2D'}" for b in down],
        "up_block_types": [f"{_CROSS if b == 'x' else _PLAIN}Up{'Block2D'}" for b in reversed(down)],
        **more,
    }


def _vae(**more: Any) -> dict[str, Any]:
    return {
        "block_out_channels": [128, 256, 512, 512],
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
        "layers_per_block": 2,
        **more,
    }


def _clip(width: int, layers: int, projection: int, act: str) -> dict[str, Any]:
    return {
        "vocab_size": 49408,
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": width // 64,
        "max_position_embeddings": 77,
        "hidden_act": act,
        "projection_dim": projection,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "pad_token_id": 1,
    }


_CLIP_L, _CLIP_G = _clip(768, 12, 768, "quick_gelu"), _clip(1280, 32, 1280, "gelu")
CONFIGS: dict[str, dict[str, dict[str, Any]]] = {
    "sd21": {
        "text_encoder": _clip(1024, 23, 512, "gelu"),
        "unet": _unet(
            "xxx.",
            block_out_channels=[320, 640, 1280, 1280],
            attention_head_dim=[5, 10, 20, 20],
            cross_attention_dim=1024,
            sample_size=96,
            upcast_attention=True,
        ),
        "vae": _vae(sample_size=768, scaling_factor=0.18215),
    },
    "sdxl": {
        "text_encoder": _CLIP_L,
        "text_encoder_2": _CLIP_G,
        "unet": _unet(
            ".xx",
            block_out_channels=[320, 640, 1280],
            attention_head_dim=[5, 10, 20],
            transformer_layers_per_block=[1, 2, 10],
            cross_attention_dim=2048,
            sample_size=128,
            addition_embed_type="text_time",
            addition_time_embed_dim=256,
            projection_class_embeddings_input_dim=2816,
        ),
        "vae": _vae(sample_size=1024, scaling_factor=0.13025, force_upcast=True),
    },
    "sd3": {
        "text_encoder": _CLIP_L,
        "text_encoder_2": _CLIP_G,
        "transformer": {
            "sample_size": 128,
            "patch_size": 2,
            "in_channels": 16,
            "out_channels": 16,
            "num_layers": 24,
            "attention_head_dim": 64,
            "num_attention_heads": 24,
            "joint_attention_dim": 4096,
            "caption_projection_dim": 1536,
            "pooled_projection_dim": 2048,
            "pos_embed_max_size": 192,
        },
        "vae": _vae(
            sample_size=1024,
            latent_channels=16,
            scaling_factor=1.5305,
            shift_factor=0.0609,
            use_quant_conv=False,
            use_post_quant_conv=False,
        ),
    },
}


def _kind(family: str, part: str) -> tuple[Callable[..., Any], str]:
    """What makes a part from its config, and the name of its file of weights."""
    if part.startswith("text_encoder"):
        projected = family == "sd3" or part == "text_encoder_2"
        kind = CLIPTextModelWithProjection if projected else CLIPTextModel
        return lambda **config: kind(CLIPTextConfig(**config)), "model.safetensors"
    kinds = {"unet": UNet2DConditionModel, "transformer": SD3Transformer2DModel, "vae": AutoencoderKL}
    return kinds[part], "diffusion_pytorch_model.safetensors"


def _write_part(family: str, part: str, folder: Path, random: torch.Generator) -> int:
    """Replace a part of a reduced checkpoint by one of full size; returns its parameters."""
    config = CONFIGS[family][part]
    make, file = _kind(family, part)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    with torch.device("meta"):
        model = make(**config)
    if part.startswith("text_encoder"):
        model.config.architectures = [type(model).__name__]
        model.config.save_pretrained(folder)
    else:
        model.save_config(folder)
    tensors = {name: _draw(name, value.shape, random) for name, value in model.state_dict().items()}
    save_file(tensors, folder / file, metadata={"format": "pt"})
    return sum(value.numel() for value in tensors.values())


def _draw(name: str, shape: torch.Size, random: torch.Generator) -> torch.Tensor:
    if len(shape) == 1:  # a bias, or the scale of a norm
        return torch.full(shape, 1.0 if name.endswith("weight") else 0.0, dtype=torch.float16)
    fan_in = math.prod(shape[1:])
    return (torch.randn(shape, generator=random) / math.sqrt(fan_in)).half()


def write_checkpoint(family: str, folder: Path) -> int:
    """A diffusers folder of a family in its full size, without T5; returns the parameters in it.

    What is small (tokenizers, scheduler, index) is that of the tests' reduced checkpoints.
    """
    sys.path.insert(0, str(ROOT / "tests"))
    from reduced import save_checkpoint  # type: ignore[import-not-found]

    save_checkpoint(family, folder)
    random = torch.Generator().manual_seed(0)
    parameters = sum(_write_part(family, part, folder / part, random) for part in CONFIGS[family])
    index = json.loads((folder / "model_index.json").read_text("utf-8"))
    for part in ("text_encoder_3", "tokenizer_3"):
        if part in index:
            index[part] = [None, None]
            shutil.rmtree(folder / part, ignore_errors=True)
    (folder / "model_index.json").write_text(json.dumps(index, indent=2), "utf-8")
    return parameters
