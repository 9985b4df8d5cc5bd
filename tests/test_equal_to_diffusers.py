"""Pictures of every family against diffusers' own pipelines, from the same reduced checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import reduced
from PIL import Image

from driffusion_trt import Pipeline
from driffusion_trt.cli import main

# diffusers' Euler asks torch for an array in a way that numpy 2 warns of.
pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"
)
STEPS = 4
Made = tuple[Pipeline, Any]


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Made]]:
    """A family's pipeline here, and diffusers'."""
    from diffusers import DiffusionPipeline

    made: dict[str, Made] = {}

    def make(family: str) -> Made:
        if family not in made:
            root = tmp_path_factory.mktemp(family)
            checkpoint, folder = root / "checkpoint", root / "model"
            reduced.save_checkpoint(family, checkpoint)
            words = ["--model", family, "--checkpoint", str(checkpoint), "--output", str(folder)]
            assert main(["build", *words, "--target", "cpu", "--precision", "fp32"]) == 0
            theirs = DiffusionPipeline.from_pretrained(checkpoint, local_files_only=True)
            theirs.set_progress_bar_config(disable=True)
            made[family] = Pipeline.load(folder, devices=2), theirs
        return made[family]

    yield make
    for ours, _ in made.values():
        ours.close()


def diffusers_pictures(pipe: Any, seed: int | list[int], settings: dict[str, Any]) -> list[Image.Image]:
    import torch

    generator: Any = (
        torch.Generator().manual_seed(seed)
        if isinstance(seed, int)
        else [torch.Generator().manual_seed(one) for one in seed]
    )
    names = {"steps": "num_inference_steps", "num_images": "num_images_per_prompt"}
    given = {names.get(name, name): value for name, value in settings.items()}
    images: list[Image.Image] = pipe(generator=generator, **given).images
    return images


def check(both: Callable[[str], Made], family: str, seed: int | list[int] = 3, **settings: Any) -> None:
    ours, theirs = both(family)
    settings = {"steps": STEPS, "guidance_scale": 4.0, **settings}
    wanted = diffusers_pictures(theirs, seed, settings)
    got = ours(mode="sequential", seed=seed, **settings).images
    assert len(got) == len(wanted)
    for one, other in zip(got, wanted, strict=True):
        assert one.size == other.size
        difference = np.abs(np.asarray(one, np.int16) - np.asarray(other, np.int16))
        assert difference.mean() <= 1 and difference.max() <= 4
        assert np.asarray(one).std() > 1, "a picture of one colour would show nothing"


CASES: dict[str, dict[str, Any]] = {
    "plain": {"prompt": "a red fox"},
    "no guidance": {"prompt": "a red fox", "guidance_scale": 1.0},
    "negative": {"prompt": "a red fox", "negative_prompt": "a dog"},
    "empty negative": {"prompt": "a red fox", "negative_prompt": ""},
    "two prompts": {"prompt": ["a red fox", "a dog"], "negative_prompt": ["x", "y"]},
    "two pictures": {"prompt": "a red fox", "num_images": 2},
    "a seed each": {"prompt": ["a red fox", "a dog"], "seed": [4, 5]},
    "wide": {"prompt": "a red fox", "height": 128, "width": 192},
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("family", ["sd21", "sdxl", "sd3"])
def test_pictures_are_those_of_diffusers(both: Callable[[str], Made], family: str, case: str) -> None:
    check(both, family, **CASES[case])


@pytest.mark.parametrize("family", ["sdxl", "sd3"])
def test_encoders_with_prompts_of_their_own(both: Callable[[str], Made], family: str) -> None:
    more = {"prompt_2": "blue", "negative_prompt": "x", "negative_prompt_2": "old"}
    if family == "sd3":
        more |= {"prompt_3": "a star", "negative_prompt_3": "snow"}
    check(both, family, prompt="a red fox", **more)


def test_sizes_that_sdxl_is_told(both: Callable[[str], Made]) -> None:
    told: dict[str, Any] = {"original_size": (512, 384), "crops_coords_top_left": (16, 32)}
    check(both, "sdxl", prompt="a red fox", **told, target_size=(1024, 1024))
    negative = {"negative_original_size": (64, 64), "negative_target_size": (96, 64)}
    check(both, "sdxl", prompt="a red fox", **told, **negative)
