"""What is called now and then by who waits for its turn, to give up on it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar

__all__ = ["Waiting", "current_waiting", "with_waiting"]

Waiting = Callable[[], None] | None

_current: ContextVar[Waiting] = ContextVar("waiting", default=None)


@contextlib.contextmanager
def with_waiting(waiting: Waiting) -> Iterator[None]:
    """For what waits deep inside of the block: networks take arrays, and seldom wait for anybody."""
    token = _current.set(waiting)
    try:
        yield
    finally:
        _current.reset(token)


def current_waiting() -> Waiting:
    """What `with_waiting` was given; None outside of it."""
    return _current.get()
