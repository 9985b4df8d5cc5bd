"""LPIPS (Zhang et al., 1801.03924), version 0.1 with AlexNet: how far apart two pictures look.

Its weights are read from files that the user has: they are not part of this package. The published ones are
`lpips/weights/v0.1/alex.pth` of github.com/richzhang/PerceptualSimilarity (five linear layers), and
torchvision's AlexNet (`alexnet-owt-7be5be79.pth`), in one folder, or one state dict of
`lpips.LPIPS(net="alex")`.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from .._errors import InputError, MissingExtraError

__all__ = ["LEAST", "Lpips"]

_WIDTHS = (3, 64, 192, 384, 256, 256)
_KERNELS, _STRIDES, _PADDINGS = (11, 5, 3, 3, 3), (4, 1, 1, 1, 1), (2, 2, 1, 1, 1)
_POOLED = (1, 2)  # layers before which features are pooled, 3 by 3 with stride 2
# Of colours from -1 to 1.
_SHIFT = np.array((-0.030, -0.088, -0.188), np.float32)
_SCALE = np.array((0.458, 0.448, 0.450), np.float32)
# Numbers of the convolutions in torchvision's `features`, and their names in LPIPS's own state dict.
_TORCHVISION = (0, 3, 6, 8, 10)
_SLICES = ("slice1.0", "slice2.3", "slice3.6", "slice4.8", "slice5.10")
_ENDINGS = (".pth", ".pt", ".bin", ".safetensors")
LEAST = 31  # pixels of a side; with fewer the second pooling has nothing to pool


class Lpips:
    """Distances of pairs of pictures; 0 for equal ones."""

    def __init__(self, weights: str) -> None:
        """weights: a file with all of them, or a folder with one for AlexNet and one for the linear layers.

        Raises:
            MissingExtraError: torch is not installed.
            InputError: there is no such file, or it does not have these weights.
        """
        files = _files(Path(weights))
        self._torch = torch = _torch()
        state: dict[str, Any] = {}
        for one in files:
            state |= _state(one, torch)
        self._convolutions = [
            (_tensor(state, _names(k, "weight"), (out, into, side, side), weights), _bias(state, k, weights))
            for k, ((into, out), side) in enumerate(zip(pairwise(_WIDTHS), _KERNELS, strict=True))
        ]
        self._linear = [
            _tensor(state, (f"lin{k}.model.1.weight",), (1, out, 1, 1), weights)
            for k, out in enumerate(_WIDTHS[1:])
        ]

    def __call__(self, one: Image.Image, other: Image.Image) -> float:
        """Raises InputError where the sizes differ, or a side has fewer than 31 pixels."""
        if one.size != other.size or min(one.size) < LEAST:
            raise InputError(
                f"pictures of {one.size} and {other.size} pixels were given; LPIPS compares pictures of one "
                f"size, of at least {LEAST} pixels a side"
            )
        torch = self._torch
        with torch.inference_mode():
            total = 0.0
            pairs = zip(self._features(one), self._features(other), self._linear, strict=True)
            for given, wanted, weight in pairs:
                square = (_unit(given) - _unit(wanted)) ** 2
                total += float(torch.nn.functional.conv2d(square, weight).mean())
            return total

    def _features(self, image: Image.Image) -> list[Any]:
        """After each of AlexNet's five convolutions and ReLUs."""
        torch = self._torch
        pixels = np.asarray(image.convert("RGB"), np.float32) / 127.5 - 1
        pixels = (pixels - _SHIFT) / _SCALE
        x = torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)[None]))
        found = []
        for k, (weight, bias) in enumerate(self._convolutions):
            if k in _POOLED:
                x = torch.nn.functional.max_pool2d(x, 3, 2)
            x = torch.nn.functional.conv2d(x, weight, bias, _STRIDES[k], _PADDINGS[k]).relu()
            found.append(x)
        return found


def _unit(features: Any) -> Any:
    """Of length 1 over the channels."""
    return features / ((features**2).sum(1, keepdim=True).sqrt() + 1e-10)


def _torch() -> Any:
    try:
        import torch
    except ImportError as error:
        raise MissingExtraError("torch", "eval") from error
    return torch


def _files(path: Path) -> list[Path]:
    files = [path]
    if path.is_dir():
        files = sorted(one for one in path.iterdir() if one.suffix in _ENDINGS)
    if not files or not all(one.is_file() for one in files):
        raise InputError(
            f"LPIPS weights were asked of {path}, which has no file ending in {', '.join(_ENDINGS)}; give a "
            "state dict of lpips.LPIPS(net='alex'), or a folder with torchvision's AlexNet and alex.pth"
        )
    return files


def _state(path: Path, torch: Any) -> Mapping[str, Any]:
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of many kinds; what matters is which file it was
        raise InputError(f"{path} cannot be read as weights ({error})") from error
    if not isinstance(found, Mapping):
        raise InputError(f"{path} holds no state dict; give one of lpips.LPIPS(net='alex')")
    return found


def _names(layer: int, part: str) -> tuple[str, str]:
    return f"net.{_SLICES[layer]}.{part}", f"features.{_TORCHVISION[layer]}.{part}"


def _bias(state: Mapping[str, Any], layer: int, weights: str) -> Any:
    return _tensor(state, _names(layer, "bias"), (_WIDTHS[layer + 1],), weights)


def _tensor(state: Mapping[str, Any], names: tuple[str, ...], shape: tuple[int, ...], weights: str) -> Any:
    """The first of these names that is there."""
    found = next((state[name] for name in names if name in state), None)
    if found is None or tuple(found.shape) != shape:
        what = "is not there" if found is None else f"has shape {tuple(found.shape)}"
        raise InputError(
            f"{weights}: {' or '.join(names)} {what}, expected shape {shape}; LPIPS here is version 0.1 with "
            "AlexNet"
        )
    return found.float()
