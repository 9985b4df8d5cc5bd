"""Small pictures of latents."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest

from driffusion_trt import InputError, Pipeline
from driffusion_trt.models import MODELS
from driffusion_trt.previews import preview


@pytest.mark.parametrize("family", MODELS)
def test_every_family_has_a_map_of_its_channels(family: str) -> None:
    spec = MODELS[family]
    latents = np.random.default_rng(0).normal(size=(2, spec.latent_channels, 6, 10)).astype(np.float32)
    first, second = preview(spec, latents)
    assert first.size == (10, 6) and first.mode == "RGB"
    assert np.asarray(first).std() > 10 and first.tobytes() != second.tobytes()
    with pytest.raises(InputError, match=f"are none of {family}; expected"):
        preview(spec, latents[:, 1:])


@pytest.mark.parametrize(
    ("latents", "kind"),
    [
        ([[1.0]], "list"),
        (None, "NoneType"),
        (np.zeros((1, 4, 2, 2), np.int64), "int64"),
        (np.array("x"), "<U1"),
    ],
)
def test_latents_of_another_kind_are_refused(latents: Any, kind: str) -> None:
    with pytest.raises(InputError, match=f"latents must be an array of floats.* not {kind}"):
        preview(MODELS["sdxl"], latents)


def test_a_map_is_linear_and_numbers_that_are_none_are_no_error() -> None:
    spec = MODELS["sdxl"]
    latents = np.zeros((1, 4, 1, 2), np.float32)
    latents[0, 0, 0, 1] = 1.0
    rows = np.asarray(preview(spec, latents)[0], np.int64)[0]
    assert rows[0].tolist() == [141, 125, 127]  # its constants, 0.1084 and so on, in 8 bits
    assert (rows[1] - rows[0]).tolist() == [47, 54, 56]
    latents[:] = np.nan
    assert preview(spec, latents)


def test_the_preview_of_the_demo_looks_like_its_picture() -> None:
    with warnings.catch_warnings(), Pipeline.load("demo", devices=2) as pipe:
        warnings.simplefilter("ignore")
        made = pipe("a red circle above a blue square", steps=10, seed=100)
        (small,) = pipe.preview(made.latents)
    wanted = np.asarray(made.images[0].resize(small.size, 4), np.float64)
    assert np.corrcoef(np.asarray(small, np.float64).ravel(), wanted.ravel())[0, 1] > 0.95
