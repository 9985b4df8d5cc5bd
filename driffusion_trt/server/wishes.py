"""What a request asks for, checked, as the settings of the pipeline."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..models import ModelSpec
from .answers import ApiError
from .fields import QUALITIES, checked
from .limits import Limits

__all__ = ["Wish", "check_model", "check_size"]

_MOST_SIDE = {"webp": 16_383, "jpeg": 65_500}  # of libwebp and libjpeg
_AS_THEY_ARE = (
    "steps",
    "negative_prompt",
    "guidance_scale",
    "mode",
    "lanes",
    "rounds",
    "tolerance",
    "strength",
)


@dataclass(frozen=True, slots=True)
class Wish:
    """A checked request; make one with `Wish.check`.

    settings: of the pipeline's call. asked: the fields as they were given.
    """

    prompt: str
    settings: dict[str, Any]
    seed: int
    count: int
    deadline_ms: float | None
    user: str
    stream: bool
    partial_images: int
    timeline: bool
    link: bool
    output_format: str
    compression: int
    asked: Mapping[str, Any]

    @classmethod
    def check(
        cls,
        spec: ModelSpec,
        own_size: tuple[int, int],
        names: tuple[str, ...],
        limits: Limits,
        fields: Mapping[str, Any],
        given: Mapping[str, Any],
    ) -> Wish:
        """The wish that these fields are. own_size: height and width where nothing is said.

        names: what the model is called here. Raises ApiError.
        """
        found = checked(fields, given)
        check_model(names, found.get("model"))
        count, seed = found.get("n", 1), found.get("seed")
        if seed is None:
            seed = secrets.randbelow(1 << 32)
        settings: dict[str, Any] = {name: found[name] for name in _AS_THEY_ARE if name in found}
        settings |= {"seed": [seed + k for k in range(count)], "num_images": count}
        quality = QUALITIES[found["quality"]] if "quality" in found else None
        if quality is not None:
            settings["quality"] = quality
        size = found.get("size", "auto")
        height, width = own_size
        if size != "auto":
            width, height = (int(side) for side in size.split("x"))
            settings |= {"height": height, "width": width}
        found_format = found.get("output_format", "png")
        check_size(limits, width, height, count, found_format)
        if size != "auto":
            spec.latent_size(height, width)
        return cls(
            found["prompt"],
            settings,
            seed,
            count,
            found.get("deadline_ms"),
            found.get("safety_identifier") or found.get("user", ""),
            found.get("stream", False),
            found.get("partial_images", 0),
            found.get("timeline", False),
            found.get("response_format") == "url",
            found_format,
            found.get("output_compression", 100 if found.get("output_format") != "jpeg" else 95),
            found,
        )


def check_model(names: tuple[str, ...], asked: str | None) -> None:
    """Raises ApiError for a model that is not served."""
    if asked is not None and asked not in names:
        raise ApiError(
            404, f"the model {asked[:100]!r} is not served here; there is {names[0]!r}", "model_not_found",
            param="model",
        )  # fmt: skip


def check_size(limits: Limits, width: int, height: int, count: int, output_format: str) -> None:
    """Raises ApiError where the pictures are too many or too large, together or for such a file."""
    assert limits.pixels is not None, "the model's are known by now"
    if width * height * count > limits.pixels:
        raise ApiError(
            400, f"{count} x {width} x {height} pixels were asked; the most is {limits.pixels} in all",
            "too_many_pixels", param="size",
        )  # fmt: skip
    most = _MOST_SIDE.get(output_format, max(width, height))
    if max(width, height) > most:
        raise ApiError(
            400, f"a {output_format} has at most {most} pixels a side, not {width} x {height}; "
            "take output_format png", "invalid_value", param="output_format",
        )  # fmt: skip
