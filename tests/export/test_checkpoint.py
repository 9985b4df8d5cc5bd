"""Reading a checkpoint: whose it is, whether it is whole, and whether it can be trusted."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import reduced
import torch
from safetensors.torch import load_file, save_file

from driffusion_trt import ModelError
from driffusion_trt.export.checkpoint import Checkpoint, read_checkpoint
from driffusion_trt.export.load import load_module
from driffusion_trt.models import get_spec

Checkpoints = Callable[[str], Path]
WEIGHTS = "diffusion_pytorch_model.safetensors"


def read(folder: Path, family: str, **more: Any) -> Checkpoint:
    return read_checkpoint(folder, get_spec(family), **more)


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text("utf-8")), **changes}), "utf-8")


@pytest.mark.parametrize("family", reduced.FAMILIES)
def test_a_checkpoint_is_read(checkpoints: Checkpoints, family: str) -> None:
    found = read(checkpoints(family), family)
    t5 = {"text_encoder_3"} if family == "sd3" else set()
    two = {"text_encoder_2"} if family != "sd21" else set()
    denoiser = "unet" if family in ("sd21", "sdxl") else "transformer"
    assert set(found.components) == {"text_encoder", denoiser, "vae"} | two | t5
    for component in found.components.values():
        stored = load_file(component.weights[0])
        assert component.parameters == sum(tensor.numel() for tensor in stored.values())
        assert (component.pickled, component.variant) == (False, None)


@pytest.mark.parametrize(
    ("of", "asked", "found"),
    [
        ("sdxl", "sd21", "an SDXL checkpoint, not one of family 'sd21'; build it as 'sdxl'"),
        ("sd21", "sdxl", "a Stable Diffusion 2 checkpoint, not one of family 'sdxl'; build it as 'sd21'"),
        ("sd21", "sd3", "a Stable Diffusion 2 checkpoint, not one of family 'sd3'; build it as 'sd21'"),
        ("sd3", "sd35-medium", "a Stable Diffusion 3 checkpoint, .* build it as 'sd3'"),
        (
            "sd35-medium",
            "sd35-large",
            "a Stable Diffusion 3.5 medium checkpoint, .* build it as 'sd35-medium'",
        ),
        ("sd35-large", "sd3", "a Stable Diffusion 3.5 large checkpoint, .* build it as 'sd35-large'"),
    ],
)
def test_the_wrong_family_is_named(checkpoints: Checkpoints, of: str, asked: str, found: str) -> None:
    with pytest.raises(ModelError, match=found):
        read(checkpoints(of), asked)


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"in_channels": 9}, "an inpainting, depth or upscaling .9 input channels."),
        ({"use_linear_projection": False}, "a Stable Diffusion 1 checkpoint"),
        ({"sample_size": 64}, r"a Stable Diffusion 2 base .* build it as 'sd21-base'"),
        (
            {"addition_embed_type": "text_time", "cross_attention_dim": 1280},
            "an SDXL refiner .* not supported",
        ),
        ({"class_embed_type": "projection"}, "class_embed_type 'projection' .* not supported"),
        ({"_class_name": "FluxTransformer2DModel"}, "a FluxTransformer2DModel .* not supported"),
    ],
)
def test_relatives_of_sd21_are_refused(copy_of: Checkpoints, changes: dict[str, Any], found: str) -> None:
    folder = copy_of("sd21")
    edit(folder / "unet" / "config.json", **changes)
    with pytest.raises(ModelError, match=found):
        read(folder, "sd21")


@pytest.mark.parametrize("part", ["text_encoder_2", "unet", "vae", "tokenizer_2", "scheduler"])
def test_a_missing_component_is_named(copy_of: Checkpoints, part: str) -> None:
    folder = copy_of("sdxl")
    shutil.rmtree(folder / part)
    with pytest.raises(ModelError, match=f"has no '{part}', which sdxl needs .there is: .*scheduler|vae"):
        read(folder, "sdxl")


def test_a_component_that_the_index_says_is_none_is_missing(copy_of: Checkpoints) -> None:
    folder = copy_of("sdxl")
    edit(folder / "model_index.json", text_encoder=[None, None])  # as in the refiner
    with pytest.raises(ModelError, match="has no 'text_encoder'"):
        read(folder, "sdxl")


def test_another_class_of_text_encoder_is_refused(copy_of: Checkpoints) -> None:
    folder = copy_of("sdxl")
    edit(folder / "model_index.json", text_encoder_2=["transformers", "T5EncoderModel"])
    edit(folder / "text_encoder_2" / "config.json", architectures=["T5EncoderModel"])
    with pytest.raises(ModelError, match="holds a T5EncoderModel, where a CLIPTextModelWithProjection"):
        read(folder, "sdxl")


def test_t5_may_be_missing_or_skipped(copy_of: Checkpoints) -> None:
    folder = copy_of("sd3")
    assert "text_encoder_3" not in read(folder, "sd3", skip=["text_encoder_3"]).components
    shutil.rmtree(folder / "text_encoder_3")
    shutil.rmtree(folder / "tokenizer_3")
    assert read(folder, "sd3").text_encoders == ("text_encoder", "text_encoder_2")


def test_what_is_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"not a diffusers folder: it has no model_index\.json.*stable-diff"):
        read(tmp_path, "sdxl")
    single = tmp_path / "model.safetensors"
    single.write_bytes(b"")
    with pytest.raises(ModelError, match=r"is a single file, .* from_single_file .* save_pretrained"):
        read(single, "sdxl")


# Hostile and broken folders


@pytest.mark.parametrize(
    "name",
    ["../../secret.safetensors", "/etc/secret.safetensors", "..\\secret.safetensors", "c:secret.safetensors"],
)
def test_an_index_that_reaches_outside_is_refused(copy_of: Checkpoints, name: str) -> None:
    folder = copy_of("sd21")
    unet = folder / "unet"
    shutil.copy(unet / WEIGHTS, folder.parent / "secret.safetensors")
    (unet / WEIGHTS).unlink()
    index = unet / f"{WEIGHTS}.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": {"conv_in.weight": name}}))
    with pytest.raises(
        ModelError, match=r"which is no \.safetensors file beside it; do not use this checkpoint"
    ):
        read(folder, "sd21")


def test_an_index_of_pickles_by_another_name_is_refused(copy_of: Checkpoints) -> None:
    folder = copy_of("sd21")
    unet = folder / "unet"
    (unet / WEIGHTS).rename(unet / "weights.bin")
    (unet / f"{WEIGHTS}.index.json").write_text(json.dumps({"weight_map": {"conv_in.weight": "weights.bin"}}))
    with pytest.raises(ModelError, match=r"lists 'weights\.bin', which is no \.safetensors file"):
        read(folder, "sd21")


def test_shards_are_found_and_missed(checkpoints: Checkpoints, tmp_path: Path) -> None:
    folder = reduced.save_checkpoint("sd21", tmp_path / "sharded", max_shard_size="100KB")
    whole = read(checkpoints("sd21"), "sd21").components["unet"]
    sharded = read(folder, "sd21").components["unet"]
    assert len(sharded.weights) > 2
    assert sharded.parameters == whole.parameters
    sharded.weights[1].unlink()
    with pytest.raises(ModelError, match=r"00002-of-.* is missing, though .*index\.json lists it"):
        read(folder, "sd21")


class _Bomb:
    """A pickle that leaves a mark when it is opened without care."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


