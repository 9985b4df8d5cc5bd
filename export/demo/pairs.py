"""Networks of demo-xl and demo-sd3: two text encoders each, and SDXL's UNet or SD3's transformer, small."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    UNet2DConditionModel,
)
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from ... import scenes
from ...scenes.labels import HEADS
from .networks import LATENT, after_words, clip_config, for_training, make_tokenizer

__all__ = ["DemoSD3", "DemoXL", "make_euler_scheduler", "make_flow_scheduler"]

WIDTHS = (64, 96)  # of the two text encoders
SIZES = (
    scenes.SIZE,
    scenes.SIZE,
    0,
    0,
    scenes.SIZE,
    scenes.SIZE,
)  # time_ids: all pictures are whole, of one size


class _Pair(torch.nn.Module):
    """Two CLIP text encoders side by side, read at the last layer but one (2307.01952, 2.1)."""

    first_kind: type[Any]
    pooled_width: int

    def __init__(self) -> None:
        super().__init__()
        size = make_tokenizer(end_last=True).get_vocab_size()
        self.text_encoder = _clip(self.first_kind, WIDTHS[0], size)
        self.text_encoder_2 = _clip(CLIPTextModelWithProjection, WIDTHS[1], size)
        self.end = size - 1
        self.reader = torch.nn.Linear(sum(WIDTHS) + self.pooled_width, sum(HEADS.values()))

    def read(self, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Hidden states (B, L, sum(WIDTHS)) and the pooled embedding (B, pooled_width) of tokens (B, L)."""
        outs = [
            encoder(input_ids=tokens, output_hidden_states=True)
            for encoder in (self.text_encoder, self.text_encoder_2)
        ]
        pooled = [out.text_embeds for out in outs if hasattr(out, "text_embeds")]
        return torch.cat([out.hidden_states[-2] for out in outs], -1), torch.cat(pooled, -1)

    def labels(self, words: torch.Tensor, pooled: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """The scene's labels as read from the pooled embedding and the tokens after the last word."""
        read: torch.Tensor = self.reader(torch.cat([after_words(words, tokens, self.end), pooled], -1))
        return read


def _clip(kind: type[Any], width: int, size: int) -> Any:
    return kind(clip_config(size, width=width, layers=3, heads=width // 32, end=size - 1))


class DemoXL(_Pair):
    """SDXL: epsilon; the empty prompt is zeros half of the time, as its pipeline has it."""

    first_kind = CLIPTextModel
    pooled_width = WIDTHS[1]

    def __init__(self) -> None:
        super().__init__()
        self.unet = UNet2DConditionModel(
            sample_size=LATENT[1],
            in_channels=LATENT[0],
            out_channels=LATENT[0],
            block_out_channels=(64, 96, 128),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            transformer_layers_per_block=(1, 1, 2),
            layers_per_block=1,
            cross_attention_dim=sum(WIDTHS),
            attention_head_dim=(2, 3, 4),
            use_linear_projection=True,
            norm_num_groups=16,
            addition_embed_type="text_time",
            addition_time_embed_dim=16,
            projection_class_embeddings_input_dim=len(SIZES) * 16 + self.pooled_width,
        )
        for_training(self.unet)

    def forward(
        self, latents: torch.Tensor, timesteps: torch.Tensor, tokens: torch.Tensor, dropped: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        words, pooled = self.read(tokens)
        read = self.labels(words, pooled, tokens)
        # Every other one of the dropped is zeros and not the empty caption.
        kept = 1 - (dropped & (torch.arange(len(dropped)) % 2 == 0)).to(words.dtype)
        predicted: torch.Tensor = self.unet(
            latents,
            timesteps,
            encoder_hidden_states=words * kept.view(-1, 1, 1),
            added_cond_kwargs={
                "text_embeds": pooled * kept.view(-1, 1),
                "time_ids": torch.tensor([SIZES] * len(latents), dtype=torch.float32),
            },
        ).sample
        return predicted, read


class DemoSD3(_Pair):
    """SD3: a transformer over patches of 2x2 and words together; both encoders give a pooled embedding."""

    first_kind = CLIPTextModelWithProjection
    pooled_width = sum(WIDTHS)

    def __init__(self) -> None:
        super().__init__()
        self.transformer = SD3Transformer2DModel(
            sample_size=LATENT[1],
            patch_size=2,
            in_channels=LATENT[0],
            out_channels=LATENT[0],
            num_layers=6,
            attention_head_dim=32,
            num_attention_heads=5,
            joint_attention_dim=sum(WIDTHS),
            caption_projection_dim=160,
            pooled_projection_dim=self.pooled_width,
            pos_embed_max_size=24,
        )
        _start_as_dit(self.transformer)

    def forward(
        self, latents: torch.Tensor, timesteps: torch.Tensor, tokens: torch.Tensor, dropped: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        words, pooled = self.read(tokens)
        predicted: torch.Tensor = self.transformer(
            hidden_states=latents,
            timestep=timesteps,
            encoder_hidden_states=words,
            pooled_projections=pooled,
        ).sample
        return predicted, self.labels(words, pooled, tokens)


def _start_as_dit(transformer: SD3Transformer2DModel) -> None:
    """Blocks that pass everything through, and an answer of zero (2212.09748, 3.2: adaLN-Zero)."""
    for name, module in transformer.named_modules():
        if not isinstance(module, torch.nn.Linear):
            continue
        if name.endswith(("norm1.linear", "norm1_context.linear", "norm_out.linear", "proj_out")):
            torch.nn.init.zeros_(module.weight)
        else:
            torch.nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            torch.nn.init.zeros_(module.bias)


def make_euler_scheduler() -> EulerDiscreteScheduler:
    """SDXL's own configuration."""
    return EulerDiscreteScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="epsilon",
        timestep_spacing="leading",
        steps_offset=1,
    )


def make_flow_scheduler() -> FlowMatchEulerDiscreteScheduler:
    """SD3's own configuration."""
    return FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=3.0)
