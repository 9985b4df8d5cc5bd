"""What tests need of CUDA to drive the simulator, through the real cuda-bindings."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from ._build import build, kernel_image
from ._simulator import Simulator

driver = pytest.importorskip("cuda.bindings.driver", reason="cuda-bindings is not installed")
THREAD_LOCAL = driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
NO_TIMING = driver.CUevent_flags.CU_EVENT_DISABLE_TIMING
N = 64  # floats in a buffer
BYTES = 4 * N


def ok(result: Any) -> Any:
    """A call's values without its status, which must be success."""
    status, *values = result
    assert status == driver.CUresult.CUDA_SUCCESS, status.name
    return values[0] if len(values) == 1 else tuple(values) or None


def status(result: Any) -> str:
    """A failed call's status, as the driver's documentation writes it."""
    return str(result[0].name).removeprefix("CUDA_").removeprefix("ERROR_")


class Scale(ctypes.Structure):
    _fields_ = (
        ("x", ctypes.c_void_p),
        ("y", ctypes.c_void_p),
        ("a", ctypes.c_float),
        ("b", ctypes.c_float),
        ("n", ctypes.c_int),
    )


class Overrun(ctypes.Structure):
    _fields_ = (("y", ctypes.c_void_p), ("n", ctypes.c_int))


def launch(function: Any, stream: Any, argument: ctypes.Structure) -> Any:
    """One launch; what it was given is overwritten at once, as it may be."""
    params = (ctypes.c_void_p * 1)(ctypes.addressof(argument))
    result = driver.cuLaunchKernel(function, 1, 1, 1, 32, 1, 1, 0, stream, ctypes.addressof(params), 0)
    ctypes.memset(ctypes.addressof(argument), 0xEE, ctypes.sizeof(argument))
    return result


def floats(address: Any, count: int = N) -> NDArray[np.float32]:
    """Memory of the simulator as an array: a device pointer is an address of the host."""
    return np.ctypeslib.as_array((ctypes.c_float * count).from_address(int(address)))


class Gpu:
    """One device: its context, a stream, a module and two buffers. Everything else a test makes itself."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.context = ok(driver.cuDevicePrimaryCtxRetain(number))
        self.use()
        self.stream = ok(driver.cuStreamCreate(1))
        image = kernel_image(build() / "libcudasim_kernels.so")
        self.module = ok(driver.cuModuleLoadData(image))
        self.kernel = ok(driver.cuModuleGetFunction(self.module, b"scale"))
        self.x, self.y = ok(driver.cuMemAlloc(BYTES)), ok(driver.cuMemAlloc(BYTES))
        self.event = ok(driver.cuEventCreate(NO_TIMING))

    def use(self) -> None:
        ok(driver.cuCtxSetCurrent(self.context))

    def scale(self, x: Any, y: Any, a: float = 1, b: float = 0, n: int = N, stream: Any = None) -> None:
        self.use()
        ok(launch(self.kernel, stream or self.stream, Scale(int(x), int(y), a, b, n)))

    def fill(self, address: Any, value: float) -> None:
        bits = int(np.float32(value).view(np.uint32))
        ok(driver.cuMemsetD32Async(address, bits, N, self.stream))

    def wait(self) -> None:
        ok(driver.cuStreamSynchronize(self.stream))

    def close(self) -> None:
        self.use()
        self.wait()
        ok(driver.cuEventDestroy(self.event))
        for address in (self.x, self.y):
            ok(driver.cuMemFree(address))
        ok(driver.cuModuleUnload(self.module))
        ok(driver.cuStreamDestroy(self.stream))
        ok(driver.cuCtxSetCurrent(None))
        ok(driver.cuDevicePrimaryCtxRelease(self.number))


def captured(gpu: Gpu, work: Callable[[], None], mode: Any = THREAD_LOCAL) -> Any:
    """The graph of what `work` puts on a device's stream."""
    ok(driver.cuStreamBeginCapture(gpu.stream, mode))
    work()
    return ok(driver.cuStreamEndCapture(gpu.stream))


def clean(simulator: Simulator) -> None:
    """Nothing was found by the simulator."""
    assert simulator.races() == []
    assert simulator.violations() == []
