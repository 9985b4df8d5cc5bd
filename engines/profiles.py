"""Which sizes a plan is built for: least, best and greatest, checked before TensorRT sees them.

TensorRT only warns of maxima that contradict each other, and says little of the rest. Sizes are
kept by the name of the side, as the ONNX file has them; every input of a network gets its
shapes from there, so that they cannot contradict each other.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

from .._errors import InputError, did_you_mean
from ..models import ModelSpec

__all__ = ["Profile", "Range", "fill_shapes", "parse_shapes"]

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Range:
    """Least, best and greatest size of one side."""

    min: int
    opt: int
    max: int

    def __post_init__(self) -> None:
        if not 1 <= self.min <= self.opt <= self.max:
            raise InputError(
                f"sizes must be at least 1, and min <= opt <= max; given {self.min}, {self.opt}, {self.max}"
            )

    def __contains__(self, size: int) -> bool:
        return self.min <= size <= self.max

    def __str__(self) -> str:
        return str(self.min) if self.min == self.max else f"{self.min}..{self.max}"

    def times(self, factor: int) -> Range:
        """The range of a side that is `factor` times as long."""
        return Range(self.min * factor, self.opt * factor, self.max * factor)


@dataclass(frozen=True, slots=True)
class Profile:
    """Sizes of the denoiser's latents: batch (pictures, twice with guidance), height, width.

    Make one with `Profile.pictures` or `Profile.of_shapes`, which check them against the model.
    """

    batch: Range
    height: Range
    width: Range

    @classmethod
    def pictures(
        cls,
        spec: ModelSpec,
        *,
        height: int | None = None,
        width: int | None = None,
        batch_size: int = 1,
        dynamic: bool = False,
        static_batch: bool = False,
    ) -> Profile:
        """The profile for pictures of one size, or of sizes around it.

        Args:
            height, width: pixels of the best size; by default the model's own.
            batch_size: pictures in one call; the network's batch covers them with and
                without guidance, which doubles it.
            dynamic: also take pictures from half to one and a half times the size.
            static_batch: only the full batch with guidance.

        Raises:
            InputError: a size is not one that the model can have.
        """
        if batch_size < 1:
            raise InputError(f"the batch size must be at least 1, not {batch_size}")
        sides = spec.latent_size(
            spec.height if height is None else height, spec.width if width is None else width
        )
        whole = 2 * batch_size
        step = spec.latent_multiple
        ranges = [
            Range(max(step, side // 2 // step * step), side, side * 3 // 2 // step * step)
            if dynamic
            else Range(side, side, side)
            for side in sides
        ]
        return cls(Range(whole if static_batch else 1, whole, whole), *ranges)._checked(spec)

    @classmethod
    def of_shapes(
        cls,
        spec: ModelSpec,
        least: Mapping[str, Shape],
        best: Mapping[str, Shape],
        greatest: Mapping[str, Shape],
    ) -> Profile:
        """The profile of shapes by input name, as `parse_shapes` gives them.

        Raises:
            InputError: a shape is not one of the denoiser's, or they contradict each other.
        """
        sizes = [
            _sizes(spec, which, shapes)
            for which, shapes in (("min", least), ("opt", best), ("max", greatest))
        ]
        ranges = []
        for at, side in enumerate(("batch", "height", "width")):
            try:
                ranges.append(Range(*(size[at] for size in sizes)))
            except InputError as error:
                raise InputError(f"{side} of {spec.denoiser_inputs[0]!r}: {error}") from None
        return cls(*ranges)._checked(spec)

    def _checked(self, spec: ModelSpec) -> Profile:
        if self.batch.max < 2:
            raise InputError(
                "the greatest batch is 1, which leaves no room for guidance (it doubles the batch); "
                "make it at least 2"
            )
        for name in ("height", "width"):
            for size in (value := getattr(self, name)).min, value.opt, value.max:
                if size % spec.latent_multiple:
                    raise InputError(
                        f"a latent {name} of {size} does not suit {spec.family}: it must be a multiple of "
                        f"{spec.latent_multiple} ({spec.latent_multiple * spec.downscale} pixels)"
                    )
        return self

    def sides(self, network: str, spec: ModelSpec) -> dict[str, Range]:
        """Ranges by the name of the side, for one network of the model."""
        whole = Range(1, self.batch.opt, self.batch.max)
        if network.startswith("text_encoder"):
            return {"batch": whole}
        sides = {"batch": self.batch, "height": self.height, "width": self.width, "sequence": _tokens(spec)}
        if network.startswith("vae"):  # pictures are coded one by one, or without guidance's doubles
            sides["batch"] = Range(1, 1, max(1, self.batch.max // 2))
            for name in ("height", "width"):
                sides[f"picture_{name}"] = sides[name].times(spec.downscale)
        return sides

    def check(self, batch: int, height: int, width: int) -> None:
        """Raise InputError where a latent (batch, channels, height, width) lies outside."""
        given = {"batch": batch, "height": height, "width": width}
        for name, size in given.items():
            if size not in (allowed := getattr(self, name)):
                raise InputError(
                    f"the plan was built for a {name} of {allowed}, and {size} was asked (in latents; "
                    f"whole shape {batch} x {height} x {width}); build one for it: driffusion-trt build "
                    "with --height, --width and --batch-size, or with --build-dynamic-shape"
                )

    def to_json(self) -> dict[str, list[int]]:
        """[min, opt, max] by side."""
        return {entry.name: [(r := getattr(self, entry.name)).min, r.opt, r.max] for entry in fields(self)}

    @classmethod
    def from_json(cls, data: Mapping[str, Sequence[int]]) -> Profile:
        """The inverse of `to_json`."""
        return cls(**{name: Range(*sizes) for name, sizes in data.items()})


def _tokens(spec: ModelSpec) -> Range:
    """Tokens that SD3's denoiser may be given: CLIP's alone, or T5's after them."""
    least = spec.text_encoders[0].length
    most = least + (spec.text_encoders[-1].length if spec.architecture == "sd3" else 0)
    return Range(least, most, most)


