"""Answers in the form of OpenAI's API; what went wrong as well, with nothing of the inside in it."""

from __future__ import annotations

import asyncio
import base64
import json
import math
import secrets
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from .._errors import (
    CancelledError,
    DeadlineError,
    DrainingError,
    InputError,
    ModelError,
    NoDeviceError,
    NonFiniteError,
    QueueFullError,
)

__all__ = [
    "PIECE_BYTES",
    "ApiError",
    "Base64",
    "Long",
    "answer",
    "body_of",
    "json_parts",
    "refusal",
    "send_parts",
]

# Of an answer that are handed to the server at a time; it waits for slow clients between.
PIECE_BYTES = 64 << 10


class ApiError(Exception):
    """What the client is told: a status, and OpenAI's `error` object with a code and the field at fault."""

    def __init__(
        self,
        status: int,
        message: str,
        code: str,
        *,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.param = status, code, param
        self.headers = dict(headers or {})

    @property
    def kind(self) -> str:
        """OpenAI's `type` of errors."""
        if self.status == 429:
            return "rate_limit_error"
        if self.status in (401, 403):
            return "authentication_error"
        return "invalid_request_error" if self.status < 500 else "server_error"


_LEAVING = {"Retry-After": "5", "Connection": "close"}
_NO_RETRY = {"x-should-retry": "false"}  # OpenAI's clients would make the same request again


def refusal(error: Exception) -> ApiError | None:
    """What a client is told of an error of ours; None where it is no news that it may have."""
    message = str(error)
    match error:
        case ApiError():
            return error
        case QueueFullError():
            wait_s = max(0.0, error.retry_after_s)
            headers = {
                "Retry-After": str(max(1, math.ceil(wait_s))),
                "retry-after-ms": str(round(1e3 * wait_s)),
            }
            return ApiError(429, message, "queue_full", headers=headers)
        case DeadlineError():
            return ApiError(422, message, "deadline_exceeded", param="deadline_ms", headers=_NO_RETRY)
        case DrainingError():
            return ApiError(503, message, "draining", headers=_LEAVING)
        case NoDeviceError():
            return ApiError(503, "no device makes pictures here at present", "no_device", headers=_LEAVING)
        case CancelledError():
            # Who cancels does not wait for an answer; what waits was given up at the end of the service.
            return ApiError(
                503, "the service ended before the picture was made", "draining", headers=_LEAVING
            )
        case InputError():
            return ApiError(400, message, "invalid_value")
        case NonFiniteError():
            return ApiError(
                422, "these settings made numbers that are not finite", "non_finite", headers=_NO_RETRY
            )
        case ModelError():
            return ApiError(400, message, "not_supported_by_model")
    return None


def body_of(error: ApiError, request_id: str) -> dict[str, Any]:
    """The JSON of an error; the request's id is in the log too."""
    told = {"message": str(error), "type": error.kind, "param": error.param, "code": error.code}
    return {"error": {**told, "request_id": request_id}}


def answer(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """JSON in ASCII: a text with half a surrogate pair has no other form."""
    content = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return Response(content, status, headers, "application/json")


@dataclass(frozen=True, slots=True)
class Base64:
    """Bytes that stand in JSON as text: it is made when it is sent, piece by piece."""

    data: bytes = field(repr=False)


Part = bytes | Base64


def json_parts(value: Any) -> list[Part]:
    """JSON in ASCII, in which values may be `Base64`: each is a part, and what is around them are others."""
    marks: dict[str, Base64] = {}

    def marked(one: object) -> str:
        if not isinstance(one, Base64):
            raise TypeError(f"{type(one).__name__} has no form in JSON")
        marks[mark := secrets.token_hex(16)] = one
        return mark

    text = json.dumps(value, default=marked, allow_nan=False, separators=(",", ":"))
    parts: list[Part] = []
    for mark, one in marks.items():
        before, _, text = text.partition(mark)
        parts += [before.encode(), one]
    return [*parts, text.encode()]


class Long(Response):
    """JSON that may be long: its texts are made as they are sent, and a slow client has one piece of them."""

    media_type = "application/json"

    def __init__(self, value: Any, headers: Mapping[str, str] | None = None) -> None:
        self._parts = json_parts(value)
        size = sum(map(_size_bytes, self._parts))
        super().__init__(headers={**(headers or {}), "Content-Length": str(size)})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await send_parts(send, self._parts)
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def send_parts(send: Send, parts: Iterable[Part]) -> None:
    """A part of a body, after which others come; the event loop goes on between the pieces."""
    for part in parts:
        for piece in _pieces(part):
            await send({"type": "http.response.body", "body": piece, "more_body": True})
            await asyncio.sleep(0)


def _size_bytes(part: Part) -> int:
    return 4 * math.ceil(len(part.data) / 3) if isinstance(part, Base64) else len(part)


def _pieces(part: Part) -> Iterator[bytes]:
    if isinstance(part, bytes):
        yield from (part[at : at + PIECE_BYTES] for at in range(0, len(part), PIECE_BYTES))
        return
    step = PIECE_BYTES // 4 * 3  # whole groups of three, so that the texts join
    for at in range(0, len(part.data), step):
        yield base64.b64encode(part.data[at : at + step])
