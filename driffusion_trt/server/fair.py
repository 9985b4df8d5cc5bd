"""A queue that is fair between clients: start-time fair queueing (Goyal, Vin, Cheng, SIGCOMM 1996)."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterator
from typing import Generic, Protocol, TypeVar

__all__ = ["FairQueue", "Waiting"]


class Waiting(Protocol):
    """What can wait: whose it is, and how much work it is, above 0 and in any unit."""

    @property
    def client(self) -> str: ...

    @property
    def work(self) -> float: ...


_T = TypeVar("_T", bound=Waiting)


class FairQueue(Generic[_T]):
    """Requests of any number of clients; those of one come in the order in which they arrived.

    A common clock goes on by each piece of work that is taken, over the number of clients that wait: it shows
    what a client would have had by now with its fair share. Who had more comes after who had not; of those
    that had not, who waits longest comes first. Who asked for nothing lately begins with the clock, so nobody
    saves up turns, and a client with many requests, or large ones, delays others by one of its own at most.

    Nothing is kept of clients that do not wait and had no more than their share, nor where nobody waits.
    """

    def __init__(self) -> None:
        self._waiting: OrderedDict[str, deque[_T]] = OrderedDict()  # who waits longest is first
        self._had: dict[str, float] = {}  # of clients that are ahead of the clock
        self._clock = 0.0
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[_T]:
        """In the order in which they would be taken, if no others arrive."""
        turns = _Turns(list(self._waiting), dict(self._had), self._clock)
        heads = dict.fromkeys(self._waiting, 0)
        while turns.order:
            client = turns.next()
            item = self._waiting[client][heads[client]]
            heads[client] += 1
            turns.took(client, item.work, more=heads[client] < len(self._waiting[client]))
            yield item

    def add(self, item: _T) -> None:
        self._waiting.setdefault(item.client, deque()).append(item)
        self._count += 1

    def head(self) -> _T | None:
        """The one whose turn it is."""
        return next(iter(self), None)

    def take(self) -> _T:
        """Take it out, and count its work. Raises IndexError where nothing waits."""
        if not self._count:
            raise IndexError("nothing waits")
        turns = _Turns(list(self._waiting), self._had, self._clock)
        client = turns.next()
        item = self._waiting[client].popleft()
        self._count -= 1
        turns.took(client, item.work, more=bool(self._waiting[client]))
        self._clock = turns.clock
        if client in turns.order:
            self._waiting.move_to_end(client)
        else:
            del self._waiting[client]
        self._forget()
        return item

    def remove(self, item: _T) -> bool:
        """Take out one that is not to be had any more, and count nothing; whether it was there."""
        own = self._waiting.get(item.client)
        if own is None or item not in own:
            return False
        own.remove(item)
        self._count -= 1
        if not own:
            del self._waiting[item.client]
        self._forget()
        return True

    def _forget(self) -> None:
        ahead = self._had.items() if self._count else ()
        self._had = {client: had for client, had in ahead if had > self._clock}


class _Turns:
    """Whose turn it is: who waits, the longest first, what those had that are ahead, and the clock."""

    def __init__(self, order: list[str], had: dict[str, float], clock: float) -> None:
        self.order, self.had, self.clock = order, had, clock

    def next(self) -> str:
        return min(self.order, key=self._begins)  # of equal ones the first

    def _begins(self, client: str) -> float:
        return max(self.clock, self.had.get(client, 0.0))

    def took(self, client: str, work: float, *, more: bool) -> None:
        """A client's request was taken; `more`: it has others."""
        begins = self._begins(client)
        self.had[client] = begins + work
        self.clock += work / len(self.order)
        self.order.remove(client)
        if more:
            self.order.append(client)
