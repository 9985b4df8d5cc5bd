"""The CUDA driver: where it is loaded, the one `check` that every call goes through, and devices.

The only module that imports cuda-python; `_resources` has the owners of what lives on a device.
"""

from __future__ import annotations

import contextlib
import threading
from typing import Any, Protocol

from .._errors import DeviceError, MissingExtraError
from ._device_errors import NO_DRIVER, device_error
from ._held_up import HeldUp
from ._owner import Owner

__all__ = [
    "Device",
    "OnDevice",
    "check",
    "device_count",
    "driver",
    "driver_version",
    "nvrtc",
]

_local = threading.local()  # .device: the device that is current on this thread, as far as we know
_driver: Any = None
_success: Any = object()  # equal to no status until the driver is loaded


class _Titled(Protocol):
    @property
    def title(self) -> str: ...


def driver() -> Any:
    """`cuda.bindings.driver`, with the driver initialised.

    Raises:
        MissingExtraError: cuda-bindings is not installed.
        DeviceError: there is no NVIDIA driver, or it finds no GPU.
    """
    global _driver, _success
    if _driver is None:
        try:
            from cuda.bindings import driver as module
        except ImportError as error:
            raise MissingExtraError("cuda-bindings (the CUDA driver's Python side)", "tensorrt") from error
        try:
            result = module.cuInit(0)
        except RuntimeError as error:  # cuda-bindings finds no libcuda, or one without what it needs
            raise DeviceError(f"{NO_DRIVER} ({error})", "NO_DRIVER") from error
        check(result, "cuInit")
        _driver, _success = module, module.CUresult.CUDA_SUCCESS
    return _driver


def nvrtc() -> Any:
    """`cuda.bindings.nvrtc`; its library is looked for at the first call.

    Raises:
        MissingExtraError: cuda-bindings is not installed.
    """
    try:
        from cuda.bindings import nvrtc as module
    except ImportError as error:
        raise MissingExtraError("cuda-bindings (the CUDA driver's Python side)", "tensorrt") from error
    return module


def check(result: Any, call: str, device: _Titled | None = None) -> Any:
    """What a call of cuda-python returned beside its status: nothing, one value or a tuple.

    Raises:
        DeviceError: the status is not success, or what came back is None or False.
    """
    if result == (_success,) and result[0] is _success:  # what the calls inside a round return
        return None
    if not isinstance(result, tuple) or not result:
        raise DeviceError(f"{call} returned {result!r}, which is no answer of cuda-python", "NO_ANSWER")
    status, *values = result
    if status is not _success and (status is None or status is False or int(status) != 0):
        raise device_error(status, call, device.title if device else None, _words(status))
    if any(value is None or value is False for value in values):
        raise DeviceError(f"{call} said success and returned {values!r}", "NO_ANSWER")
    return values[0] if len(values) == 1 else tuple(values) or None


def _words(status: Any) -> str:
    """What the driver says about a status; it knows those of its own only."""
    if _driver is None or not isinstance(status, _driver.CUresult):
        return ""
    _, words = _driver.cuGetErrorString(status)
    return words.decode(errors="replace") if words else ""


def device_count() -> int:
    """Number of GPUs that this process may use (CUDA_VISIBLE_DEVICES is respected)."""
    return int(check(driver().cuDeviceGetCount(), "cuDeviceGetCount"))


def driver_version() -> tuple[int, int]:
    """The newest CUDA that the driver supports, (13, 0) for instance."""
    version = int(check(driver().cuDriverGetVersion(), "cuDriverGetVersion"))
    return version // 1000, version % 1000 // 10


