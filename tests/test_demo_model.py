"""The bundled models themselves: the same bits on every run, for any lanes, and diffusers' pictures."""

from __future__ import annotations

from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

import driffusion_trt as dt
from driffusion_trt.engines.manifest import BUNDLED, ModelFolder
from driffusion_trt.engines.onnx_session import OnnxSession
from driffusion_trt.evaluation import heldout

PROMPT = "a red fox left of a blue star on a yellow background"
TEXT = {
    "demo": {"text_encoder"},
    "demo-xl": {"text_encoder", "text_encoder_2", "vae_encoder"},
    "demo-sd3": {"text_encoder", "text_encoder_2", "vae_encoder"},
}

models = pytest.mark.parametrize("model", BUNDLED)


@models
def test_it_is_what_its_manifest_says_and_small(model: str) -> None:
    folder = ModelFolder.open(model, verify=True)
    assert folder.manifest.family == model
    assert sum(entry.size_bytes for entry in folder.manifest.files.values()) < 20e6  # 60 MB in all
    assert max(folder.manifest.parity.values()) < 1e-5
    assert set(folder.networks) == {"denoiser", "vae_decoder"} | TEXT[model]


@models
@pytest.mark.parametrize("mode", ["sequential", "aggressive", "conservative", "skip"])
def test_a_picture_repeats_to_the_bit(model: str, mode: str) -> None:
    runs = []
    for devices in (2, 1):
        with dt.Pipeline.load(model, devices=devices) as pipe:
            runs += [pipe(PROMPT, steps=12, mode=mode, lanes=3, seed=7) for _ in range(2)]
    for run in runs[1:]:
        assert np.array_equal(run.latents, runs[0].latents)
        assert run.images[0].tobytes() == runs[0].images[0].tobytes()


@models
def test_sequential_does_not_depend_on_lanes_or_devices(model: str) -> None:
    latents = []
    for devices, lanes in ((1, 1), (2, 2), (3, 8)):
        with dt.Pipeline.load(model, devices=devices) as pipe:
            latents.append(pipe(PROMPT, steps=12, mode="sequential", lanes=lanes, seed=7).latents)
    assert all(np.array_equal(one, latents[0]) for one in latents)


@models
def test_it_draws_what_is_asked(model: str) -> None:
    """Held-out prompts as they come, in half of the model's steps."""
    asked = [heldout.prompt(k) for k in range(16)]
    with dt.Pipeline.load(model, devices=2) as pipe:
        steps = pipe.spec.steps // 2
        images = pipe([words for words, _ in asked], seed=range(16), steps=steps, mode="aggressive").images
    read, _ = heldout.Checker()(np.stack([np.asarray(image) for image in images]))
    assert heldout.right(read, np.array([wanted for _, wanted in asked])).all(1).mean() >= 0.8


def scheduler_of(model: ModelFolder, steps: int) -> Any:
    """diffusers' own, ready to step."""
    kinds: dict[str, Any] = {
        "sd21": diffusers.DDIMScheduler,
        "sdxl": diffusers.EulerDiscreteScheduler,
        "sd3": diffusers.FlowMatchEulerDiscreteScheduler,
    }
    scheduler = kinds[model.spec.architecture].from_config(model.scheduler_config())
    scheduler.set_timesteps(steps)
    return scheduler


def told(model: ModelFolder, prompts: list[str]) -> dict[str, np.ndarray]:
    """What diffusers' pipelines tell the denoiser; an empty prompt of SDXL is zeros."""
    hidden, pooled = [], []
    for row in model.spec.text_encoders:
        with OnnxSession(model.network(row.name)) as text:
            tokenizer = Tokenizer.from_file(str(model.tokenizer(row.name)))
            given = {"input_ids": np.array([tokenizer.encode(prompt).ids for prompt in prompts], np.int64)}
            if "clip_skip" in text.inputs:
                given["clip_skip"] = np.zeros(1, np.int64)
            out = list(text.run(given).values())
        hidden.append(out[0])
        pooled += out[1:]
    found = {"encoder_hidden_states": np.concatenate(hidden, -1)}
    match model.spec.architecture:
        case "sdxl":
            found["text_embeds"] = np.concatenate(pooled, -1)
            for name, value in found.items():
                found[name] = value * np.array([prompt != "" for prompt in prompts]).reshape(
                    -1, *[1] * (value.ndim - 1)
                )
            found["time_ids"] = np.array([[64, 64, 0, 0, 64, 64]] * len(prompts), np.float32)
        case "sd3":
            found["pooled_projections"] = np.concatenate(pooled, -1)
    return {name: value.astype(np.float32) for name, value in found.items()}


@models
# diffusers' Euler makes an array of a tensor in a way that NumPy 2 warns of
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_it_is_the_picture_of_diffusers(model: str) -> None:
    """diffusers' scheduler and torch's noise over the same networks, from the same seed."""
    folder = ModelFolder.open(model)
    scheduler = scheduler_of(folder, 12)
    latents, time = folder.spec.denoiser_inputs[:2]
    given = told(folder, ["", PROMPT])
    with (
        OnnxSession(folder.network("denoiser")) as denoiser,
        OnnxSession(folder.network("vae_decoder")) as decoder,
    ):
        x = torch.randn((1, *folder.latent_shape), generator=torch.Generator().manual_seed(7))
        x = x * getattr(scheduler, "init_noise_sigma", 1.0)
        for t in scheduler.timesteps:
            scaled = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
            inputs = {latents: np.concatenate([scaled.numpy()] * 2), time: np.full(2, float(t), np.float32)}
            without, with_prompt = denoiser.run(inputs | given)["out_sample"]
            guided = without + 3.0 * (with_prompt - without)
            x = scheduler.step(torch.from_numpy(guided[None]), t, x).prev_sample
        (decoded,) = decoder.run({"latents": x.numpy()}).values()
    with dt.Pipeline.load(model, devices=2) as pipe:
        made = pipe(PROMPT, steps=12, guidance_scale=3.0, mode="sequential", seed=7)
    assert np.linalg.norm(made.latents - x.numpy()) < 1e-4 * np.linalg.norm(x.numpy())
    wanted = np.rint((decoded[0].clip(-1, 1) + 1) * 127.5).transpose(1, 2, 0)
    assert np.abs(np.asarray(made.images[0], np.float64) - wanted).max() <= 1
