"""One test's machine: its devices, what is to go wrong on them, and what was found."""

from __future__ import annotations

import ctypes
import itertools
import traceback
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from ._build import load

__all__ = ["Device", "Simulator"]

LAUNCH_FAILED = 719  # CUDA_ERROR_LAUNCH_FAILED
Range = tuple[int, int]  # address, bytes


@dataclass(frozen=True, slots=True)
class Device:
    """What a virtual device says of itself."""

    name: str = "Simulated GPU"
    capability: tuple[int, int] = (8, 9)
    memory_bytes: int = 1 << 30


class _DeviceSpec(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_char_p),
        ("major", ctypes.c_int),
        ("minor", ctypes.c_int),
        ("memory", ctypes.c_size_t),
    )


class _Range(ctypes.Structure):
    _fields_ = (("begin", ctypes.c_size_t), ("bytes", ctypes.c_size_t), ("write", ctypes.c_bool))


_keys = itertools.count(1)
_functions: dict[int, Callable[[], None]] = {}


def _run(key: int) -> int:
    """Called by a stream's thread; an exception fails the work and is told among the violations."""
    try:
        _functions[key]()
    except BaseException:
        load().cudasim_note(traceback.format_exc().replace("\n", " | ").encode())
        return LAUNCH_FAILED
    return 0


_trampoline = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_uint64)(_run)


def _drop_released() -> None:
    """Forget the callables that no stream, graph or executable graph holds any more."""
    keys = (ctypes.c_uint64 * 256)()
    while count := load().cudasim_released(keys, ctypes.c_size_t(len(keys))):
        for key in keys[:count]:
            _functions.pop(key, None)


