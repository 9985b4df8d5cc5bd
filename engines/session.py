"""What runs a network, in one small form: ONNX Runtime on the CPU, both flavours of TensorRT on a GPU."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from .onnx_session import TensorInfo

__all__ = ["Bound", "DeviceBuffer", "Network", "Session", "TensorInfo"]

B_contra = TypeVar("B_contra", contravariant=True)


@dataclass(frozen=True, slots=True)
class DeviceBuffer:
    """Memory on a GPU, owned by whoever made it: its address, and how a network is to see it."""

    address: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def size_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


class Network(Protocol):
    """What runs a network on arrays, one call after another."""

    @property
    def inputs(self) -> Mapping[str, TensorInfo]:
        """Dtype and sides of each input; a side that may vary has a name, or None."""

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Arrays by input name to fresh arrays by output name.

        Raises:
            InputError: an input is missing, unknown, or of the wrong shape or dtype.
        """


class Bound(Protocol):
    """A network tied to buffers that stay; for one thread at a time."""

    def enqueue(self, stream: int = 0) -> None:
        """Compute the outputs from the inputs, on a CUDA stream, or at once where there is none."""


class Session(Protocol[B_contra]):
    """A loaded network. Buffers are arrays for ONNX Runtime and `DeviceBuffer` for TensorRT."""

    @property
    def inputs(self) -> Mapping[str, TensorInfo]:
        """Dtype and sides of each input; a side that may vary has a name, or None."""

    @property
    def outputs(self) -> Mapping[str, TensorInfo]:
        """The same for each output."""

    def check(self, shapes: Mapping[str, tuple[int, ...]]) -> object:
        """Raise InputError where a call with inputs of these shapes cannot be."""

    def bind(self, inputs: Mapping[str, B_contra], outputs: Mapping[str, B_contra]) -> Bound:
        """Tie every input and output to a buffer.

        Raises:
            InputError: a buffer is missing, unknown, or of the wrong shape or dtype.
        """

    def close(self) -> None:
        """Give the weights back; a second call does nothing."""
