"""Server-sent events in the form of OpenAI's: previews while a picture is made, then the picture."""

from __future__ import annotations

import asyncio
import contextlib
import io
import logging
import time
from collections.abc import AsyncIterator
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from .answers import ApiError, Base64, Part, body_of, json_parts, refusal, send_parts
from .desk import Order, gone
from .service import Seen

__all__ = ["Events", "due"]

_KEPT_ALIVE_S = 10.0  # proxies close connections on which nothing moves
_NO_TOKENS = {
    "input_tokens": 0,
    "input_tokens_details": {"image_tokens": 0, "text_tokens": 0},
    "output_tokens": 0,
    "total_tokens": 0,
}  # OpenAI's client expects the field; nothing is counted in tokens here


def due(state: int, steps: int, wanted: int, shown: int) -> bool:
    """Whether a round that reached `state` is shown, where `wanted` are, spread evenly, and `shown` were."""
    return shown < wanted and state * (wanted + 1) // steps > shown


class Events(Response):
    """The stream of one order. A client that leaves cancels it; one that is slow misses previews.

    held: is closed at its end.
    """

    media_type = "text/event-stream"

    def __init__(self, order: Order, kind: str, held: contextlib.ExitStack) -> None:
        super().__init__(headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._order, self._kind, self._held = order, kind, held
        self._shown = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        start = {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers}
        left = asyncio.ensure_future(gone(receive))
        work: asyncio.Future[None] | None = None
        try:
            await send(start)
            work = asyncio.ensure_future(self._send_all(scope, send))
            await asyncio.wait({left, work}, return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                await work
                await send({"type": "http.response.body", "body": b"", "more_body": False})
            else:
                scope.setdefault("driffusion", {})["gone"] = True
        finally:
            left.cancel()
            if work is not None and not work.done():
                work.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await work
            self._order.ticket.cancel()  # does nothing to one that is done
            self._held.close()

    async def _send_all(self, scope: Scope, send: Send) -> None:
        async def told(parts: list[Part]) -> None:
            await send_parts(send, parts)

        await told([f": accepted, {max(0, self._order.ticket.position - 1)} before it\n\n".encode()])
        try:
            async for seen in _patient(self._order.rounds(), told):
                event = self._partial(seen)
                if event is not None:
                    await told(_event(event))
            result = await self._order.result()
            entries = await self._order.data(result)
        except Exception as error:
            request_id = scope.get("driffusion_id", "")
            told_error = refusal(error)
            if told_error is None:
                logging.getLogger("driffusion_trt.server").error(
                    "request %s failed", request_id, exc_info=error
                )
                told_error = ApiError(500, "the picture could not be made", "server_error")
            scope.setdefault("driffusion", {})["error"] = told_error.code
            await told(_event({"type": "error", **body_of(told_error, request_id)}))
            return
        details = self._order.details(result)
        for index, entry in enumerate(entries):
            await told(_event(self._completed(index, entry, result.images[index], details)))

    def _partial(self, seen: Seen) -> dict[str, Any] | None:
        wanted = self._order.wish.partial_images
        if seen.preview is None or not due(seen.state, seen.steps, wanted, self._shown):
            return None
        self._shown += 1
        file = io.BytesIO()
        seen.preview.save(file, "PNG")
        head = {**self._order.head(seen.preview), "output_format": "png"}
        return {
            "type": f"{self._kind}.partial_image",
            "b64_json": Base64(file.getvalue()),
            "partial_image_index": self._shown - 1,
            "created_at": int(time.time()),
            **head,
            "round": seen.number,
            "rounds": seen.of,
            "state": seen.state,
            "ms": round(seen.ms, 3),
        }

    def _completed(self, index: int, entry: dict[str, Any], image: Any, details: Any) -> dict[str, Any]:
        return {
            "type": f"{self._kind}.completed",
            "created_at": int(time.time()),
            **entry,
            **self._order.head(image),
            "usage": _NO_TOKENS,
            "index": index,
            "details": details,
        }


def _event(value: dict[str, Any]) -> list[Part]:
    return [f"event: {value['type']}\ndata: ".encode(), *json_parts(value), b"\n\n"]


async def _patient(rounds: AsyncIterator[Seen], told: Any) -> AsyncIterator[Seen]:
    """The same rounds, with a comment now and then while there is none."""
    each = aiter(rounds)
    while True:
        following = asyncio.ensure_future(_next(each))
        try:
            while not (await asyncio.wait({following}, timeout=_KEPT_ALIVE_S))[0]:
                await told([b": waiting\n\n"])
        except asyncio.CancelledError:
            following.cancel()
            raise
        seen = following.result()
        if seen is None:
            return
        yield seen


async def _next(rounds: AsyncIterator[Seen]) -> Seen | None:
    return await anext(rounds, None)
