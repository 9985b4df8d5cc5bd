"""Before Ray Serve's proxy: its own answers, and those that a lost replica owes, in OpenAI's form."""

from __future__ import annotations

import json
import re
import secrets
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .answers import ApiError, answer, body_of

__all__ = ["REPLICA", "Front", "middlewares"]

REPLICA = "X-Driffusion-Replica"  # a header of every answer that a replica gave
_ID = re.compile(r"[\w.:-]{1,64}", re.ASCII)
_OF_RAY = "/-/"  # where the proxy itself answers: /-/healthz, /-/routes
# Headers by which a client could steer Ray: keep its request alone when it has left, or choose its replica.
_STEERING = ("x-request-disconnect-disabled", "x-request-timeout-seconds", "x-session-id")
_MULTIPLEXED = "serve_multiplexed_model_id"


def middlewares() -> list[Middleware]:
    """Named to Ray's proxies by RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH."""
    return [Middleware(Front)]


class Front:
    """Around the proxy's application.

    A replica that is lost with its node leaves requests without an answer, which Ray would make a bare 500 or
    a cut connection. Here they get 503 `replica_lost` with Retry-After, in a stream an event `error`. An
    answer goes out once its body begins, so none is begun and not ended but a stream. Requests are not made
    again here: who asked knows whether there is time for that, and OpenAI's clients do it by themselves.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"].startswith(_OF_RAY):
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        request_id = given if _ID.fullmatch(given) else secrets.token_hex(8)
        kept = [(name, value) for name, value in scope["headers"] if not _steers(name)]
        inner = {**scope, "headers": [*kept, (b"x-request-id", request_id.encode())]}
        found = _Answer(send, request_id)
        await self._app(inner, receive, found)
        await found.end(scope, receive)


def _steers(name: bytes) -> bool:
    text = name.decode("latin-1").lower()
    return text in (*_STEERING, "x-request-id") or text.replace("-", "_") == _MULTIPLEXED


class _Answer:
    """`send` of one request: what a replica says passes, what Ray says of itself does not."""

    def __init__(self, send: Send, request_id: str) -> None:
        self._send, self._id = send, request_id
        self._start: Message | None = None  # held until the body begins
        self._begun = self._ended = self._stream = False
        self._of_ray = 0  # the status

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = Headers(raw=message["headers"])
            if REPLICA not in headers:
                self._of_ray = message["status"]
                return
            self._stream = headers.get("content-type", "").startswith("text/event-stream")
            told = MutableHeaders(raw=list(message["headers"]))
            told["X-Request-ID"] = self._id  # Ray adds a second one
            self._start = {**message, "headers": told.raw}
        elif not self._of_ray:
            if self._start is not None:
                await self._send(self._start)
                self._start, self._begun = None, True
            self._ended = not message.get("more_body", False)
            await self._send(message)

    async def end(self, scope: Scope, receive: Receive) -> None:
        """Say what is missing."""
        if self._ended:
            return
        told = _told(self._of_ray)
        if not self._begun:
            body = body_of(told, self._id)
            headers = {**told.headers, "X-Request-ID": self._id, "Cache-Control": "no-store"}
            await answer(body, told.status, headers)(scope, receive, self._send)
        elif self._stream:
            event: dict[str, Any] = {"type": "error", **body_of(told, self._id)}
            text = f"event: error\ndata: {json.dumps(event, separators=(',', ':'))}\n\n"
            await self._send({"type": "http.response.body", "body": text.encode(), "more_body": False})
        # Of another answer a part is out; the server cuts the connection, which tells the client.


def _told(of_ray: int) -> ApiError:
    """What is said for Ray. of_ray: the status of its own answer; 0 where a replica went away without one."""
    if of_ray == 0:
        return ApiError(
            503, "the replica that worked on this was lost; ask again, another one will take it",
            "replica_lost", headers={"Retry-After": "1"},
        )  # fmt: skip
    if of_ray == 404:
        return ApiError(
            503, "the service is not there yet, or ends; ask again later", "draining",
            headers={"Retry-After": "5"},
        )  # fmt: skip
    return ApiError(
        503, "no replica could take the request; ask again later", "no_replica", headers={"Retry-After": "5"}
    )
