"""Answers in the form of OpenAI's API; what went wrong as well, with nothing of the inside in it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from starlette.responses import Response

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

__all__ = ["ApiError", "answer", "body_of", "refusal"]


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
