"""What the HTTP side needs of an engine. `Engine` has it; so may whatever else schedules requests."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, Protocol

from PIL import Image

from .._call import Result
from ..pipeline import Pipeline

__all__ = ["Seen", "Service", "Status", "Ticket", "Timeline"]


class Seen(Protocol):
    """A round that ended: `number`, from 1, of at least `of`; `state` of `steps` is reached.

    ms: since the request was started. preview: a small picture, where previews were asked for.
    """

    @property
    def number(self) -> int: ...
    @property
    def of(self) -> int: ...
    @property
    def state(self) -> int: ...
    @property
    def steps(self) -> int: ...
    @property
    def ms(self) -> float: ...
    @property
    def preview(self) -> Image.Image | None: ...


class Timeline(Protocol):
    """How long a request waited, in milliseconds, and the lanes that it was given."""

    @property
    def queue_ms(self) -> float: ...
    @property
    def lanes(self) -> int: ...


class Ticket(Protocol):
    """A request that was accepted.

    deadline_kept: whether its pictures were there in time; None without a deadline, and until it is done.
    """

    @property
    def id(self) -> str: ...
    @property
    def position(self) -> int: ...
    @property
    def timeline(self) -> Timeline: ...
    @property
    def deadline_kept(self) -> bool | None: ...
    def cancel(self) -> None: ...
    async def result(self) -> Result: ...
    def rounds(self) -> AsyncIterator[Seen]: ...


class Status(Protocol):
    """What is going on: requests that wait, run and hang; lanes that there are, work, and were lost.

    costs_doubtful: whether what requests are expected to take is to be measured anew.
    """

    @property
    def queued(self) -> int: ...
    @property
    def running(self) -> int: ...
    @property
    def lanes(self) -> int: ...
    @property
    def lanes_in_use(self) -> int: ...
    @property
    def lanes_failed(self) -> int: ...
    @property
    def hanging(self) -> int: ...
    @property
    def expected_wait_ms(self) -> float: ...
    @property
    def costs_doubtful(self) -> bool: ...


class Service(Protocol):
    """A queue before a pipeline; `admit` and `submit` raise from `_errors`, before any work.

    admit: what would refuse any request of this client now. since_s: of `time.perf_counter`, when the request
    arrived, from which its deadline counts.
    """

    @property
    def pipe(self) -> Pipeline: ...
    def admit(self, client: str = "", user: str = "") -> None: ...
    async def submit(
        self,
        prompt: str,
        *,
        client: str = "",
        user: str = "",
        deadline_ms: float | None = None,
        since_s: float | None = None,
        previews: bool = False,
        **settings: Any,
    ) -> Ticket: ...
    def status(self) -> Status: ...
    async def drain(self, timeout_s: float | None = None) -> None: ...
    async def __aenter__(self) -> Any: ...
    async def __aexit__(self, *error: Any) -> None: ...
