"""Copies between GPUs, tried out before they are trusted: some systems corrupt them and say nothing.

An IOMMU, or PCIe's access control services (ACS), can send what one GPU writes to another somewhere
else, or garble it, while every call of the driver succeeds. So each pair copies patterns, which are
read back through the host and compared bit by bit.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from itertools import combinations, permutations

import numpy as np
from numpy.typing import NDArray

from .._errors import DeviceError
from ._driver import Device
from ._resources import DeviceMemory, Event, PinnedMemory, Stream

__all__ = ["PeerLink", "can_use", "check_peers"]

_SIZE = (1 << 20) + 4096
# Offset in the source, offset in the target, bytes: whole pages, and a message that begins and ends anywhere.
_CUTS = ((0, 0, 1 << 20), (3, 4093, 1_000_003))
_BACKGROUND = 0xA5
_LARGE, _LARGE_COPIES = 16 << 20, 4
_SMALL, _SMALL_COPIES = 1024, 100
_REPEATS = 5


@dataclass(frozen=True, slots=True)
class PeerLink:
    """What is known of copies from one GPU to another, by their ordinals.

    access: each of the two can use the other's memory directly, and may now.
    verified: what was copied is what arrived, byte by byte.
    problem: why copies cannot be direct, and what to do; empty where they can.
    bandwidth_gb_s, latency_us: of large copies, and of one small copy among many in a row, the cost
        of its call included; None where they were not measured.
    """

    source: int
    target: int
    access: bool
    verified: bool
    problem: str = ""
    bandwidth_gb_s: float | None = None
    latency_us: float | None = None


def can_use(link: PeerLink) -> bool:
    """Whether messages may be copied directly; else they are staged in pinned memory of the host."""
    return link.access and link.verified


class _SilentError(Exception):
    """Work on these devices did not end in time."""

    def __init__(self, *devices: Device) -> None:
        super().__init__()
        self.devices = devices


def check_peers(
    devices: Sequence[Device], *, measure: bool = False, timeout_s: float = 10.0
) -> dict[tuple[int, int], PeerLink]:
    """Try the copies from each device to each other one, after direct access was enabled where it can be.

    Access stays enabled; all else is given back. About 20 ms for a pair, and some more to measure.
    A device that does not answer in time is marked as `lost`, and both are where a copy between
    them does not end: nothing of this process could be freed there without waiting for ever.

    Args:
        measure: also bandwidth and latency, medians of several.
        timeout_s: how long one copy may take.

    Returns:
        A link for every ordered pair of ordinals; what fails for a pair is in its `problem`.
    """
    given = {device.ordinal: device for device in devices}
    refusals = {pair: _open(given[pair[0]], given[pair[1]]) for pair in combinations(given, 2)}
    return {
        pair: _check(given[pair[0]], given[pair[1]], _refusal(refusals, pair), measure, timeout_s)
        for pair in permutations(given, 2)
    }


def _refusal(refusals: dict[tuple[int, int], str], pair: tuple[int, int]) -> str:
    return refusals[pair] if pair in refusals else refusals[pair[::-1]]


def _open(one: Device, other: Device) -> str:
    """Enable access both ways; why that cannot be, or nothing."""
    try:
        for device, peer in ((one, other), (other, one)):
            if not device.can_access(peer):
                return (
                    f"{device.title} has no direct access to the memory of {peer.title}; copies go "
                    "through the host's memory, which is slower"
                )
        for device, peer in ((one, other), (other, one)):
            device.enable_peer(peer)
    except DeviceError as error:
        return str(error)
    return ""


def _check(source: Device, target: Device, refusal: str, measure: bool, timeout_s: float) -> PeerLink:
    link = PeerLink(source.ordinal, target.ordinal, not refusal, False, refusal)
    silent = [device for device in (source, target) if device.lost]
    if silent:
        return replace(link, problem=_silence(silent))
    try:
        with _Pair(source, target, _LARGE if measure else _SIZE, timeout_s) as pair:
            wrong, compared = pair.verify()
            if wrong:
                return replace(link, problem=_corruption(source, target, wrong, compared, link.access))
            figures = pair.measure() if measure else (None, None)
    except _SilentError as error:
        return replace(link, problem=_silence(error.devices))
    except DeviceError as error:
        return replace(link, problem=f"copies from {source.title} to {target.title} cannot be tried: {error}")
    return replace(link, verified=True, bandwidth_gb_s=figures[0], latency_us=figures[1])


def _silence(devices: Sequence[Device]) -> str:
    names = " and ".join(device.title for device in devices)
    return (
        f"a copy on {names} did not end in time; leave it out with CUDA_VISIBLE_DEVICES, and look for its "
        "errors in the kernel's log (dmesg | grep Xid)"
    )


def _corruption(source: Device, target: Device, wrong: int, compared: int, access: bool) -> str:
    what = (
        f"{wrong:,} of {compared:,} bytes were wrong after copies from {source.title} to {target.title}, and "
        "no call failed"
    )
    if not access:
        return f"{what}, though they went through the host; test its memory and update the driver"
    return (
        f"{what}; turn off PCIe ACS in the BIOS, and the IOMMU there or with the kernel's option iommu=pt: "
        "until then these copies have to go through the host's memory, which is slower"
    )


class _End:
    """One device's side of a pair."""

    def __init__(self, device: Device, size_bytes: int, stack: ExitStack) -> None:
        self.device = device
        self.stream = stack.enter_context(Stream(device))
        self.mark = stack.enter_context(Event(device))
        self.memory = stack.enter_context(DeviceMemory(device, size_bytes))
        # Each has its own: what hangs may still write there, so it stays if its device is lost.
        self.pinned = stack.enter_context(PinnedMemory(device, _SIZE))

    def settle(self, timeout_s: float) -> None:
        """Let work end whose step has failed, before its memory is freed."""
        end = time.monotonic() + timeout_s
        with suppress(DeviceError):  # work that failed has ended
            while not self.device.lost and not self.stream.done():
                self.device.lost = time.monotonic() >= end
                time.sleep(1e-3)


class _Pair:
    """A source and a target. The host waits after every step, so that it knows who hangs."""

    def __init__(self, source: Device, target: Device, size_bytes: int, timeout_s: float) -> None:
        self._timeout_s, self._size_bytes = timeout_s, size_bytes
        with ExitStack() as stack:
            self._source, self._target = (_End(device, size_bytes, stack) for device in (source, target))
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
            raise _SilentError(*blamed)

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
        large_ms = self._median_ms(self._size_bytes, _LARGE_COPIES)
        small_ms = self._median_ms(_SMALL, _SMALL_COPIES)
        return self._size_bytes / large_ms / 1e6, small_ms * 1e3

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

    def __enter__(self) -> _Pair:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
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
