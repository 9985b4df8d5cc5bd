"""Owners of resources that may be closed in any order: each ends only when nothing made from it is left."""

from __future__ import annotations

import contextlib
import sys
import threading
import warnings
from types import TracebackType
from typing import Self, TypeVar

from .._errors import DeviceError, InputError

__all__ = ["Owner", "Owners"]

# Of the books alone: giving a resource back may wait for a device, and other threads do not wait with it.
# Closing may be done by the collector on any thread, in the middle of another close.
_LOCK = threading.RLock()


class Owner:
    """Something with an idempotent `close()`.

    An owner that others were made from (a device, a buffer in a graph) stays until the last
    of them is closed too, so that the order of closing never matters. Subclasses get their
    resource first and call `__init__` last: one that could not be had leaves nothing behind.
    """

    _needs: tuple[Owner, ...] | None = None
    _ended = False

    def __init__(self, *needs: Owner) -> None:
        with _LOCK:
            self._closed, self._users = False, 0
            for need in needs:
                need._users += 1
            self._needs = needs

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed

    @property
    def in_use(self) -> bool:
        """Whether something made from it is not closed yet."""
        return self._users > 0

    def check_open(self) -> None:
        """Raises InputError after `close`."""
        if self._closed:
            raise InputError(f"this {type(self).__name__} is closed; make a new one")

    def close(self) -> None:
        """Give the resource back, at once or with the last owner made from it; later calls do nothing."""
        with _LOCK:
            self._closed = True
            due = self._due()
        if due:
            self._end()

    def _due(self) -> bool:
        """Whether it ends now, which it does once; with the lock held."""
        if not self._closed or self._users or self._ended:
            return False
        self._ended = True
        return True

    def _end(self) -> None:
        with contextlib.ExitStack() as stack:
            stack.callback(self._let_go)
            self._destroy()

    def _let_go(self) -> None:
        """Of what it was made from; what was closed by then ends with it."""
        with _LOCK, contextlib.ExitStack() as due:
            for need in self._needs or ():
                need._users -= 1
                if need._due():
                    due.callback(need._end)
            ends = due.pop_all()
        ends.close()

    def _destroy(self) -> None:
        """Give the resource back; called once."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        # At exit the driver may be gone already; the process gives everything back anyway.
        if self._needs is None or self._closed or sys.is_finalizing():
            return
        warnings.warn(f"{type(self).__name__} was not closed", ResourceWarning, source=self, stacklevel=2)
        with contextlib.suppress(Exception):
            self.close()


T = TypeVar("T", bound=Owner)


class Owners(list[Owner]):
    """What belongs to one that gives it all back together."""

    def own(self, owner: T) -> T:
        """Add it, and return it."""
        self.append(owner)
        return owner

    def close(self) -> None:
        """Close them, the last one first; a broken device takes nothing back."""
        while self:
            with contextlib.suppress(DeviceError):
                self.pop().close()