def test_pickles_are_refused_and_never_run(copy_of: Checkpoints, tmp_path: Path) -> None:
    folder = copy_of("sd21")
    unet = folder / "unet"
    (unet / WEIGHTS).unlink()
    (unet / "diffusion_pytorch_model.bin").write_bytes(pickle.dumps(_Bomb(tmp_path / "boom")))
    with pytest.raises(
        ModelError, match=r"pickles only .diffusion_pytorch_model\.bin., which can run any code"
    ):
        read(folder, "sd21")
    found = read(folder, "sd21", allow_pickle=True).components["unet"]
    assert found.pickled
    with pytest.raises(ModelError, match="cannot be loaded as UNet2DConditionModel"):
        load_module(found, torch.float32)
    assert not (tmp_path / "boom").exists()


def test_allowed_pickles_are_read(checkpoints: Checkpoints, copy_of: Checkpoints) -> None:
    folder = copy_of("sd21")
    unet = folder / "unet"
    weights = load_file(unet / WEIGHTS)
    torch.save(weights, unet / "diffusion_pytorch_model.bin")
    (unet / WEIGHTS).unlink()
    module = load_module(read(folder, "sd21", allow_pickle=True).components["unet"], torch.float32)
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, weights[name])


def test_a_variant_is_found_and_the_full_one_preferred(copy_of: Checkpoints) -> None:
    folder = copy_of("sd21")
    unet = folder / "unet"
    shutil.copy(unet / WEIGHTS, unet / "diffusion_pytorch_model.fp16.safetensors")
    assert read(folder, "sd21").components["unet"].variant is None
    (unet / WEIGHTS).unlink()
    found = read(folder, "sd21").components["unet"]
    assert (found.variant, found.weights[0].name) == ("fp16", "diffusion_pytorch_model.fp16.safetensors")
    load_module(found, torch.float32)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda data: data[:-100], "its header says .* it is cut short or altered"),
        (lambda data: data[:4], "is no safetensors file, or is cut short"),
        (lambda data: b"\xff" * 8 + data[8:], "is no safetensors file, or is cut short"),
        (lambda data: data[:8] + b"[" * 50 + data[58:], "has a header that is not that of safetensors"),
    ],
)
def test_spoilt_weights_are_refused(
    copy_of: Checkpoints, spoil: Callable[[bytes], bytes], message: str
) -> None:
    folder = copy_of("sd21")
    path = folder / "vae" / WEIGHTS
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(ModelError, match=message):
        read(folder, "sd21")


