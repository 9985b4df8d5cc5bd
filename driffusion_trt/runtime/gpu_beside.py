"""Networks beside the lanes, text encoders and the VAE: each on the device that leads the call."""

from __future__ import annotations

import contextlib
import logging
import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self, TypeVar

from numpy.typing import NDArray

from .._errors import DeviceError, DriffusionError, EngineError, LaneError, ModelError
from ..engines.session import TensorInfo
from ._device_errors import short_of_memory
from ._driver import Device
from ._lead import current_lead
from ._waiting import Waiting, current_waiting
from .gpu_network import GpuNetwork

__all__ = ["Beside"]

_log = logging.getLogger("driffusion_trt.runtime")
_LEFT_OUT_S = 60.0  # for which a lead without memory for a network is not asked again

Array = NDArray[Any]
T = TypeVar("T")


class Beside:
    """A network on the device that leads whoever calls, loaded where it is first needed; from any thread.

    Where nobody said who leads, where the lead fails and where it cannot have the network, it is on the first
    device that works. Calls on several devices run at the same time, on each one after another.
    """

    def __init__(self, name: str, choices: Sequence[tuple[Device, Callable[[], GpuNetwork]]]) -> None:
        """choices: devices in the order to take them, and what loads the network there; nothing is loaded."""
        self._name = name
        self._places = {device: _Place(device, load) for device, load in choices}
        # Has others give memory back on a device that they can do without.
        self.make_room: Callable[[Device, Waiting], None] | None = None
        self._closed = False

    @property
    def inputs(self) -> Mapping[str, TensorInfo]:
        """As those of a session. Raises LaneError before it was loaded."""
        for place in self._places.values():
            if place.made is not None:
                return place.made.inputs
        raise LaneError(f"{self._name} is not loaded; call load() first")

    def load(self) -> None:
        """Have it where a call of this thread would run now. Raises as `run`, and as its loading does."""
        self._there(lambda network: None)

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """As `GpuNetwork.run`; raises LaneError where no device is left, and what loading raises there."""
        return self._there(lambda network: network.run(inputs))

    def _there(self, use: Callable[[GpuNetwork], T]) -> T:
        asked: set[Device] = set()  # for room
        while True:
            place = self._place()
            try:
                return use(place.network())
            except (DeviceError, EngineError, LaneError, ModelError) as error:
                if self._closed or not self._goes_on(place, error, asked):
                    raise

    def _place(self) -> _Place:
        lead = current_lead()
        own = None if lead is None else self._places.get(lead)
        if own is not None and own.device.usable and time.monotonic() >= own.left_out_until_s:
            return own
        return self._first()

    def _first(self) -> _Place:
        for place in self._places.values():
            if place.device.usable:
                return place
        raise LaneError("every device has failed; load the pipeline again, or see driffusion-trt doctor")

    def _goes_on(self, place: _Place, error: DriffusionError, asked: set[Device]) -> bool:
        """Whether to try again, there or elsewhere; what failed is taken note of."""
        if short_of_memory(error):
            if place.device not in asked and self._has_room_made(place.device):
                asked.add(place.device)
                return True
            return self._leaves_out(place, error, _LEFT_OUT_S)
        # TensorRT fails on a broken device too, but also for reasons of its own.
        loads = place.made is None
        if isinstance(error, EngineError | ModelError) and place.works():
            return loads and self._leaves_out(place, error, math.inf)
        if loads and place is self._first():
            return False
        place.device.broken = True
        return any(other.device.usable for other in self._places.values())

    def _has_room_made(self, device: Device) -> bool:
        if self.make_room is None:
            return False
        try:
            self.make_room(device, current_waiting())
        except LaneError:  # this thread makes a picture, or the lanes are closed
            return False
        return True

    def _leaves_out(self, place: _Place, error: DriffusionError, for_s: float) -> bool:
        """Have its calls run on the first device for some time; False where it is that one."""
        first = self._first()
        if place is first:
            return False
        place.left_out_until_s = time.monotonic() + for_s
        _log.warning(
            "%s has no %s; for the pictures that it leads it runs on %s: %s",
            *(place.device.title, self._name, first.device.title, error),
        )
        return True

    def close(self) -> None:
        """Give everything back; a second call does nothing."""
        self._closed = True
        for place in self._places.values():
            place.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class _Place:
    """The network on one device, once it is loaded there."""

    def __init__(self, device: Device, load: Callable[[], GpuNetwork]) -> None:
        self.device, self._load = device, load
        self.made: GpuNetwork | None = None
        self.left_out_until_s = -math.inf  # of `time.monotonic`
        self._closed, self._lock = False, threading.Lock()

    def network(self) -> GpuNetwork:
        with self._lock:
            if self._closed:
                raise LaneError("the networks are closed; load the pipeline again")
            if self.made is None:
                self.made = self._load()
            return self.made

    def works(self) -> bool:
        """Whether the device does what it is asked to."""
        if self.made is not None:
            return self.made.works()
        with contextlib.suppress(DeviceError):
            self.device.memory_bytes()
            return self.device.usable
        return False

    def close(self) -> None:
        with self._lock:
            self._closed = True
            if self.made is not None:
                self.made.close()
