"""Pictures of every family against diffusers' own pipelines, from the same reduced checkpoints."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import reduced
from parity import assert_same, call

from driffusion_trt import InputError, Pipeline
from driffusion_trt.engines.manifest import ModelFolder
from driffusion_trt.pipeline import Result

# diffusers' Euler asks torch for an array in a way that numpy 2 warns of.
pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"
)
STEPS = 4


class Pair:
    """A family's pipeline here, and diffusers'."""

    def __init__(self, family: str, folder: Path, *, t5: bool = True) -> None:
        from diffusers import DiffusionPipeline

        checkpoint, model = folder / "checkpoint", folder / "model"
        without = {} if t5 else {"text_encoder_3": None, "tokenizer_3": None}
        self.theirs: Any = DiffusionPipeline.from_pretrained(checkpoint, local_files_only=True, **without)
        self.theirs.set_progress_bar_config(disable=True)
        self.ours = Pipeline.load(model, devices=2)
        self._config = ModelFolder.open(model).scheduler_config()
        if family.startswith("sd21"):  # where diffusers looks for the final norm; transformers has moved it
            encoder = self.theirs.text_encoder
            vars(encoder)["text_model"] = SimpleNamespace(final_layer_norm=encoder.final_layer_norm)

    def schedule(self, name: str | None = None, **options: Any) -> None:
        """Another scheduler for both, or the checkpoint's own with other options."""
        import diffusers

        config = {**self._config, "_class_name": name or self._config["_class_name"], **options}
        self.theirs.scheduler = getattr(diffusers, config["_class_name"]).from_config(config)
        self.ours._planner._config = config
        self.ours._planner._plans.clear()


Both = Callable[[str], Pair]


@pytest.fixture(scope="module")
def both(families: Callable[[str], Path]) -> Iterator[Both]:
    made: dict[str, Pair] = {}

    def make(family: str) -> Pair:
        if family not in made:
            made[family] = Pair(family, families(family))
        made[family].schedule()
        return made[family]

    yield make
    for pair in made.values():
        pair.ours.close()


def check(pair: Pair, seed: int | list[int] = 3, **settings: Any) -> Result:
    settings = {"steps": STEPS, "guidance_scale": 4.0, **settings}
    wanted = call(pair.theirs, seed, settings)
    made = pair.ours(mode="sequential", seed=seed, **settings)
    assert_same(made.images, wanted)
    return made


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
    check(both(family), **CASES[case])


@pytest.mark.parametrize("family", ["sdxl", "sd3"])
def test_encoders_with_prompts_of_their_own(both: Both, family: str) -> None:
    more = {"prompt_2": "blue", "negative_prompt": "x", "negative_prompt_2": "old"}
    if family == "sd3":
        more |= {"prompt_3": "a star", "negative_prompt_3": "snow"}
    check(both(family), prompt="a red fox", **more)


@pytest.mark.parametrize("clip_skip", [1, 2])
@pytest.mark.parametrize("family", ["sd21", "sdxl", "sd3"])
def test_layers_of_clip_that_are_skipped(both: Both, family: str, clip_skip: int) -> None:
    """For the prompt and not for the negative one, in all three."""
    plain = both(family).ours(
        "a red fox", steps=STEPS, guidance_scale=4.0, seed=3, mode="sequential", negative_prompt="a dog"
    )
    made = check(both(family), prompt="a red fox", negative_prompt="a dog", clip_skip=clip_skip)
    assert made.images[0].tobytes() != plain.images[0].tobytes()
    assert made.call()["clip_skip"] == clip_skip


@pytest.mark.parametrize(("family", "most"), [("sd21", 3), ("sdxl", 2), ("sd3", 2)])
def test_more_layers_than_there_are_cannot_be_skipped(both: Both, family: str, most: int) -> None:
    pipe = both(family).ours
    assert pipe("a red fox", steps=1, mode="sequential", clip_skip=most).images
    with pytest.raises(InputError, match=f"have layers for {most} at most"):
        pipe("a red fox", steps=1, mode="sequential", clip_skip=most + 1)


