"""CLIP score and PickScore: how near a picture and its prompt are in CLIP's space, by transformers' CLIP."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from PIL import Image

from .._errors import ModelError
from .weights import tokenizer_files

__all__ = ["ClipScore", "features_of", "load_tokenizer", "tokenized"]

# transformers 5 has two image processors; Pillow's is the one that the published models were used with.
_transformers: Any = transformers  # 4 and 5 have other types
_Processor = getattr(_transformers, "CLIPImageProcessorPil", None) or _transformers.CLIPImageProcessor


class ClipScore:
    """Scores of pictures by a CLIP model's folder.

    preference False: CLIP score (2104.08718, 3), 100 · max(cos, 0) of each picture; torchmetrics clamps the
    mean instead.
    preference True: PickScore (2305.01569, 4.1, and its model card), exp(logit_scale) · cos; the scale that
    was learnt is 100.
    """

    def __init__(self, folder: Path, beside: Path, device: str, *, preference: bool) -> None:
        """beside: the folder of its processor and tokenizer. Raises ModelError where they hold others."""
        try:
            self._model = _transformers.CLIPModel.from_pretrained(folder, local_files_only=True)
            self._processor = _Processor.from_pretrained(beside, local_files_only=True)
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            raise ModelError(f"{folder} cannot be loaded as a CLIP model ({str(error)[:300]})") from error
        self._tokenizer = load_tokenizer(beside)
        self._preference, self._device = preference, device
        self._length = self._model.config.text_config.max_position_embeddings
        self._model.to(device).eval().requires_grad_(False)

    @torch.inference_mode()
    def __call__(
        self, images: Sequence[Image.Image], texts: Sequence[str], first: int
    ) -> NDArray[np.float32]:
        """Scores (B,) of pictures with their prompts."""
        pixels = self._processor(images=[image.convert("RGB") for image in images], return_tensors="pt")
        shown = features_of(
            self._model.get_image_features(pixel_values=pixels["pixel_values"].to(self._device))
        )
        said = features_of(
            self._model.get_text_features(**tokenized(self._tokenizer, texts, self._length, self._device))
        )
        near = torch.cosine_similarity(shown, said)
        scores = self._model.logit_scale.exp() * near if self._preference else 100 * near.clamp(min=0)
        found: NDArray[np.float32] = scores.float().cpu().numpy()
        return found


def features_of(out: Any) -> torch.Tensor:
    """What transformers 4 returns as a tensor is part of a record in 5."""
    found: torch.Tensor = out if isinstance(out, torch.Tensor) else out.pooler_output
    return found


def load_tokenizer(folder: Path) -> Any:
    """CLIP's tokenizer. Raises ModelError where the folder has none."""
    if not tokenizer_files(folder):  # transformers 5 would make one of no words
        raise ModelError(
            f"{folder} has no tokenizer of CLIP: neither tokenizer.json, nor vocab.json and merges.txt"
        )
    try:
        return _transformers.CLIPTokenizerFast.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{folder} has a tokenizer that cannot be read ({str(error)[:300]})") from error


def tokenized(tokenizer: Any, texts: Sequence[str], length: int, device: str) -> dict[str, torch.Tensor]:
    """input_ids and attention_mask (B, L); what is longer than the model reads is cut off."""
    rows = tokenizer(list(texts), padding=True, truncation=True, max_length=length, return_tensors="pt")
    return {name: rows[name].to(device) for name in ("input_ids", "attention_mask")}
