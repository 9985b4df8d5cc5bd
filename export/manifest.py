"""What the manifest of an export says."""

from __future__ import annotations

import math
from typing import Any

from .. import __version__
from .._errors import ModelError
from ..models import ModelSpec
from .checkpoint import Checkpoint, Component
from .parts import TIME_IDS
from .plan import Export
from .record import Record

__all__ = ["facts", "settings"]


def facts(export: Export, record: Record) -> dict[str, Any]:
    """The arguments of `write_manifest`.

    `shapes`: "picture" and "latents" are (C, H, W) of one picture of the checkpoint's own size, "text" is
    (L, C) of what the denoiser reads, and "pooled" (P,) where it reads a pooled embedding.
    """
    return {
        "family": export.checkpoint.spec.family,
        "precision": export.precision,
        "versions": {"driffusion-trt": __version__, **export.versions},
        "parity": {name: record.entries[name].parity for name in export.networks},
        **settings(export.checkpoint),
    }


def settings(checkpoint: Checkpoint) -> dict[str, Any]:
    """What of it the checkpoint alone decides: shapes, the autoencoder's factors, options."""
    spec, vae = checkpoint.spec, checkpoint.components["vae"]
    denoiser = next(c for c in checkpoint.components.values() if "denoiser" in c.part.networks)
    side = denoiser.config.get("sample_size")
    height, width = (side, side) if isinstance(side, int) else spec.latent_shape[1:]
    return {
        "shapes": {
            "picture": [3, height * spec.downscale, width * spec.downscale],
            "latents": [spec.latent_channels, height, width],
            **_texts(spec, denoiser),
        },
        "scaling_factor": _factor(vae, "scaling_factor", 0.18215),
        "shift_factor": _factor(vae, "shift_factor", 0.0),
        "options": {
            "force_zeros_for_empty_prompt": checkpoint.force_zeros_for_empty_prompt,
            "clip_skip_most": checkpoint.clip_skip_most,
        },
    }


def _texts(spec: ModelSpec, denoiser: Component) -> dict[str, list[int]]:
    config = denoiser.config
    length = spec.text_encoders[0].length
    if spec.architecture == "sd3":
        # T5's tokens follow those of both CLIPs; without T5 zeros do, but where the family has none.
        tokens = length + sum(row.length for row in spec.text_encoders[2:])
        pooled = [config["pooled_projection_dim"]]
        return {"text": [tokens, config["joint_attention_dim"]], "pooled": pooled}
    text = [length, config["cross_attention_dim"]]
    if spec.architecture == "sd21":
        return {"text": text}
    pooled = config["projection_class_embeddings_input_dim"] - TIME_IDS * config["addition_time_embed_dim"]
    return {"text": text, "pooled": [pooled]}


def _factor(vae: Component, key: str, default: float) -> float:
    """A number of the autoencoder's config; what is missing or null is diffusers' default."""
    value = vae.config.get(key)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ModelError(f"{vae.folder / 'config.json'} has {key} {value!r}, expected a number")
    return float(value)
