"""Whole checkpoints of every family through `build`: ONNX that computes what diffusers does, and plans."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import reduced
import torch
from diffusers import DiffusionPipeline
from numpy.typing import NDArray
from onnx import TensorProto
from tokenizers import Tokenizer

from driffusion_trt.cli import main
from driffusion_trt.engines.manifest import ModelFolder
from driffusion_trt.engines.onnx_session import OnnxSession
from driffusion_trt.engines.store import PlanStore
from driffusion_trt.export import worker
from driffusion_trt.models import get_spec

Array = NDArray[Any]
PROMPT, NEGATIVE = "a red fox, left of a fox-red 4", ""
VAE = {"vae_decoder", "vae_encoder"}
TEXTS = {
    "sd21": ["text_encoder"],
    "sdxl": ["text_encoder", "text_encoder_2"],
    "sd3": ["text_encoder", "text_encoder_2", "text_encoder_3"],
    "sd35-medium": ["text_encoder", "text_encoder_2"],
    "sd35-large": ["text_encoder", "text_encoder_2"],
}
SIDES = {"batch", "height", "width"}
PLANS = importlib.util.find_spec("tensorrt_rtx") is not None

pytestmark = pytest.mark.usefixtures("here")


@pytest.fixture(scope="module")
def exported(
    here: None,
    families: Callable[[str], Path],
    checkpoints: Callable[[str], Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[str], ModelFolder]:
    """A reduced checkpoint of a family after `driffusion-trt build`, in float32.

    It finds the networks exported, by the export that other tests share, and has to compare and plan them.
    """
    made: dict[str, ModelFolder] = {}

    def make(family: str) -> ModelFolder:
        if family not in made:
            folder = tmp_path_factory.mktemp("models") / family
            shutil.copytree(families(family) / "model", folder)
            words = ["--model", family, "--checkpoint", str(checkpoints(family)), "--output", str(folder)]
            words += ["--precision", "fp32", "--target", "sm89,sm120" if PLANS else "cpu"]
            assert main(["build", *words]) == 0
            made[family] = ModelFolder.open(folder, verify=True)
        return made[family]

    return make


@pytest.fixture(scope="module")
def pipelines(checkpoints: Callable[[str], Path]) -> Callable[[str], Any]:
    """What diffusers makes of the same checkpoints."""
    made: dict[str, Any] = {}

    def make(family: str) -> Any:
        if family not in made:
            without = dict.fromkeys(("text_encoder_3", "tokenizer_3")) if family.startswith("sd35") else {}
            made[family] = DiffusionPipeline.from_pretrained(
                checkpoints(family), local_files_only=True, **without
            )
            made[family].set_progress_bar_config(disable=True)
        return made[family]

    return make


def run(model: ModelFolder, network: str, **inputs: Array) -> dict[str, Array]:
    with OnnxSession(model.network(network)) as session:
        return session.run(inputs)


def close(got: Array, wanted: torch.Tensor, limit: float = 1e-5) -> bool:
    expected = wanted.detach().numpy()
    assert got.shape == expected.shape
    return float(np.linalg.norm(got - expected) / np.linalg.norm(expected)) < limit


def encoded(model: ModelFolder, prompt: str) -> list[dict[str, Array]]:
    """Outputs of every text encoder, on the tokens of its own tokenizer.json."""
    outputs = []
    for name in TEXTS[model.manifest.family]:
        ids = Tokenizer.from_file(str(model.tokenizer(name))).encode(prompt).ids
        more = {} if name == "text_encoder_3" else {"clip_skip": np.zeros(1, np.int64)}
        outputs.append(run(model, name, input_ids=np.array([ids], np.int64), **more))
    return outputs


# SD3.5 is SD3 with other attention, and takes as long to export: its tests are `make test-slow`.
MEDIUM, LARGE = (pytest.param(f"sd35-{size}", marks=pytest.mark.slow) for size in ("medium", "large"))
FAMILIES = [{"sd35-medium": MEDIUM, "sd35-large": LARGE}.get(name, name) for name in reduced.FAMILIES]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_folder_is_whole(exported: Callable[[str], ModelFolder], family: str) -> None:
    model = exported(family)
    manifest = model.manifest
    assert set(model.networks) == {*TEXTS[family], "denoiser", *VAE}
    assert set(manifest.parity) == set(model.networks)
    assert all(0 <= figure < 1e-5 for figure in manifest.parity.values())
    assert (manifest.family, manifest.precision) == (family, "fp32")
    spec = get_spec(family)
    assert (manifest.scaling_factor, manifest.shift_factor) == (spec.scaling_factor, spec.shift_factor)
    assert manifest.shapes["latents"] == [spec.latent_channels, 16, 16]
    assert manifest.shapes["picture"] == [3, 128, 128]
    assert {"torch", "diffusers", "transformers", "onnx", "onnxruntime"} <= set(manifest.versions)
    found = (path for path in model.path.rglob("*") if path.is_file() and path.name[0] != ".")
    strangers = {path for path in found if "plans" not in path.relative_to(model.path).parts}
    assert {path.relative_to(model.path).as_posix() for path in strangers} == {
        *manifest.files,
        "manifest.json",
    }


@pytest.mark.skipif(not PLANS, reason="there is no wheel of TensorRT-RTX for this machine")
@pytest.mark.parametrize("family", FAMILIES)
def test_plans_of_all_networks_but_t5(exported: Callable[[str], ModelFolder], family: str) -> None:
    model = exported(family)
    store = PlanStore(model.path)
    plans = list(store.plans())
    assert {plan.key.network for plan in plans if plan.key} == set(model.networks) - {"text_encoder_3"}
    assert [store.verify(plan) for plan in plans] == [""] * len(plans)
    for plan in plans:
        assert plan.key is not None and plan.size_bytes > 10_000
        assert plan.key.platform.targets == ("sm89", "sm120")
        graph = onnx.load(model.network(plan.key.network), load_external_data=False).graph
        assert list(plan.facts["inputs"]) == [value.name for value in graph.input]
        assert list(plan.facts["outputs"]) == [value.name for value in graph.output]


@pytest.mark.parametrize("family", FAMILIES)
def test_names_sides_and_types(exported: Callable[[str], ModelFolder], family: str) -> None:
    model, spec = exported(family), get_spec(family)
    for name in model.networks:
        graph = onnx.load(model.network(name), load_external_data=False).graph
        tensors = {value.name: value.type.tensor_type for value in (*graph.input, *graph.output)}
        sides = {side.dim_param for t in tensors.values() for side in t.shape.dim if side.dim_param}
        elements = {value.name: value.type.tensor_type.elem_type for value in graph.input}
        if name == "denoiser":
            assert tuple(value.name for value in graph.input) == spec.denoiser_inputs
            assert sides == SIDES | ({"sequence"} if spec.architecture == "sd3" else set())
        elif name in VAE:
            assert sides == SIDES | {"picture_height", "picture_width"}
        else:
            assert (sides, elements.pop("input_ids")) == ({"batch"}, TensorProto.INT64)
            if name != "text_encoder_3":
                assert elements.pop("clip_skip") == TensorProto.INT64
        assert set(elements.values()) <= {TensorProto.FLOAT}
        assert all(value.type.tensor_type.elem_type == TensorProto.FLOAT for value in graph.output)
        assert str(Path(torch.__file__).parent).encode() not in model.network(name).read_bytes()


def test_texts_of_sd21(exported: Callable[[str], ModelFolder], pipelines: Callable[[str], Any]) -> None:
    wanted, _ = pipelines("sd21").encode_prompt(PROMPT, "cpu", 1, False)
    (out,) = encoded(exported("sd21"), PROMPT)
    assert close(out["last_hidden_state"], wanted)


@pytest.mark.parametrize("prompt", [PROMPT, "fox " * 90])
def test_texts_of_sdxl(
    exported: Callable[[str], ModelFolder], pipelines: Callable[[str], Any], prompt: str
) -> None:
    wanted, _, pooled, _ = pipelines("sdxl").encode_prompt(prompt, do_classifier_free_guidance=False)
    first, second = encoded(exported("sdxl"), prompt)
    assert close(np.concatenate([first["hidden_states"], second["hidden_states"]], -1), wanted)
    assert close(second["text_embeds"], pooled)


@pytest.mark.parametrize("prompt", [PROMPT, NEGATIVE])
@pytest.mark.parametrize("family", ["sd3", MEDIUM])
def test_texts_of_sd3(
    exported: Callable[[str], ModelFolder], pipelines: Callable[[str], Any], family: str, prompt: str
) -> None:
    wanted, _, pooled, _ = pipelines(family).encode_prompt(
        prompt, prompt, prompt, do_classifier_free_guidance=False, max_sequence_length=256
    )
    outputs = encoded(exported(family), prompt)
    clip = np.concatenate([out["hidden_states"] for out in outputs[:2]], -1)
    padded = np.zeros((1, *exported(family).manifest.shapes["text"]), np.float32)
    padded[:, :77, : clip.shape[-1]] = clip
    if family == "sd3":
        padded[:, 77:] = outputs[2]["last_hidden_state"]
    assert close(padded[:, : wanted.shape[1]], wanted)
    assert close(np.concatenate([out["text_embeds"] for out in outputs[:2]], -1), pooled)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("batch", "height", "width"), [(1, 16, 16), (3, 32, 16)])
def test_denoiser(
    exported: Callable[[str], ModelFolder],
    pipelines: Callable[[str], Any],
    family: str,
    batch: int,
    height: int,
    width: int,
) -> None:
    pipeline, model, spec = pipelines(family), exported(family), get_spec(family)
    generator = torch.Generator().manual_seed(batch)
    tokens, channels = model.manifest.shapes["text"]
    latents = torch.randn(batch, spec.latent_channels, height, width, generator=generator)
    timestep = torch.linspace(0.7, 981.3, batch)  # fractions, as flow matching has them
    texts = torch.randn(batch, tokens, channels, generator=generator)
    inputs = {spec.denoiser_inputs[0]: latents, "timestep": timestep, "encoder_hidden_states": texts}
    pooled = torch.randn(batch, *model.manifest.shapes.get("pooled", [1]), generator=generator)
    ids = torch.tensor([[128.0, 96, 0, 8, 1024, 1024]]).repeat(batch, 1)
    more: dict[str, Any] = {}
    if family == "sdxl":
        inputs |= {"text_embeds": pooled, "time_ids": ids}
        more = {"added_cond_kwargs": {"text_embeds": pooled, "time_ids": ids}}
    with torch.no_grad():
        if spec.architecture == "sd3":
            inputs["pooled_projections"] = pooled
            wanted = pipeline.transformer(latents, texts, pooled, timestep, return_dict=False)[0]
        else:
            wanted = pipeline.unet(latents, timestep, texts, return_dict=False, **more)[0]
    got = run(model, "denoiser", **{name: value.numpy() for name, value in inputs.items()})
    assert close(got["out_sample"], wanted)


@pytest.mark.parametrize("family", ["sd21", "sd3"])
def test_autoencoder(
    exported: Callable[[str], ModelFolder], pipelines: Callable[[str], Any], family: str
) -> None:
    vae, model = pipelines(family).vae, exported(family)
    latents = torch.randn(
        1, get_spec(family).latent_channels, 6, 10, generator=torch.Generator().manual_seed(0)
    )
    with torch.no_grad():
        pictures = vae.decode(latents).sample
        back = vae.encode(pictures).latent_dist
    assert close(run(model, "vae_decoder", latents=latents.numpy())["pictures"], pictures)
    out = run(model, "vae_encoder", pictures=pictures.numpy())
    assert close(out["mean"], back.mean)
    assert close(out["std"], back.std)


@pytest.mark.parametrize(
    ("family", "name", "single"),
    [
        ("sdxl", "denoiser", 0.0),
        ("sdxl", "vae_decoder", 1.0),  # its config says that it leaves the range of float16
        pytest.param("sd35-medium", "denoiser", 0.0, marks=pytest.mark.slow),
        ("sd3", "text_encoder_3", 0.19),  # T5's authors keep one matrix of each layer in float32
    ],
)
def test_half_precision(
    checkpoints: Callable[[str], Path], tmp_path: Path, family: str, name: str, single: float
) -> None:
    """Weights are halves but for those that must not be, and the network is within its limit."""
    where = {"family": family, "folder": str(checkpoints(family)), "output": str(tmp_path)}
    how: dict[str, Any] = {
        "names": [name],
        "precision": "fp16",
        "loras": [],
        "allow_pickle": False,
        "skip": [],
    }
    told: list[dict[str, Any]] = []
    for work in (worker.export, worker.verify):
        work(**where, **how, report=lambda **facts: told.append(facts))
    graph = onnx.load(tmp_path / "onnx" / f"{name}.onnx").graph
    sizes = dict.fromkeys((TensorProto.FLOAT, TensorProto.FLOAT16), 0)
    for tensor in graph.initializer:
        if tensor.data_type in sizes:
            sizes[tensor.data_type] += int(np.prod(tensor.dims))
    assert sizes[TensorProto.FLOAT] / sum(sizes.values()) == pytest.approx(single, abs=0.02)
    figure = told[-1]["parity"]
    assert figure < 1e-5 if single == 1 else 1e-5 < figure < 5e-3
