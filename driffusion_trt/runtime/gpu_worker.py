"""One device of a lane: its engine, its stream, and the forms of request that it has got ready."""

from __future__ import annotations

import contextlib
import time
from collections import OrderedDict
from collections.abc import Collection

from .._errors import DeviceError
from ..engines.trt_session import TensorRTSession
from ._driver import Device
from ._resources import Stream
from .gpu_request import Form, Request
from .gpu_scratch import Scratch
from .kernels import Kernels

__all__ = ["Worker"]


class Worker:
    """A device, its engine and its stream. Not for several threads at once."""

    def __init__(
        self,
        device: Device,
        session: TensorRTSession,
        kernels: Kernels,
        latents: str,
        *,
        graphs: bool = True,
        deadline_s: float = 120.0,
    ) -> None:
        """latents: the network's name for its input of latents. graphs: launch captured graphs.

        deadline_s: a first run that takes longer shows that the device hangs.
        """
        self.device, self.session, self.kernels, self.latents = device, session, kernels, latents
        self.graphs, self.deadline_s = graphs, deadline_s
        self.without_graphs: str = ""  # why graphs are not used, where they were asked for
        self.stream = Stream(device)
        self.scratch = Scratch(device)
        self._requests: OrderedDict[Form, Request] = OrderedDict()

    def request(self, form: Form) -> Request:
        """Buffers and graph for a form; those used last are kept.

        Raises:
            InputError: the engine's profile does not cover it.
            DeviceError, EngineError: there is no memory for it, TensorRT refused, or the device hangs.
        """
        if form not in self._requests:
            self._requests[form] = Request(self, form)
        self._requests.move_to_end(form)
        return self._requests[form]

    def trim(self, used: Collection[Request], keep: int) -> None:
        """Let go of forms but for those used last, and those in use; nothing may be running."""
        for form, request in list(self._requests.items()):
            if len(self._requests) <= keep:
                break
            if request not in used:
                self._requests.pop(form).close()

    def settle(self) -> None:
        """Wait for what was enqueued. Raises DeviceError where it failed, or the device does not end it."""
        end = time.monotonic() + self.deadline_s
        self.device.make_current()
        while not self.stream.done():
            if time.monotonic() >= end:
                self.device.lost = True
                raise DeviceError(f"the first run of {self.session.name} took over {self.deadline_s:g} s")
            time.sleep(1e-4)
        self.session.save_kernels()  # now and not at the end, which a process that is killed does not see

    def close(self) -> None:
        """Give the buffers, graphs and the stream back; a second call does nothing."""
        while self._requests:
            self._requests.popitem()[1].close()
        with contextlib.suppress(DeviceError):  # a broken device takes nothing back
            self.stream.close()
