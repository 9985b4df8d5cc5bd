"""One call of the pipeline: what it asks for, checked before any work, and what it gives back."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Self, SupportsIndex

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from . import __version__
from ._errors import InputError
from .sampling.noise import noise_streams
from .sampling.plan import Plan

Seed = int | tuple[int, ...]
# Settings of a picture that are arguments of `Pipeline.__call__`.
ARGUMENTS = (
    "prompt",
    "negative_prompt",
    "steps",
    "guidance_scale",
    "seed",
    "mode",
    "lanes",
    "rounds",
    "scheduler",
)


class PromptWarning(UserWarning):
    """A prompt has words that the model cannot read."""


class LaneWarning(UserWarning):
    """A device failed, and the pictures were made without it."""


class PrecisionWarning(UserWarning):
    """The networks left the range of their precision, and the pictures were made in fp32."""


@dataclass(frozen=True, slots=True)
class Timings:
    """Wall-clock times of one call in milliseconds.

    `rounds_ms` has one entry a round; none on GPUs where nobody asked to be told of rounds.
    """

    encode_ms: float
    denoise_ms: float
    decode_ms: float
    rounds_ms: tuple[float, ...]

    @property
    def total_ms(self) -> float:
        return self.encode_ms + self.denoise_ms + self.decode_ms


@dataclass(frozen=True, slots=True)
class Result:
    """Pictures, and how they came about.

    images: PIL images, prompt by prompt, `num_images` of each.
    latents: what the decoder got, float32 (B, C, h, w), in the sampler's scale.
    settings: for each picture everything needed to make it again, as plain JSON values;
        see `Request.settings`.
    """

    images: tuple[Image.Image, ...]
    latents: NDArray[np.float32]
    timings: Timings
    plan: Plan
    settings: tuple[dict[str, Any], ...]

    def call(self, picture: int = 0) -> dict[str, Any]:
        """The arguments of `Pipeline.__call__` that make one of the pictures again, alone.

        Raises InputError where the whole batch came from one random stream (an int seed).
        """
        settings = self.settings[picture]
        if "batch_seed" in settings:
            raise InputError(
                f"picture {picture} is one of {settings['batch']} from one seed, {settings['batch_seed']}; "
                "give a list of seeds to make pictures that can be made again alone"
            )
        return {name: settings[name] for name in ARGUMENTS if name in settings}


@dataclass(frozen=True, slots=True)
class Request:
    """A checked call with one prompt for each picture; make one with `Request.check`.

    seed: an int is one random stream for the whole batch, a tuple has one for each picture.
    """

    prompts: tuple[str, ...]
    negative_prompt: str
    guidance_scale: float
    seed: Seed

    @classmethod
    def check(
        cls,
        prompt: str | Sequence[str],
        *,
        num_images: int,
        negative_prompt: str,
        guidance_scale: float,
        seed: int | Iterable[int],
    ) -> Self:
        """The request that these arguments of `Pipeline.__call__` make.

        Raises InputError for the first of them that cannot be.
        """
        prompts = _prompts(prompt, num_images)
        negative_prompt = _text("negative_prompt", negative_prompt)
        return cls(prompts, negative_prompt, _scale(guidance_scale), _seed(seed, len(prompts)))

    @property
    def guided(self) -> bool:
        """Whether there is an unconditional pass: at a scale of 1 or less there is nothing to guide."""
        return self.guidance_scale > 1

    def settings(self, plan: Plan, scheduler: str, model: dict[str, Any]) -> tuple[dict[str, Any], ...]:
        """For each picture the call that makes it again, as plain JSON values.

        `Result.call` picks out the arguments of `Pipeline.__call__`. In
        a batch, `picture` of `batch` says which one it was: the network may round
        differently in batches of another size. `batch_seed` stands for `seed` where one
        random stream made the whole batch.
        """
        count = len(self.prompts)
        shared: dict[str, Any] = {
            "negative_prompt": self.negative_prompt,
            "steps": plan.steps,
            "guidance_scale": self.guidance_scale,
            "mode": plan.mode,
            "lanes": plan.lanes,
            "scheduler": scheduler,
            # The other modes have as many rounds as they have, and refuse to be told.
            **({"rounds": plan.sequential_calls} if plan.mode == "skip" else {}),
            "sequential_calls": plan.sequential_calls,
            **model,
            "version": __version__,
        }
        return tuple(
            {"prompt": prompt, **self._origin(k, count), **shared} for k, prompt in enumerate(self.prompts)
        )

    def _origin(self, picture: int, count: int) -> dict[str, Any]:
        place = {"picture": picture, "batch": count} if count > 1 else {}
        if isinstance(self.seed, tuple):
            return {"seed": self.seed[picture], **place}
        return {"seed" if count == 1 else "batch_seed": self.seed, **place}


def _prompts(prompt: str | Sequence[str], num_images: int) -> tuple[str, ...]:
    one_only = isinstance(prompt, str | bytes) or not isinstance(prompt, Sequence)
    prompts: tuple[object, ...] = (prompt,) if one_only else tuple(prompt)
    if not prompts:
        raise InputError("no prompt was given; give a text, or a sequence with at least one")
    texts = tuple(_text("prompt", one) for one in prompts)
    if isinstance(num_images, bool) or not isinstance(num_images, int) or num_images < 1:
        raise InputError(f"num_images must be a whole number of at least 1, not {num_images!r}")
    return tuple(one for one in texts for _ in range(num_images))


def _text(name: str, text: object) -> str:
    if not isinstance(text, str):
        raise InputError(f"{name} must be a text, not {text!r}")
    try:
        text.encode()
    except UnicodeEncodeError as error:  # what Python makes of bytes that are no UTF-8
        raise InputError(f"{name} {text!r} is not valid Unicode; give it in UTF-8") from error
    return text


def _scale(guidance_scale: float) -> float:
    if isinstance(guidance_scale, bool) or not isinstance(guidance_scale, int | float):
        raise InputError(f"guidance_scale must be a number, not {guidance_scale!r}")
    if not math.isfinite(guidance_scale) or guidance_scale < 0:
        raise InputError(f"guidance_scale={guidance_scale} was asked; it must be finite and at least 0")
    return float(guidance_scale)


def _seed(seed: int | Iterable[int], pictures: int) -> Seed:
    checked: Seed
    if isinstance(seed, Iterable) and not isinstance(seed, str | bytes):
        checked = tuple(_whole(one) for one in seed)
    else:
        checked = _whole(seed)
    noise_streams(checked, pictures)  # knows which seeds there are, and how many a batch needs
    return checked


def _whole(seed: SupportsIndex | Any) -> int:
    try:
        if not isinstance(seed, bool):
            return operator.index(seed)  # numpy's integers too
    except TypeError:
        pass
    raise InputError(f"seed must be a whole number, or a sequence with one for each picture, not {seed!r}")
