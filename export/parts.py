"""Which folders of a checkpoint a family has, and how the denoiser's config tells families apart."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..models import ModelSpec

__all__ = ["DENOISERS", "TIME_IDS", "Part", "describe", "parts_of"]

# Folders in which diffusers keeps a denoiser.
DENOISERS = ("unet", "transformer")
TIME_IDS = 6  # of SDXL: height and width before cropping, the crop's corner, height and width after it


@dataclass(frozen=True, slots=True)
class Part:
    """A folder of a checkpoint, the class that reads it, and the ONNX files that are made from it."""

    name: str
    class_name: str
    networks: tuple[str, ...]
    optional: bool = False


_CLIP = "CLIPTextModel"
_CLIP_PROJECTED = "CLIPTextModelWithProjection"
_UNET = Part("unet", "UNet2DConditionModel", ("denoiser",))
_VAE = Part("vae", "AutoencoderKL", ("vae_decoder", "vae_encoder"))


def _text(name: str, class_name: str, optional: bool = False) -> Part:
    return Part(name, class_name, (name,), optional)


_PARTS: dict[str, tuple[Part, ...]] = {
    "sd21": (_text("text_encoder", _CLIP), _UNET, _VAE),
    "sdxl": (_text("text_encoder", _CLIP), _text("text_encoder_2", _CLIP_PROJECTED), _UNET, _VAE),
    "sd3": (
        _text("text_encoder", _CLIP_PROJECTED),
        _text("text_encoder_2", _CLIP_PROJECTED),
        # 4.7 of SD3-medium's 7.9 billion parameters: SD3 was trained to do without (2403.03206, 5.3.3).
        _text("text_encoder_3", "T5EncoderModel", optional=True),
        Part("transformer", "SD3Transformer2DModel", ("denoiser",)),
        _VAE,
    ),
}


def parts_of(spec: ModelSpec) -> tuple[Part, ...]:
    """The folders that hold a family's networks."""
    return _PARTS[spec.architecture]


def describe(denoiser: Mapping[str, Any]) -> tuple[str, tuple[str, ...]]:
    """What a denoiser's config.json says it is: in words, and the families that it may be of."""
    kind = denoiser.get("_class_name")
    if kind == "SD3Transformer2DModel":
        if denoiser.get("qk_norm") is None:
            return "a Stable Diffusion 3", ("sd3", "demo-sd3")
        if denoiser.get("dual_attention_layers"):
            return "a Stable Diffusion 3.5 medium", ("sd35-medium",)
        return "a Stable Diffusion 3.5 large", ("sd35-large",)
    if kind == "UNet2DConditionModel":
        return _describe_unet(denoiser)
    return f"a {kind}", ()


def _describe_unet(unet: Mapping[str, Any]) -> tuple[str, tuple[str, ...]]:
    channels, side = unet.get("in_channels", 4), unet.get("sample_size")
    if channels != 4:
        return f"an inpainting, depth or upscaling ({channels} input channels)", ()
    if unet.get("addition_embed_type") == "text_time":
        # The refiner reads one text encoder of 1280 channels, the base model two of 2048 together.
        return (
            ("an SDXL refiner", ())
            if unet.get("cross_attention_dim") == 1280
            else ("an SDXL", ("sdxl", "demo-xl"))
        )
    for key in ("addition_embed_type", "class_embed_type", "num_class_embeds"):
        if unet.get(key) is not None:
            return f"a UNet2DConditionModel with {key} {unet[key]!r}", ()
    if not unet.get("use_linear_projection"):
        return "a Stable Diffusion 1", ()
    # The two sizes of SD2.1 differ in nothing else; other sizes are reduced models and fine-tunes.
    if side == 64:
        return "a Stable Diffusion 2 base (512 pixels)", ("sd21-base",)
    if side == 96:
        return "a Stable Diffusion 2 (768 pixels)", ("sd21",)
    return "a Stable Diffusion 2", ("sd21", "sd21-base", "demo")
