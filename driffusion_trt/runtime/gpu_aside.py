"""What is left behind when a device fails: kept until its work has ended, since no memory can go before."""

from __future__ import annotations

import contextlib
import threading
import time

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
        self._workers, self.pictures, self._lead = workers, pictures, streams
        self._until = time.monotonic() + min(deadline_s, _PATIENCE_S)

    def busy(self) -> list[Device]:
        """Devices that have not ended their work."""
        streams = [*self._lead, *(worker.stream for worker in self._workers)]
        return [stream.device for stream in streams if not _at_rest(stream)]

    def wait(self) -> list[Device]:
        """The same, after some time to end it."""
        while (busy := self.busy()) and time.monotonic() < self._until:
            time.sleep(1e-3)
        return busy

    def close(self) -> None:
        """Give all of it back that can be."""
        for picture in self.pictures:
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

    def discard(self, picture: Picture) -> None:
        """Close a picture that nobody uses: now, or where a device may be busy, with the rest."""
        with self._lock:
            if self._kept:
                self._kept[-1].pictures.append(picture)
                return
        picture.close()

    def clear(self) -> bool:
        """Give it all back, but nothing while a device is busy: the driver would wait, for ever perhaps.

        Returns whether all of it is gone.
        """
        with self._lock:
            if any(aside.busy() for aside in self._kept):
                return False
            gone, self._kept = self._kept, []
        while gone:
            gone.pop().close()
        return True

    def wait(self) -> set[Device]:
        """Devices that have not ended their work after some time to do so."""
        with self._lock:
            kept = list(self._kept)
        return {device for aside in kept for device in aside.wait()}

    def end(self) -> None:
        """Give it all back, after some patience; what a device that hangs holds up stays."""
        for device in self.wait():
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
