"""Pictures here beside diffusers' own, from the same reduced checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from diffusers import DiffusionPipeline
from PIL import Image

from driffusion_trt import Pipeline

# What diffusers calls our settings.
_NAMES = {"steps": "num_inference_steps", "num_images": "num_images_per_prompt"}


class Made(NamedTuple):
    """A family's pipeline here, and diffusers'."""

    ours: Pipeline
    theirs: Any


Both = Callable[[str], Made]


def load(root: Path) -> Made:
    """Both sides of a folder with a `checkpoint` and the `model` that was built from it."""
    theirs = DiffusionPipeline.from_pretrained(root / "checkpoint", local_files_only=True)
    theirs.set_progress_bar_config(disable=True)
    return Made(Pipeline.load(root / "model", devices=2), theirs)


def generators(seed: int | list[int]) -> Any:
    """torch's generators of a seed as ours: one for the batch, or one for each picture."""
    import torch

    if isinstance(seed, int):
        return torch.Generator().manual_seed(seed)
    return [torch.Generator().manual_seed(one) for one in seed]


def call(pipe: Any, seed: int | list[int], settings: dict[str, Any]) -> Any:
    """What a diffusers pipeline returns for settings under our names."""
    given = {_NAMES.get(name, name): value for name, value in settings.items()}
    return pipe(generator=generators(seed), **given).images


def assert_same(got: Sequence[Image.Image], wanted: Sequence[Image.Image]) -> None:
    """The same pictures but for rounding: at most 1/255 on average, and 4/255 anywhere."""
    assert len(got) == len(wanted)
    for one, other in zip(got, wanted, strict=True):
        assert one.size == other.size
        difference = np.abs(np.asarray(one, np.int16) - np.asarray(other, np.int16))
        assert difference.mean() <= 1 and difference.max() <= 4
        assert np.asarray(one).std() > 1, "a picture of one colour would show nothing"
