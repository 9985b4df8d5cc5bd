"""Prompts to embeddings, and what of a prompt a model cannot read."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tiny
from tokenizers import Tokenizer, models, pre_tokenizers

from driffusion_trt import ModelError
from driffusion_trt.engines.onnx_session import OnnxSession
from driffusion_trt.prompts import PromptEncoder


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OnnxSession]:
    with OnnxSession(tiny.make_text_encoder(tmp_path_factory.mktemp("text") / "text.onnx")) as session:
        yield session


def encoder(folder: Path, session: OnnxSession, tokenizer: Tokenizer | None = None) -> PromptEncoder:
    (tokenizer or tiny.make_tokenizer()).save(str(folder / "tokenizer.json"))
    return PromptEncoder(folder / "tokenizer.json", session)


def test_a_prompt_is_tokenized_then_encoded(tmp_path: Path, session: OnnxSession) -> None:
    words = [*tiny.SPECIAL, *tiny.WORDS]
    ids = [words.index(word) for word in (tiny.SPECIAL[1], "a", "red", "fox", tiny.SPECIAL[2])]
    padded = np.array([ids + [0] * (tiny.LENGTH - len(ids))], np.int64)
    (expected,) = session.run({"input_ids": padded}).values()
    prompts = encoder(tmp_path, session)
    embeddings, pooled = prompts.embed(prompts.tokens("A red, FOX!"))
    assert pooled is None
    assert embeddings.shape == (1, tiny.LENGTH, tiny.WIDTH) and embeddings.dtype == np.float32
    assert np.array_equal(embeddings, expected)


def test_a_prompt_that_can_be_read_gives_no_complaint(tmp_path: Path, session: OnnxSession) -> None:
    prompts = encoder(tmp_path, session)
    for prompt in ("", "a red fox", "A Red, Fox. On a YELLOW background!", " ".join(["a"] * 14)):
        assert prompts.complaints(prompt) == []


def test_unknown_words_are_named_as_they_were_written(tmp_path: Path, session: OnnxSession) -> None:
    (complaint,) = encoder(tmp_path, session).complaints("a Éclair left of a zebra, an Éclair")
    assert complaint == "the model does not know 'Éclair', 'zebra': it was trained on few words"


def test_words_past_the_length_are_named(tmp_path: Path, session: OnnxSession) -> None:
    (complaint,) = encoder(tmp_path, session).complaints(" ".join(["a"] * 14 + ["blue", "star"]))
    assert complaint == "it is too long for the model, which leaves out 'blue', 'star'"
    assert len(encoder(tmp_path, session).complaints(" ".join(["zebra"] * 15))) == 2


def test_a_tokenizer_without_an_unknown_token_knows_every_word(tmp_path: Path, session: OnnxSession) -> None:
    tokenizer = Tokenizer(models.BPE({"a": 0, "b": 1}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    prompts = encoder(tmp_path, session, tokenizer)
    assert "unk_token" in json.loads((tmp_path / "tokenizer.json").read_text())["model"]
    assert prompts.complaints("a b") == []


@pytest.mark.parametrize("content", ["", "{}", '{"model": 1}', "\xff"])
def test_a_file_that_is_no_tokenizer_is_refused(tmp_path: Path, session: OnnxSession, content: str) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(content, encoding="latin-1")
    with pytest.raises(ModelError, match="is no tokenizer"):
        PromptEncoder(path, session)
