"""What waits for its start: in fair turns, but for requests whose lanes failed, which come first."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from .fair import FairQueue
from .ticket import Ticket

__all__ = ["WaitingRoom"]


class WaitingRoom:
    """Tickets in the order in which they are to be started."""

    def __init__(self) -> None:
        self.queue: FairQueue[Ticket] = FairQueue()  # those that were not started yet
        self._again: deque[Ticket] = deque()

    def __len__(self) -> int:
        return len(self._again) + len(self.queue)

    def __iter__(self) -> Iterator[Ticket]:
        yield from list(self._again)
        yield from self.queue

    def add(self, ticket: Ticket) -> None:
        self.queue.add(ticket)

    def begins_again(self, ticket: Ticket) -> None:
        self._again.append(ticket)

    def first(self, but: list[Ticket]) -> Ticket | None:
        return next((one for one in self if one not in but), None)

    def place_of(self, ticket: Ticket) -> int:
        """From 1; 0 where it does not wait."""
        return next((place for place, one in enumerate(self, 1) if one is ticket), 0)

    def take(self, ticket: Ticket) -> None:
        """It is started, or was to be."""
        if ticket in self._again:
            self._again.remove(ticket)
        else:
            self.queue.take(ticket)

    def remove(self, ticket: Ticket) -> bool:
        """It is not to be had any more; whether it waited."""
        if ticket not in self._again:
            return self.queue.remove(ticket)
        self._again.remove(ticket)
        return True
