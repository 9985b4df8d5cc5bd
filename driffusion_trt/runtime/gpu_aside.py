"""What is left behind when a device fails: kept until its work has ended, since no memory can go before."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Collection
from functools import partial

from .._errors import DeviceError
from ._driver import Device
from ._resources import Stream
from .gpu_picture import Picture
from .gpu_worker import Worker

__all__ = ["Aside", "Asides"]

_PATIENCE_S = 10.0  # for what is unfinished on other devices when the lanes are closed


class Aside:
    """What was in use when something failed: nothing of it is used again, and some may still be at work."""

    def __init__(
        self, workers: list[Worker], pictures: list[Picture], streams: list[Stream], deadline_s: float
    ) -> None:
        self._workers, self._pictures, self._lead = workers, pictures, streams
        self._streams = [*streams, *(worker.stream for worker in workers)]
        self._until = time.monotonic() + min(deadline_s, _PATIENCE_S)
        for stream in self._streams:
            if not _at_rest(stream):
                stream.device.held_up.add(stream, partial(_at_rest, stream))

    @property
    def hangs(self) -> bool:
        """Whether a device of it is lost: then it may never come to rest."""
        return any(stream.device.lost for stream in self._streams)

    def busy(self) -> list[Device]:
        """Devices that have not ended their work."""
        return [stream.device for stream in self._streams if not _at_rest(stream)]

    def wait(self) -> list[Device]:
        """The same, after some time to end it."""
        while (busy := self.busy()) and time.monotonic() < self._until:
            time.sleep(1e-3)
        return busy

    def close(self) -> None:
        """Give all of it back that can be."""
        for stream in self._streams:
            stream.device.held_up.remove(stream)
        for picture in self._pictures:
            picture.close()
        for worker in self._workers:
            worker.close()
        for stream in self._lead:
            with contextlib.suppress(DeviceError):
                stream.close()


class Asides:
    """All that was set aside and is not given back yet; safe from several threads."""

    def __init__(self) -> None:
        self._kept: list[Aside] = []
        self._lock = threading.Lock()

    def add(self, aside: Aside) -> None:
        with self._lock:
            self._kept.append(aside)

    def clear(self, devices: Collection[Device]) -> None:
        """Give back what has come to rest; and what these devices, which the caller leases, kept meanwhile.

        What waits for a device that hangs stays: the driver would wait, for ever perhaps.
        """
        with self._lock:
            gone = [aside for aside in self._kept if not aside.busy()]
            self._kept = [aside for aside in self._kept if aside not in gone]
        while gone:
            gone.pop().close()
        for device in devices:
            device.give_back()

    def wait(self, *, hanging: bool = False) -> set[Device]:
        """Devices that have not ended their work after some time to do so.

        hanging: also for what a device holds up that is known to hang.
        """
        with self._lock:
            kept = [aside for aside in self._kept if hanging or not aside.hangs]
        return {device for aside in kept for device in aside.wait()}

    def end(self) -> None:
        """Give it all back, after some patience; what a device that hangs holds up stays."""
        for device in self.wait(hanging=True):
            device.lost = True
        with self._lock:
            gone, self._kept = self._kept, []
        while gone:
            gone.pop().close()


def _at_rest(stream: Stream) -> bool:
    try:
        stream.device.make_current()
        return stream.done()
    except DeviceError:
        return True  # nothing runs on a broken device
