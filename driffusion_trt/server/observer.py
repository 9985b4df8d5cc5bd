"""Who is told what an engine does: metrics, logs, tests."""

from __future__ import annotations

from typing import Protocol

from .._call import Result
from .._errors import DriffusionError
from .ticket import RoundSeen, Ticket

__all__ = ["Observer", "Unobserved"]


class Observer(Protocol):
    """Called in the thread of the engine's event loop, which waits for it; what it raises is logged."""

    def on_queued(self, ticket: Ticket) -> None:
        """A request was taken."""

    def on_started(self, ticket: Ticket) -> None:
        """It was given lanes, as its timeline says; again where a lane failed and it begins anew."""

    def on_round(self, ticket: Ticket, seen: RoundSeen) -> None:
        """A round of it ended."""

    def on_finished(self, ticket: Ticket, result: Result) -> None:
        """Its pictures are there."""

    def on_refused(self, error: DriffusionError) -> None:
        """A request was not taken: InputError, QueueFullError, DeadlineError, DrainingError or LaneError."""

    def on_failed(self, ticket: Ticket, error: BaseException) -> None:
        """A request that was taken has no pictures: it failed, was cancelled, or was too late."""

    def on_lanes_lost(self, lost: int, left: int) -> None:
        """Devices failed, or a request hangs on some, which may come back; so many are left."""


class Unobserved:
    """Nobody is told; also to be derived from, for who wants to hear of a few things only."""

    def on_queued(self, ticket: Ticket) -> None: ...
    def on_started(self, ticket: Ticket) -> None: ...
    def on_round(self, ticket: Ticket, seen: RoundSeen) -> None: ...
    def on_finished(self, ticket: Ticket, result: Result) -> None: ...
    def on_refused(self, error: DriffusionError) -> None: ...
    def on_failed(self, ticket: Ticket, error: BaseException) -> None: ...
    def on_lanes_lost(self, lost: int, left: int) -> None: ...
