"""The Inception-v3 of the Fréchet Inception distance, and its preparation of pictures.

The network of the weights `pt_inception-2015-12-05-6726825d.pth` (pytorch-fid; torch-fidelity has the same
file under the name weights-inception-…): TensorFlow's of 2015-12-05, with other pooling than torchvision's.
It is spelt out here since the packages that carry it (torch-fidelity, pytorch-fid, clean-fid) all need
torchvision, of which the package index has builds for CUDA alone; tests hold it to torch-fidelity's.
"""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn
from torch.nn import functional

from .._errors import ModelError

__all__ = ["WIDTH", "Inception", "InceptionFeatures", "prepared", "read_weights"]

# What torch raises for a file that is no state of a network.
BROKEN = (
    *(OSError, EOFError, RuntimeError, pickle.UnpicklingError, TypeError, AttributeError),
    *(LookupError, ValueError, ArithmeticError, MemoryError, RecursionError),
)
WIDTH = 2048
SIDE = 299
_CLASSES = 1008


_Size = int | tuple[int, int]


class _Conv(nn.Module):
    """Convolution, batch norm, ReLU."""

    def __init__(self, before: int, after: int, size: _Size, stride: int = 1, pad: _Size = 0):
        super().__init__()
        self.conv = nn.Conv2d(before, after, size, stride, pad, bias=False)
        self.bn = nn.BatchNorm2d(after, eps=0.001)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.relu(self.bn(self.conv(x)), inplace=True)


def _mean_pool(x: torch.Tensor) -> torch.Tensor:
    """TensorFlow's: the padding does not count."""
    return functional.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)


class _A(nn.Module):
    def __init__(self, before: int, pooled: int) -> None:
        super().__init__()
        self.branch1x1 = _Conv(before, 64, 1)
        self.branch5x5_1, self.branch5x5_2 = _Conv(before, 48, 1), _Conv(48, 64, 5, pad=2)
        self.branch3x3dbl_1, self.branch3x3dbl_2 = _Conv(before, 64, 1), _Conv(64, 96, 3, pad=1)
        self.branch3x3dbl_3 = _Conv(96, 96, 3, pad=1)
        self.branch_pool = _Conv(before, pooled, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        five = self.branch5x5_2(self.branch5x5_1(x))
        three = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch1x1(x), five, three, self.branch_pool(_mean_pool(x))], 1)


class _B(nn.Module):
    def __init__(self, before: int) -> None:
        super().__init__()
        self.branch3x3 = _Conv(before, 384, 3, stride=2)
        self.branch3x3dbl_1, self.branch3x3dbl_2 = _Conv(before, 64, 1), _Conv(64, 96, 3, pad=1)
        self.branch3x3dbl_3 = _Conv(96, 96, 3, stride=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch3x3(x), double, functional.max_pool2d(x, 3, stride=2)], 1)


class _C(nn.Module):
    def __init__(self, before: int, width: int) -> None:
        super().__init__()
        row: dict[str, Any] = {"size": (1, 7), "pad": (0, 3)}
        column: dict[str, Any] = {"size": (7, 1), "pad": (3, 0)}
        self.branch1x1 = _Conv(before, 192, 1)
        self.branch7x7_1, self.branch7x7_2 = _Conv(before, width, 1), _Conv(width, width, **row)
        self.branch7x7_3 = _Conv(width, 192, **column)
        self.branch7x7dbl_1, self.branch7x7dbl_2 = _Conv(before, width, 1), _Conv(width, width, **column)
        self.branch7x7dbl_3, self.branch7x7dbl_4 = _Conv(width, width, **row), _Conv(width, width, **column)
        self.branch7x7dbl_5 = _Conv(width, 192, **row)
        self.branch_pool = _Conv(before, 192, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        seven = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x)))
        double = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        double = self.branch7x7dbl_5(self.branch7x7dbl_4(double))
        return torch.cat([self.branch1x1(x), seven, double, self.branch_pool(_mean_pool(x))], 1)


