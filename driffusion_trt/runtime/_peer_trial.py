"""A pair of GPUs that copies patterns and has them compared, and its copies timed."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from .._errors import DeviceError
from ._driver import Device
from ._resources import DeviceMemory, Event, PinnedMemory, Stream

__all__ = ["PeerTrial", "SilentError"]

_SIZE = (1 << 20) + 4096
# Offset in the source, offset in the target, bytes: whole pages, and a message that begins and ends anywhere.
_CUTS = ((0, 0, 1 << 20), (3, 4093, 1_000_003))
_BACKGROUND = 0xA5
_LARGE, _LARGE_COPIES = 16 << 20, 4
_SMALL, _SMALL_COPIES = 1024, 100
_REPEATS = 5


class SilentError(Exception):
    """Work on these devices did not end in time."""

    def __init__(self, *devices: Device) -> None:
        super().__init__()
        self.devices = devices


class _End:
    """One device's side of a pair."""

    def __init__(self, device: Device, stack: ExitStack) -> None:
        self.device = device
        self.stream = stack.enter_context(Stream(device))
        self.mark = stack.enter_context(Event(device))
        self.memory = stack.enter_context(DeviceMemory(device, _LARGE))
        # Each has its own: what hangs may still write there, so it stays if its device is lost.
        self.pinned = stack.enter_context(PinnedMemory(device, _SIZE))

    def settle(self, timeout_s: float) -> None:
        """Let work end whose step has failed, before its memory is freed."""
        end = time.monotonic() + timeout_s
        with suppress(DeviceError):  # work that failed has ended
            while not self.device.lost and not self.stream.done():
                self.device.lost = time.monotonic() >= end
                time.sleep(1e-3)


class PeerTrial:
    """A source and a target. The host waits after every step, so that it knows who hangs."""

    def __init__(self, source: Device, target: Device, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        with ExitStack() as stack:
            self._source, self._target = (_End(device, stack) for device in (source, target))
            self._timing = [stack.enter_context(Event(source, timing=True)) for _ in range(2)]
            self._stack = stack.pop_all()

    def _run(self, end: _End, enqueue: Callable[[Stream], None], *blamed: Device) -> None:
        end.device.make_current()
        enqueue(end.stream)
        end.mark.record(end.stream)
        if not end.mark.wait(self._timeout_s):
            blamed = blamed or (end.device,)
            for device in blamed:
                device.lost = True
            raise SilentError(*blamed)

    def _copy(self, cut: tuple[int, int, int], times: int = 1) -> Callable[[Stream], None]:
        at, to, size_bytes = cut
        at, to = at + self._source.memory.address, to + self._target.memory.address
        source, target = self._source.device, self._target.device

        def enqueue(stream: Stream) -> None:
            for _ in range(times):
                stream.copy_peer(to, target, at, source, size_bytes)

        return enqueue

    def verify(self) -> tuple[int, int]:
        """Bytes that were wrong, and bytes that were compared: pushed by the source, pulled by the target."""
        pattern = _pattern(self._source.device.ordinal, self._target.device.ordinal)
        wrong = compared = 0
        for cut in _CUTS:
            for carrier in (self._source, self._target):
                pattern = ~pattern  # no bit may be right because it was so before
                wrong += self._wrong(carrier, cut, pattern)
                compared += _SIZE
        return wrong, compared

    def _wrong(self, carrier: _End, cut: tuple[int, int, int], pattern: NDArray[np.uint8]) -> int:
        source, target = self._source, self._target
        at, to, size_bytes = cut
        source.pinned.array()[:] = pattern
        self._run(source, lambda s: s.copy_to_device(source.memory.address, source.pinned.address, _SIZE))
        self._run(target, lambda s: s.fill(target.memory.address, _BACKGROUND, _SIZE))
        self._run(carrier, self._copy(cut), source.device, target.device)
        arrived = target.pinned.array()
        arrived[:] = ~pattern
        self._run(target, lambda s: s.copy_to_host(target.pinned.address, target.memory.address, _SIZE))
        expected = np.full(_SIZE, _BACKGROUND, np.uint8)
        expected[to : to + size_bytes] = pattern[at : at + size_bytes]
        return int(np.count_nonzero(arrived != expected))

    def measure(self) -> tuple[float, float]:
        """GB/s of large copies, and microseconds of a small one."""
        large_ms = self._median_ms(_LARGE, _LARGE_COPIES)
        small_ms = self._median_ms(_SMALL, _SMALL_COPIES)
        return _LARGE / large_ms / 1e6, small_ms * 1e3

    def _median_ms(self, size_bytes: int, copies: int) -> float:
        """Of one of several copies in a row, after as many to warm up."""
        source, (start, end) = self._source, self._timing
        copy = self._copy((0, 0, size_bytes), copies)

        def timed(stream: Stream) -> None:
            start.record(stream)
            copy(stream)
            end.record(stream)

        taken = []
        for _ in range(1 + _REPEATS):
            self._run(source, timed, source.device, self._target.device)
            taken.append(end.elapsed_ms(start) / copies)
        return max(statistics.median(taken[1:]), 1e-6)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for end in (self._source, self._target):
            end.settle(self._timeout_s)
        try:
            self._stack.close()
        except DeviceError:
            if kind is None:  # else what went wrong first says more
                raise


def _pattern(source: int, target: int) -> NDArray[np.uint8]:
    """Bytes that tell where they belong: no word comes twice, and each pair has a pattern of its own."""
    own = (source * 4096 + target + 1) * 40503 % (1 << 32)
    words = np.arange(_SIZE // 4, dtype=np.uint32) * np.uint32(2654435761) + np.uint32(own)
    return words.view(np.uint8)
