"""Which NVIDIA GPUs this machine has, asked of the driver itself: no CUDA package is needed for that.

`CUDA_VISIBLE_DEVICES` counts, as it does for everything that runs on them.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

__all__ = ["Gpu", "Gpus", "find_gpus"]

_LIBRARY = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU: its number for CUDA, the name its maker gave it, its compute capability, its memory."""

    index: int
    name: str
    capability: tuple[int, int]
    memory_bytes: int

    @property
    def target(self) -> str:
        """Its architecture as builders name it: "sm89"."""
        return "sm{}{}".format(*self.capability)

    def __str__(self) -> str:
        return f"{self.name} ({self.target})"


@dataclass(frozen=True, slots=True)
class Gpus:
    """What was found, or why nothing was, in words; `cuda` is the highest version that the driver runs."""

    found: tuple[Gpu, ...]
    cuda: tuple[int, int] | None = None
    why_none: str = ""

    @property
    def kinds(self) -> tuple[Gpu, ...]:
        """One GPU of each kind: plans fit all GPUs of the same name and architecture."""
        kinds: dict[tuple[str, tuple[int, int]], Gpu] = {}
        for gpu in self.found:
            kinds.setdefault((gpu.name, gpu.capability), gpu)
        return tuple(kinds.values())


class _DriverError(Exception):
    """A call of the driver failed."""


def _load() -> Any:
    return ctypes.CDLL(_LIBRARY)


def find_gpus(load: Callable[[], Any] = _load) -> Gpus:
    """The GPUs that CUDA can use here, without making a context on any of them.

    Args:
        load: gives the driver's library; OSError where there is none.
    """
    try:
        library = load()
    except OSError:
        return Gpus((), None, f"no NVIDIA driver: {_LIBRARY} cannot be loaded")
    try:
        _call(library, "cuInit", 0)
        version = _number(library, "cuDriverGetVersion")
        gpus = tuple(_gpu(library, index) for index in range(_number(library, "cuDeviceGetCount")))
    except _DriverError as error:
        return Gpus((), None, str(error))
    why = "" if gpus else "the NVIDIA driver sees no GPU; is CUDA_VISIBLE_DEVICES empty?"
    return Gpus(gpus, (version // 1000, version % 1000 // 10), why)


def _call(library: Any, name: str, *arguments: Any) -> None:
    status = getattr(library, name)(*arguments)
    if status:
        text = ctypes.c_char_p()
        library.cuGetErrorString(status, ctypes.byref(text))
        words = text.value.decode() if text.value else "unknown error"
        raise _DriverError(f"the NVIDIA driver's {name} failed with {status} ({words})")


def _number(library: Any, name: str, *arguments: Any) -> int:
    value = ctypes.c_int()
    _call(library, name, ctypes.byref(value), *arguments)
    return value.value


def _gpu(library: Any, index: int) -> Gpu:
    device = _number(library, "cuDeviceGet", index)
    name = ctypes.create_string_buffer(256)
    _call(library, "cuDeviceGetName", name, len(name), device)
    memory = ctypes.c_size_t()
    _call(library, "cuDeviceTotalMem_v2", ctypes.byref(memory), device)
    major, minor = (_number(library, "cuDeviceGetAttribute", which, device) for which in (_MAJOR, _MINOR))
    return Gpu(index, name.value.decode(errors="replace"), (major, minor), memory.value)
