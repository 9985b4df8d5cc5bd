"""A network that runs once for a picture, a text encoder or the decoder, on one device: arrays in and out."""

from __future__ import annotations

import contextlib
import threading
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._errors import DeviceError, EngineError, InputError, LaneError
from ..engines.session import DeviceBuffer
from ..engines.trt_session import BoundEngine, TensorRTSession
from ._device_errors import short_of_memory
from ._driver import Device
from ._owner import Owners
from ._resources import DeviceMemory, Event, PinnedMemory, Stream
from .gpu_scratch import Scratch
from .gpu_sessions import close_session, let_go

__all__ = ["GpuNetwork"]

Array = NDArray[Any]
_FORMS_KEPT = 4


class GpuNetwork:
    """A TensorRT session with the `run` of an ONNX Runtime session; safe from several threads."""

    def __init__(self, device: Device, session: TensorRTSession, *, deadline_s: float = 120.0) -> None:
        """deadline_s: a call that takes longer has a device that hangs."""
        self.device, self.session, self._deadline_s = device, session, deadline_s
        self.inputs, self.outputs = session.inputs, session.outputs
        self._stream = Stream(device)
        self._scratch = Scratch(device)
        self._done = Event(device, blocking=True)
        self._forms: OrderedDict[tuple[tuple[str, tuple[int, ...]], ...], _Form] = OrderedDict()
        self._lock = threading.Lock()

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """One call: arrays by input name to fresh arrays by output name.

        Raises:
            InputError: an input is missing, unknown, of the wrong dtype, or outside of the plan's profile.
            EngineError, DeviceError: TensorRT or the driver failed.
            LaneError: the device did not answer in time; it is not to be used again.
        """
        for name, value in inputs.items():
            if name in self.inputs and value.dtype != self.inputs[name].dtype:
                wanted = self.inputs[name].dtype
                raise InputError(f"input {name!r} of {self.session.name} is {value.dtype}, expected {wanted}")
        with self._lock:
            if self.device.lost:  # while this call waited for another one
                raise LaneError(f"{self.device.title} hangs, and {self.session.name} is not run there")
            self.device.make_current(again=True)
            form = self._form({name: value.shape for name, value in inputs.items()})
            form.enqueue(self._stream, inputs)
            if not self._ends():
                self.device.lost = True
                raise LaneError(
                    f"{self.device.title} did not answer within {self._deadline_s:g} s while it ran "
                    f"{self.session.name}"
                )
            return form.results()

    def _ends(self) -> bool:
        """Whether all that was enqueued ends in time. Raises DeviceError where it failed."""
        self._done.record(self._stream)
        return self._done.wait(self._deadline_s)

    def works(self) -> bool:
        """Whether the device still does what it is asked to, going by this network's own stream.

        Others may run there meanwhile, or capture: they are neither waited for nor disturbed.
        """
        with self._lock, contextlib.suppress(DeviceError):
            self.device.make_current(again=True)
            self.device.lost = self.device.lost or not self._ends()
            return not self.device.lost
        return False

    def _form(self, shapes: Mapping[str, tuple[int, ...]]) -> _Form:
        key = tuple(sorted(shapes.items()))
        if key not in self._forms:
            self._keep(_FORMS_KEPT - 1)
            try:
                self._forms[key] = self._make(shapes)
            except (DeviceError, EngineError) as error:
                if not short_of_memory(error):
                    raise
                self._keep(0)
                self._forms[key] = self._make(shapes)
        self._forms.move_to_end(key)
        return self._forms[key]

    def _make(self, shapes: Mapping[str, tuple[int, ...]]) -> _Form:
        return _Form(self.device, self.session, self._scratch, shapes)

    def _keep(self, forms: int) -> None:
        while len(self._forms) > forms:
            self._forms.popitem(last=False)[1].close()

    def close(self) -> None:
        """Give buffers and session back; a second call does nothing."""
        with self._lock:
            self._keep(0)
            for owner in (self._done, self._stream):
                with contextlib.suppress(DeviceError):  # a broken device takes nothing back
                    owner.close()
            close_session(self.device, self.session)


class _Form:
    """Buffers for inputs of certain shapes, on the device and pinned."""

    def __init__(
        self,
        device: Device,
        session: TensorRTSession,
        scratch: Scratch,
        shapes: Mapping[str, tuple[int, ...]],
    ) -> None:
        self._owners = Owners()
        self._device = device
        self._bound: BoundEngine | None = None
        self._pinned: dict[str, PinnedMemory] = {}
        try:
            outputs = session.output_shapes(shapes)
            self._inputs = {
                name: self._make(name, s, session.inputs[name].dtype) for name, s in shapes.items()
            }
            self._outputs = {
                name: self._make(name, s, session.outputs[name].dtype) for name, s in outputs.items()
            }
            self._bound = session.bind(self._inputs, self._outputs, scratch.lender(self._owners))
        except BaseException:
            self.close()
            raise

    def _make(self, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> DeviceBuffer:
        size_bytes = int(np.prod(shape)) * dtype.itemsize
        memory = self._owners.own(DeviceMemory(self._device, size_bytes))
        self._pinned[name] = self._owners.own(PinnedMemory(self._device, size_bytes))
        return DeviceBuffer(memory.address, shape, dtype)

    def _array(self, name: str, buffer: DeviceBuffer) -> Array:
        return self._pinned[name].array(buffer.dtype, buffer.shape)

    def enqueue(self, stream: Stream, inputs: Mapping[str, Array]) -> None:
        for name, buffer in self._inputs.items():
            self._array(name, buffer)[...] = inputs[name]
            stream.copy_to_device(buffer.address, self._pinned[name].address, self._pinned[name].size_bytes)
        assert self._bound is not None
        self._bound.enqueue(stream.pointer)
        for name, buffer in self._outputs.items():
            stream.copy_to_host(self._pinned[name].address, buffer.address, self._pinned[name].size_bytes)

    def results(self) -> dict[str, Array]:
        return {name: np.array(self._array(name, buffer)) for name, buffer in self._outputs.items()}

    def close(self) -> None:
        let_go(self._device, self._bound)
        self._bound = None
        self._owners.close()
