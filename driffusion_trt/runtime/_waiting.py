"""Waiting for one's turn, and giving up on it."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator

__all__ = ["Waiting", "held"]

Waiting = Callable[[], None] | None
_LOOK_S = 0.02


@contextlib.contextmanager
def held(lock: threading.Lock, waiting: Waiting = None) -> Iterator[None]:
    """A lock; until it is there, `waiting` is called now and then, and what it raises ends that."""
    while not lock.acquire(timeout=-1 if waiting is None else _LOOK_S):
        assert waiting is not None
        waiting()
    try:
        yield
    finally:
        lock.release()
