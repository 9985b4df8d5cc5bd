"""uvicorn's HTTP with bounds of time: slow headers, and clients that take nothing of what is sent."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from .limits import Limits

__all__ = ["timed_protocol"]


_SENT_BYTES = 128 << 10  # of an answer that the kernel keeps until they are taken
_AHEAD_BYTES = 64 << 10  # that may come of further requests while one is under way
_SPARE = 32  # connections beyond the bound, on which questions about health are answered
_SPARE_S = 1.0  # for which they stay


class _Timed(H11Protocol):
    """Connections are cut off that hold up; what they asked for sees a client that has left."""

    most: int
    header_s: float
    stall_s: float
    stall_bytes: float
    refused: Callable[[], None]
    _headers: asyncio.TimerHandle | None = None
    _stall: asyncio.TimerHandle | None = None  # runs while the client is behind
    _behind_s = 0.0  # for how long it was, since it was looked at last
    _paused_s = 0.0  # when it was that it fell behind
    _given = 0  # bytes of bodies, in all
    _taken = 0  # of them, when the client was looked at last

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self.app = self._counted(self.app)
        # Whatever is not taken at once is watched. What the kernel keeps is seen to move in thirds.
        transport.set_write_buffer_limits(high=0)
        kernel = transport.get_extra_info("socket")
        if kernel is not None:
            kernel.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SENT_BYTES)
        beyond = len(self.connections) - self.most
        if beyond > _SPARE:
            self.refused()
            transport.abort()
            return
        if beyond > 0:
            self.app = _beyond(self.app)
            self.header_s = self.timeout_keep_alive = min(self.header_s, _SPARE_S)  # type: ignore[assignment]
        self._await_headers()

    def data_received(self, data: bytes) -> None:
        if self._idle():
            self._await_headers()
        super().data_received(data)
        if not self._idle():
            self._headers = _cancel(self._headers)

    def handle_events(self) -> None:
        super().handle_events()
        if self._idle() or self.cycle.more_body:
            return
        # uvicorn stops reading where a further request begins, and would not see that its client leaves.
        if len(self.conn.trailing_data[0]) > _AHEAD_BYTES:
            self.transport.abort()
        else:
            self.flow.resume_reading()

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._stall is None:
            self._paused_s = self.loop.time()
            self._stall = self.loop.call_later(max(0.0, self.stall_s - self._behind_s), self._look)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._stall is not None:
            self._behind_s += self.loop.time() - self._paused_s
            self._stall = _cancel(self._stall)

    def connection_lost(self, exc: Exception | None) -> None:
        self._headers, self._stall = _cancel(self._headers), _cancel(self._stall)
        super().connection_lost(exc)

    def _idle(self) -> bool:
        """Whether no request is under way: what comes in now is part of headers."""
        return self.cycle is None or bool(self.cycle.response_complete)

    def _await_headers(self) -> None:
        """From the first byte on; further ones give no more time."""
        if self._headers is None:
            self._headers = self.loop.call_later(self.header_s, self.transport.abort)

    def _look(self) -> None:
        """Called once the client was behind for `stall_s` seconds in all."""
        taken = self._given - self.transport.get_write_buffer_size()
        if taken - self._taken < self.stall_bytes:
            self.transport.abort()
            return
        self._taken, self._behind_s, self._paused_s = taken, 0.0, self.loop.time()
        self._stall = self.loop.call_later(self.stall_s, self._look)

    def _counted(self, app: ASGIApp) -> ASGIApp:
        """The application; what it sends is counted once it is written, which waits for the client."""

        async def counting(scope: Scope, receive: Receive, send: Send) -> None:
            async def told(message: Message) -> None:
                await send(message)
                self._given += len(message.get("body", b""))

            await app(scope, receive, told)

        return counting


def _cancel(timer: asyncio.TimerHandle | None) -> asyncio.TimerHandle | None:
    """None, to be kept in its place."""
    if timer is not None:
        timer.cancel()
    return None


def _beyond(app: ASGIApp) -> ASGIApp:
    """The application for a connection that is one too many; see `Edge`."""

    async def told(scope: Scope, receive: Receive, send: Send) -> None:
        await app({**scope, "driffusion_beyond": True}, receive, send)

    return told


def timed_protocol(limits: Limits, refused: Callable[[], None]) -> type[H11Protocol]:
    """The protocol with these bounds, as uvicorn's `http` takes it. refused: called for a connection that is
    closed at once."""
    bounds = {
        "most": limits.connections,
        "header_s": limits.header_s,
        "stall_s": limits.stall_s,
        "stall_bytes": limits.stall_s * limits.read_rate,
        "refused": staticmethod(refused),
    }
    return type("TimedProtocol", (_Timed,), bounds)