def test_sizes_that_sdxl_is_told(both: Both) -> None:
    told: dict[str, Any] = {"original_size": (512, 384), "crops_coords_top_left": (16, 32)}
    check(both("sdxl"), prompt="a red fox", **told, target_size=(1024, 1024))
    negative = {"negative_original_size": (64, 64), "negative_target_size": (96, 64)}
    check(both("sdxl"), prompt="a red fox", **told, **negative)


# Schedulers that users bring, with the same networks


VP = ("sd21", "sdxl")
SCHEDULERS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "ddim": ("DDIMScheduler", {}, {}),
    "ddim, eta": ("DDIMScheduler", {}, {"eta": 0.7}),
    "ddim, eta 1, two pictures": ("DDIMScheduler", {}, {"eta": 1.0, "num_images": 2}),
    "ddim, trailing": ("DDIMScheduler", {"timestep_spacing": "trailing"}, {}),
    "ddim, linspace": ("DDIMScheduler", {"timestep_spacing": "linspace"}, {}),
    "ddpm": ("DDPMScheduler", {"timestep_spacing": "leading"}, {}),
    "ddpm, a seed each": (
        "DDPMScheduler",
        {"timestep_spacing": "trailing"},
        {"prompt": ["a red fox", "a dog"], "seed": [1, 2]},
    ),
    "euler": ("EulerDiscreteScheduler", {"timestep_spacing": "leading"}, {}),
    "euler, linspace": ("EulerDiscreteScheduler", {"timestep_spacing": "linspace"}, {}),
    "euler, trailing, karras": (
        "EulerDiscreteScheduler",
        {"timestep_spacing": "trailing", "use_karras_sigmas": True},
        {},
    ),
    "dpm++": ("DPMSolverMultistepScheduler", {"timestep_spacing": "linspace"}, {}),
    "dpm++, leading, two pictures": (
        "DPMSolverMultistepScheduler",
        {"timestep_spacing": "leading"},
        {"num_images": 2},
    ),
    "dpm++, trailing, karras": (
        "DPMSolverMultistepScheduler",
        {"timestep_spacing": "trailing", "use_karras_sigmas": True},
        {},
    ),
}


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("case", SCHEDULERS)
@pytest.mark.parametrize("family", VP)
def test_other_schedulers(both: Both, family: str, case: str, prediction: str) -> None:
    name, options, settings = SCHEDULERS[case]
    pair = both(family)
    pair.schedule(name, clip_sample=False, prediction_type=prediction, **options)
    check(pair, **{"prompt": "a red fox", "steps": 6, **settings})


FLOWS: dict[str, dict[str, Any]] = {
    "shift 1": {"shift": 1.0},
    "shift 6": {"shift": 6.0},
    "karras": {"use_karras_sigmas": True},
    "dynamic": {"use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15},
    "dynamic, linear": {"use_dynamic_shifting": True, "time_shift_type": "linear"},
}


@pytest.mark.parametrize("case", FLOWS)
def test_flows(both: Both, case: str) -> None:
    pair = both("sd3")
    pair.schedule(**FLOWS[case])
    check(pair, prompt="a red fox", height=192, width=128)


def test_without_t5(families: Callable[[str], Path], tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint"
    checkpoint.symlink_to(families("sd3") / "checkpoint")
    model = Path(shutil.copytree(families("sd3") / "model", tmp_path / "model"))
    # The folder is brought up to date, and nothing is exported again.
    reduced.model_folder("sd3", checkpoint, model, skip=["text_encoder_3"])
    assert not (model / "onnx" / "text_encoder_3.onnx").exists()
    pair = Pair("sd3", tmp_path, t5=False)
    with pair.ours:
        for case in ("plain", "negative", "two pictures"):
            check(pair, **CASES[case])
