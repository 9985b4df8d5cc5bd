"""What surrounds every HTTP request: an id, keys, security headers, a line in the log, a count."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import logging
import re
import secrets
import time
from collections.abc import Iterable, Sequence
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .answers import ApiError, answer, body_of
from .bodies import Gone
from .metrics import Metrics
from .sites import Sites

__all__ = ["ACCESS", "HEALTH", "Edge", "Keys"]

ACCESS = logging.getLogger("driffusion_trt.access")
_LOG = logging.getLogger("driffusion_trt.server")
HEALTH = ("/healthz", "/readyz")
_SECRET = re.compile(r"[0-9a-f]{32}")  # whoever has the id of a picture may see it
_ID = re.compile(r"[\w.:-]{1,64}", re.ASCII)
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
}


class Keys:
    """API keys, compared in a time that does not depend on what is given. Safe to print."""

    def __init__(self, keys: Iterable[str]) -> None:
        self._digests = [_digest(key) for key in keys]

    def __bool__(self) -> bool:
        return bool(self._digests)

    def number(self, given: str) -> int | None:
        """Which key it is, from 1; None where it is none. All are looked at."""
        digest, found = _digest(given), None
        for number, own in enumerate(self._digests, 1):
            if hmac.compare_digest(digest, own):
                found = number
        return found


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


class Edge:
    """An ASGI application around another one.

    open_paths: those that need no key; one that ends with / stands for all below it. sites: looked at where
    no keys are asked for, which pages of other sites have not. Questions about health are always answered.

    The scope of a request may have `driffusion_beyond`: its connection is one too many. It gets
    `driffusion_id`, `driffusion_since_s`, of `time.perf_counter`, `driffusion_key` where keys are asked for,
    and `driffusion`, facts for the log.
    """

    def __init__(
        self, app: ASGIApp, keys: Keys, open_paths: Sequence[str], sites: Sites, metrics: Metrics
    ) -> None:
        self._app, self._keys, self._open, self._metrics = app, keys, tuple(open_paths), metrics
        self._sites = sites

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        request_id = given if _ID.fullmatch(given) else secrets.token_hex(8)
        scope["driffusion_id"], facts = request_id, scope.setdefault("driffusion", {})
        sent = _Sent(send, request_id)
        start = scope["driffusion_since_s"] = time.perf_counter()
        try:
            refused = self._refused(scope)
            if refused is not None:
                await answer(body_of(refused, request_id), refused.status, refused.headers)(
                    scope, receive, sent
                )
            else:
                await self._app(scope, receive, sent)
        except Gone:
            facts["gone"] = True
        except asyncio.CancelledError:  # by Ray Serve, which may see that the client left before we do
            facts["gone"] = True
            raise
        except Exception:
            # Starlette has answered by now, where it still could.
            _LOG.exception("request %s failed", request_id)
            facts["error"] = "server_error"
            if not sent.status:
                failed = ApiError(500, "the request could not be worked on", "server_error")
                await answer(body_of(failed, request_id), 500)(scope, receive, sent)
        finally:
            self._log(scope, sent, facts, time.perf_counter() - start)

    def _refused(self, scope: Scope) -> ApiError | None:
        path, headers = scope["path"], Headers(scope=scope)
        if path in HEALTH:
            return None
        if scope.get("driffusion_beyond"):
            self._metrics.connection_refused()
            return ApiError(
                503, "too many connections are open; come again in a moment", "too_many_connections",
                headers={"Connection": "close", "Retry-After": "1"},
            )  # fmt: skip
        if not self._keys:
            return self._sites.refused(headers)
        if any(
            path.startswith(one) if one.endswith("/") and one != "/" else path == one for one in self._open
        ):
            return None
        return self._without_key(scope, headers)

    def _without_key(self, scope: Scope, headers: Headers) -> ApiError | None:
        scheme, _, key = headers.get("authorization", "").partition(" ")
        number = self._keys.number(key.strip()) if scheme.lower() == "bearer" else None
        if number is None:
            why = "no API key was given" if not key else "the API key is not known here"
            return ApiError(
                401, f"{why}; send it as `Authorization: Bearer KEY`", "invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )  # fmt: skip
        scope["driffusion_key"] = f"key{number}"
        return None

    def _log(self, scope: Scope, sent: _Sent, facts: dict[str, Any], seconds: float) -> None:
        status = 499 if facts.get("gone") else sent.status
        route = scope.get("driffusion_route", "none")
        self._metrics.answered(route, status, seconds)
        client = scope.get("client") or ("",)
        line = {
            "time": round(time.time(), 3),
            "id": scope["driffusion_id"],
            "client": client[0],
            **({"key": scope["driffusion_key"]} if "driffusion_key" in scope else {}),
            "method": scope["method"],
            "path": route if route != "none" else _SECRET.sub("...", scope["path"])[:200],
            "status": status,
            "ms": round(1e3 * seconds, 1),
            "bytes": sent.size_bytes,
            **facts,
        }
        ACCESS.info("%s", json.dumps(line))


class _Sent:
    """`send` that adds headers, and takes down what was sent."""

    def __init__(self, send: Send, request_id: str) -> None:
        self._send, self._id = send, request_id
        self.status, self.size_bytes = 0, 0

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = MutableHeaders(scope=message)
            headers["X-Request-ID"] = self._id
            for name, value in _HEADERS.items():
                headers.setdefault(name, value)
        elif message["type"] == "http.response.body":
            self.size_bytes += len(message.get("body", b""))
        await self._send(message)
