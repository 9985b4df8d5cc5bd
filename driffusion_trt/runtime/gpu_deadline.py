"""How long a picture's devices may do nothing; what callbacks take is not theirs to answer for."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

from ._resources import Event

__all__ = ["Deadline"]


class Deadline:
    """Time in which something of a picture has to get done; then there is as much again.

    Args:
        seconds: how much.
        passed: how many marks of the picture are passed by now.
    """

    def __init__(self, seconds: float, passed: Callable[[], int]) -> None:
        self.seconds, self._passed = seconds, passed
        self._end = time.monotonic() + seconds
        self._seen, self._since = 0, 0.0

    def wait(self, event: Event) -> bool:
        """Whether the event came; False once nothing was done in time. Raises DeviceError."""
        while not (there := event.wait(max(0.0, self._end - time.monotonic()))) and self._goes_on():
            pass
        return there

    def _goes_on(self) -> bool:
        """Whether something got done since this was asked last."""
        passed = self._passed()
        goes_on, self._seen = passed > self._seen, passed
        if goes_on:
            self._end = time.monotonic() + self.seconds
        return goes_on

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """The time of the block does not count: it is the host's."""
        self._since = time.monotonic()
        try:
            yield
        finally:
            self._end += time.monotonic() - self._since

    @contextlib.contextmanager
    def going(self) -> Iterator[None]:
        """Within `paused`: the time of the block counts all the same, since devices are waited for in it."""
        self._end += time.monotonic() - self._since
        try:
            yield
        finally:
            self._since = time.monotonic()
