"""Profiles: sizes checked against the model, shapes of every input from them."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from driffusion_trt import InputError
from driffusion_trt.engines.profiles import Profile, Range, fill_shapes, parse_shapes
from driffusion_trt.models import MODELS, get_spec

SD21, SDXL, SD3 = get_spec("sd21"), get_spec("sdxl"), get_spec("sd3")


def test_one_size_and_room_for_guidance_is_the_default() -> None:
    profile = Profile.pictures(SD21)
    assert profile == Profile(Range(1, 2, 2), Range(96, 96, 96), Range(96, 96, 96))


def test_height_width_and_batch_size() -> None:
    profile = Profile.pictures(SDXL, height=768, width=1280, batch_size=3)
    assert profile == Profile(Range(1, 6, 6), Range(96, 96, 96), Range(160, 160, 160))
    assert Profile.pictures(SDXL, batch_size=3, static_batch=True).batch == Range(6, 6, 6)


@given(
    family=st.sampled_from(sorted(MODELS)),
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    batch=st.integers(1, 8),
)
def test_dynamic_profiles_stay_on_the_models_grid_and_hold_the_best_size(
    family: str, height: int, width: int, batch: int
) -> None:
    spec = get_spec(family)
    step = spec.latent_multiple * spec.downscale
    profile = Profile.pictures(spec, height=height * step, width=width * step, batch_size=batch, dynamic=True)
    for side, size in (("height", height), ("width", width)):
        allowed = getattr(profile, side)
        assert allowed.opt == size * spec.latent_multiple
        assert all(v % spec.latent_multiple == 0 for v in (allowed.min, allowed.max))
        assert allowed.min <= max(spec.latent_multiple, allowed.opt // 2)
        assert allowed.max <= 1.5 * allowed.opt
    profile.check(2 * batch, profile.height.opt, profile.width.opt)
    profile.check(1, profile.height.min, profile.width.max)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"height": 700}, "height 700 does not suit sd21.*nearest is 704"),
        ({"width": 0}, "width 0 does not suit sd21"),
        ({"batch_size": 0}, "batch size must be at least 1, not 0"),
    ],
)
def test_sizes_that_the_model_cannot_have(settings: dict[str, int], words: str) -> None:
    with pytest.raises(InputError, match=words):
        Profile.pictures(SD21, **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("sizes", [(0, 1, 1), (2, 1, 3), (1, 4, 3), (-1, -1, -1)])
def test_min_opt_max_must_be_in_order(sizes: tuple[int, int, int]) -> None:
    with pytest.raises(InputError, match=re.escape(", ".join(map(str, sizes)))):
        Range(*sizes)


@pytest.mark.parametrize(
    "text",
    [
        "sample:2x4x96x96 timestep:2",
        "sample:[2,4,96,96] timestep:[2]",
        "sample:[2, 4, 96, 96], timestep:[2]",
        "sample:2x4x96x96,timestep:2",
    ],
)
def test_shapes_in_the_forms_of_other_tools(text: str) -> None:
    assert parse_shapes(text) == {"sample": (2, 4, 96, 96), "timestep": (2,)}


@pytest.mark.parametrize("text", ["", "2x4x96x96", "sample", "sample:axb", "sample:2x4 and more"])
def test_what_is_no_list_of_shapes(text: str) -> None:
    with pytest.raises(InputError, match="is not a list of shapes; write name:2x4x96x96"):
        parse_shapes(text)


def of_shapes(least: str, best: str, greatest: str) -> Profile:
    return Profile.of_shapes(SD21, *(parse_shapes(text) for text in (least, best, greatest)))


def test_a_profile_from_shapes() -> None:
    profile = of_shapes("sample:1x4x64x64", "sample:2x4x96x96 timestep:2", "sample:[8,4,128,160]")
    assert profile == Profile(Range(1, 2, 8), Range(64, 96, 128), Range(64, 96, 160))


@pytest.mark.parametrize(
    ("greatest", "words"),
    [
        ("timestep:2", "--max-shapes must give 'sample', such as sample:2x4x96x96"),
        ("smaple:2x4x96x96", "'smaple'.*no input of the denoiser; did you mean 'sample'"),
        ("sample:2x4x96", "shape 2x4x96; latents of sd21 are batch x 4"),
        ("sample:2x3x96x96", "shape 2x3x96x96; latents of sd21 are batch x 4"),
        ("sample:2x4x90x96", "height of 'sample'.* 96, 96, 90"),
        ("sample:2x4x100x96", "latent height of 100 does not suit sd21.*multiple of 8"),
        ("sample:2x4x96x96 timestep:3", "'timestep' a batch of 3, and 'sample' one of 2"),
    ],
)
def test_shapes_that_contradict_the_model_or_each_other(greatest: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        of_shapes("sample:1x4x96x96", "sample:2x4x96x96", greatest)


def test_a_batch_without_room_for_guidance_is_refused() -> None:
    shape = "sample:1x4x96x96"
    with pytest.raises(InputError, match=r"greatest batch is 1.*guidance"):
        of_shapes(shape, shape, shape)


def test_every_network_gets_its_own_sides() -> None:
    profile = Profile.pictures(SD3, height=1024, width=512, batch_size=2)
    assert profile.sides("text_encoder_2", SD3) == {"batch": Range(1, 4, 4)}
    denoiser = profile.sides("denoiser", SD3)
    assert denoiser["height"] == Range(128, 128, 128) and denoiser["width"] == Range(64, 64, 64)
    assert denoiser["sequence"] == Range(77, 333, 333)
    decoder = profile.sides("vae_decoder", SD3)
    assert decoder["batch"] == Range(1, 1, 2) and decoder["picture_width"] == Range(512, 512, 512)


def test_inputs_are_filled_by_the_names_of_their_sides() -> None:
    sides = Profile.pictures(SDXL, batch_size=2, dynamic=True).sides("denoiser", SDXL)
    inputs = {"sample": ["batch", 4, "height", "width"], "timestep": ["batch"], "time_ids": ["batch", 6]}
    assert fill_shapes(inputs, sides) == {
        "sample": ((1, 4, 64, 64), (4, 4, 128, 128), (4, 4, 192, 192)),
        "timestep": ((1,), (4,), (4,)),
        "time_ids": ((1, 6), (4, 6), (4, 6)),
    }


@pytest.mark.parametrize("side", [None, "frames"])
def test_a_side_without_a_size_is_refused(side: str | None) -> None:
    with pytest.raises(InputError, match=f"side 1 of the input 'x' varies and is called {side!r}"):
        fill_shapes({"x": ["batch", side]}, {"batch": Range(1, 1, 1)})


@pytest.mark.parametrize("asked", [(4, 96, 96), (2, 104, 96), (2, 96, 88)])
def test_sizes_outside_of_the_profile_are_told_with_what_to_build(asked: tuple[int, int, int]) -> None:
    profile = Profile.pictures(SD21)
    profile.check(2, 96, 96)
    with pytest.raises(InputError, match=r"the plan was built for.*driffusion-trt build"):
        profile.check(*asked)


def test_json_and_back() -> None:
    profile = Profile.pictures(SD21, dynamic=True, batch_size=2)
    assert profile.to_json() == {"batch": [1, 4, 4], "height": [48, 96, 144], "width": [48, 96, 144]}
    assert Profile.from_json(profile.to_json()) == profile
