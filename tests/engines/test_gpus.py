"""GPUs as the driver tells of them; the driver itself is the one thing that is stood in for."""

from __future__ import annotations

import ctypes
from typing import Any

import pytest

from driffusion_trt.engines.gpus import Gpu, Gpus, find_gpus


class Driver:
    """The few calls of libcuda that are made, over a list of GPUs."""

    def __init__(self, *gpus: tuple[str, tuple[int, int], int], version: int = 13000, fail: str = "") -> None:
        self.gpus, self.version, self.fail = gpus, version, fail
        self.initialised = False

    def _status(self, name: str) -> int:
        return 100 if self.fail == name else 0

    def cuInit(self, flags: int) -> int:
        self.initialised = True
        return self._status("cuInit")

    def cuDriverGetVersion(self, out: Any) -> int:
        out._obj.value = self.version
        return self._status("cuDriverGetVersion")

    def cuDeviceGetCount(self, out: Any) -> int:
        out._obj.value = len(self.gpus)
        return self._status("cuDeviceGetCount") if self.initialised else 3

    def cuDeviceGet(self, out: Any, index: int) -> int:
        out._obj.value = 40 + index  # a handle is not an index
        return 0

    def cuDeviceGetName(self, buffer: Any, length: int, device: int) -> int:
        buffer.value = self.gpus[device - 40][0].encode()[: length - 1]
        return 0

    def cuDeviceTotalMem_v2(self, out: Any, device: int) -> int:
        out._obj.value = self.gpus[device - 40][2]
        return 0

    def cuDeviceGetAttribute(self, out: Any, which: int, device: int) -> int:
        out._obj.value = self.gpus[device - 40][1][which - 75]
        return self._status("cuDeviceGetAttribute")

    def cuGetErrorString(self, status: int, out: Any) -> int:
        out._obj.value = ctypes.c_char_p(b"no CUDA-capable device is detected").value
        return 0


ADA = ("NVIDIA GeForce RTX 4090", (8, 9), 24 << 30)
HOPPER = ("NVIDIA H200", (9, 0), 141 << 30)


def test_every_gpu_with_what_it_is() -> None:
    found = find_gpus(lambda: Driver(ADA, HOPPER, version=12080))
    assert found == Gpus((Gpu(0, *ADA), Gpu(1, *HOPPER)), (12, 8))
    assert [gpu.target for gpu in found.found] == ["sm89", "sm90"]
    assert str(found.found[1]) == "NVIDIA H200 (sm90)"


def test_kinds_are_counted_once_each_by_their_first() -> None:
    found = find_gpus(lambda: Driver(ADA, HOPPER, ADA, ADA))
    assert [gpu.index for gpu in found.kinds] == [0, 1]


def test_a_machine_without_a_driver_says_so() -> None:
    def load() -> Any:
        raise OSError("libcuda.so.1: cannot open shared object file")

    assert find_gpus(load) == Gpus((), None, "no NVIDIA driver: libcuda.so.1 cannot be loaded")


def test_a_driver_without_gpus_says_so() -> None:
    found = find_gpus(lambda: Driver())
    assert found.found == () and "CUDA_VISIBLE_DEVICES" in found.why_none


@pytest.mark.parametrize("call", ["cuInit", "cuDeviceGetCount", "cuDeviceGetAttribute"])
def test_a_call_that_fails_is_told_by_name_and_in_the_drivers_words(call: str) -> None:
    found = find_gpus(lambda: Driver(ADA, fail=call))
    assert found.found == ()
    assert call in found.why_none and "100 (no CUDA-capable device is detected)" in found.why_none


def test_the_real_library_is_asked_where_there_is_one() -> None:
    """On a machine with GPUs this sees them; on one without it must not raise."""
    found = find_gpus()
    assert bool(found.found) != bool(found.why_none)
