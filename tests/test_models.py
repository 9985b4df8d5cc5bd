"""The table of models: facts that the formats of checkpoints depend on, and look-ups."""

from __future__ import annotations

import pytest

from driffusion_trt import InputError
from driffusion_trt.models import MODELS, get_spec


def test_families() -> None:
    demos = {"demo", "demo-xl", "demo-sd3"}
    assert set(MODELS) == {"sd21", "sd21-base", "sdxl", "sd3", "sd35-medium", "sd35-large", *demos}
    assert all(get_spec(name).family == name for name in MODELS)


@pytest.mark.parametrize(
    ("name", "latents"),
    [
        ("sd21", (4, 96, 96)),
        ("sd21-base", (4, 64, 64)),
        ("sdxl", (4, 128, 128)),
        ("sd3", (16, 128, 128)),
        ("demo", (4, 16, 16)),
        ("demo-xl", (4, 16, 16)),
        ("demo-sd3", (4, 16, 16)),
    ],
)
def test_latent_shape(name: str, latents: tuple[int, int, int]) -> None:
    spec = get_spec(name)
    assert spec.latent_shape == latents
    assert spec.latent_size(spec.height, spec.width) == latents[1:]


@pytest.mark.parametrize("name", sorted(MODELS))
def test_inputs_follow_the_architecture(name: str) -> None:
    spec = get_spec(name)
    extra = {"sd21": set(), "sdxl": {"text_embeds", "time_ids"}, "sd3": {"pooled_projections"}}
    latents = "hidden_states" if spec.architecture == "sd3" else "sample"
    assert spec.denoiser_inputs[:3] == (latents, "timestep", "encoder_hidden_states")
    assert set(spec.denoiser_inputs[3:]) == extra[spec.architecture]


def test_the_demo_is_as_trained() -> None:
    demo = get_spec("demo")
    assert (demo.steps, demo.guidance_scale, demo.text_encoders[0].length) == (50, 3.0, 16)


@pytest.mark.parametrize(("side", "nearest"), [(500, 512), (63, 64), (0, 64), (-8, 64)])
def test_sizes_that_cannot_work_name_the_nearest(side: int, nearest: int) -> None:
    with pytest.raises(
        InputError, match=rf"width {side} .* multiple of 64 pixels; the nearest is {nearest}$"
    ):
        get_spec("sd21-base").latent_size(512, side)


def test_an_unknown_family_has_a_suggestion() -> None:
    with pytest.raises(InputError, match="unknown model family 'sdlx'; did you mean 'sdxl'"):
        get_spec("sdlx")