class Simulator:
    """The simulated driver with devices of its own; leaving the block takes them away again.

    Args:
        devices: how many, or what each is.
        peers: pairs (device, peer) of which the first may be given access to the second's memory; all by
            default.
        delays: a seed for random delays before every operation of a stream, so that a missing wait really
            gives wrong data sometimes; None for none.
        delay_us: the longest delay.
        hang_limit_ms: a wait of the host that lasts longer returns CUDA_ERROR_LAUNCH_TIMEOUT and counts as a
            violation, since with a real driver it would never end.
        capture_peer_copies: whether cuMemcpyPeerAsync may be captured; not every driver can.
        threads_apart: what one thread of the host has waited for orders nothing that another one does, unless
            it was handed over; else all threads count as one.

    Raises:
        BuildError: it can not be built or loaded.
        RuntimeError: objects of an earlier test are still alive.
    """

    def __init__(self, devices: int | Iterable[Device] = 1, **options: Any) -> None:
        self._library = load()
        self.configure(devices, **options)

    def configure(
        self,
        devices: int | Iterable[Device] = 1,
        *,
        peers: Iterable[tuple[int, int]] | None = None,
        delays: int | None = None,
        delay_us: int = 200,
        hang_limit_ms: int = 20_000,
        capture_peer_copies: bool = False,
        threads_apart: bool = False,
    ) -> None:
        """Other devices and options, as for the class; no object of the driver may be alive."""
        specs = [Device()] * devices if isinstance(devices, int) else list(devices)
        pairs = itertools.permutations(range(len(specs)), 2) if peers is None else peers
        matrix = bytearray(len(specs) ** 2)
        for device, peer in pairs:
            matrix[device * len(specs) + peer] = 1
        rows = (_DeviceSpec * len(specs))(
            *(_DeviceSpec(spec.name.encode(), *spec.capability, spec.memory_bytes) for spec in specs)
        )
        if self._library.cudasim_configure(rows, ctypes.c_size_t(len(specs)), bytes(matrix)):
            raise RuntimeError(f"objects of the simulated driver are still alive: {self.live_objects()}")
        self._option("delay_seed", delays or 0)
        self._option("delay_us", delay_us)
        self._option("hang_limit_ms", hang_limit_ms)
        self._option("capture_peer_copies", capture_peer_copies)
        self._option("threads_apart", threads_apart)

    def _option(self, name: str, value: int) -> None:
        if self._library.cudasim_option(name.encode(), ctypes.c_uint64(value)):
            raise ValueError(f"the simulator has no option {name!r}")

    def reset(self) -> None:
        """Let everything end, take all objects away, and forget faults, counters and reports."""
        stuck = self._library.cudasim_reset()
        _drop_released()
        if stuck:
            raise RuntimeError("work on a simulated stream did not end within 30 s")

    # What goes wrong.

    def fail(
        self,
        entry: str,
        error: int,
        *,
        call: int = 1,
        times: int = 1,
        device: int | None = None,
        asynchronous: bool = False,
    ) -> None:
        """Make an entry point return an error.

        Args:
            entry: its name without a version: "cuMemAlloc".
            error: a CUresult. One that ruins a context (illegal address, launch failure) does so here too.
            call: which call from now on; 1 is the next.
            times: how many calls from that one on; 0 for all.
            device: counts only calls on this device's context or streams.
            asynchronous: the call succeeds and the work that it enqueues fails when it runs.
        """
        where = -1 if device is None else device
        self._library.cudasim_fail(
            entry.encode(), int(error), ctypes.c_size_t(call), ctypes.c_size_t(times), where, asynchronous
        )

    def deny_peer(self, device: int, peer: int) -> None:
        """From now on `device` gets no access to the memory of `peer`; what was enabled stays."""
        self._library.cudasim_deny_peer(device, peer)

    def corrupt_copies(self, source: int, target: int) -> None:
        """From now on every copy from a device to another has one byte wrong, and nothing says so."""
        self._library.cudasim_corrupt(source, target)

    def slow(self, device: int, seconds: float) -> None:
        """Every operation of the device's streams starts this much later; 0 ends it."""
        self._library.cudasim_slow(device, round(seconds * 1e6))

    def hang(self, *, device: int | None = None, stream: Any = None) -> None:
        """Nothing more starts on the device's streams, or on one stream, until `let_go` or `reset`."""
        if device is not None:
            self._library.cudasim_hold_device(device)
        if stream is not None and self._library.cudasim_hold_stream(ctypes.c_void_p(int(stream))):
            raise ValueError(f"{stream} is no stream of the simulator")

    def let_go(self) -> None:
        """Everything that hangs goes on."""
        self._library.cudasim_let_go()

    # What tests add.

    def enqueue(
        self,
        stream: Any,
        function: Callable[[], None],
        *,
        reads: Iterable[Range] = (),
        writes: Iterable[Range] = (),
        label: str = "",
    ) -> int:
        """Put a callable on a stream, or into its capture, as device work. 0, or the CUresult of refusal.

        Args:
            stream: a CUstream, or its handle.
            function: run by the stream's thread in its turn, at every launch of a graph it was captured in.
                It touches memory through addresses; an exception fails the work as a launch failure.
            reads: (address, bytes) of all that it may read.
            writes: and of all that it may write.
            label: what reports call it; the function's name by default.
        """
        _drop_released()
        ranges = [_Range(*span, False) for span in reads] + [_Range(*span, True) for span in writes]
        key = next(_keys)
        _functions[key] = function
        name = label or getattr(function, "__name__", "a callable")
        return int(
            self._library.cudasim_enqueue(
                ctypes.c_void_p(int(stream)),
                name.encode(),
                _trampoline,
                ctypes.c_uint64(key),
                (_Range * len(ranges))(*ranges),
                ctypes.c_size_t(len(ranges)),
            )
        )

    def host_access(self, address: int, size_bytes: int, *, write: bool) -> None:
        """Tell of a load or store by the host, which the simulator can not see by itself."""
        self._library.cudasim_host_access(ctypes.c_size_t(address), ctypes.c_size_t(size_bytes), int(write))

    def hand_over(self, lock: int = 0) -> None:
        """With `threads_apart`: this thread lets go of a lock, and whoever gets it knows what it knows.

        lock: any number that tells it from others.
        """
        self._library.cudasim_hand_over(ctypes.c_uint64(lock), 0)

    def take_over(self, lock: int = 0) -> None:
        """With `threads_apart`: this thread got that lock."""
        self._library.cudasim_hand_over(ctypes.c_uint64(lock), 1)

    def name_stream(self, stream: Any, name: str) -> None:
        """What reports call a stream."""
        if self._library.cudasim_name_stream(ctypes.c_void_p(int(stream)), name.encode()):
            raise ValueError(f"{stream} is no stream of the simulator")

    # What was found.

    def races(self) -> list[str]:
        """Pairs of accesses that nothing orders: who, on which streams, which bytes, what is missing."""
        return self._lines("races")

    def violations(self) -> list[str]:
        """Accesses out of bounds, without peer access or after a free, stale handles, failed callables."""
        return self._lines("violations")

    def unknown_calls(self) -> Mapping[str, int]:
        """Entry points that were called and are not simulated."""
        return self._counts("unknown")

    def calls(self) -> Mapping[str, int]:
        """Calls of every entry point so far, by its name without a version."""
        return self._counts("calls")

    def spent_seconds(self) -> float:
        """Time the host has spent inside the simulator, its waits left out: not the caller's own cost."""
        return float(self._library.cudasim_spent_seconds())

    def copied_bytes(self) -> Mapping[str, int]:
        """Bytes by kind: "HtoD", "DtoH" (and "... pageable"), "DtoD", "peer 0->1", and "staged 0->1" for
        peer copies that the driver had to take through the host."""
        return self._counts("copied")

    def live_objects(self) -> Mapping[str, int]:
        """Objects alive, by kind; "abandoned" are those that the end of their context took along."""
        return self._counts("live")

    def memory_bytes(self) -> Mapping[str, int]:
        """Bytes allocated now and at most: "device 0", "device 0 peak", ..., "pinned", "pinned peak"."""
        return self._counts("memory")

    def _lines(self, report: str) -> list[str]:
        return str(self._library.cudasim_text(report.encode()).decode()).splitlines()

    def _counts(self, report: str) -> dict[str, int]:
        rows = (line.rsplit("\t", 1) for line in self._lines(report))
        return {name: int(count) for name, count in rows}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.reset()
        self.configure(0)
