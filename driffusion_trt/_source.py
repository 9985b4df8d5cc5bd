"""The picture that a call starts from, and what of it is made anew: checked before any work.

What diffusers' VaeImageProcessor does to pictures and masks, and its pipelines' default strengths.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ._errors import InputError
from .models import ModelSpec

__all__ = ["Source", "check_count", "fitted", "resolved"]

Float32 = NDArray[np.float32]
# By architecture: without and with a mask.
_STRENGTHS = {"sd21": (0.8, 1.0), "sdxl": (0.3, 0.9999), "sd3": (0.6, 0.6)}
_KINDS = {
    "image": "a PIL image, a sequence of them, or an array of floats from 0 to 1, (H, W, 3) or (B, H, W, 3)",
    "mask_image": "a PIL image, a sequence of them, or an array of floats from 0 to 1, (H, W) or (B, H, W)",
}


def resolved(spec: ModelSpec, settings: Mapping[str, Any]) -> Mapping[str, Any]:
    """The settings with what a start from a picture leaves open: `height`, `width`, `steps`, `strength`.

    Without an image they come back as they are. The size is by default that of the image, or of
    the first one, made smaller to what the model can have.

    Raises InputError for an image or mask of the wrong kind, and for a mask or strength without an image.
    """
    if settings.get("image") is None:
        for name in ("mask_image", "strength"):
            if settings.get(name) is not None:
                raise InputError(f"{name} was given without a picture to start from; give `image` too")
        return settings
    given = _given("image", settings["image"])
    masked = settings.get("mask_image") is not None
    multiple = spec.downscale * spec.latent_multiple
    own = given.shape[1:3] if isinstance(given, np.ndarray) else given[0].size[::-1]
    height, width = (max(multiple, side // multiple * multiple) for side in own)
    defaults = {
        "height": height,
        "width": width,
        "steps": spec.steps,
        "strength": _STRENGTHS[spec.architecture][masked],
    }
    open_ = {name: value for name, value in defaults.items() if settings.get(name) is None}
    return {**settings, **open_}


def fitted(settings: Mapping[str, Any], size: tuple[int, int]) -> Mapping[str, Any]:
    """The settings with PIL images of this height and width, for a call that is made later.

    `Source.check` makes the same of them: resizing to the size that they have changes nothing. Arrays stay.

    Raises InputError as `Source.check` does.
    """
    found = {name: _given(name, settings[name]) for name in _KINDS if settings.get(name) is not None}
    small = {
        name: _resized(name, given, size)
        for name, given in found.items()
        if not isinstance(given, np.ndarray)
    }
    return {**settings, **small} if small else settings


@dataclass(frozen=True, slots=True, eq=False)
class Source:
    """A checked start from pictures; make one with `Source.check`.

    pictures: float32 (N, 3, H, W) in [-1, 1].
    rows: for each picture of the batch, which of them it starts from.
    repaint: bool (B or 1, 1, h, w) at the size of the latents, True where the picture is made anew;
        None where all of it is.
    strength: share of the schedule that is run.
    steps: of the whole schedule.
    facts: digits of the SHA-256 of picture and mask, as settings of the picture that is made.
    """

    pictures: Float32
    rows: tuple[int, ...]
    repaint: NDArray[np.bool_] | None
    strength: float
    steps: int
    facts: dict[str, str]

    @classmethod
    def check(
        cls, spec: ModelSpec, settings: Mapping[str, Any], prompts: int, images: int, size: tuple[int, int]
    ) -> Source | None:
        """The start of a call with these `resolved` settings; None where it starts from noise.

        prompts, images: how many prompts there are, and pictures of each.
        size: height and width of the pictures to make, which have been checked.

        Raises InputError for pictures that do not fit.
        """
        if settings.get("image") is None:
            return None
        pixels = _pixels("image", _given("image", settings["image"]), size)
        check_count("image", len(pixels), prompts)
        pictures = np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)) * np.float32(2) - np.float32(1)
        facts = {"image_hash": _digest(pixels)}
        repaint = None
        if settings.get("mask_image") is not None:
            mask = _pixels("mask_image", _given("mask_image", settings["mask_image"]), size)
            check_count("mask_image", len(mask), prompts)
            # Every latent is that of its first pixel: torch's `interpolate` with mode nearest.
            white = mask[:, None, :: spec.downscale, :: spec.downscale] >= 0.5
            repaint = white if len(white) == 1 else white.repeat(images, 0)
            facts["mask_hash"] = _digest(mask)
        rows = tuple(k if len(pictures) > 1 else 0 for k in range(prompts) for _ in range(images))
        return cls(pictures, rows, repaint, settings["strength"], settings["steps"], facts)

    def settings(self) -> dict[str, Any]:
        """Its part of a picture's settings."""
        return {"steps": self.steps, "strength": self.strength, **self.facts}