class Device(Owner):
    """A GPU and its primary context, which other CUDA code of the process shares (TensorRT does).

    `broken` is for whoever saw it fail: it gets no new work. `lost` is for whoever saw it hang:
    what is on it is then given up without a driver call, since those would wait for ever.
    `held_up` is true while streams of it wait for a device that hangs: it works, but takes no memory back.
    `held_bytes` is what our buffers take, `peak_bytes` the most that it was since `reset_peak`.
    """

    def __init__(self, ordinal: int) -> None:
        """Raises DeviceError where there is no such GPU or it cannot be used."""
        api = driver()
        count = device_count()
        if not 0 <= ordinal < count:
            raise DeviceError(
                f"there is no GPU {ordinal}: {count} can be seen from here, numbered from 0; "
                "check CUDA_VISIBLE_DEVICES",
                "CUDA_ERROR_INVALID_DEVICE",
            )
        self.ordinal, self.title = ordinal, f"GPU {ordinal}"
        self.handle = check(api.cuDeviceGet(ordinal), "cuDeviceGet", self)
        name = check(api.cuDeviceGetName(128, self.handle), "cuDeviceGetName", self)
        self.name = name.split(b"\0", 1)[0].decode(errors="replace")
        self.title = f"GPU {ordinal} ({self.name})"
        kinds = api.CUdevice_attribute
        self.compute_capability = (
            self.attribute(kinds.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR),
            self.attribute(kinds.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR),
        )
        self.context = check(api.cuDevicePrimaryCtxRetain(self.handle), "cuDevicePrimaryCtxRetain", self)
        self.broken = self.lost = False
        self.held_up = HeldUp()
        self.held_bytes = self.peak_bytes = 0
        self._counting = threading.Lock()
        super().__init__()

    @property
    def usable(self) -> bool:
        """Whether nobody saw it fail or hang."""
        return not (self.broken or self.lost)

    def attribute(self, kind: Any) -> int:
        """One of CUdevice_attribute."""
        return int(check(driver().cuDeviceGetAttribute(kind, self.handle), "cuDeviceGetAttribute", self))

    def make_current(self, *, again: bool = False) -> None:
        """Make the context current on this thread; costs nothing where we did so last.

        again: do it in any case, after code of others that may have chosen another context.
        """
        self.check_open()
        if getattr(_local, "device", None) is not self or again:
            check(driver().cuCtxSetCurrent(self.context), "cuCtxSetCurrent", self)
            _local.device = self

    def count(self, size_bytes: int) -> None:
        """So much memory was got, or given back where it is negative."""
        with self._counting:
            self.held_bytes += size_bytes
            self.peak_bytes = max(self.peak_bytes, self.held_bytes)

    def reset_peak(self) -> None:
        """Count the peak from here on."""
        with self._counting:
            self.peak_bytes = self.held_bytes

    def give_back(self) -> None:
        """The memory that was closed while the device was held up; nothing where it still is."""
        if self.lost or self.held_up:
            return
        for call, handle in self.held_up.all():
            with contextlib.suppress(DeviceError):  # a broken device takes nothing back
                self.make_current()
                check(getattr(driver(), call)(handle), call, self)

    def memory_bytes(self) -> tuple[int, int]:
        """Free and total memory."""
        self.make_current()
        free, total = check(driver().cuMemGetInfo(), "cuMemGetInfo", self)
        return int(free), int(total)

    def uuid(self) -> str:
        """What tells this GPU from all others: 32 hexadecimal digits."""
        return bytes(check(driver().cuDeviceGetUuid(self.handle), "cuDeviceGetUuid", self).bytes).hex()

    def pci_bus_id(self) -> str:
        """Where it sits, as nvidia-smi names it."""
        text = check(driver().cuDeviceGetPCIBusId(64, self.handle), "cuDeviceGetPCIBusId", self)
        return str(text.split(b"\0", 1)[0].decode())

    def can_access(self, peer: Device) -> bool:
        """Whether this GPU can read and write the other's memory directly."""
        answer = driver().cuDeviceCanAccessPeer(self.handle, peer.handle)
        return bool(check(answer, "cuDeviceCanAccessPeer", self))

    def enable_peer(self, peer: Device) -> None:
        """Let this GPU use the other's memory directly; it may be so already."""
        self._peer("cuCtxEnablePeerAccess", (peer.context, 0), "CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED")

    def disable_peer(self, peer: Device) -> None:
        """Undo `enable_peer`; it may be so already."""
        self._peer("cuCtxDisablePeerAccess", (peer.context,), "CUDA_ERROR_PEER_ACCESS_NOT_ENABLED")

    def _peer(self, call: str, arguments: tuple[Any, ...], already: str) -> None:
        self.make_current()
        result = getattr(driver(), call)(*arguments)
        if result[0] != getattr(driver().CUresult, already):
            check(result, call, self)

    def synchronize(self) -> None:
        """Wait for everything on the device; for start-up and tests, never inside a picture."""
        self.make_current()
        check(driver().cuCtxSynchronize(), "cuCtxSynchronize", self)

    def _destroy(self) -> None:
        if getattr(_local, "device", None) is self:
            _local.device = None
        if not self.lost:
            call = driver().cuDevicePrimaryCtxRelease
            check(call(self.handle), "cuDevicePrimaryCtxRelease", self)


class OnDevice(Owner):
    """An owner of something that lives in a device's context; `_end_call` gives it back."""

    _end_call: str

    def __init__(self, device: Device, handle: Any, *needs: Owner) -> None:
        self.device, self.handle = device, handle
        super().__init__(device, *needs)

    def _destroy(self) -> None:
        if self.device.lost:
            return
        if getattr(_local, "device", None) is not self.device:  # the device may be closed, but is still there
            check(driver().cuCtxSetCurrent(self.device.context), "cuCtxSetCurrent", self.device)
            _local.device = self.device
        check(getattr(driver(), self._end_call)(self.handle), self._end_call, self.device)
