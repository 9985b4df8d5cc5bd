"""The bundled model itself: the same bits on every run, for any lanes, and diffusers' picture."""

from __future__ import annotations

import numpy as np
import pytest
from tokenizers import Tokenizer

import driffusion_trt as dt
from driffusion_trt.engines.manifest import ModelFolder
from driffusion_trt.engines.onnx_session import OnnxSession

PROMPT = "a red fox left of a blue star on a yellow background"


def test_it_is_what_its_manifest_says_and_small() -> None:
    folder = ModelFolder.open("demo", verify=True)
    assert sum(entry.size_bytes for entry in folder.manifest.files.values()) < 20e6
    assert max(folder.manifest.parity.values()) < 1e-5
    assert set(folder.networks) == {"denoiser", "text_encoder", "vae_decoder"}


@pytest.mark.parametrize("mode", ["sequential", "aggressive", "conservative", "skip"])
def test_a_picture_repeats_to_the_bit(mode: str) -> None:
    runs = []
    for devices in (2, 1):
        with dt.Pipeline.load("demo", devices=devices) as pipe:
            runs += [pipe(PROMPT, steps=12, mode=mode, lanes=3, seed=7) for _ in range(2)]
    for run in runs[1:]:
        assert np.array_equal(run.latents, runs[0].latents)
        assert run.images[0].tobytes() == runs[0].images[0].tobytes()


def test_sequential_does_not_depend_on_lanes_or_devices() -> None:
    latents = []
    for devices, lanes in ((1, 1), (2, 2), (3, 8)):
        with dt.Pipeline.load("demo", devices=devices) as pipe:
            latents.append(pipe(PROMPT, steps=12, mode="sequential", lanes=lanes, seed=7).latents)
    assert all(np.array_equal(one, latents[0]) for one in latents)


def test_it_is_the_picture_of_diffusers() -> None:
    """diffusers' scheduler and torch's noise over the same networks, from the same seed."""
    import diffusers
    import torch

    model = ModelFolder.open("demo")
    scheduler = diffusers.DDIMScheduler.from_config(model.scheduler_config())
    scheduler.set_timesteps(12)
    with (
        OnnxSession(model.network("text_encoder")) as text,
        OnnxSession(model.network("denoiser")) as denoiser,
        OnnxSession(model.network("vae_decoder")) as decoder,
    ):
        tokenizer = Tokenizer.from_file(str(model.tokenizer()))
        ids = np.array([tokenizer.encode(prompt).ids for prompt in ("", PROMPT)], np.int64)
        told = text.run({"input_ids": ids})["last_hidden_state"]
        x = torch.randn((1, *model.latent_shape), generator=torch.Generator().manual_seed(7))
        for t in scheduler.timesteps:
            inputs = {
                "sample": np.concatenate([x.numpy()] * 2),
                "timestep": np.full(2, float(t), np.float32),
                "encoder_hidden_states": told,
            }
            without, given = denoiser.run(inputs)["out_sample"]
            guided = without + 3.0 * (given - without)
            x = scheduler.step(torch.from_numpy(guided[None]), t, x).prev_sample
        (decoded,) = decoder.run({"latents": x.numpy()}).values()
    with dt.Pipeline.load("demo", devices=2) as pipe:
        made = pipe(PROMPT, steps=12, guidance_scale=3.0, mode="sequential", seed=7)
    assert np.linalg.norm(made.latents - x.numpy()) < 1e-4 * np.linalg.norm(x.numpy())
    wanted = np.rint((decoded[0].clip(-1, 1) + 1) * 127.5).transpose(1, 2, 0)
    assert np.abs(np.asarray(made.images[0], np.float64) - wanted).max() <= 1
