"""Reduced checkpoints: the real architectures with two or three blocks and random weights.

They are diffusers pipelines saved by `save_pretrained`, so that folders, file names, configs
and tokenizers have the form of the checkpoints that users bring.
"""

from __future__ import annotations

import json
import logging
import string
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

from driffusion_trt.export import build, worker

FAMILIES = ("sd21", "sdxl", "sd3", "sd35-medium", "sd35-large")

_START, _END = "<|startoftext|>", "<|endoftext|>"
_LETTERS = string.ascii_lowercase + string.digits + ",.'-"
_MERGES = [("r", "e"), ("re", "d</w>"), ("f", "o"), ("fo", "x</w>")]
_SCALED_LINEAR: dict[str, Any] = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
}


# torch writes a trace of every export to whoever listens, which here would be pytest: half of the time.
logging.getLogger("torch.__trace").propagate = False


def run_here(work: str, orders: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """What a child of an export does, in this process, which has loaded torch already."""
    reports: list[dict[str, Any]] = []
    getattr(worker, work)(**orders, report=lambda **facts: reports.append(facts))
    yield from reports


def model_folder(family: str, checkpoint: Path, folder: Path, **how: Any) -> Path:
    """Export a checkpoint in float32, in this process; `how` goes to `export_model`."""
    with mock.patch.object(build, "_child", run_here):
        return build.export_model(family, checkpoint, folder, precision="fp32", verify=False, **how)


def _clip_tokenizer(pad: str) -> CLIPTokenizer:
    """CLIP's byte-pair tokenizer over a few letters; the models differ in what they pad with."""
    names = ["!", *_LETTERS, "!</w>", *(f"{letter}</w>" for letter in _LETTERS)]
    names += ["".join(pair) for pair in _MERGES]
    vocabulary = {name: i for i, name in enumerate((*names, _START, _END))}
    return CLIPTokenizer(vocab=vocabulary, merges=_MERGES, pad_token=pad, model_max_length=77)


def _as_on_the_hub(folder: Path) -> None:
    """CLIP's tokenizers are published as vocab.json and merges.txt; transformers now saves another form."""
    state = json.loads((folder / "tokenizer.json").read_text("utf-8"))["model"]
    (folder / "vocab.json").write_text(json.dumps(state["vocab"]), "utf-8")
    merges = (pair if isinstance(pair, str) else " ".join(pair) for pair in state["merges"])
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n", "utf-8")
    (folder / "tokenizer.json").unlink()


def _t5_tokenizer() -> T5Tokenizer:
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), ("▁red", -1.0), ("▁fox", -1.0)]
    pieces += [(letter, -3.0) for letter in _LETTERS]
    return T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=512)


def _clip(kind: type[Any], width: int, projection: int, tokenizer: CLIPTokenizer) -> Any:
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        projection_dim=projection,
        num_hidden_layers=3,
        num_attention_heads=2,
        hidden_act="quick_gelu" if width == 32 else "gelu",
        max_position_embeddings=77,
        bos_token_id=tokenizer.bos_token_id,
        # The published configs of SDXL's and SD3's encoders have 2 here; pooling then takes the largest id.
        eos_token_id=2 if projection == 32 else tokenizer.eos_token_id,
        pad_token_id=1,
    )
    return kind(config)


def _vae(channels: int, quant: bool, **more: Any) -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(8, 8, 16, 16),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        norm_num_groups=4,
        latent_channels=channels,
        sample_size=64,
        use_quant_conv=quant,
        use_post_quant_conv=quant,
        **more,
    )


def _unet(**more: Any) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(16, 32),
        layers_per_block=1,
        attention_head_dim=(2, 4),
        use_linear_projection=True,
        norm_num_groups=8,
        **more,
    )


def _sd21() -> Any:
    tokenizer = _clip_tokenizer("!")
    return StableDiffusionPipeline(
        vae=_vae(4, True, scaling_factor=0.18215),
        text_encoder=_clip(CLIPTextModel, 48, 48, tokenizer),
        tokenizer=tokenizer,
        unet=_unet(
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            cross_attention_dim=48,
            upcast_attention=True,
        ),
        scheduler=DDIMScheduler(
            **_SCALED_LINEAR, clip_sample=False, set_alpha_to_one=False, prediction_type="v_prediction"
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def _sdxl() -> Any:
    first, second = _clip_tokenizer(_END), _clip_tokenizer("!")
    return StableDiffusionXLPipeline(
        vae=_vae(4, True, scaling_factor=0.13025, force_upcast=True),
        text_encoder=_clip(CLIPTextModel, 32, 32, first),
        text_encoder_2=_clip(CLIPTextModelWithProjection, 48, 40, second),
        tokenizer=first,
        tokenizer_2=second,
        unet=_unet(
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            transformer_layers_per_block=(1, 2),
            cross_attention_dim=80,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=6 * 8 + 40,
        ),
        scheduler=EulerDiscreteScheduler(**_SCALED_LINEAR, timestep_spacing="leading"),
        force_zeros_for_empty_prompt=True,
    )


def _sd3(*, t5: bool = True, **more: Any) -> Any:
    first, second, third = _clip_tokenizer(_END), _clip_tokenizer("!"), _t5_tokenizer()
    config = T5Config(
        vocab_size=len(third),
        d_model=96,
        d_kv=16,
        d_ff=64,
        num_layers=2,
        num_heads=2,
        feed_forward_proj="gated-gelu",
        is_encoder_decoder=False,
        decoder_start_token_id=0,
    )
    return StableDiffusion3Pipeline(
        transformer=SD3Transformer2DModel(
            sample_size=16,
            patch_size=2,
            in_channels=16,
            num_layers=3,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=96,
            caption_projection_dim=32,
            pooled_projection_dim=80,
            out_channels=16,
            pos_embed_max_size=24,
            **more,
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=_vae(16, False, scaling_factor=1.5305, shift_factor=0.0609),
        text_encoder=_clip(CLIPTextModelWithProjection, 32, 32, first),
        tokenizer=first,
        text_encoder_2=_clip(CLIPTextModelWithProjection, 48, 48, second),
        tokenizer_2=second,
        text_encoder_3=T5EncoderModel(config) if t5 else None,
        tokenizer_3=third if t5 else None,
    )


_MAKE = {
    "sd21": _sd21,
    "sdxl": _sdxl,
    "sd3": _sd3,
    "sd35-medium": lambda: _sd3(t5=False, qk_norm="rms_norm", dual_attention_layers=(0, 1)),
    "sd35-large": lambda: _sd3(t5=False, qk_norm="rms_norm"),
}


def _busy(pipeline: Any) -> None:
    """Random biases, norms and position tables: what is zero or one at the start cannot show an error."""
    for part in pipeline.components.values():
        if isinstance(part, torch.nn.Module):
            for parameter in part.parameters():
                if parameter.ndim == 1:
                    parameter.data += 0.1 * torch.randn(parameter.shape)


def save_checkpoint(family: str, folder: Path, *, seed: int = 0, **how: Any) -> Path:
    """Write a reduced checkpoint of a family; `how` goes to the pipeline's `save_pretrained`."""
    torch.manual_seed(seed)
    pipeline = _MAKE[family]()
    _busy(pipeline)
    pipeline.save_pretrained(folder, **how)
    for tokenizer in ("tokenizer", "tokenizer_2"):
        if (folder / tokenizer).is_dir():
            _as_on_the_hub(folder / tokenizer)
    return folder
