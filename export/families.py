"""The denoisers, one wrapper class per family that names its inputs, and the networks of a checkpoint."""

from __future__ import annotations

import functools
from typing import Any

import torch

from .._errors import ModelError
from .checkpoint import Checkpoint, Component
from .network import Network, Side, number
from .parts import TIME_IDS
from .text_encoders import text_network
from .vae import vae_networks

__all__ = ["networks_of"]

_TOKENS_MOST = 1024  # SD3: 77 of CLIP and up to 512 of T5; twice as many fit


class _Denoiser(torch.nn.Module):
    """A denoiser whose surface is float32, with the arithmetic inside in `dtype`.

    Timesteps and time_ids stay float32 up to their sines: float16 would lose up to 0.22 of the
    fractional timesteps of SD3, and all above 65,504.
    """

    def __init__(self, model: Any, dtype: torch.dtype) -> None:
        super().__init__()
        self.model = model
        self.dtype = dtype


class SD2Denoiser(_Denoiser):
    """Stable Diffusion 2.1, either size, and the demo."""

    def forward(
        self, sample: torch.Tensor, timestep: torch.Tensor, encoder_hidden_states: torch.Tensor
    ) -> torch.Tensor:
        out: torch.Tensor = self.model(
            sample.to(self.dtype), timestep, encoder_hidden_states.to(self.dtype), return_dict=False
        )[0]
        return out.float()


class SDXLDenoiser(_Denoiser):
    """SDXL: `time_ids` are the sizes and the crop that it was trained with (2307.01952, 2.2)."""

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        text_embeds: torch.Tensor,
        time_ids: torch.Tensor,
    ) -> torch.Tensor:
        # text_embeds stay float32: they are concatenated with the sines of time_ids, which are, and
        # ONNX has no Concat of two types, though the exporter would write one.
        out: torch.Tensor = self.model(
            sample.to(self.dtype),
            timestep,
            encoder_hidden_states.to(self.dtype),
            added_cond_kwargs={"text_embeds": text_embeds, "time_ids": time_ids},
            return_dict=False,
        )[0]
        return out.float()


class SD3Denoiser(_Denoiser):
    """Stable Diffusion 3 and 3.5."""

    def __init__(self, model: Any, dtype: torch.dtype) -> None:
        super().__init__(model, dtype)
        model.pos_embed.cropped_pos_embed = functools.partial(_positions, model.pos_embed)

    def forward(
        self,
        hidden_states: torch.Tensor,
        timestep: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        pooled_projections: torch.Tensor,
    ) -> torch.Tensor:
        out: torch.Tensor = self.model(
            hidden_states=hidden_states.to(self.dtype),
            timestep=timestep,
            encoder_hidden_states=encoder_hidden_states.to(self.dtype),
            pooled_projections=pooled_projections.to(self.dtype),
            return_dict=False,
        )[0]
        return out.float()


def _positions(embed: Any, height: int, width: int) -> torch.Tensor:
    """The middle of SD3's table of positions, for latents of this height and width (2403.03206, 4).

    As diffusers does, but that (side - n) // 2 is written without a negative numerator: torch's exporter
    brings it into a form that has one, and ONNX rounds towards zero, so that odd n would come out wrong.
    """
    side = embed.pos_embed_max_size
    rows, columns = (n // embed.patch_size for n in (height, width))
    table: torch.Tensor = embed.pos_embed.reshape(1, side, side, -1)
    for axis, count in ((1, rows), (2, columns)):
        begin = side // 2 - count // 2 if side % 2 else side // 2 - (count + 1) // 2
        table = table.narrow(axis, begin, count)
    return table.reshape(1, rows * columns, -1)


def networks_of(checkpoint: Checkpoint) -> list[Network]:
    """Every network of a checkpoint, text encoders first.

    Raises:
        ModelError: a config lacks something, or parts do not fit together.
    """
    spec, components = checkpoint.spec, checkpoint.components
    networks = [text_network(spec, components[name]) for name in checkpoint.text_encoders]
    widths = [shape[-1] for network in networks for shape in list(network.outputs.values())[:1]]
    if spec.architecture == "sd3":
        denoiser = _sd3(components["transformer"])
    else:
        denoiser = _unet(checkpoint, components["unet"])
        needed = denoiser.inputs["encoder_hidden_states"][-1]
        # SDXL concatenates the channels of its text encoders; SD3 pads them, so any width fits there.
        if sum(int(width) for width in widths) != needed:
            raise ModelError(
                f"{checkpoint.folder}: the denoiser reads {needed} channels of text, the text encoders give "
                f"{' + '.join(map(str, widths))}; these parts are not of one checkpoint"
            )
    return [*networks, denoiser, *vae_networks(spec, components["vae"])]


def _unet(checkpoint: Checkpoint, component: Component) -> Network:
    spec = checkpoint.spec
    latents = ("batch", number(component, "in_channels"), "height", "width")
    inputs: dict[str, Any] = {
        "sample": latents,
        "timestep": ("batch",),
        "encoder_hidden_states": (
            "batch",
            spec.text_encoders[0].length,
            number(component, "cross_attention_dim"),
        ),
    }
    side = Side(spec.latent_multiple)
    wrap: Any = SD2Denoiser
    if spec.architecture == "sdxl":
        wrap = SDXLDenoiser
        pooled = number(component, "projection_class_embeddings_input_dim")
        pooled -= TIME_IDS * number(component, "addition_time_embed_dim")
        inputs |= {"text_embeds": ("batch", pooled), "time_ids": ("batch", TIME_IDS)}
    return Network(
        "denoiser", component, wrap, inputs, {"out_sample": latents}, sides={"height": side, "width": side}
    )


def _sd3(component: Component) -> Network:
    latents = ("batch", number(component, "in_channels"), "height", "width")
    # Positions are cut out of the middle of a table of this side: larger pictures have none.
    side = Side(number(component, "patch_size"), 2, number(component, "pos_embed_max_size"))
    return Network(
        "denoiser",
        component,
        SD3Denoiser,
        {
            "hidden_states": latents,
            "timestep": ("batch",),
            "encoder_hidden_states": ("batch", "sequence", number(component, "joint_attention_dim")),
            "pooled_projections": ("batch", number(component, "pooled_projection_dim")),
        },
        {"out_sample": latents},
        sides={"height": side, "width": side, "sequence": Side(1, 2, _TOKENS_MOST)},
        example={"sequence": 154},
    )
