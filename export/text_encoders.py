"""Text encoders as networks: CLIP, CLIP with its projection, and T5."""

from __future__ import annotations

from typing import Any

import torch
from transformers.models.t5.modeling_t5 import T5LayerNorm

from .._errors import ModelError
from ..models import ModelSpec
from .checkpoint import Component
from .network import Network, number

__all__ = ["text_network"]


class _Clip(torch.nn.Module):
    """CLIP, whose last layer SD2.1 reads, after the final norm."""

    def __init__(self, model: Any, dtype: torch.dtype) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        hidden: torch.Tensor = _run_clip(self.model, input_ids).last_hidden_state
        return hidden.float()


class _ClipPenultimate(_Clip):
    """CLIP, whose last layer but one SDXL reads (2307.01952, 2.1), without the final norm."""

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        out = _run_clip(self.model, input_ids, output_hidden_states=True)
        hidden: torch.Tensor = out.hidden_states[-2]
        return hidden.float()


class _ClipProjected(torch.nn.Module):
    """The same with the pooled embedding: the end token's state, normed and projected."""

    def __init__(self, model: Any, dtype: torch.dtype) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        out = _run_clip(self.model, input_ids, output_hidden_states=True)
        return out.hidden_states[-2].float(), out.text_embeds.float()


def _run_clip(model: Any, input_ids: torch.Tensor, **more: Any) -> Any:
    # Positions are given, since the model's own buffer of them is no weight, and so has no values while
    # the graph is traced without weights.
    positions = torch.arange(input_ids.shape[1])[None]
    return model(input_ids, position_ids=positions, return_dict=True, **more)


class _FloatNorm(torch.nn.Module):
    """T5's norm (1910.07467) within float32.

    transformers multiplies a state in float32 by weights in float16. The exporter makes one
    RMSNormalization of that, whose two types ONNX does not take.
    """

    def __init__(self, norm: T5LayerNorm) -> None:
        super().__init__()
        self.weight = norm.weight
        self.epsilon = norm.variance_epsilon

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        weight = self.weight.float()
        return torch.nn.functional.rms_norm(hidden.float(), weight.shape, weight, self.epsilon).to(
            self.weight.dtype
        )


class _T5(torch.nn.Module):
    """T5's encoder, unmasked: SD3 reads its padding too."""

    def __init__(self, model: Any, dtype: torch.dtype) -> None:
        super().__init__()
        self.model = model
        for parent in list(model.modules()):
            for name, child in parent.named_children():
                if isinstance(child, T5LayerNorm):
                    setattr(parent, name, _FloatNorm(child))

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        hidden: torch.Tensor = self.model(input_ids, return_dict=True).last_hidden_state
        return hidden.float()


def text_network(spec: ModelSpec, component: Component) -> Network:
    """A text encoder: input_ids (B, L) int64 to hidden states (B, L, C), and text_embeds (B, P) if pooled.

    L is the length that the family's tokenizer pads to.

    Raises:
        ModelError: its config lacks something, or it is for another length.
    """
    name, kind = component.part.name, component.part.class_name
    (row,) = (row for row in spec.text_encoders if row.name == name)
    inputs = {"input_ids": ("batch", row.length)}
    integers = {"input_ids": number(component, "vocab_size")}
    if kind == "T5EncoderModel":
        outputs: dict[str, Any] = {"last_hidden_state": ("batch", row.length, number(component, "d_model"))}
        return Network(name, component, _T5, inputs, outputs, integers=integers)
    # 77 is the default of transformers, which older configs leave out.
    length = component.config.get("max_position_embeddings", 77)
    if length != row.length:
        raise ModelError(
            f"{component.folder} is for texts of {length} tokens, {spec.family} needs {row.length}; "
            "take a checkpoint of this family"
        )
    hidden = ("batch", row.length, number(component, "hidden_size"))
    if kind == "CLIPTextModelWithProjection":
        outputs = {"hidden_states": hidden, "text_embeds": ("batch", number(component, "projection_dim"))}
        return Network(name, component, _ClipProjected, inputs, outputs, integers=integers)
    if spec.architecture == "sdxl":
        return Network(
            name, component, _ClipPenultimate, inputs, {"hidden_states": hidden}, integers=integers
        )
    return Network(name, component, _Clip, inputs, {"last_hidden_state": hidden}, integers=integers)
