"""The bundled model itself: the same bits on every run, and for any number of lanes."""

from __future__ import annotations

import numpy as np
import pytest

import driffusion_trt as dt
from driffusion_trt.engines.manifest import ModelFolder

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