class _D(nn.Module):
    def __init__(self, before: int) -> None:
        super().__init__()
        self.branch3x3_1, self.branch3x3_2 = _Conv(before, 192, 1), _Conv(192, 320, 3, stride=2)
        self.branch7x7x3_1, self.branch7x7x3_2 = _Conv(before, 192, 1), _Conv(192, 192, (1, 7), pad=(0, 3))
        self.branch7x7x3_3 = _Conv(192, 192, (7, 1), pad=(3, 0))
        self.branch7x7x3_4 = _Conv(192, 192, 3, stride=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        three = self.branch3x3_2(self.branch3x3_1(x))
        seven = self.branch7x7x3_4(self.branch7x7x3_3(self.branch7x7x3_2(self.branch7x7x3_1(x))))
        return torch.cat([three, seven, functional.max_pool2d(x, 3, stride=2)], 1)


class _E(nn.Module):
    """max_pool: the last block pools by the maximum, a slip in TensorFlow's graph that the weights know."""

    def __init__(self, before: int, max_pool: bool) -> None:
        super().__init__()
        row: dict[str, Any] = {"size": (1, 3), "pad": (0, 1)}
        column: dict[str, Any] = {"size": (3, 1), "pad": (1, 0)}
        self.branch1x1 = _Conv(before, 320, 1)
        self.branch3x3_1 = _Conv(before, 384, 1)
        self.branch3x3_2a, self.branch3x3_2b = _Conv(384, 384, **row), _Conv(384, 384, **column)
        self.branch3x3dbl_1, self.branch3x3dbl_2 = _Conv(before, 448, 1), _Conv(448, 384, 3, pad=1)
        self.branch3x3dbl_3a, self.branch3x3dbl_3b = _Conv(384, 384, **row), _Conv(384, 384, **column)
        self.branch_pool = _Conv(before, 192, 1)
        self._max_pool = max_pool

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        three = self.branch3x3_1(x)
        double = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        pooled = functional.max_pool2d(x, 3, stride=1, padding=1) if self._max_pool else _mean_pool(x)
        parts = [self.branch1x1(x), self.branch3x3_2a(three), self.branch3x3_2b(three)]
        parts += [self.branch3x3dbl_3a(double), self.branch3x3dbl_3b(double), self.branch_pool(pooled)]
        return torch.cat(parts, 1)


class Inception(nn.Module):
    """Pictures (B, 3, 299, 299), (x − 128)/128 of 8 bits, to features (B, 2048) of the last pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3, self.Conv2d_2a_3x3 = _Conv(3, 32, 3, stride=2), _Conv(32, 32, 3)
        self.Conv2d_2b_3x3, self.Conv2d_3b_1x1 = _Conv(32, 64, 3, pad=1), _Conv(64, 80, 1)
        self.Conv2d_4a_3x3 = _Conv(80, 192, 3)
        self.Mixed_5b, self.Mixed_5c, self.Mixed_5d = _A(192, 32), _A(256, 64), _A(288, 64)
        self.Mixed_6a, self.Mixed_6b, self.Mixed_6c = _B(288), _C(768, 128), _C(768, 160)
        self.Mixed_6d, self.Mixed_6e, self.Mixed_7a = _C(768, 160), _C(768, 192), _D(768)
        self.Mixed_7b, self.Mixed_7c = _E(1280, max_pool=False), _E(2048, max_pool=True)
        self.fc = nn.Linear(WIDTH, _CLASSES)  # in the weights, and not used

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(functional.max_pool2d(x, 3, stride=2)))
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(functional.max_pool2d(x, 3, stride=2))))
        x = self.Mixed_6e(self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x)))))
        x = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(x)))
        return x.mean((2, 3))


def prepared(image: Image.Image) -> NDArray[np.float32]:
    """A picture as clean-fid prepares it (2104.11222): (3, 299, 299), (x − 128)/128.

    Every channel is resized in floating point by Pillow's bicubic filter, which does not alias.
    """
    channels = [
        np.asarray(channel.convert("F").resize((SIDE, SIDE), Image.Resampling.BICUBIC)).clip(0, 255)
        for channel in image.convert("RGB").split()
    ]
    return np.asarray((np.stack(channels) - 128) / 128, np.float32)


def read_weights(path: Path) -> Inception:
    """The network with the weights of a file. Raises ModelError where it holds others, or nothing at all."""
    network = Inception()
    try:
        network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    except BROKEN as error:
        raise ModelError(
            f"{path} does not hold the weights of FID's Inception ({str(error)[:300]}); "
            "pt_inception-2015-12-05-6726825d.pth does"
        ) from error
    return network


class InceptionFeatures:
    """Pictures to features, with weights from a file. Raises ModelError where it holds others."""

    def __init__(self, path: Path, device: str) -> None:
        self._network, self._device = read_weights(path), device
        self._network.to(device).eval().requires_grad_(False)

    @torch.inference_mode()
    def __call__(
        self, images: Sequence[Image.Image], texts: Sequence[str], first: int
    ) -> NDArray[np.float32]:
        """Features (B, 2048); prompts do not matter."""
        pixels = torch.from_numpy(np.stack([prepared(image) for image in images]))
        features: NDArray[np.float32] = self._network(pixels.to(self._device)).float().cpu().numpy()
        return features
