"""Owners of what lives on a GPU: streams, events, memory, kernels and graphs.

Every method that enqueues work, or asks after it, is exactly one driver call, and none makes a
context current: the caller does that once for a run of calls on one device, with
`Device.make_current`. Constructors and `close` do it themselves. Addresses are plain integers.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable
from typing import Any, Self

import numpy as np
from numpy.typing import DTypeLike, NDArray

from .._errors import DeviceError, InputError
from ._device_errors import short_of_memory
from ._driver import Device, OnDevice, check, driver
from ._owner import Owner

__all__ = ["DeviceMemory", "Event", "Function", "GraphExec", "Module", "PinnedMemory", "Stream"]

Three = tuple[int, int, int]


class Stream(OnDevice):
    """A queue of work on a device; it does not wait for the default stream, nor that for it."""

    _end_call = "cuStreamDestroy"

    def __init__(self, device: Device) -> None:
        device.make_current()
        self._api = api = driver()
        flag = api.CUstream_flags.CU_STREAM_NON_BLOCKING
        super().__init__(device, check(api.cuStreamCreate(flag), "cuStreamCreate", device))
        self.pointer = int(self.handle)  # what TensorRT takes

    def wait(self, event: Event) -> None:
        """Later work on this stream waits for what the event has recorded, on any device."""
        check(self._api.cuStreamWaitEvent(self.handle, event.handle, 0), "cuStreamWaitEvent", self.device)

    def copy_to_device(self, target: int, source: int, size_bytes: int) -> None:
        """From pinned host memory, which must stay as it is until the copy is done."""
        result = self._api.cuMemcpyHtoDAsync(target, source, size_bytes, self.handle)
        check(result, "cuMemcpyHtoDAsync", self.device)

    def copy_to_host(self, target: int, source: int, size_bytes: int) -> None:
        """Into pinned host memory."""
        result = self._api.cuMemcpyDtoHAsync(target, source, size_bytes, self.handle)
        check(result, "cuMemcpyDtoHAsync", self.device)

    def copy(self, target: int, source: int, size_bytes: int) -> None:
        """Within the device."""
        result = self._api.cuMemcpyDtoDAsync(target, source, size_bytes, self.handle)
        check(result, "cuMemcpyDtoDAsync", self.device)

    def copy_peer(self, target: int, to: Device, source: int, of: Device, size_bytes: int) -> None:
        """From one device to another, of which this stream belongs to one."""
        result = self._api.cuMemcpyPeerAsync(target, to.context, source, of.context, size_bytes, self.handle)
        check(result, "cuMemcpyPeerAsync", self.device)

    def fill(self, target: int, byte: int, size_bytes: int) -> None:
        """Set every byte."""
        check(
            self._api.cuMemsetD8Async(target, byte, size_bytes, self.handle), "cuMemsetD8Async", self.device
        )

    def done(self) -> bool:
        """Whether all work is finished. Raises DeviceError where some of it failed."""
        return _ready(self._api.cuStreamQuery(self.handle), "cuStreamQuery", self.device)

    def synchronize(self) -> None:
        """Wait for all work; for start-up and tests, never inside a picture."""
        check(self._api.cuStreamSynchronize(self.handle), "cuStreamSynchronize", self.device)


class Event(OnDevice):
    """A mark in a stream that others wait for."""

    _end_call = "cuEventDestroy"

    def __init__(self, device: Device, *, timing: bool = False, blocking: bool = False) -> None:
        """timing: for `elapsed_ms`, at a cost. blocking: a host that waits sleeps and does not spin."""
        device.make_current()
        self._api = api = driver()
        flags = api.CUevent_flags
        flag = (0 if timing else int(flags.CU_EVENT_DISABLE_TIMING)) | (
            int(flags.CU_EVENT_BLOCKING_SYNC) if blocking else 0
        )
        super().__init__(device, check(api.cuEventCreate(flag), "cuEventCreate", device))

    def record(self, stream: Stream) -> None:
        """Mark what is on the stream now; it must be of the event's device."""
        check(self._api.cuEventRecord(self.handle, stream.handle), "cuEventRecord", self.device)

    def done(self) -> bool:
        """Whether what was recorded is finished. Raises DeviceError where some of it failed."""
        return _ready(self._api.cuEventQuery(self.handle), "cuEventQuery", self.device)

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait on the host for what was recorded.

        timeout_s: None is one driver call without a limit. Else the event is asked again and
            again, with pauses of at most 1 ms, and the answer is False where it took longer.

        Raises DeviceError where the work failed.
        """
        if timeout_s is None:
            check(self._api.cuEventSynchronize(self.handle), "cuEventSynchronize", self.device)
            return True
        end, pause = time.monotonic() + timeout_s, 20e-6
        while not self.done():
            if time.monotonic() >= end:
                return False
            time.sleep(pause)
            pause = min(2 * pause, 1e-3)
        return True

    def elapsed_ms(self, since: Event) -> float:
        """Time between two finished events, both made with `timing`."""
        result = self._api.cuEventElapsedTime(since.handle, self.handle)
        return float(check(result, "cuEventElapsedTime", self.device))


def _ready(result: Any, call: str, device: Device) -> bool:
    if result[0] == driver().CUresult.CUDA_ERROR_NOT_READY:
        return False
    check(result, call, device)
    return True


class _Memory(OnDevice):
    """Bytes at a fixed `address`; while the device is held up they are kept for others and not given back."""

    def __init__(self, device: Device, size_bytes: int) -> None:
        device.make_current()
        spare = device.held_up.take(self._end_call, size_bytes)
        if spare is None:
            try:
                spare = size_bytes, self._get(device, size_bytes)
            except DeviceError as error:
                if short_of_memory(error):
                    spare = device.held_up.take(self._end_call, size_bytes, any_size=True)
                if spare is None:
                    raise
        self._whole_bytes, handle = spare
        self._count(device, self._whole_bytes)
        super().__init__(device, handle)
        self.address, self.size_bytes = int(handle), size_bytes

    @staticmethod
    def _get(device: Device, size_bytes: int) -> Any:
        """The driver's handle of new memory."""
        raise NotImplementedError

    @staticmethod
    def _count(device: Device, size_bytes: int) -> None:
        """So much was got, or given back where it is negative."""

    def _destroy(self) -> None:
        if not self.device.lost and self.device.held_up:
            self.device.held_up.keep(self._end_call, self._whole_bytes, self.handle)
        else:
            super()._destroy()
        self._count(self.device, -self._whole_bytes)


