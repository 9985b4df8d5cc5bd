"""A queue that is fair between clients: start-time fair queueing (Goyal, Vin, Cheng, SIGCOMM 1996)."""

from __future__ import annotations

import heapq
import itertools
from collections import OrderedDict, deque
from collections.abc import Iterator, Sequence
from typing import Generic, Protocol, TypeVar

__all__ = ["FairQueue", "Waiting"]


class Waiting(Protocol):
    """What can wait: whose it is, for whom it asks, and how much work it is, above 0 and in any unit."""

    @property
    def client(self) -> str: ...

    @property
    def user(self) -> str: ...

    @property
    def work(self) -> float: ...


_T = TypeVar("_T", bound=Waiting)


class FairQueue(Generic[_T]):
    """Requests of any number of clients, fair between them, and of each between its users.

    Those of one user come in the order in which they arrived.

    A common clock goes on by each piece of work that is taken, over the number of clients that wait: it shows
    what a client would have had by now with its fair share. Who had more comes after who had not; of those
    that had not, who waits longest comes first. Who asked for nothing lately begins with the clock, so nobody
    saves up turns, and a client with many requests, or large ones, delays others by one of its own at most.
    The requests of a client are such a queue themselves, with a clock of its own and its users for clients.

    Nothing is kept of clients that do not wait and had no more than their share, nor where nobody waits.
    """

    def __init__(self, levels: Sequence[str] = ("client", "user")) -> None:
        """levels: by which names of a request they take turns, the outermost first."""
        self._level, self._inner = levels[0], levels[1:]
        self._waiting: OrderedDict[str, FairQueue[_T] | _Line[_T]] = OrderedDict()  # longest first
        self._had: dict[str, float] = {}  # of clients that are ahead of the clock
        self._clock = 0.0
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[_T]:
        """In the order in which they would be taken, if no others arrive."""
        lines = {name: (iter(line), len(line)) for name, line in self._waiting.items()}
        places, clock, waiting = itertools.count(), self._clock, len(lines)
        due: list[tuple[int, str]] = []
        ahead = [(self._had.get(name, 0.0), next(places), name) for name in lines]
        heapq.heapify(ahead)
        while due or ahead:
            while ahead and ahead[0][0] <= clock:
                heapq.heappush(due, heapq.heappop(ahead)[1:])
            begins, name = (clock, heapq.heappop(due)[1]) if due else heapq.heappop(ahead)[::2]
            line, left = lines[name]
            item = next(line)
            clock += item.work / waiting
            if left > 1:
                heapq.heappush(ahead, (begins + item.work, next(places), name))
            else:
                waiting -= 1
            lines[name] = line, left - 1
            yield item

    def items(self) -> Iterator[_T]:
        """In any order, which is quicker."""
        for line in self._waiting.values():
            yield from line.items()

    def add(self, item: _T) -> None:
        name = self._name(item)
        if name not in self._waiting:
            self._waiting[name] = FairQueue(self._inner) if self._inner else _Line()
        self._waiting[name].add(item)
        self._count += 1

    def take(self, item: _T | None = None) -> _T:
        """Take out this one, or the one whose turn it is, and count its work.

        Raises IndexError where nothing waits, and ValueError where it does not.
        """
        if not self._count:
            raise IndexError("nothing waits")
        name = min(self._waiting, key=self._begins) if item is None else self._name(item)
        if name not in self._waiting:
            raise ValueError("it does not wait")
        line = self._waiting[name]
        taken = line.take(item)
        self._count -= 1
        self._had[name] = self._begins(name) + taken.work
        self._clock += taken.work / len(self._waiting)
        if len(line):
            self._waiting.move_to_end(name)
        else:
            del self._waiting[name]
        self._forget()
        return taken

    def remove(self, item: _T) -> bool:
        """Take out one that is not to be had any more, and count nothing; whether it was there."""
        name = self._name(item)
        line = self._waiting.get(name)
        if line is None or not line.remove(item):
            return False
        self._count -= 1
        if not len(line):
            del self._waiting[name]
        self._forget()
        return True

    def places(self, *names: str) -> list[tuple[int, int]]:
        """Of a client, and of a user among its users: how many of its requests wait, and how many others."""
        line = self._waiting.get(names[0])
        if line is None:
            return [(0, len(self._waiting)), *((0, 0) for _ in names[1:])]
        return [(len(line), len(self._waiting) - 1), *line.places(*names[1:])]

    def _name(self, item: _T) -> str:
        name: str = getattr(item, self._level)
        return name

    def _begins(self, name: str) -> float:
        return max(self._clock, self._had.get(name, 0.0))

    def _forget(self) -> None:
        ahead = self._had.items() if self._count else ()
        self._had = {name: had for name, had in ahead if had > self._clock}


class _Line(Generic[_T]):
    """Those of one user: who came first is first."""

    def __init__(self) -> None:
        self._waiting: deque[_T] = deque()

    def __len__(self) -> int:
        return len(self._waiting)

    def __iter__(self) -> Iterator[_T]:
        return iter(self._waiting)

    items = __iter__

    def add(self, item: _T) -> None:
        self._waiting.append(item)

    def take(self, item: _T | None = None) -> _T:
        if item is None:
            return self._waiting.popleft()
        self._waiting.remove(item)
        return item

    def remove(self, item: _T) -> bool:
        if item not in self._waiting:
            return False
        self._waiting.remove(item)
        return True

    def places(self, *names: str) -> list[tuple[int, int]]:
        return []
