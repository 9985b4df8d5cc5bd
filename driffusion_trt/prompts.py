"""Prompts to embeddings: a tokenizer.json and the text encoder that belongs to it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding, Tokenizer

from ._errors import ModelError
from .engines.session import Network

__all__ = ["Embedded", "PromptEncoder"]

Float32 = NDArray[np.float32]
Int64 = NDArray[np.int64]


class Embedded(NamedTuple):
    """Of one prompt: hidden (1, L, C), and pooled (1, P) where the encoder has it."""

    hidden: Float32
    pooled: Float32 | None = None


class PromptEncoder:
    """One text encoder; safe from several threads where its network is."""

    def __init__(self, tokenizer: Path, network: Network) -> None:
        try:
            text = tokenizer.read_text("utf-8")
            self._unknown = json.loads(text)["model"].get("unk_token")
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            raise ModelError(f"{tokenizer} is no tokenizer ({error!r}); build the model again") from error
        try:
            self._tokenizer = Tokenizer.from_str(text)
        except Exception as error:  # this package's errors are bare Exception: nothing narrower to name
            raise ModelError(f"{tokenizer} is no tokenizer ({error}); build the model again") from error
        self._network = network
        self.skips_layers = "clip_skip" in network.inputs

    def tokens(self, prompt: str) -> Int64:
        """What the network reads of one prompt: (1, L)."""
        return np.array([self._tokenizer.encode(prompt).ids], np.int64)

    def embed(self, tokens: Int64, clip_skip: int = 0) -> Embedded:
        """Of the tokens of one prompt, so that its bits depend on nothing else.

        clip_skip: layers to stop before the usual one; an encoder that does not skip is run as ever.
        """
        inputs = {"input_ids": tokens}
        if self.skips_layers:
            inputs["clip_skip"] = np.array([clip_skip], np.int64)
        hidden, *pooled = self._network.run(inputs).values()
        return Embedded(hidden, *pooled)

    def complaints(self, prompt: str) -> list[str]:
        """What of a prompt this model cannot read: unknown words, and words past its length."""
        encoding = self._tokenizer.encode(prompt)
        found = []
        unknown = self._words(prompt, encoding, self._unknown) if self._unknown is not None else []
        if unknown:
            found.append(f"the model does not know {_listed(unknown)}: it was trained on few words")
        lost = [word for part in encoding.overflowing for word in self._words(prompt, part, None)]
        if lost:
            found.append(f"it is too long for the model, which leaves out {_listed(lost)}")
        return found

    @staticmethod
    def _words(prompt: str, encoding: Encoding, token: str | None) -> list[str]:
        marks = zip(encoding.tokens, encoding.offsets, encoding.special_tokens_mask, strict=True)
        return [prompt[a:b] for name, (a, b), special in marks if not special and token in (None, name)]


def _listed(words: list[str]) -> str:
    return ", ".join(repr(word) for word in dict.fromkeys(words))
