"""When a picture's work on GPUs began and ended: timing events on its streams, read once it is there."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from ..sampling.recording import LEAD, Recorder, lane_track
from ._driver import Device
from ._owner import Owners
from ._resources import Event, Stream
from .gpu_links import LaneLink, WorkerLink
from .gpu_picture import blame

__all__ = ["Marks", "marks_for"]


@dataclass(frozen=True, slots=True)
class _Mark:
    """An event on a stream. ends: the span that began at the track's mark before; "" where none did."""

    track: str
    ends: str
    round: int
    event: Event


class Marks:
    """Nobody wants to know, so nothing is recorded; `marks_for` gives others where there is a recorder."""

    def begin(self, streams: Iterable[Stream], wait: Callable[[Event], None]) -> None:
        """Before anything of the picture is enqueued. `wait` waits for an event on the host.

        Raises WorkerFailed, as `end` does.
        """

    def lead(self, stream: Stream, ends: str = "", round: int = 0) -> None:
        """On the lead's stream, whose context is current."""

    def lane(self, lane: int, link: LaneLink, one: WorkerLink, ends: str = "", round: int = 0) -> None:
        """On the stream of one device of a lane, whose context is current."""

    def end(self) -> None:
        """Once all of it is done: hand the spans to the recorder."""

    def close(self) -> None:
        """Give the events back; a second call does nothing."""


class _Recording(Marks):
    """Marks on every stream.

    A device's clock counts from an event that the host waited for while the device was idle, so that spans of
    different devices lie beside each other to within the time that the host takes to notice; what one stream
    says of itself is as exact as its events. The events cost a call of the driver each, and the waiting one
    round trip for each device before the picture.
    """

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self._owners = Owners()
        self._zero: dict[Device, tuple[Event, float]] = {}
        self._marks: list[_Mark] = []

    def _event(self, stream: Stream) -> Event:
        event = self._owners.own(Event(stream.device, timing=True))
        event.record(stream)
        return event

    def begin(self, streams: Iterable[Stream], wait: Callable[[Event], None]) -> None:
        for stream in streams:
            if stream.device not in self._zero:
                with blame(stream.device):
                    stream.device.make_current(again=True)
                    event = self._event(stream)
                wait(event)
                self._zero[stream.device] = event, time.perf_counter()

    def lead(self, stream: Stream, ends: str = "", round: int = 0) -> None:
        self._marks.append(_Mark(LEAD, ends, round, self._event(stream)))

    def lane(self, lane: int, link: LaneLink, one: WorkerLink, ends: str = "", round: int = 0) -> None:
        part = link.links.index(one) if len(link.links) > 1 else None
        self._marks.append(_Mark(lane_track(lane, part), ends, round, self._event(one.worker.stream)))

    def end(self) -> None:
        before: dict[str, float] = {}
        begun: dict[str, float] = {}
        for mark in self._marks:
            device = mark.event.device
            zero, zero_s = self._zero[device]
            with blame(device):
                device.make_current()
                now = zero_s + 1e-3 * mark.event.elapsed_ms(zero)
            if mark.ends:
                self._recorder.add(mark.ends, mark.track, before[mark.track], now, mark.round)
            else:
                begun[mark.track] = now
            if mark.ends == "send":  # the last of a prediction's
                self._recorder.add("predict", mark.track, begun[mark.track], now, mark.round)
            before[mark.track] = now
        self._marks.clear()

    def close(self) -> None:
        self._owners.close()


def marks_for(recorder: Recorder | None) -> Marks:
    """Those of one run of a picture."""
    return Marks() if recorder is None else _Recording(recorder)
