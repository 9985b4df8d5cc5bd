"""Memory, a stream and a graph on the current GPU: as little of CUDA as the tests of sessions need."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

import numpy as np
from cuda.bindings import runtime as cuda
from numpy.typing import NDArray

from driffusion_trt.engines.session import DeviceBuffer


def call(function: Callable[..., Any], *arguments: Any) -> Any:
    """A call's result without its status, which must be success."""
    status, *results = function(*arguments)
    assert status == cuda.cudaError_t.cudaSuccess, f"{function.__name__}: {status.name}"
    return results[0] if results else None


class Device:
    """Buffers and a stream; leaving the block frees them."""

    def __init__(self) -> None:
        self._buffers: list[int] = []
        self.stream: Any = call(cuda.cudaStreamCreateWithFlags, cuda.cudaStreamNonBlocking)

    def put(self, value: NDArray[Any]) -> DeviceBuffer:
        """A copy of an array in memory of its own."""
        value = np.ascontiguousarray(value)
        address = int(call(cuda.cudaMalloc, value.nbytes))
        self._buffers.append(address)
        self.write(DeviceBuffer(address, value.shape, value.dtype), value)
        return DeviceBuffer(address, value.shape, value.dtype)

    def write(self, buffer: DeviceBuffer, value: NDArray[Any]) -> None:
        kind = cuda.cudaMemcpyKind.cudaMemcpyHostToDevice
        call(cuda.cudaMemcpy, buffer.address, value.ctypes.data, value.nbytes, kind)

    def get(self, buffer: DeviceBuffer) -> NDArray[Any]:
        """The buffer's content, once all work on the stream is done."""
        self.wait()
        value = np.empty(buffer.shape, buffer.dtype)
        kind = cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost
        call(cuda.cudaMemcpy, value.ctypes.data, buffer.address, value.nbytes, kind)
        return value

    def wait(self) -> None:
        call(cuda.cudaStreamSynchronize, self.stream)

    def capture(self, work: Callable[[], None]) -> Any:
        """A graph of what `work` puts on the stream."""
        mode = cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        call(cuda.cudaStreamBeginCapture, self.stream, mode)
        work()
        graph = call(cuda.cudaStreamEndCapture, self.stream)
        return call(cuda.cudaGraphInstantiate, graph, 0)

    def launch(self, graph: Any) -> None:
        call(cuda.cudaGraphLaunch, graph, self.stream)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.wait()
        for address in self._buffers:
            call(cuda.cudaFree, address)
        call(cuda.cudaStreamDestroy, self.stream)
