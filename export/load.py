"""Networks of a checkpoint as torch modules: with their weights, or as shapes alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import diffusers
import torch
import transformers
from safetensors import SafetensorError
from torch._subclasses.fake_tensor import FakeTensorMode

from .._errors import ModelError
from .checkpoint import Component
from .lora import fuse
from .lora_files import Lora

__all__ = ["load_module", "outline", "quiet", "settle"]

# What the libraries raise at files that are not what their config says.
_LOAD_ERRORS = (
    AttributeError,
    EOFError,
    ImportError,
    KeyError,
    OSError,
    RuntimeError,
    SafetensorError,
    TypeError,
    ValueError,
)


def quiet() -> None:
    """Keep the libraries from printing progress bars and advice."""
    logs: tuple[Any, ...] = (diffusers.utils.logging, transformers.utils.logging)
    for log in logs:
        log.set_verbosity_error()
        log.disable_progress_bar()


def _class_of(component: Component) -> Any:
    """From our own table, never from what a checkpoint says."""
    name = component.part.class_name
    return getattr(diffusers if hasattr(diffusers, name) else transformers, name)


def load_module(component: Component, dtype: torch.dtype, loras: Sequence[Lora] = ()) -> torch.nn.Module:
    """The network with its weights in `dtype`, for inference, LoRAs fused into it.

    Raises:
        ModelError: the weights are not those of the config.
        InputError: a LoRA does not fit.
    """
    kind = _class_of(component)
    more = {"dtype" if issubclass(kind, transformers.PreTrainedModel) else "torch_dtype": dtype}
    try:
        module, info = kind.from_pretrained(
            str(component.folder),
            variant=component.variant,
            use_safetensors=not component.pickled,
            local_files_only=True,
            output_loading_info=True,
            **more,
        )
    except _LOAD_ERRORS as error:
        raise ModelError(
            f"{component.folder} cannot be loaded as {component.part.class_name} ({error}); "
            "its weights are not those of its config.json: download the checkpoint again"
        ) from error
    for what in ("missing_keys", "mismatched_keys"):
        # Libraries make up random values for what is missing.
        if names := sorted(map(str, info.get(what) or ())):
            raise ModelError(
                f"{component.folder}: the weights have {len(names)} {what.replace('_', ' ')}, such as "
                f"{names[0]}; they are not those of config.json: download the checkpoint again"
            )
    fuse(loras, component, module)
    return settle(module, dtype)


def outline(component: Component, dtype: torch.dtype) -> tuple[torch.nn.Module, FakeTensorMode]:
    """The network without any weights, and the mode in which it can be traced.

    Raises:
        ModelError: its config is not one of its class.
    """
    kind = _class_of(component)
    mode = FakeTensorMode()
    try:
        if issubclass(kind, transformers.PreTrainedModel):
            config = kind.config_class.from_dict(dict(component.config))
            with mode:
                module = kind(config)
        else:
            with mode:
                module = kind.from_config(dict(component.config))
        with mode:
            return settle(module, dtype), mode
    except _LOAD_ERRORS as error:
        raise ModelError(
            f"{component.folder / 'config.json'} is not one of a {component.part.class_name} ({error}); "
            "download the checkpoint again"
        ) from error


def settle(module: torch.nn.Module, dtype: torch.dtype) -> torch.nn.Module:
    """Every floating tensor in `dtype`, but for those that their authors keep in float32 beside float16."""
    # Not by Module.to, which cannot swap tensors that have no storage.
    kept = set(getattr(module, "_keep_in_fp32_modules", None) or ()) if dtype == torch.float16 else set()
    for path, child in module.named_modules():
        for name, tensor in list(child._parameters.items()):
            if tensor is not None and tensor.is_floating_point():
                wanted = torch.float32 if kept & {*path.split("."), name} else dtype
                child._parameters[name] = torch.nn.Parameter(tensor.detach().to(wanted), requires_grad=False)
        for name, buffer in list(child._buffers.items()):
            if buffer is not None and buffer.is_floating_point():
                child._buffers[name] = buffer.to(dtype)
    return module.eval()
