"""LoRAs (2106.09685) fused into a network: read by diffusers, injected and merged by peft."""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import loaders
from safetensors import SafetensorError, safe_open

from .._errors import InputError, MissingExtraError
from .checkpoint import Component
from .lora_files import KOHYA, Lora, is_kohya

__all__ = ["fuse"]

_NAME = "fused"  # peft wants one
_METADATA = "lora_adapter_metadata"  # where diffusers keeps the settings of peft
_UP = (".lora_B.weight", ".lora.up.weight", "_lora.up.weight", ".lora_linear_layer.up.weight")
_KOHYA_TEXT = re.compile(
    r"lora_te\d?_text_model_encoder_layers_(\d+)_(self_attn|mlp)_(\w+)\.lora_(down|up)\.weight"
)
_ERRORS = (
    AttributeError,
    KeyError,
    IndexError,
    OSError,
    RuntimeError,
    SafetensorError,
    TypeError,
    ValueError,
)


def fuse(loras: Iterable[Lora], component: Component, module: torch.nn.Module) -> None:
    """Add scale · (alpha / rank) · B · A of every LoRA to the weights of a network.

    Raises:
        InputError: a LoRA has layers that the network does not, or of another size.
        MissingExtraError: peft is not installed.
    """
    for path, scale in loras:
        if importlib.util.find_spec("peft") is None:
            raise MissingExtraError("peft", "export")
        try:
            state, metadata = _read(path, component)
            layers = sum(name.endswith(_UP) for name in state)
            if layers:
                _inject(state, metadata, component, module)
                fused = _merge(module, scale)
        except _ERRORS as error:
            raise InputError(
                f"LoRA {path} does not fit the {component.part.name} of this checkpoint ({error}); "
                "take one that was trained on this family"
            ) from error
        if layers and fused < layers:
            raise InputError(
                f"LoRA {path} has {layers} layers for the {component.part.name}, which has {fused} of them; "
                "take one that was trained on this family"
            )


def _read(path: Path, component: Component) -> tuple[dict[str, torch.Tensor], dict[str, Any] | None]:
    """The part of a file that is for one network, under diffusers' names, and its settings for peft."""
    name = component.part.name
    with safe_open(path, "pt") as file:
        kohya = is_kohya(file.keys())
        wanted = KOHYA.get(name, ()) if kohya else (f"{name}.",)
        state = {key: file.get_tensor(key) for key in file.keys() if key.startswith(wanted)}  # noqa: SIM118
        settings = (file.metadata() or {}).get(_METADATA)
    if not kohya:
        return state, json.loads(settings) if settings else None
    state = _with_alphas(state)
    if name != "unet":
        return {_text_name(key, name): tensor for key, tensor in state.items()}, None
    # The mixin of SDXL converts the names of both kinds of UNet.
    converted, _ = loaders.StableDiffusionXLLoraLoaderMixin.lora_state_dict(
        state, unet_config=_Settings(component.config)
    )
    return converted, None


def _text_name(name: str, part: str) -> str:
    """A tensor of a text encoder by diffusers' own name in place of kohya's.

    diffusers itself would give it a name of an older form, which it recognises again only where the LoRA
    has output projections.
    """
    match = _KOHYA_TEXT.fullmatch(name)
    if match is None:
        raise KeyError(f"{name} is no layer of a CLIP text encoder")
    layer, block, linear, kind = match.groups()
    return f"{part}.text_model.encoder.layers.{layer}.{block}.{linear}.lora_linear_layer.{kind}.weight"


class _Settings:
    """A UNet's config as the attributes that diffusers looks for."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.__dict__.update(config)


def _with_alphas(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """kohya's alphas multiplied into the upper matrices: B := (alpha / rank) · B.

    diffusers would pass them on by the names of layers, which transformers has since changed.
    """
    folded = {}
    for name, tensor in state.items():
        layer, _, kind = name.partition(".")
        alpha = state.get(f"{layer}.alpha")
        if kind == "alpha":
            continue
        if kind == "lora_up.weight" and alpha is not None:
            tensor = tensor * (float(alpha) / tensor.shape[1])
        folded[name] = tensor
    return folded


def _inject(
    state: dict[str, torch.Tensor], metadata: dict[str, Any] | None, component: Component, module: Any
) -> None:
    name = component.part.name
    if name in ("unet", "transformer"):
        module.load_lora_adapter(state, prefix=name, adapter_name=_NAME, metadata=metadata)
        return
    loaders.StableDiffusionXLLoraLoaderMixin.load_lora_into_text_encoder(
        state, None, module, prefix=name, adapter_name=_NAME, metadata=metadata
    )


def _merge(module: Any, scale: float) -> int:
    """Merge peft's layers and take them out again; returns how many there were."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers: list[Any] = [layer for layer in module.modules() if isinstance(layer, BaseTunerLayer)]
    for layer in layers:
        layer.set_scale(_NAME, scale)
        layer.merge(safe_merge=True)  # refuses what is not finite
    diffusers.utils.recurse_remove_peft_layers(module)
    for left in ("peft_config", "_hf_peft_config_loaded"):
        module.__dict__.pop(left, None)
    return len(layers)
