"""HPSv2.1 (2306.09341): a CLIP ViT-H/14 that was tuned on what people prefer, from its own checkpoint.

`HPS_v2.1_compressed.pt` is an open_clip model in float16 under "state_dict". It is loaded into transformers'
CLIP, which computes the same: open_clip needs torchvision, of which the package index has builds for CUDA
alone. Tests hold it to what open_clip gives.
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from PIL import Image

from .._errors import ModelError
from .clip import features_of, load_tokenizer, tokenized
from .inception import BROKEN

__all__ = ["HpsScore", "as_transformers", "check", "config_of", "prepared"]

_transformers: Any = transformers
_VISION_HEAD, _TEXT_HEAD = 80, 64  # widths of a head in ViT-H/14, which the weights do not show
_MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)
_STD = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)
# Names in open_clip and in transformers.
_TOP = {
    "logit_scale": "logit_scale",
    "text_projection": "text_projection.weight",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final": "text_model.final_layer_norm",
    "transformer.resblocks": "text_model.encoder.layers",
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.proj": "visual_projection.weight",
    "visual.ln_pre": "vision_model.pre_layrnorm",
    "visual.ln_post": "vision_model.post_layernorm",
    "visual.transformer.resblocks": "vision_model.encoder.layers",
}
_LAYER = {
    "attn.out_proj": "self_attn.out_proj",
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}

State = Mapping[str, torch.Tensor]


def config_of(state: State) -> transformers.CLIPConfig:
    """The architecture that open_clip's weights are of, with the head widths of ViT-H/14."""
    vision, text = state["visual.conv1.weight"].shape, state["token_embedding.weight"].shape
    grid = math.isqrt(state["visual.positional_embedding"].shape[0] - 1)
    projection = state["text_projection"].shape[1]
    return transformers.CLIPConfig(
        projection_dim=projection,
        text_config={
            "vocab_size": text[0],
            "hidden_size": text[1],
            "intermediate_size": state["transformer.resblocks.0.mlp.c_fc.weight"].shape[0],
            "projection_dim": projection,
            "num_hidden_layers": _depth(state, "transformer.resblocks."),
            "num_attention_heads": text[1] // _TEXT_HEAD,
            "max_position_embeddings": state["positional_embedding"].shape[0],
            "hidden_act": "gelu",
            "bos_token_id": text[0] - 2,
            "eos_token_id": 2,  # what makes transformers read a text at its largest token, as open_clip does
        },
        vision_config={
            "hidden_size": vision[0],
            "intermediate_size": state["visual.transformer.resblocks.0.mlp.c_fc.weight"].shape[0],
            "projection_dim": projection,
            "num_hidden_layers": _depth(state, "visual.transformer.resblocks."),
            "num_attention_heads": vision[0] // _VISION_HEAD,
            "image_size": grid * vision[-1],
            "patch_size": vision[-1],
            "hidden_act": "gelu",
        },
    )


def _depth(state: State, prefix: str) -> int:
    numbers = [name.removeprefix(prefix).split(".")[0] for name in state if name.startswith(prefix)]
    return 1 + max(int(number) for number in numbers)


def as_transformers(state: State) -> dict[str, torch.Tensor]:
    """open_clip's weights under transformers' names. Raises KeyError for a name that open_clip has not."""
    return {name: tensor for key, value in state.items() for name, tensor in _renamed(key, value)}


def _renamed(key: str, value: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
    if key in ("text_projection", "visual.proj"):  # open_clip multiplies from the other side
        yield _TOP[key], value.T.contiguous()
        return
    if key in _TOP:
        yield _TOP[key], value
        return
    prefix = next((one for one in sorted(_TOP, key=len, reverse=True) if key.startswith(f"{one}.")), None)
    if prefix is None:
        raise KeyError(key)
    rest = key.removeprefix(f"{prefix}.")
    if not prefix.endswith("resblocks"):
        yield f"{_TOP[prefix]}.{rest}", value
        return
    number, _, rest = rest.partition(".")
    layer = f"{_TOP[prefix]}.{number}"
    if rest.startswith("attn.in_proj_"):  # queries, keys and values one above the other
        kind = rest.removeprefix("attn.in_proj_")
        for name, part in zip(("q_proj", "k_proj", "v_proj"), value.chunk(3), strict=True):
            yield f"{layer}.self_attn.{name}.{kind}", part
        return
    stem, _, kind = rest.rpartition(".")
    yield f"{layer}.{_LAYER[stem]}.{kind}", value


def prepared(image: Image.Image, side: int) -> torch.Tensor:
    """A picture as HPSv2 prepares it: (3, side, side), the longer side resized, the shorter padded black.

    As in torchvision's resize of tensors: bicubic, without aliasing, and values may leave [0, 1] a little.
    """
    pixels = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).float() / 255
    height, width = pixels.shape[1:]
    if max(height, width) != side:
        scale = side / max(height, width)
        size = [round(height * scale), round(width * scale)]
        pixels = torch.nn.functional.interpolate(
            pixels[None], size, mode="bicubic", align_corners=False, antialias=True
        )[0]
    down, right = side - pixels.shape[1], side - pixels.shape[2]
    edges = [right // 2, right - right // 2, down // 2, down - down // 2]
    return (torch.nn.functional.pad(pixels, edges) - _MEAN) / _STD


def check(path: Path, tokenizer: Path) -> None:
    """Raises ModelError as `HpsScore` does; of the weights only names and shapes are read."""
    _read(path, tokenizer, "meta")


def _read(path: Path, tokenizer: Path, device: str) -> tuple[Any, Any]:
    """The model, and its tokenizer. Of a zip, as torch has saved since 2020, only what is used is read."""
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
        state = loaded["state_dict"]
        with torch.device(device):
            model = _transformers.CLIPModel(config_of(state))
        renamed = {name: tensor.to(device) for name, tensor in as_transformers(state).items()}
        model.load_state_dict(renamed)
    except BROKEN as error:
        raise ModelError(
            f"{path} is no checkpoint of HPSv2 ({str(error)[:300]}); HPS_v2.1_compressed.pt of xswu/HPSv2 is"
        ) from error
    words, known = load_tokenizer(tokenizer), model.config.text_config.vocab_size
    if len(words) != known:
        raise ModelError(
            f"{tokenizer} has a tokenizer of {len(words)} words, and {path} knows {known}; "
            "put that of a CLIP model beside it"
        )
    return model, words


class HpsScore:
    """HPSv2.1 of pictures with their prompts: 100 · cos, as HPSv2's own evaluation has it."""

    def __init__(self, path: Path, tokenizer: Path, device: str) -> None:
        """path: the checkpoint; tokenizer: a folder with CLIP's. Raises ModelError where they are others."""
        self._model, self._tokenizer = _read(path, tokenizer, "cpu")
        self._device = device
        self._length = self._model.config.text_config.max_position_embeddings
        self._side = self._model.config.vision_config.image_size
        self._model.float().to(device).eval().requires_grad_(False)

    @torch.inference_mode()
    def __call__(
        self, images: Sequence[Image.Image], texts: Sequence[str], first: int
    ) -> NDArray[np.float32]:
        """Scores (B,) of pictures with their prompts."""
        pixels = torch.stack([prepared(image, self._side) for image in images]).to(self._device)
        rows = tokenized(self._tokenizer, texts, self._length, self._device)
        shown = features_of(self._model.get_image_features(pixel_values=pixels))
        said = features_of(self._model.get_text_features(**rows))
        found: NDArray[np.float32] = (100 * torch.cosine_similarity(shown, said)).float().cpu().numpy()
        return found
