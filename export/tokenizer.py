"""Tokenizers of every form that checkpoints have, as one tokenizer.json that pads and cuts by itself."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import transformers
from tokenizers import Tokenizer

from .._errors import ModelError
from .checkpoint import Component
from .weights import read_json

__all__ = ["write_tokenizer"]

# What transformers raises at files that are no tokenizer; that of the tokenizers package is a bare Exception.
_ERRORS = (AttributeError, ImportError, IndexError, KeyError, OSError, RuntimeError, TypeError, ValueError)


def write_tokenizer(source: Path, component: Component, length: int, path: Path) -> Path:
    """Write a text encoder's tokenizer, which then gives `length` tokens for any text.

    Args:
        source: tokenizer*/ of the checkpoint: tokenizer.json, vocab.json with merges.txt, or spiece.model.
        component: the text encoder, whose vocabulary it must fit.
        length: tokens to pad or cut every text to.
        path: the tokenizer.json to write.

    Raises:
        ModelError: the files are no tokenizer, or not the one of this text encoder.
    """
    if (source / "tokenizer_config.json").exists():
        tokenizer = _fast(source, component, length)
    else:
        tokenizer = _plain(source / "tokenizer.json", length)  # the demo's: it has no settings beside it
    size, known = tokenizer.get_vocab_size(), component.config.get("vocab_size", 0)
    if size > known:
        raise ModelError(
            f"{source} has {size} tokens, and {component.folder.name} knows {known}; "
            "these parts are not of one checkpoint"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    tokenizer.save(str(partial))
    os.replace(partial, path)
    return path


def _plain(path: Path, length: int) -> Tokenizer:
    read_json(path)
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # all that the tokenizers package raises
        raise ModelError(f"{path} is no tokenizer ({error}); download the checkpoint again") from error
    found = (tokenizer.padding or {}).get("length"), (tokenizer.truncation or {}).get("max_length")
    if found != (length, length):
        raise ModelError(
            f"{path} pads to {found[0]} and cuts at {found[1]} tokens, expected {length}; "
            "add tokenizer_config.json, or take a complete checkpoint"
        )
    return tokenizer


def _fast(source: Path, component: Component, length: int) -> Tokenizer:
    """What transformers makes of the files, with its padding and cutting written into it."""
    name = "T5Tokenizer" if component.part.class_name == "T5EncoderModel" else "CLIPTokenizer"
    # Before version 5 the plain name was that of a tokenizer in Python.
    kind: Any = getattr(transformers, f"{name}Fast", None) or getattr(transformers, name)
    for name in ("tokenizer_config.json", "tokenizer.json", "vocab.json", "special_tokens_map.json"):
        if (source / name).exists():
            read_json(source / name)
    try:
        made = kind.from_pretrained(str(source), local_files_only=True)
        tokenizer = Tokenizer.from_str(made.backend_tokenizer.to_str())
        pad = made.pad_token_id
        if pad is None or len(made) < 3:
            raise ValueError("it has no tokens to pad with")
        tokenizer.enable_padding(length=length, pad_id=pad, pad_token=made.pad_token)
        tokenizer.enable_truncation(length)
    except _ERRORS as error:
        raise ModelError(f"{source} is no tokenizer ({error}); download the checkpoint again") from error
    return tokenizer
