"""What a denoiser is told beside latents and time: embeddings of prompts, and SDXL's sizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from ._errors import InputError, ModelError, NonFiniteError
from ._request import Request, Sizes, Texts
from .engines.manifest import ModelFolder
from .engines.session import Network
from .prompts import Embedded, PromptEncoder
from .sampling.recording import Recorder, span

__all__ = ["Conditioner", "Conditioning"]

Float32 = NDArray[np.float32]
Conditioning = dict[str, Float32]  # inputs of the denoiser by name, each with the batch first

_FORCE_ZEROS, _CLIP_SKIP_MOST = "force_zeros_for_empty_prompt", "clip_skip_most"


class Conditioner:
    """The text encoders of a model; safe from several threads where its networks are."""

    def __init__(self, folder: ModelFolder, networks: Mapping[str, Network]) -> None:
        """networks: the text encoders by their names in the folder.

        Raises:
            ModelError: a tokenizer is missing or is none.
        """
        self._spec = folder.spec
        self._text = folder.shape("text")
        self._skips = int(folder.manifest.options.get(_CLIP_SKIP_MOST, 0))
        self._force_zeros = bool(folder.manifest.options.get(_FORCE_ZEROS, False))
        self._encoders = {
            row.name: PromptEncoder(folder.tokenizer(row.name), networks[row.name])
            for row in self._spec.text_encoders
            if row.name in networks
        }
        for row in self._spec.text_encoders:
            # SD3's third was left out of the build, and its tokens are zeros.
            if row.name not in networks and not (self._spec.architecture == "sd3" and row.name[-1] == "3"):
                raise ModelError(f"{folder.path} has no network {row.name!r}; build the model again")

    def check(self, request: Request) -> None:
        """Raises InputError where the text encoders cannot do what a request asks for."""
        if not request.clip_skip:
            return
        if not self._encoders["text_encoder"].skips_layers:
            remedy = "leave it out" if self._spec.hub_id is None else "build the model again, or leave it out"
            raise InputError(
                f"clip_skip={request.clip_skip} was asked, and the text encoder of this model was built "
                f"without its inner layers; {remedy}"
            )
        if request.clip_skip > self._skips:
            raise InputError(
                f"clip_skip={request.clip_skip} was asked; the text encoders of this model have layers for "
                f"{self._skips} at most"
            )

    def complaints(self, texts: Texts) -> list[str]:
        """What of a prompt the model cannot read, in words; empty where it reads all."""
        encoders = zip(self._encoders.values(), texts, strict=False)
        return list(dict.fromkeys(line for encoder, text in encoders for line in encoder.complaints(text)))

    def __call__(
        self, request: Request, recorder: Recorder | None = None
    ) -> tuple[Conditioning, Conditioning | None]:
        """Inputs of the denoiser for the prompts and, where there is guidance, without them.

        Raises:
            NonFiniteError: a text encoder left the range of its precision.
        """
        given = self._inputs(request.prompts, request.clip_skip, request.sizes, recorder)
        if not request.guided:
            return given, None
        if request.negative is None and self._force_zeros:
            zeros = {name: np.zeros_like(value) for name, value in given.items()}
            sizes = self._sizes(request.negative_sizes, len(request.prompts))
            return given, zeros | sizes
        blank = tuple("" for _ in self._spec.text_encoders)
        negative = request.negative or (blank,) * len(request.prompts)
        # clip_skip is for prompts only
        return given, self._inputs(negative, 0, request.negative_sizes, recorder)

    def _inputs(
        self, rows: Sequence[Texts], clip_skip: int, sizes: Sizes | None, recorder: Recorder | None
    ) -> Conditioning:
        """Equal prompts are encoded once."""
        known = {texts: self._embed(texts, clip_skip, recorder) for texts in dict.fromkeys(rows)}
        found = {"encoder_hidden_states": np.concatenate([known[texts].hidden for texts in rows])}
        pooled = [one for texts in rows if (one := known[texts].pooled) is not None]
        if pooled:
            name = "text_embeds" if self._spec.architecture == "sdxl" else "pooled_projections"
            found[name] = np.concatenate(pooled)
        if not all(np.isfinite(value).all() for value in found.values()):
            raise NonFiniteError(
                "the text encoder gave numbers that are not finite; build the model in bf16 or fp32"
            )
        return found | self._sizes(sizes, len(rows))

    def _sizes(self, sizes: Sizes | None, batch: int) -> Conditioning:
        return {} if sizes is None else {"time_ids": np.array([sizes.ids()] * batch, np.float32)}

    def _embed(self, texts: Texts, clip_skip: int, recorder: Recorder | None) -> Embedded:
        out: dict[str, Embedded] = {}
        for (name, encoder), text in zip(self._encoders.items(), texts, strict=False):
            with span(recorder, "tokenize"):
                tokens = encoder.tokens(text)
            with span(recorder, "encode"):
                out[name] = encoder.embed(tokens, clip_skip)
        match self._spec.architecture:
            case "sd21":
                return out["text_encoder"]
            case "sdxl":  # two encoders side by side; the pooled embedding is the second's
                first, second = out["text_encoder"], out["text_encoder_2"]
                return Embedded(np.concatenate([first.hidden, second.hidden], -1), second.pooled)
            case "sd3":
                return self._sd3(out)

    def _sd3(self, out: Mapping[str, Embedded]) -> Embedded:
        """CLIP's channels side by side and filled up with zeros, then T5's tokens (2403.03206, figure 2)."""
        first, second = out["text_encoder"], out["text_encoder_2"]
        tokens, channels = self._text
        hidden = np.zeros((1, tokens, channels), np.float32)
        clip = np.concatenate([first.hidden, second.hidden], -1)
        hidden[:, : clip.shape[1], : clip.shape[2]] = clip
        if "text_encoder_3" in out:
            hidden[:, clip.shape[1] :] = out["text_encoder_3"].hidden
        assert first.pooled is not None and second.pooled is not None
        return Embedded(hidden, np.concatenate([first.pooled, second.pooled], -1))
