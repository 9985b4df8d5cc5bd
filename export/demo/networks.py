"""The demo's networks: SD2.1's architecture, small enough to train on two CPU cores."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import CLIPTextConfig, CLIPTextModel

from ... import scenes

TEXT_LENGTH = 16
TEXT_WIDTH = 96
LATENT = (4, 16, 16)
PAD, END = 0, 2  # END where it is not the last
SPECIAL = ("<|pad|>", "<|startoftext|>", "<|endoftext|>", "<|unknown|>")


def make_tokenizer(end_last: bool = False) -> Tokenizer:
    """One token a word, padded and cut to `TEXT_LENGTH`, in the form of tokenizer.json.

    `end_last` gives the token that ends a text the largest id, as CLIP's tokenizers do: text encoders with a
    pooled embedding take it from there.
    """
    special = [token for token in SPECIAL if not (end_last and token == SPECIAL[2])]
    names = [*special, *scenes.vocabulary(), *(SPECIAL[2:3] if end_last else ())]
    words = {word: i for i, word in enumerate(names)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token=SPECIAL[3]))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Whitespace(), pre_tokenizers.Punctuation(behavior="removed")]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{SPECIAL[1]} $A {SPECIAL[2]}",
        special_tokens=[(SPECIAL[1], words[SPECIAL[1]]), (SPECIAL[2], words[SPECIAL[2]])],
    )
    tokenizer.enable_padding(length=TEXT_LENGTH, pad_id=0, pad_token=SPECIAL[0])
    tokenizer.enable_truncation(TEXT_LENGTH)
    return tokenizer


def clip_config(vocabulary_size: int, *, width: int, layers: int, heads: int, end: int) -> CLIPTextConfig:
    """Of a small CLIP text encoder whose texts end with the token `end`."""
    config = CLIPTextConfig(
        vocab_size=vocabulary_size,
        hidden_size=width,
        intermediate_size=4 * width,
        projection_dim=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        max_position_embeddings=TEXT_LENGTH,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=end,
    )
    config._attn_implementation = "eager"
    return config


def make_text_encoder(vocabulary_size: int) -> CLIPTextModel:
    return CLIPTextModel(clip_config(vocabulary_size, width=TEXT_WIDTH, layers=2, heads=4, end=2))


def make_unet() -> UNet2DConditionModel:
    unet = UNet2DConditionModel(
        sample_size=LATENT[1],
        in_channels=LATENT[0],
        out_channels=LATENT[0],
        block_out_channels=(64, 128, 160),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=(2, 4, 5),
        use_linear_projection=True,
        norm_num_groups=16,
    )
    return for_training(unet)


def for_training(unet: UNet2DConditionModel) -> UNet2DConditionModel:
    """The UNet as it starts: attention without fusion, whose backward pass is slower at this size."""
    unet.set_attn_processor(AttnProcessor())
    _start_as_identity(unet, ("conv2", "conv_out"))
    return unet


def after_words(words: torch.Tensor, tokens: torch.Tensor, end: int) -> torch.Tensor:
    """The mean (B, C) of hidden states (B, L, C) over the tokens after a text's last word."""
    after = ((tokens == PAD) | (tokens == end)).unsqueeze(-1)
    return (words * after).sum(1) / after.sum(1)


def _start_as_identity(network: torch.nn.Module, last_of_block: tuple[str, ...]) -> None:
    """Zero the last convolution of every residual block: deep networks then learn from the first step."""
    for name, module in network.named_modules():
        if name.endswith(last_of_block):
            torch.nn.init.zeros_(module.weight)
            torch.nn.init.zeros_(module.bias)


def make_vae() -> AutoencoderKL:
    vae = AutoencoderKL(
        block_out_channels=(24, 48, 96),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=1,
        norm_num_groups=8,
        latent_channels=LATENT[0],
        sample_size=scenes.SIZE,
        scaling_factor=1.0,
        mid_block_add_attention=False,
    )
    _start_as_identity(vae, ("conv2",))
    return vae


def make_scheduler() -> DDIMScheduler:
    """SD2.1's own configuration."""
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type="v_prediction",
        timestep_spacing="leading",
    )


def save_checkpoint(folder: Path, parts: Mapping[str, Any], scheduler: Any, tokenizer: Tokenizer) -> None:
    """A diffusers folder: what `to_onnx` exports and what diffusers itself can load.

    parts: networks by the names that their folders have; every text encoder gets the tokenizer.
    """
    for name, part in {**parts, "scheduler": scheduler}.items():
        part.save_pretrained(folder / name)
        if name.startswith("text_encoder"):
            path = folder / name.replace("text_encoder", "tokenizer") / "tokenizer.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            tokenizer.save(str(path))
