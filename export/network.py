"""What one ONNX file will be: its wrapper, its inputs and outputs, and the sides of them that may vary."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.export import Dim

from .._errors import ModelError
from .checkpoint import Component

__all__ = ["Network", "Side", "number"]

Shape = tuple[int | str, ...]
_BATCH_MOST = 64


@dataclass(frozen=True, slots=True)
class Side:
    """A side that may vary: a multiple of `multiple`, from `least` to `most` (None: no limit) times that."""

    multiple: int = 1
    least: int = 2
    most: int | None = None

    def dim(self, name: str) -> Any:
        """The side as torch.export wants it."""
        limits = {"min": self.least} if self.most is None else {"min": self.least, "max": self.most}
        return Dim(name, **limits) if self.multiple == 1 else self.multiple * Dim(f"{name}_", **limits)


@dataclass(frozen=True, slots=True)
class Network:
    """One network of a checkpoint, described well enough to export, feed and check it.

    `inputs` and `outputs` give each tensor's shape, in which a name stands for a side that may vary;
    those of the inputs are in `sides` ("batch" always is). Tensors are float32 at this surface in any
    precision, except for those in `integers`, which are int64 up to the number given there.
    """

    name: str
    component: Component
    wrap: Callable[[Any, torch.dtype], torch.nn.Module]
    inputs: Mapping[str, Shape]
    outputs: Mapping[str, Shape]
    sides: Mapping[str, Side] = field(default_factory=dict)
    integers: Mapping[str, int] = field(default_factory=dict)
    example: Mapping[str, int] = field(default_factory=dict)

    def dynamic_shapes(self) -> dict[str, dict[int, Any]]:
        """The sides that may vary, as torch.export wants them."""
        sides = {"batch": Side(1, 1, _BATCH_MOST), **self.sides}
        dims = {name: side.dim(name) for name, side in sides.items()}
        return {
            name: {i: dims[side] for i, side in enumerate(shape) if isinstance(side, str)}
            for name, shape in self.inputs.items()
        }

    def sizes(self, small: bool = False) -> dict[str, int]:
        """Sizes of the varying sides for a trial: a batch of two squares, or one flat picture alone."""
        sizes = {"batch": 1 if small else 2}
        for name, side in self.sides.items():
            count = max(side.least, self.example.get(name, 16) // side.multiple)
            if small:
                count = side.least if name.endswith("height") else count + 1
            sizes[name] = side.multiple * min(count, side.most or count)
        return sizes

    def random_inputs(self, sizes: Mapping[str, int], seed: int) -> dict[str, torch.Tensor]:
        """Inputs such as occur in use: unit-normal latents and embeddings, timesteps with fractions."""
        generator = torch.Generator().manual_seed(seed)
        made = {}
        for name, shape in self.inputs.items():
            numbers = [sizes[side] if isinstance(side, str) else side for side in shape]
            if name == "clip_skip":  # what is usual in the first trial, another layer in the next
                made[name] = torch.full(numbers, seed % self.integers[name])
            elif name in self.integers:
                made[name] = torch.randint(self.integers[name], numbers, generator=generator)
            elif name == "timestep":
                made[name] = 1 + 998 * torch.rand(numbers, generator=generator)
            elif name == "time_ids":
                made[name] = torch.randint(0, 1024, numbers, generator=generator).float()
            else:
                made[name] = torch.randn(numbers, generator=generator)
        return made


def number(component: Component, key: str) -> int:
    """A positive integer of a component's config.

    Raises:
        ModelError: it is missing or something else.
    """
    value = component.config.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ModelError(
            f"{component.folder / 'config.json'} has {key} {value!r}, expected a positive integer; "
            "download the checkpoint again"
        )
    return value
