"""Image-to-image and inpainting of every family against diffusers' own pipelines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from parity import Both, Made, assert_same, call
from PIL import Image

from driffusion_trt import InputError, ModelError, Pipeline
from driffusion_trt._planner import Planner
from driffusion_trt._source import Source
from driffusion_trt.cli import main
from driffusion_trt.models import get_spec

# diffusers' Euler asks torch for an array in a way that numpy 2 warns of.
pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy:DeprecationWarning",
    "ignore:.*initial images.*:FutureWarning",  # one image for two pictures, which is what is tested
)
SIDE = 128
CLASSES = {
    ("sd21", False): "StableDiffusionImg2ImgPipeline",
    ("sd21", True): "StableDiffusionInpaintPipeline",
    ("sdxl", False): "StableDiffusionXLImg2ImgPipeline",
    ("sdxl", True): "StableDiffusionXLInpaintPipeline",
    ("sd3", False): "StableDiffusion3Img2ImgPipeline",
    ("sd3", True): "StableDiffusion3InpaintPipeline",
}
SCHEDULERS = {
    "ddpm": "DDPMScheduler",
    "ddim": "DDIMScheduler",
    "euler": "EulerDiscreteScheduler",
    "dpmsolver++": "DPMSolverMultistepScheduler",
}


def photo(width: int = SIDE, height: int = SIDE, seed: int = 0) -> Image.Image:
    """Soft patches of colour."""
    small = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def mask(width: int = SIDE, height: int = SIDE) -> Image.Image:
    """White to the right of a slanted edge, with grey along it."""
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    return Image.fromarray(np.clip(128 + 8 * (x - width / 2 + y / 4), 0, 255).astype(np.uint8))


def diffusers_pipe(made: Made, family: str, *, masked: bool) -> Any:
    kind = getattr(diffusers, CLASSES[family, masked])
    pipe = kind.from_pipe(made.theirs, **({"requires_safety_checker": False} if family == "sd21" else {}))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def theirs_made(
    made: Made, family: str, seed: int | list[int], settings: dict[str, Any]
) -> list[Image.Image]:
    masked = "mask_image" in settings
    pipe, settings = diffusers_pipe(made, family, masked=masked), dict(settings)
    if name := settings.pop("scheduler", None):
        pipe.scheduler = getattr(diffusers, SCHEDULERS[name]).from_config(made.theirs.scheduler.config)
    if (family, masked) != ("sd3", True):
        return list(call(pipe, seed, settings))
    # Its last line forgets the autoencoder's shift, which every other pipeline of SD3 adds.
    latents = call(pipe, seed, {**settings, "output_type": "latent"})
    with torch.no_grad():
        decoded = pipe.vae.decode(latents / pipe.vae.config.scaling_factor + pipe.vae.config.shift_factor)
    return list(pipe.image_processor.postprocess(decoded.sample, output_type="pil"))


def check(both: Both, family: str, seed: int | list[int] = 3, **settings: Any) -> None:
    made = both(family)
    settings = {"prompt": "a red fox", "image": photo(), "steps": 6, "guidance_scale": 4.0, **settings}
    got = made.ours(mode="sequential", seed=seed, **settings)
    if got.settings[0]["strength"] < 1:
        assert got.plan.steps < settings["steps"]
    if isinstance(seed, list) and ("mask_image" in settings or family == "sd3"):
        # Here each is as if made alone; diffusers encodes with the first seed for all, or for SD3 fails.
        wanted = [
            one
            for k, prompt in enumerate(settings["prompt"])
            for one in theirs_made(made, family, seed[k], {**settings, "prompt": prompt})
        ]
    else:
        wanted = theirs_made(made, family, seed, settings)
    assert_same(got.images, wanted)


CASES: dict[str, dict[str, Any]] = {
    "plain": {"strength": 0.6},
    "whole": {"strength": 1.0},
    "weak, no guidance": {"strength": 0.34, "guidance_scale": 1.0},
    "default strength": {"steps": 10, "negative_prompt": "a dog"},
    "two pictures": {"strength": 0.5, "num_images": 2},
    "two prompts": {"strength": 0.7, "prompt": ["a red fox", "a dog"]},
    "a seed each": {"strength": 0.7, "prompt": ["a red fox", "a dog"], "seed": [4, 5]},
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("family", ["sd21", "sdxl", "sd3"])
def test_image_to_image_is_that_of_diffusers(both: Both, family: str, case: str) -> None:
    check(both, family, **CASES[case])


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("family", ["sd21", "sdxl", "sd3"])
def test_inpainting_is_that_of_diffusers(both: Both, family: str, case: str) -> None:
    check(both, family, mask_image=mask(), height=SIDE, width=SIDE, **CASES[case])


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("sd21", {"scheduler": "ddpm"}),
        ("sd21", {"scheduler": "ddpm", "strength": 1.0}),
        ("sd21", {"scheduler": "dpmsolver++", "steps": 9}),
        ("sd21", {"scheduler": "euler"}),
        ("sd21", {"eta": 0.7, "num_images": 2}),
        ("sdxl", {"scheduler": "dpmsolver++", "steps": 16, "strength": 0.4}),
        ("sdxl", {"scheduler": "euler", "strength": 1.0}),
    ],
)
def test_other_schedulers(both: Both, family: str, settings: dict[str, Any], masked: bool) -> None:
    more = {"mask_image": mask(), "height": SIDE, "width": SIDE} if masked else {}
    check(both, family, **{"strength": 0.7, **settings, **more})


def test_pictures_are_resized_as_diffusers_does(both: Both) -> None:
    """To the size that is asked for, or down to what the model can have."""
    given: dict[str, Any] = {"strength": 0.7, "image": photo(150, 201)}
    check(both, "sd3", **given, height=96, width=160)
    check(both, "sd3", **given, height=96, width=160, mask_image=mask(77, 300))
    check(both, "sdxl", **given, height=128, width=160, mask_image=mask(77, 300).convert("RGB"))
    check(both, "sdxl", **{**given, "image": photo(130, 195)})  # 128 x 192 for both
    check(both, "sd21", **{**given, "image": photo(130, 195)})
    result = both("sd21").ours("a red fox", image=photo(150, 201), steps=2, mode="sequential")
    assert result.images[0].size == (128, 192) and result.settings[0]["height"] == 192


def test_arrays_and_sequences_are_pictures_too(both: Both) -> None:
    ours = both("sd21").ours
    one, other = photo(), photo(seed=1)
    settings: dict[str, Any] = {"steps": 4, "strength": 0.5, "seed": [1, 2]}
    arrays = np.stack([np.asarray(picture, np.float32) / 255 for picture in (one, other)])
    white = np.asarray(mask(), np.float32) / 255
    wanted = ours(["fox", "dog"], image=[one, other], mask_image=mask(), **settings)
    got = ours(["fox", "dog"], image=arrays, mask_image=white, **settings)
    assert np.array_equal(got.latents, wanted.latents)
    got = ours(["fox", "dog"], image=arrays, mask_image=np.stack([white >= 0.5] * 2), **settings)
    assert np.array_equal(got.latents, wanted.latents)
    alone = ours("dog", image=other, mask_image=mask(), **{**settings, "seed": 2})
    np.testing.assert_allclose(got.latents[1], alone.latents[0], atol=1e-4)
    several = ours(["fox", "dog"], image=[one, other], num_images=2, **{**settings, "seed": [1, 1, 2, 2]})
    assert np.array_equal(several.latents[0], several.latents[1])
    assert np.abs(several.latents[1] - several.latents[2]).max() > 0.1


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("mode", ["aggressive", "conservative", "skip"])
@pytest.mark.parametrize("family", ["sd21", "sdxl", "sd3"])
def test_drafts_work_and_repeat_to_the_bit(both: Both, family: str, mode: str, masked: bool) -> None:
    ours = both(family).ours
    settings: dict[str, Any] = {"image": photo(), "steps": 12, "strength": 0.7, "seed": 5}
    if masked:
        settings["mask_image"] = mask()
    made = ours("a red fox", mode=mode, lanes=2, **settings)
    again = ours("a red fox", mode=mode, lanes=2, **settings)
    assert np.array_equal(made.latents, again.latents)
    assert made.plan.sequential_calls < made.plan.steps < 12
    exact = ours("a red fox", mode="sequential", **settings)
    off = np.linalg.norm(made.latents - exact.latents) / np.linalg.norm(exact.latents)
    assert 0 < off < 0.3
    if masked:
        kept = np.broadcast_to(np.asarray(mask())[::8, ::8] < 128, made.latents.shape)
        assert np.array_equal(made.latents[kept], exact.latents[kept])


def test_a_picture_can_be_made_again_from_its_settings(both: Both) -> None:
    ours = both("sdxl").ours
    settings: Any = {"steps": 10, "strength": 0.45, "mode": "aggressive", "lanes": 2, "seed": 7}
    made = ours("a red fox", image=photo(), mask_image=mask(), **settings)
    (facts,) = made.settings
    assert (facts["steps"], facts["strength"], made.plan.steps) == (10, 0.45, 4)
    assert (
        len(facts["image_hash"]) == len(facts["mask_hash"]) == 10
        and facts["image_hash"] != facts["mask_hash"]
    )
    again = ours(**made.call(), image=photo(), mask_image=mask())
    assert np.array_equal(made.latents, again.latents) and again.settings == made.settings
    other = ours(**made.call(), image=photo(seed=1), mask_image=mask())
    assert other.settings[0]["image_hash"] != facts["image_hash"]


def test_large_pictures_are_encoded_and_decoded_in_tiles(both: Both) -> None:
    ours = both("sd3").ours
    settings: dict[str, Any] = {"image": photo(192, 160), "steps": 4, "mode": "sequential", "strength": 0.5}
    whole = ours("a red fox", **settings)
    tiled = ours("a red fox", vae_tiling=64, **settings)
    off = np.linalg.norm(tiled.latents - whole.latents) / np.linalg.norm(whole.latents)
    assert 0 < off < 0.5
    assert tiled.settings[0]["vae_tiling"] == 64 and "vae_tiling" not in whole.settings[0]


ARRAY = np.zeros((SIDE, SIDE, 3), np.float32)
WRONG: list[tuple[dict[str, Any], str]] = [
    ({"strength": 0}, "strength must be a number above 0, and at most 1, not 0"),
    ({"strength": 1.5}, "strength must be a number above 0, and at most 1, not 1.5"),
    ({"strength": "much"}, "strength must be a number above 0"),
    ({"strength": True}, "strength must be a number above 0"),
    ({"strength": True, "mask_image": mask()}, "strength must be a number above 0"),
    ({"strength": np.ones(2), "mask_image": mask()}, "strength must be a number above 0"),
    ({"strength": float("nan")}, "strength must be a number above 0"),
    ({"strength": 0.2, "steps": 4}, "strength=0.2 of 4 steps leaves none to run; take more of either"),
    ({"image": None, "strength": 0.5}, "strength was given without a picture to start from"),
    ({"image": None, "mask_image": mask()}, "mask_image was given without a picture to start from"),
    ({"image": "fox.png"}, "image must be a PIL image, a sequence of them, or an array .* a str was given"),
    ({"image": []}, "image must be a PIL image.* a list was given"),
    ({"image": ARRAY[..., :2]}, r"image must be .* float32 of shape \(128, 128, 2\) was given"),
    ({"image": ARRAY.astype(np.uint8)}, "image must be .* uint8 of shape"),
    ({"image": ARRAY[:0]}, r"image must be .* float32 of shape \(0, 128, 3\) was given"),
    ({"image": ARRAY - 1}, "image must be .* its numbers lie outside of 0 to 1"),
    ({"image": ARRAY + np.nan}, "image must be .* its numbers lie outside of 0 to 1"),
    ({"image": ARRAY, "height": 64}, "image is an array of 128 x 128 pixels, and the picture has 64 x 128"),
    ({"image": ARRAY[:100]}, "image is an array of 100 x 128 pixels, and the picture has 64 x 128"),
    ({"mask_image": ARRAY[None]}, r"mask_image must be .* float32 of shape \(1, 128, 128, 3\) was given"),
    ({"mask_image": ARRAY[:64, :, 0]}, "mask_image is an array of 64 x 128 pixels"),
    ({"image": [photo()] * 3, "prompt": ["a", "b"]}, "3 of image were given for 2 prompts"),
    ({"mask_image": [mask()] * 2}, "2 of mask_image were given for 1 prompts"),
    ({"height": 100}, "height 100 does not suit sd21: it must be a multiple of 64"),
]


@pytest.mark.parametrize(("wrong", "message"), WRONG)
def test_wrong_starts_are_refused_before_any_work(
    both: Both, monkeypatch: pytest.MonkeyPatch, wrong: dict[str, Any], message: str
) -> None:
    ours = both("sd21").ours
    monkeypatch.setattr(ours._lanes, "job", lambda *_: pytest.fail("the lanes were asked"))
    monkeypatch.setattr(ours._stages._autoencoder, "encode", lambda *_: pytest.fail("the encoder was asked"))
    with pytest.raises(InputError, match=message):
        ours(**{"prompt": "a red fox", "image": photo(), "steps": 6, **wrong})


def test_a_model_without_encoder_is_refused_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    with Pipeline.load("demo", devices=1) as demo:
        monkeypatch.setattr(demo._lanes, "job", lambda *_: pytest.fail("the lanes were asked"))
        with pytest.raises(ModelError, match="no encoder for pictures"):
            demo("a red circle", image=photo(64, 64))


def test_the_command_starts_from_files(
    both: Both, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ours = both("sdxl").ours
    model = ["--model", str(ours.folder.path), "--mode", "window", "--lanes", "2", "--devices", "2"]
    image, white, out, again = (str(tmp_path / f"{name}.png") for name in ("image", "white", "out", "again"))
    turned = photo(96, 160).transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6  # it is to be shown turned by 90 degrees clockwise
    turned.save(image, exif=exif)
    mask(96, 160).save(white)
    start = ["--image", image, "--mask", white]

    assert (
        main(["run", "a fox", *start, "--strength", "0.5", "--steps", "8", "-o", out, "--json", *model]) == 0
    )
    (facts,) = json.loads(capsys.readouterr().out)["pictures"]
    settings: Any = {"mode": "window", "strength": 0.5, "steps": 8, "lanes": 2}
    wanted = ours("a fox", image=photo(96, 160), mask_image=mask(96, 160), **settings)
    assert facts["settings"] == wanted.settings[0]
    with Image.open(out) as made:
        assert made.size == (96, 160) and np.array_equal(np.asarray(made), np.asarray(wanted.images[0]))

    assert main(["run", "--from-picture", out, "--image", image, *model]) == 2
    assert "made from another picture, which it does not hold; give --mask" in capsys.readouterr().err
    assert main(["run", "--from-picture", out, *start, "-o", again, *model]) == 0
    assert "may differ" not in capsys.readouterr().err
    assert Path(again).read_bytes() == Path(out).read_bytes()
    photo(96, 160, seed=1).save(image)
    assert main(["run", "--from-picture", out, *start, "-o", again, *model]) == 0
    assert f"with image hash '{wanted.settings[0]['image_hash']}'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--image", "{missing}"], "missing.png cannot be read as a picture"),
        (["--image", "{text}"], "text.png cannot be read as a picture"),
        (["--mask", "{image}"], "mask_image was given without a picture to start from"),
        (["--strength", "0.5"], "strength was given without a picture to start from"),
        (
            ["--image", "{image}", "--strength", "2"],
            "a number above 0, and at most 1, not 2.0",
        ),
        (["--image", "{image}", "--strength", "x"], "'x' is not a number"),
    ],
)
def test_the_command_refuses_wrong_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    photo(64, 64).save(tmp_path / "image.png")
    (tmp_path / "text.png").write_text("no picture")
    files = {name: str(tmp_path / f"{name}.png") for name in ("image", "text", "missing")}
    try:
        code = main(["run", "a red circle", *(word.format(**files) for word in words)])
    except SystemExit as stopped:
        code = int(stopped.code or 0)
    assert code == 2 and message in capsys.readouterr().err


@pytest.mark.parametrize("family", ["sd21", "sdxl", "sd3"])
def test_as_many_steps_are_run_as_in_diffusers(both: Both, family: str) -> None:
    """Also where steps times strength is a whole number but for rounding."""
    made = both(family)
    planner = Planner(made.ours.folder)
    pipe = diffusers_pipe(made, family, masked=False)
    for steps in (1, 7, 10, 28, 50):
        pipe.scheduler.set_timesteps(steps)
        for strength in (0.01, 0.1, 0.29, 0.3, 0.57, 0.6, 0.7, 0.9999, 1.0):
            wanted = pipe.get_timesteps(steps, strength, "cpu")[0].numpy()
            if not len(wanted):
                with pytest.raises(InputError, match="leaves none to run"):
                    planner.schedule(steps=steps, strength=strength)
                continue
            np.testing.assert_allclose(planner.schedule(steps=steps, strength=strength).timesteps, wanted)


@pytest.mark.parametrize("size", [(128, 128), (96, 160), (256, 64)])
def test_pixels_are_those_of_diffusers(size: tuple[int, int]) -> None:
    from diffusers.image_processor import VaeImageProcessor

    rng = np.random.default_rng(2)
    busy = Image.fromarray(rng.integers(0, 256, (128, 128, 3), np.uint8))
    settings = {"image": busy, "mask_image": busy, "strength": 0.5, "steps": 4}
    got = Source.check(get_spec("sdxl"), settings, 1, 1, size)
    assert got is not None and got.repaint is not None
    pixels = VaeImageProcessor().preprocess(busy, *size)
    np.testing.assert_allclose(got.pictures, pixels.numpy(), atol=1e-6)
    masks = VaeImageProcessor(do_normalize=False, do_binarize=True, do_convert_grayscale=True)
    small = torch.nn.functional.interpolate(masks.preprocess(busy, *size), size=(size[0] // 8, size[1] // 8))
    assert np.array_equal(got.repaint, small.numpy() == 1)
