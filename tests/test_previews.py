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


def test_a_map_is_linear() -> None:
    latents = np.zeros((1, 4, 1, 2), np.float32)
    latents[0, 0, 0, 1] = 1.0
    rows = np.asarray(preview(MODELS["demo"], latents)[0], np.int64)[0]
    assert rows[0].tolist() == [163, 123, 103]  # its constants, 0.2762 and so on, in 8 bits
    assert (rows[1] - rows[0]).tolist() == [74, 6, -15]


@pytest.mark.parametrize("family", MODELS)
@pytest.mark.parametrize("value", [np.nan, np.inf, 0.0])
def test_numbers_that_are_none_are_no_error(family: str, value: float) -> None:
    spec = MODELS[family]
    assert preview(spec, np.full((1, spec.latent_channels, 4, 4), value, np.float32))


@pytest.mark.parametrize("family", ["sd21", "sdxl", "sd3"])
def test_other_models_show_in_grey_what_varies_most(family: str) -> None:
    """Their colours are not known here. What is drawn in the latents is seen, whatever channels it is in."""
    spec, draw = MODELS[family], np.random.default_rng(0)
    drawn = np.zeros((12, 16))
    drawn[3:9, 4:10] = 1.0
    latents = 0.1 * draw.normal(size=(1, spec.latent_channels, 12, 16))
    latents += draw.normal(size=spec.latent_channels)[:, None, None] * drawn + 3.0
    (found,) = preview(spec, latents.astype(np.float32))
    pixels = np.asarray(found, np.float64)
    assert (pixels == pixels[..., :1]).all()
    assert abs(np.corrcoef(pixels[..., 0].ravel(), drawn.ravel())[0, 1]) > 0.95
    (again,) = preview(spec, (1.5 * latents - 1.0).astype(np.float32))
    assert np.abs(np.asarray(again, np.int64) - np.asarray(found, np.int64)).max() <= 1, "and whatever scale"


def test_the_preview_of_the_demo_looks_like_its_picture() -> None:
    with warnings.catch_warnings(), Pipeline.load("demo", devices=2) as pipe:
        warnings.simplefilter("ignore")
        made = pipe("a red circle above a blue square", steps=10, seed=100)
        (small,) = pipe.preview(made.latents)
    wanted = np.asarray(made.images[0].resize(small.size, 4), np.float64)
    assert np.corrcoef(np.asarray(small, np.float64).ravel(), wanted.ravel())[0, 1] > 0.95