@pytest.mark.parametrize("text", ["{", "[1]", "\ud800", "[" * 100_000])
def test_spoilt_json_is_refused(copy_of: Checkpoints, text: str) -> None:
    folder = copy_of("sd21")
    (folder / "vae" / "config.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(ModelError, match=r"config\.json (cannot be read as JSON|holds no JSON object)"):
        read(folder, "sd21")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_pipe_does_not_stop_us(copy_of: Checkpoints) -> None:
    folder = copy_of("sd21")
    (folder / "vae" / "config.json").unlink()
    os.mkfifo(folder / "vae" / "config.json")
    with pytest.raises(ModelError, match=r"config\.json is missing"):
        read(folder, "sd21")


@pytest.mark.parametrize("layers", [10**9, [1, 10**9], -1, "many"])
def test_a_config_of_endless_layers_is_refused(copy_of: Checkpoints, layers: Any) -> None:
    folder = copy_of("sd21")
    edit(folder / "unet" / "config.json", layers_per_block=layers)
    with pytest.raises(ModelError, match=r"says layers_per_block .*, but its weights are .* tensors"):
        read(folder, "sd21")


def test_weights_that_lack_a_tensor_are_refused(copy_of: Checkpoints) -> None:
    """diffusers alone would go on with random numbers in its place."""
    folder = copy_of("sd21")
    path = folder / "unet" / WEIGHTS
    tensors = load_file(path)
    del tensors["mid_block.resnets.0.conv1.weight"]
    save_file(tensors, path)
    with pytest.raises(ModelError, match=r"missing keys, such as mid_block\.resnets\.0\.conv1\.weight"):
        load_module(read(folder, "sd21").components["unet"], torch.float32)


@pytest.mark.parametrize(("part", "key"), [("unet", "cross_attention_dim"), ("text_encoder", "hidden_size")])
def test_weights_of_another_shape_are_refused(copy_of: Checkpoints, part: str, key: str) -> None:
    folder = copy_of("sd21")
    edit(folder / part / "config.json", **{key: 64})
    with pytest.raises(ModelError, match=r"cannot be loaded|mismatched keys"):
        load_module(read(folder, "sd21").components[part], torch.float32)
