"""The settings of a call: their names, and the tests that each value has to pass by itself."""

from __future__ import annotations

import operator
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, SupportsIndex

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ._errors import InputError, did_you_mean
from ._planner import PlanSettings
from .sampling.noise import noise_streams
from .sampling.recording import Recorder
from .sampling.sample import RoundDone

__all__ = [
    "Seed",
    "Settings",
    "Size",
    "check_names",
    "pair",
    "python_numbers",
    "seeds",
    "text",
    "texts",
    "whole",
]

Seed = int | tuple[int, ...]
Size = tuple[int, int]
Picture = Image.Image | Sequence[Image.Image] | NDArray[np.floating[Any]]


class Settings(PlanSettings, total=False):
    """What a call may say beside its prompt; `Pipeline.__call__` explains each, but for these.

    mode: "auto" chooses split, lanes and mode by what calls take on these devices: see `Pipeline.choice`.
    quality: of mode "auto": "exact", "high", "balanced" (the default) or "fast", each a tolerance.
    deadline_ms: of mode "auto", in place of `quality`: the time for all of the call, in which it makes the
        pictures as near to the sequential ones as it can.
    image: start from this picture instead of noise (SDEdit, 2108.01073): a PIL image or a sequence with
        one for each prompt, which are resized, or floats from 0 to 1, (H, W, 3) or (B, H, W, 3).
    mask_image: where it is white `image` is made anew, the rest stays as it is (inpainting). PIL images,
        or floats (H, W) or (B, H, W).
    strength: share of the steps that is run, and so of `image` that is lost: above 0, at most 1. As in
        diffusers it is by default 0.8 for SD2.1, 0.3 for SDXL and 0.6 for SD3, and with a mask 1,
        0.9999 and 0.6.
    vae_tiling: True, or the side of a tile in pixels, for the tiles of diffusers' `enable_tiling`; False
        for none; None for tiles where the plans do not take the picture whole, or it has more than two
        million pixels. The picture differs a little.
    split_guidance: predict with and without the prompt on two devices, and not in one batch: then a lane
        is two devices, and by default there are half as many lanes (one at least). The picture is the same
        within float32 rounding. Without guidance it changes nothing. A single CPU thread makes both
        predictions in turn, a single GPU makes them in one batch; of an odd number of GPUs one idles.
    recorder: a fresh `driffusion_trt.Recorder`, which then has the start and end of every stage of the call,
        of every round, and of every prediction on its lane.
    """

    prompt_2: str | Sequence[str] | None
    prompt_3: str | Sequence[str] | None
    negative_prompt: str | Sequence[str] | None
    negative_prompt_2: str | Sequence[str] | None
    negative_prompt_3: str | Sequence[str] | None
    seed: int | Iterable[int]
    num_images: int
    clip_skip: int | None
    original_size: Size | None
    crops_coords_top_left: Size
    target_size: Size | None
    negative_original_size: Size | None
    negative_crops_coords_top_left: Size
    negative_target_size: Size | None
    image: Picture | None
    mask_image: Picture | None
    vae_tiling: bool | int | None
    callback_on_round_end: Callable[[RoundDone], None] | None
    cancel: threading.Event | None
    recorder: Recorder | None


def check_names(settings: Mapping[str, Any]) -> None:
    """Raises InputError for a setting that does not exist, or a whole number that no setting can be."""
    for name, value in settings.items():
        if name not in Settings.__annotations__:
            raise InputError(f"there is no setting {name!r}{did_you_mean(name, Settings.__annotations__)}")
        if isinstance(value, int) and value.bit_length() > 65:  # no float, and too long to be shown
            raise InputError(f"{name} is a number of {value.bit_length()} bits; the most is 64")


def texts(name: str, given: object) -> tuple[str, ...]:
    """One text, or a sequence with at least one."""
    one_only = isinstance(given, str | bytes) or not isinstance(given, Sequence)
    found: tuple[object, ...] = (given,) if one_only else tuple(given)  # type: ignore[arg-type]
    if not found:
        raise InputError(f"no {name} was given; give a text, or a sequence with at least one")
    return tuple(text(name, one) for one in found)


def text(name: str, given: object) -> str:
    if not isinstance(given, str):
        raise InputError(f"{name} must be a text, not {given!r}")
    try:
        given.encode()
    except UnicodeEncodeError as error:  # what Python makes of bytes that are no UTF-8
        raise InputError(f"{name} {given!r} is not valid Unicode; give it in UTF-8") from error
    return given


def python_numbers(settings: Mapping[str, Any]) -> dict[str, Any]:
    """numpy's scalars are numbers as well; pictures remember what is plain JSON."""
    return {name: one.item() if isinstance(one, np.generic) else one for name, one in settings.items()}


def whole(name: str, given: object, least: int) -> int:
    if isinstance(given, bool) or not isinstance(given, int) or given < least:
        raise InputError(f"{name} must be a whole number of at least {least}, not {given!r}")
    return given


def pair(name: str, given: object, least: int) -> Size:
    """A height and a width, or a place from the top and from the left."""
    if isinstance(given, str | bytes) or not isinstance(given, Sequence) or len(given) != 2:
        raise InputError(f"{name} must be two whole numbers, height or top first, not {given!r}")
    first, second = (whole(name, one, least) for one in given)
    return first, second


def seeds(given: object, pictures: int) -> Seed:
    """A seed for the whole batch, or one for each picture."""
    checked: Seed
    if (
        isinstance(given, Iterable)
        and not isinstance(given, str | bytes)
        and getattr(given, "shape", None) != ()
    ):
        checked = tuple(_seed(one) for one in given)
    else:
        checked = _seed(given)
    noise_streams(checked, pictures)  # knows which seeds there are, and how many a batch needs
    return checked


def _seed(given: SupportsIndex | Any) -> int:
    try:
        if not isinstance(given, bool):
            return operator.index(given)  # numpy's integers too
    except TypeError:
        pass
    raise InputError(f"seed must be a whole number, or a sequence with one for each picture, not {given!r}")
