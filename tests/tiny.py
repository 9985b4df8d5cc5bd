"""A model folder of the demo's form with tiny random networks, made without torch.

The denoiser looks its timestep up in a table of 1000 rows, so that a timestep of 1000 and
more makes ONNX Runtime itself fail: tests of failing lanes need no fake.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from driffusion_trt.engines.manifest import write_manifest

CHANNELS, SIDE, LENGTH, WIDTH = 4, 16, 16, 96
SPECIAL = ("<|pad|>", "<|startoftext|>", "<|endoftext|>", "<|unknown|>")
WORDS = (
    "a", "above", "an", "background", "below", "blue", "circle", "cat", "fox", "green", "left", "of", "on",
    "red", "right", "square", "star", "yellow",
)  # fmt: skip
SCHEDULER: dict[str, Any] = {
    "_class_name": "DDIMScheduler",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "clip_sample": False,
    "num_train_timesteps": 1000,
    "prediction_type": "v_prediction",
    "set_alpha_to_one": False,
    "steps_offset": 1,
    "timestep_spacing": "leading",
}
_FLOAT, _INT64 = TensorProto.FLOAT, TensorProto.INT64


class _Graph:
    """A graph in the making; weights are stored as the exporter does, float16 with a Cast."""

    def __init__(self, seed: int) -> None:
        self.random = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def weight(self, name: str, shape: Sequence[int], scale: float) -> str:
        value = (scale * self.random.standard_normal(shape)).astype(np.float16)
        self.constants.append(numpy_helper.from_array(value, f"{name}_half"))
        return self.op("Cast", [f"{name}_half"], name, to=_FLOAT)

    def constant(self, name: str, value: Any) -> str:
        self.constants.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def op(self, kind: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(kind, list(inputs), [output], **attributes))
        return output

    def save(self, path: Path, inputs: Sequence[onnx.ValueInfoProto], *outputs: onnx.ValueInfoProto) -> Path:
        graph = helper.make_graph(self.nodes, path.stem, list(inputs), list(outputs), self.constants)
        # The IR version that ONNX Runtime 1.20 reads.
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
        onnx.checker.check_model(model, full_check=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        onnx.save(model, path)
        return path


def make_denoiser(path: Path, seed: int = 0) -> Path:
    """sample (B, 4, h, w), timestep (B,), encoder_hidden_states (B, 16, 96) -> out_sample, float32."""
    latents = ("batch", CHANNELS, "height", "width")
    graph = _Graph(seed)
    text = graph.op("ReduceMean", ["encoder_hidden_states", graph.constant("axis", [1])], "text", keepdims=0)
    text = graph.op("MatMul", [text, graph.weight("text_weight", (WIDTH, CHANNELS), 0.1)], "projected")
    row = graph.op("Cast", ["timestep"], "row", to=_INT64)
    time = graph.op("Gather", [graph.weight("table", (1000, CHANNELS), 0.1), row], "time")
    added = graph.op("Add", [text, time], "added")
    added = graph.op("Unsqueeze", [added, graph.constant("sides", [2, 3])], "condition")
    kernel = graph.weight("kernel", (CHANNELS, CHANNELS, 3, 3), 0.1)
    mixed = graph.op("Conv", ["sample", kernel], "mixed", pads=[1, 1, 1, 1])
    # Not linear in the condition, or guidance would be a mere shift.
    graph.op("Add", [mixed, graph.op("Mul", [mixed, added], "gated")], "out_sample")
    return graph.save(
        path,
        [
            helper.make_tensor_value_info("sample", _FLOAT, latents),
            helper.make_tensor_value_info("timestep", _FLOAT, ("batch",)),
            helper.make_tensor_value_info("encoder_hidden_states", _FLOAT, ("batch", LENGTH, WIDTH)),
        ],
        helper.make_tensor_value_info("out_sample", _FLOAT, latents),
    )


def make_text_encoder(path: Path, seed: int = 1) -> Path:
    """input_ids (B, 16) int64 -> last_hidden_state (B, 16, 96) float32."""
    graph = _Graph(seed)
    table = graph.weight("table", (len(SPECIAL) + len(WORDS), WIDTH), 1.0)
    words = graph.op("Gather", [table, "input_ids"], "words")
    placed = graph.op("Add", [words, graph.weight("places", (LENGTH, WIDTH), 0.3)], "placed")
    graph.op("Tanh", [placed], "last_hidden_state")
    return graph.save(
        path,
        [helper.make_tensor_value_info("input_ids", _INT64, ("batch", LENGTH))],
        helper.make_tensor_value_info("last_hidden_state", _FLOAT, ("batch", LENGTH, WIDTH)),
    )


def make_vae_decoder(path: Path, seed: int = 2) -> Path:
    """latents (B, 4, h, w) -> pictures (B, 3, 4h, 4w), float32 in [-1, 1]."""
    graph = _Graph(seed)
    scales = graph.constant("scales", np.array([1, 1, 4, 4], np.float32))
    large = graph.op("Resize", ["latents", "", scales], "large", mode="nearest")
    kernel = graph.weight("kernel", (3, CHANNELS, 3, 3), 0.2)
    graph.op("Tanh", [graph.op("Conv", [large, kernel], "mixed", pads=[1, 1, 1, 1])], "pictures")
    pictures = ("batch", 3, "picture_height", "picture_width")
    return graph.save(
        path,
        [helper.make_tensor_value_info("latents", _FLOAT, ("batch", CHANNELS, "height", "width"))],
        helper.make_tensor_value_info("pictures", _FLOAT, pictures),
    )


def make_vae_encoder(path: Path, seed: int = 3) -> Path:
    """pictures (B, 3, 4h, 4w) -> mean and std (B, 4, h, w), float32."""
    graph = _Graph(seed)
    for name, scale in (("mean", 0.4), ("spread", 0.1)):
        kernel = graph.weight(f"{name}_kernel", (CHANNELS, 3, 4, 4), scale)
        graph.op("Conv", ["pictures", kernel], name, strides=[4, 4])
    graph.op("Exp", ["spread"], "std")
    latents = ("batch", CHANNELS, "height", "width")
    return graph.save(
        path,
        [helper.make_tensor_value_info("pictures", _FLOAT, ("batch", 3, "picture_height", "picture_width"))],
        *(helper.make_tensor_value_info(name, _FLOAT, latents) for name in ("mean", "std")),
    )


def make_tokenizer() -> Tokenizer:
    """One token a word of `WORDS`, in the form of the demo's own."""
    words = {word: i for i, word in enumerate((*SPECIAL, *WORDS))}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token=SPECIAL[3]))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Whitespace(), pre_tokenizers.Punctuation(behavior="removed")]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{SPECIAL[1]} $A {SPECIAL[2]}", special_tokens=[(word, words[word]) for word in SPECIAL[1:3]]
    )
    tokenizer.enable_padding(length=LENGTH, pad_id=0, pad_token=SPECIAL[0])
    tokenizer.enable_truncation(LENGTH)
    return tokenizer


def make_model_folder(
    folder: Path, scheduler: dict[str, Any] | None = None, *, encoder: bool = False
) -> Path:
    """A complete model folder; `scheduler` is its scheduler config (the demo's where None).

    encoder: with one for pictures, which the demo has not.
    """
    make_denoiser(folder / "onnx" / "denoiser.onnx")
    make_text_encoder(folder / "onnx" / "text_encoder.onnx")
    make_vae_decoder(folder / "onnx" / "vae_decoder.onnx")
    if encoder:
        make_vae_encoder(folder / "onnx" / "vae_encoder.onnx")
    (folder / "tokenizer").mkdir()
    make_tokenizer().save(str(folder / "tokenizer" / "tokenizer.json"))
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler or SCHEDULER))
    write_manifest(
        folder,
        family="demo",
        precision="float16 weights, float32 arithmetic",
        versions={"onnx": onnx.__version__},
        shapes={
            "picture": [3, 4 * SIDE, 4 * SIDE],
            "latents": [CHANNELS, SIDE, SIDE],
            "text": [LENGTH, WIDTH],
        },
        scaling_factor=1.0,
    )
    return folder
