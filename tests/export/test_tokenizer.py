"""Tokenizers: the file that is written gives the ids that transformers gives, padded and cut."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers import Tokenizer
from transformers import CLIPTokenizer, T5Tokenizer

from driffusion_trt import ModelError
from driffusion_trt.export.checkpoint import Checkpoint, read_checkpoint
from driffusion_trt.export.demo.networks import make_tokenizer
from driffusion_trt.export.tokenizer import write_tokenizer
from driffusion_trt.models import get_spec

Checkpoints = Callable[[str], Path]
TEXTS = ["", "red fox", "A  Fox,\tthat's\n5 foxes!", "é ü 猫 🐈", "fox " * 100, "<|endoftext|> fox"]


def written(checkpoint: Checkpoint, encoder: str, length: int, folder: Path) -> Tokenizer:
    component = checkpoint.components[encoder]
    path = write_tokenizer(checkpoint.tokenizer(encoder), component, length, folder / "tokenizer.json")
    assert [file.name for file in folder.iterdir()] == ["tokenizer.json"]
    return Tokenizer.from_file(str(path))


@pytest.mark.parametrize(
    ("family", "encoder", "length"),
    [
        ("sd21", "text_encoder", 77),
        ("sdxl", "text_encoder", 77),  # pads with the end of text, the second with "!"
        ("sdxl", "text_encoder_2", 77),
        ("sd3", "text_encoder_3", 256),
    ],
)
def test_ids_are_those_of_transformers(
    checkpoints: Checkpoints, tmp_path: Path, family: str, encoder: str, length: int
) -> None:
    checkpoint = read_checkpoint(checkpoints(family), get_spec(family))
    ours = written(checkpoint, encoder, length, tmp_path / "written")
    kind = T5Tokenizer if encoder == "text_encoder_3" else CLIPTokenizer
    theirs = kind.from_pretrained(checkpoint.tokenizer(encoder))
    wanted = theirs(TEXTS, padding="max_length", max_length=length, truncation=True).input_ids
    assert [encoding.ids for encoding in ours.encode_batch(TEXTS)] == wanted
    assert {len(ids) for ids in wanted} == {length}


def test_one_that_is_complete_is_taken_as_it_is(copy_of: Checkpoints, tmp_path: Path) -> None:
    """The demo's training writes tokenizer.json alone."""
    checkpoint = read_checkpoint(copy_of("sd21"), get_spec("sd21"))
    folder = checkpoint.tokenizer("text_encoder")
    for file in folder.iterdir():
        file.unlink()
    tokenizer = make_tokenizer()
    tokenizer.enable_padding(length=77, pad_id=0, pad_token="<|pad|>")
    tokenizer.enable_truncation(77)
    tokenizer.save(str(folder / "tokenizer.json"))
    ours = written(checkpoint, "text_encoder", 77, tmp_path / "written")
    assert ours.encode("a red fox").ids == tokenizer.encode("a red fox").ids
    with pytest.raises(ModelError, match="pads to 77 and cuts at 77 tokens, expected 16"):
        written(checkpoint, "text_encoder", 16, tmp_path / "other")


def test_one_of_another_text_encoder_is_refused(copy_of: Checkpoints, tmp_path: Path) -> None:
    folder = copy_of("sd21")
    path = folder / "tokenizer" / "vocab.json"
    vocabulary = json.loads(path.read_text("utf-8"))
    path.write_text(json.dumps({**vocabulary, "many": len(vocabulary)}), "utf-8")
    with pytest.raises(
        ModelError, match=r"has \d+ tokens, and text_encoder knows \d+; .* not of one checkpoint"
    ):
        written(read_checkpoint(folder, get_spec("sd21")), "text_encoder", 77, tmp_path / "written")


@pytest.mark.parametrize(
    ("name", "text"),
    [("vocab.json", "{"), ("vocab.json", "[]"), ("tokenizer.json", "{}"), ("tokenizer_config.json", "[]")],
)
def test_what_is_no_tokenizer_is_refused(copy_of: Checkpoints, tmp_path: Path, name: str, text: str) -> None:
    folder = copy_of("sd21")
    (folder / "tokenizer" / name).write_text(text)
    with pytest.raises(ModelError, match="tokenizer"):
        written(read_checkpoint(folder, get_spec("sd21")), "text_encoder", 77, tmp_path / "written")


def test_missing_files_are_noticed(copy_of: Checkpoints, tmp_path: Path) -> None:
    """transformers alone would make up a tokenizer of three tokens."""
    folder = copy_of("sd21")
    (folder / "tokenizer" / "vocab.json").unlink()
    with pytest.raises(ModelError, match="is no tokenizer"):
        written(read_checkpoint(folder, get_spec("sd21")), "text_encoder", 77, tmp_path / "written")