class DeviceMemory(_Memory):
    """Bytes on a GPU at a fixed `address`, a multiple of 256."""

    _end_call = "cuMemFree"

    @staticmethod
    def _get(device: Device, size_bytes: int) -> Any:
        return check(driver().cuMemAlloc(size_bytes), "cuMemAlloc", device)

    @staticmethod
    def _count(device: Device, size_bytes: int) -> None:
        device.count(size_bytes)


class PinnedMemory(_Memory):
    """Bytes on the host that every GPU can copy from and to, and kernels can use, at `address`.

    The device is the one whose context makes it; the others may use it too.
    """

    _end_call = "cuMemFreeHost"

    @staticmethod
    def _get(device: Device, size_bytes: int) -> Any:
        api = driver()
        flags = api.CU_MEMHOSTALLOC_PORTABLE | api.CU_MEMHOSTALLOC_DEVICEMAP
        return check(api.cuMemHostAlloc(size_bytes, flags), "cuMemHostAlloc", device)

    def array(
        self, dtype: DTypeLike = np.uint8, shape: tuple[int, ...] | None = None, offset: int = 0
    ) -> NDArray[Any]:
        """A view of the bytes from `offset` on, all of them without a shape; not to be used after `close`."""
        self.check_open()
        kind = np.dtype(dtype)
        if shape is None:
            shape = ((self.size_bytes - offset) // kind.itemsize,)
        size = int(np.prod(shape)) * kind.itemsize
        if offset < 0 or offset + size > self.size_bytes:
            raise InputError(
                f"{kind} of shape {shape} at byte {offset} does not fit into {self.size_bytes} pinned bytes"
            )
        buffer: Any = (ctypes.c_char * size).from_address(self.address + offset)
        buffer.owner = self  # an array keeps its buffer, and with it this
        view: NDArray[Any] = np.frombuffer(buffer, kind)
        return view.reshape(shape)


class Module(OnDevice):
    """Kernels loaded onto a device."""

    _end_call = "cuModuleUnload"

    def __init__(self, device: Device, image: bytes) -> None:
        """image: a fatbin, cubin or PTX. Raises DeviceError where it is none, or has no code for the GPU."""
        device.make_current()
        super().__init__(device, check(driver().cuModuleLoadData(image), "cuModuleLoadData", device))

    def function(self, name: str) -> Function:
        """A kernel by its name; good for as long as the module is."""
        self.check_open()
        self.device.make_current()
        result = driver().cuModuleGetFunction(self.handle, name.encode())
        return Function(self, name, check(result, f"cuModuleGetFunction({name})", self.device))


class Function:
    """A kernel of a module."""

    __slots__ = ("_call", "_launch", "handle", "module", "name")

    def __init__(self, module: Module, name: str, handle: Any) -> None:
        self.module, self.name, self.handle = module, name, handle
        self._launch, self._call = driver().cuLaunchKernel, f"cuLaunchKernel({name})"

    def launch(self, grid: Three, block: Three, stream: Stream, parameters: int) -> None:
        """parameters: address of an array of pointers to the arguments, which are copied by the call."""
        result = self._launch(self.handle, *grid, *block, 0, stream.handle, parameters, 0)
        check(result, self._call, self.module.device)


class GraphExec(OnDevice):
    """Work that was captured from a stream and is launched again with one call."""

    _end_call = "cuGraphExecDestroy"

    @classmethod
    def capture(cls, stream: Stream, enqueue: Callable[[], object], *needs: Owner) -> Self:
        """Record what `enqueue` puts on the stream, without running it.

        Only calls of this thread are held to the rules of capturing, so that other threads
        may use the driver meanwhile.

        Args:
            needs: owners of the buffers and kernels that the graph uses; they stay until it is closed.

        Raises:
            DeviceError: something that cannot be captured was enqueued, or could not be built.
            Whatever `enqueue` raises.
        """
        api, device = driver(), stream.device
        device.make_current()
        mode = api.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        check(api.cuStreamBeginCapture(stream.handle, mode), "cuStreamBeginCapture", device)
        try:
            enqueue()
        except BaseException:
            # The stream must leave its capturing, whether that was broken by now or not.
            status, graph = api.cuStreamEndCapture(stream.handle)
            if not status and graph is not None:
                api.cuGraphDestroy(graph)
            raise
        graph = check(api.cuStreamEndCapture(stream.handle), "cuStreamEndCapture", device)
        try:
            handle = check(api.cuGraphInstantiate(graph, 0), "cuGraphInstantiate", device)
        finally:
            check(api.cuGraphDestroy(graph), "cuGraphDestroy", device)
        return cls(device, handle, *needs)

    def launch(self, stream: Stream) -> None:
        """Run it on a stream of its device; a second launch waits for the first one."""
        check(driver().cuGraphLaunch(self.handle, stream.handle), "cuGraphLaunch", self.device)
