"""A device whose memory cannot be given back for now: the driver would wait for work that may never end."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

__all__ = ["HeldUp"]

_ROOMY = 2  # a piece is used again for what is smaller than it by so much at most, where others can be had


class HeldUp:
    """What holds a device up, and memory that was closed meanwhile, which is used again and stays bounded so.

    Safe from several threads.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()  # the collector may close memory in the middle
        self._by: dict[object, Callable[[], bool]] = {}
        self._spare: dict[str, list[tuple[int, Any]]] = {}  # bytes and handle, by the call that gives it back

    def add(self, stream: object, at_rest: Callable[[], bool]) -> None:
        """Work of this stream may never end; `at_rest` tells whether it did, until it is removed."""
        with self._lock:
            self._by[stream] = at_rest

    def remove(self, stream: object) -> None:
        with self._lock:
            self._by.pop(stream, None)

    def __bool__(self) -> bool:
        """Whether a stream is not at rest."""
        if not self._by:
            return False
        with self._lock:
            return any(not at_rest() for at_rest in self._by.values())

    def keep(self, call: str, size_bytes: int, handle: Any) -> None:
        """Memory for `take`, or for `all` in the end."""
        with self._lock:
            self._spare.setdefault(call, []).append((size_bytes, handle))

    def take(self, call: str, size_bytes: int, *, any_size: bool = False) -> tuple[int, Any] | None:
        """Bytes and handle of the smallest piece of this kind that will do, if one is kept.

        any_size: else a much larger one is left for what needs it.
        """
        if not self._spare:
            return None
        with self._lock:
            pieces = self._spare.get(call, [])
            most = max(_ROOMY * size_bytes, 256)
            fits = [piece for piece in pieces if size_bytes <= piece[0] and (any_size or piece[0] <= most)]
            if not fits:
                return None
            found = min(fits, key=lambda piece: piece[0])
            pieces.remove(found)
            return found

    def all(self) -> list[tuple[str, Any]]:
        """Take all that is kept: the calls that give it back, and handles."""
        with self._lock:
            spare, self._spare = self._spare, {}
        return [(call, handle) for call, pieces in spare.items() for _, handle in pieces]
