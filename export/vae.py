"""The autoencoder as two networks: latents to pictures, and pictures to latents."""

from __future__ import annotations

from typing import Any

import torch

from .._errors import ModelError
from ..models import ModelSpec
from .checkpoint import Component
from .network import Network, Side, number

__all__ = ["vae_networks"]


class _Decoder(torch.nn.Module):
    def __init__(self, model: Any, dtype: torch.dtype) -> None:
        super().__init__()
        self.model = model
        self.dtype = dtype

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        pictures: torch.Tensor = self.model.decode(latents.to(self.dtype), return_dict=False)[0]
        return pictures.float()


class _Encoder(torch.nn.Module):
    def __init__(self, model: Any, dtype: torch.dtype) -> None:
        super().__init__()
        self.model = model
        self.dtype = dtype

    def forward(self, pictures: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        distribution = self.model.encode(pictures.to(self.dtype), return_dict=False)[0]
        return distribution.mean.float(), distribution.std.float()


def vae_networks(spec: ModelSpec, component: Component) -> list[Network]:
    """The two halves of an autoencoder.

    `vae_decoder`: latents (B, C, h, w), already divided by the scaling factor and shifted, to pictures
    (B, 3, H, W) in about [-1, 1]. `vae_encoder`: such pictures to the mean and the standard deviation of
    the latents, each (B, C, h, w), before shift and scale.

    Raises:
        ModelError: the config lacks something, or is of an autoencoder for another family.
    """
    levels = len(component.config.get("block_out_channels") or ())
    if 2 ** (levels - 1) != spec.downscale:
        raise ModelError(
            f"{component.folder} has {levels} levels and makes pictures smaller by {2 ** (levels - 1):g}, "
            f"{spec.family} needs {spec.downscale}; take a checkpoint of this family"
        )
    latents = ("batch", number(component, "latent_channels"), "height", "width")
    pictures = ("batch", 3, "picture_height", "picture_width")
    small, large = Side(), Side(spec.downscale)
    example = 16 * spec.downscale
    return [
        Network(
            "vae_decoder",
            component,
            _Decoder,
            {"latents": latents},
            {"pictures": pictures},
            sides={"height": small, "width": small},
        ),
        Network(
            "vae_encoder",
            component,
            _Encoder,
            {"pictures": pictures},
            {"mean": latents, "std": latents},
            sides={"picture_height": large, "picture_width": large},
            example={"picture_height": example, "picture_width": example},
        ),
    ]
