"""What is called now and then by who waits for its turn, to give up on it."""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["Waiting"]

Waiting = Callable[[], None] | None