def _sizes(spec: ModelSpec, which: str, shapes: Mapping[str, Shape]) -> tuple[int, int, int]:
    """Batch, height and width that one set of shapes names; the denoiser's other inputs must agree."""
    latent = spec.denoiser_inputs[0]
    for name, shape in shapes.items():
        if name not in spec.denoiser_inputs:
            raise InputError(
                f"--{which}-shapes names {name!r}, which is no input of the denoiser"
                f"{did_you_mean(name, spec.denoiser_inputs)}"
            )
        if latent in shapes and shape[:1] != shapes[latent][:1]:
            raise InputError(
                f"--{which}-shapes gives {name!r} a batch of {shape[0] if shape else 'none'}, "
                f"and {latent!r} one of {shapes[latent][0]}; they are one batch"
            )
    if latent not in shapes:
        raise InputError(f"--{which}-shapes must give {latent!r}, such as {_example(spec)}")
    shape = shapes[latent]
    if len(shape) != 4 or shape[1] != spec.latent_channels:
        raise InputError(
            f"--{which}-shapes gives {latent!r} the shape {_text(shape)}; latents of {spec.family} are "
            f"batch x {spec.latent_channels} x height x width, such as {_example(spec)}"
        )
    return shape[0], shape[2], shape[3]


def _example(spec: ModelSpec) -> str:
    return f"{spec.denoiser_inputs[0]}:2x{_text(spec.latent_shape)}"


def _text(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))


_ONE = re.compile(r"([^\s:,]+):\[?(\d+(?:\s*[x,]\s*\d+)*)\]?")


def parse_shapes(text: str) -> dict[str, Shape]:
    """Shapes by input name: "sample:2x4x96x96 timestep:2", or "sample:[2,4,96,96]".

    Raises:
        InputError: the text is of neither form.
    """
    shapes = {
        match[1]: tuple(int(size) for size in re.split(r"\s*[x,]\s*", match[2]))
        for match in _ONE.finditer(text)
    }
    if not shapes or _ONE.sub("", text).strip(" ,"):
        raise InputError(f"{text!r} is not a list of shapes; write name:2x4x96x96, several with spaces")
    return shapes


def fill_shapes(
    inputs: Mapping[str, Sequence[int | str | None]], sides: Mapping[str, Range]
) -> dict[str, tuple[Shape, Shape, Shape]]:
    """Least, best and greatest shape of every input, from the ranges of its named sides.

    Args:
        inputs: for each input its sides: a size that is fixed, or the name of one that varies.

    Raises:
        InputError: a side varies and has no name, or a name that has no range.
    """
    shapes = {}
    for name, shape in inputs.items():
        ranges = []
        for at, side in enumerate(shape):
            if isinstance(side, int):
                ranges.append(Range(side, side, side))
            elif side is not None and side in sides:
                ranges.append(sides[side])
            else:
                raise InputError(
                    f"side {at} of the input {name!r} varies and is called {side!r}, which no profile "
                    f"gives a size; known: {', '.join(sorted(sides))}"
                )
        least, best, greatest = (tuple(getattr(r, which) for r in ranges) for which in ("min", "opt", "max"))
        shapes[name] = (least, best, greatest)
    return shapes
