"""Text encoders as networks: CLIP, CLIP with its projection, and T5."""

from __future__ import annotations

from typing import Any

import torch
from transformers.models.t5.modeling_t5 import T5LayerNorm

from .._errors import ModelError
from ..models import ModelSpec
from .checkpoint import Component, clip_skips
from .network import Network, number

__all__ = ["text_network"]


class _Clip(torch.nn.Module):
    """CLIP, whose last layer SD2.1 reads, or the one `clip_skip` before it, after the final norm."""

    def __init__(self, model: Any, dtype: torch.dtype) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, clip_skip: torch.Tensor) -> torch.Tensor:
        chosen = _layer(_run_clip(self.model, input_ids), -1, clip_skip)
        hidden: torch.Tensor = self._text(chosen)
        return hidden.float()

    def _text(self, hidden: torch.Tensor) -> Any:
        # transformers has called the part with the norm by two names.
        return getattr(self.model, "text_model", self.model).final_layer_norm(hidden)


class _ClipPenultimate(_Clip):
    """CLIP, whose last layer but one SDXL reads (2307.01952, 2.1), without the final norm."""

    def forward(self, input_ids: torch.Tensor, clip_skip: torch.Tensor) -> torch.Tensor:
        return _layer(_run_clip(self.model, input_ids), -2, clip_skip).float()


class _ClipProjected(torch.nn.Module):
    """The same with the pooled embedding: the end token's state, normed and projected."""

    def __init__(self, model: Any, dtype: torch.dtype) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, clip_skip: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        out = _run_clip(self.model, input_ids)
        return _layer(out, -2, clip_skip).float(), out.text_embeds.float()


def _run_clip(model: Any, input_ids: torch.Tensor) -> Any:
    # Positions are given, since the model's own buffer of them is no weight, and so has no values while
    # the graph is traced without weights.
    positions = torch.arange(input_ids.shape[1])[None]
    return model(input_ids, position_ids=positions, return_dict=True, output_hidden_states=True)


def _layer(out: Any, usual: int, clip_skip: torch.Tensor) -> torch.Tensor:
    """The hidden state `clip_skip` (1,) layers before the usual one; never before the first."""
    layers = torch.stack(out.hidden_states[: len(out.hidden_states) + 1 + usual])
    last = layers.shape[0] - 1
    return layers.index_select(0, (last - clip_skip).clamp(0, last))[0]


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

    L is the length that the family's tokenizer pads to. CLIP also reads clip_skip (1,) int64: how many
    layers before the usual one are the last, so that one file serves all values.

    Raises:
        ModelError: its config lacks something, or it is for another length.
    """
    name, kind = component.part.name, component.part.class_name
    (row,) = (row for row in spec.text_encoders if row.name == name)
    inputs: dict[str, Any] = {"input_ids": ("batch", row.length)}
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
    inputs["clip_skip"] = (1,)
    integers["clip_skip"] = clip_skips(spec, component) + 1
    hidden = ("batch", row.length, number(component, "hidden_size"))
    if kind == "CLIPTextModelWithProjection":
        outputs = {"hidden_states": hidden, "text_embeds": ("batch", number(component, "projection_dim"))}
        return Network(name, component, _ClipProjected, inputs, outputs, integers=integers)
    if spec.architecture == "sdxl":
        return Network(
            name, component, _ClipPenultimate, inputs, {"hidden_states": hidden}, integers=integers
        )
    return Network(name, component, _Clip, inputs, {"last_hidden_state": hidden}, integers=integers)