def _given(name: str, value: object) -> Float32 | list[Image.Image]:
    """Float32 (B, H, W, 3), or (B, H, W) for a mask; or the PIL images."""
    if isinstance(value, Image.Image):
        return [value]
    if isinstance(value, np.ndarray):
        return _array(name, value)
    if isinstance(value, Sequence) and value and all(isinstance(one, Image.Image) for one in value):
        return list(value)
    raise InputError(f"{name} must be {_KINDS[name]}; a {type(value).__name__} was given")


def _array(name: str, value: NDArray[Any]) -> Float32:
    sides = 3 if name == "image" else 2
    batch = value if value.ndim == sides + 1 else value[None]
    fits = batch.ndim == sides + 1 and batch.size and (name != "image" or batch.shape[-1] == 3)
    if not fits or value.dtype.kind not in ("f" if name == "image" else "fb"):
        raise InputError(f"{name} must be {_KINDS[name]}; {value.dtype} of shape {value.shape} was given")
    floats = batch.astype(np.float32)
    if not (floats >= 0).all() or not (floats <= 1).all():  # NaN is neither
        raise InputError(f"{name} must be {_KINDS[name]}; its numbers lie outside of 0 to 1")
    return floats


def _pixels(name: str, given: Float32 | list[Image.Image], size: tuple[int, int]) -> Float32:
    """From 0 to 1, (B, H, W, 3), or (B, H, W) for a mask; PIL images are resized."""
    if isinstance(given, np.ndarray):
        if given.shape[1:3] != size:
            raise InputError(
                f"{name} is an array of {given.shape[1]} x {given.shape[2]} pixels, and the picture has "
                f"{size[0]} x {size[1]}; resize it, or give a PIL image, which is resized here"
            )
        return given
    return np.stack([np.asarray(one, np.float32) / np.float32(255) for one in _resized(name, given, size)])


def _resized(name: str, given: list[Image.Image], size: tuple[int, int]) -> list[Image.Image]:
    """In the mode that the model takes them in, 8 bits a channel."""
    kind = "RGB" if name == "image" else "L"
    deep = next((one.mode for one in given if one.mode[0] in "IF"), None)
    if deep is not None:
        raise InputError(f"{name} has more than 8 bits a channel (mode {deep!r}); make it 8 bits first")
    # Palettes and single bits cannot be resized smoothly.
    smooth = (one if one.mode in ("RGB", "L") else one.convert(kind) for one in given)
    return [one.resize(size[::-1], Image.Resampling.LANCZOS).convert(kind) for one in smooth]


def check_count(name: str, count: int, prompts: int) -> None:
    """Raises InputError unless there is one, or one for each prompt."""
    if count not in (1, prompts):
        raise InputError(f"{count} of {name} were given for {prompts} prompts; give one, or one for each")


def _digest(pixels: Float32) -> str:
    return hashlib.sha256(np.ascontiguousarray(pixels).tobytes()).hexdigest()[:10]
