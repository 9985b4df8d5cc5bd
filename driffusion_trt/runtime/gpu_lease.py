"""Devices that requests lease: disjoint groups at once, in the order in which they were asked for."""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Generic, TypeVar

from ._waiting import Waiting

__all__ = ["Leases", "group_of"]

T = TypeVar("T")
_LOOK_S = 0.02


class Leases(Generic[T]):
    """What threads hold of some things; each thread one group at a time, and no thing is in two groups.

    lock: of the books that the things are in; it is held while a group is chosen.
    """

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self._changed = threading.Condition(self.lock)
        self._queue: deque[object] = deque()
        self._held: dict[int, tuple[T, ...]] = {}  # by thread
        self._expected: dict[int, tuple[T, ...]] = {}  # by thread

    @property
    def taken(self) -> set[T]:
        """All that somebody holds."""
        return {thing for group in self._held.values() for thing in group}

    @property
    def mine(self) -> bool:
        """Whether this thread holds a group."""
        return threading.get_ident() in self._held

    def free(self, things: Sequence[T], size: int) -> tuple[T, ...] | None:
        """So many that nobody holds, or None where there are not so many; with the lock held.

        They are those that this thread expects, if they are free; others' only where there are no others.
        """
        taken, mine = self.taken, self._expected.get(threading.get_ident(), ())
        if len(mine) == size and taken.isdisjoint(mine) and set(mine) <= set(things):
            return mine
        return group_of(things, taken | self._expected_elsewhere(), size) or group_of(things, taken, size)

    def _expected_elsewhere(self) -> set[T]:
        me = threading.get_ident()
        return {thing for thread, group in self._expected.items() if thread != me for thing in group}

    @contextlib.contextmanager
    def expect(self, things: Callable[[], Sequence[T]], size: int) -> Iterator[tuple[T, ...]]:
        """The group of so many that this thread leases next, as far as that can be told; fewer if all are.

        Until it leases one, others leave these alone as long as there are enough others.
        """
        with self.lock:
            all_of_them = things()
            group = tuple(all_of_them[-size:])
            if size < len(all_of_them):  # where all are taken, one that nobody else waits for
                unclaimed = group_of(all_of_them, self._expected_elsewhere(), size)
                group = self.free(all_of_them, size) or unclaimed or group
            self._expected[threading.get_ident()] = group
        try:
            yield group
        finally:
            with self.lock:
                self._expected.pop(threading.get_ident(), None)

    @contextlib.contextmanager
    def lease(
        self, choose: Callable[[], tuple[T, ...] | None], waiting: Waiting = None
    ) -> Iterator[tuple[T, ...]]:
        """A group, after all that were asked for before it: nobody overtakes, so nobody starves.

        Args:
            choose: gives the group, or None where too little is free; what it raises ends the waiting.
            waiting: called now and then until it is there; what it raises ends that.
        """
        group = self._take(choose, waiting)
        try:
            yield group
        finally:
            self._give_back()

    def _take(self, choose: Callable[[], tuple[T, ...] | None], waiting: Waiting) -> tuple[T, ...]:
        place = object()
        with self.lock:
            self._queue.append(place)
        try:
            while True:
                with self.lock:
                    if self._queue[0] is place and (group := choose()) is not None:
                        self._held[threading.get_ident()] = group
                        self._expected.pop(threading.get_ident(), None)
                        return group
                    self._changed.wait(None if waiting is None else _LOOK_S)
                if waiting is not None:
                    waiting()
        finally:
            with self.lock:
                self._queue.remove(place)
                self._changed.notify_all()

    def _give_back(self) -> None:
        with self.lock:
            del self._held[threading.get_ident()]
            self._changed.notify_all()

    @contextlib.contextmanager
    def all_back(self) -> Iterator[None]:
        """The lock, once nobody holds anything; what waits for a group stays where it is."""
        with self.lock:
            self._changed.wait_for(lambda: not self._held)
            yield


def group_of(things: Sequence[T], taken: set[T], size: int) -> tuple[T, ...] | None:
    """So many of them that are free, in their order; None where there are not so many.

    The same ones again and again, so that what was made ready for a group is used again; and the first
    ones last, since calls that have all of them encode and decode on the first one, beside who leases it.
    """
    blocks = (tuple(things[end - size : end]) for end in range(len(things), size - 1, -size))
    for block in blocks:
        if taken.isdisjoint(block):
            return block
    free = [thing for thing in things if thing not in taken]
    return tuple(free[-size:]) if len(free) >= size else None
