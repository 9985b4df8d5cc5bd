"""Pictures of every family against diffusers' own pipelines, from the same reduced checkpoints."""

from __future__ import annotations

from typing import Any

import pytest
from parity import Both, assert_same, call

# diffusers' Euler asks torch for an array in a way that numpy 2 warns of.
pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"
)
STEPS = 4


def check(both: Both, family: str, seed: int | list[int] = 3, **settings: Any) -> None:
    ours, theirs = both(family)
    settings = {"steps": STEPS, "guidance_scale": 4.0, **settings}
    wanted = call(theirs, seed, settings)
    assert_same(ours(mode="sequential", seed=seed, **settings).images, wanted)


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
def test_pictures_are_those_of_diffusers(both: Both, family: str, case: str) -> None:
    check(both, family, **CASES[case])


@pytest.mark.parametrize("family", ["sdxl", "sd3"])
def test_encoders_with_prompts_of_their_own(both: Both, family: str) -> None:
    more = {"prompt_2": "blue", "negative_prompt": "x", "negative_prompt_2": "old"}
    if family == "sd3":
        more |= {"prompt_3": "a star", "negative_prompt_3": "snow"}
    check(both, family, prompt="a red fox", **more)


def test_sizes_that_sdxl_is_told(both: Both) -> None:
    told: dict[str, Any] = {"original_size": (512, 384), "crops_coords_top_left": (16, 32)}
    check(both, "sdxl", prompt="a red fox", **told, target_size=(1024, 1024))
    negative = {"negative_original_size": (64, 64), "negative_target_size": (96, 64)}
    check(both, "sdxl", prompt="a red fox", **told, **negative)
