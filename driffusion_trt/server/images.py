"""`/v1/images`: pictures from prompts and from pictures, and those that are kept for a while."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Mapping
from ipaddress import IPv6Address, IPv6Network, ip_address
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from .answers import PIECE_BYTES, ApiError, Long
from .bodies import Share, form_of, object_of
from .desk import Desk
from .events import Events
from .fields import EDIT, GENERATION, Field, fields_of
from .store import Stored
from .uploads import kept_bytes, start_of
from .wishes import Wish

__all__ = ["Images"]

_NO_STORE = {"Cache-Control": "no-store"}
Wished = Callable[[Request, Share], Awaitable[Wish]]


class Images:
    """The endpoints, over one desk."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._generation = fields_of(GENERATION, desk.limits)
        self._edit = fields_of(EDIT, desk.limits)

    async def generations(self, request: Request) -> Response:
        """POST /v1/images/generations."""
        return await self._made(request, self._generation_of, "image_generation")

    async def edits(self, request: Request) -> Response:
        """POST /v1/images/edits: the form has the picture, and maybe a mask."""
        return await self._made(request, self._edit_of, "image_edit")

    async def file(self, request: Request) -> Response:
        """GET /v1/images/files/{name}: a picture that was kept."""
        async with self._desk._storing:
            found = await asyncio.to_thread(self._desk.store.get, request.path_params["name"])
        if found is None:
            raise ApiError(404, "there is no picture here, or no more", "not_found")
        return _File(found)

    async def _made(self, request: Request, wished: Wished, kind: str) -> Response:
        desk, client = self._desk, _client(request)
        desk.service.admit(*client)
        with contextlib.ExitStack() as held:
            wish = await wished(request, held.enter_context(desk.bodies.share(client[0])))
            order = await desk.submit(request, wish, *_client(request, wish.user))
            for name in ("image", "mask_image"):
                wish.settings.pop(name, None)  # the order has what it needs of them
            if wish.stream:
                return Events(order, kind, held.pop_all())
            result = await order.result()
        data = await order.data(result)
        value = {"created": int(time.time()), "data": data, **order.head(result.images[0])}
        return Long({**value, "details": order.details(result)}, _NO_STORE)

    async def _generation_of(self, request: Request, share: Share) -> Wish:
        body = await share.read(request, "application/json")
        share.hold(0)
        return self._wish(self._generation, object_of(body))

    async def _edit_of(self, request: Request, share: Share) -> Wish:
        """Of the upload no more is left after this than is counted."""
        desk = self._desk
        if "vae_encoder" not in desk.service.pipe.folder.networks:
            why = "this model has no encoder, which makes a start of a picture; see `edits` of /v1/models"
            raise ApiError(400, why, "not_supported_by_model")
        body = await share.read(request, "multipart/form-data")
        texts, files = await desk.apart(request, form_of, request.headers, body)
        del body
        image, mask = _uploads(files)
        wish = self._wish(self._edit, _typed(self._edit, texts))
        start = await desk.apart(request, start_of, desk.service.pipe.spec, desk.limits, wish, image, mask)
        share.hold(kept_bytes(start))
        wish.settings.update(start)
        return wish

    def _wish(self, fields: Mapping[str, Any], given: Mapping[str, Any]) -> Wish:
        desk = self._desk
        return Wish.check(desk.service.pipe.spec, desk.own_size, desk.names, desk.limits, fields, given)


class _File(Response):
    """A kept picture, read and sent in pieces."""

    def __init__(self, found: Stored) -> None:
        headers = {
            "Content-Length": str(found.size_bytes),
            "Cache-Control": f"private, max-age={max(0, int(found.left_s))}",
        }
        super().__init__(headers=headers, media_type=found.media)
        self._file = found.file

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._file as file:
            await send(
                {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers}
            )
            while piece := await asyncio.to_thread(file.read, PIECE_BYTES):
                await send({"type": "http.response.body", "body": piece, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})


def _typed(fields: Mapping[str, Field], texts: Mapping[str, str]) -> dict[str, Any]:
    """The texts of a form as what they stand for. Raises ApiError."""
    for name in ("image", "image[]", "mask"):
        if name in texts:
            raise ApiError(400, f"{name} must be a file", "invalid_type", param=name)
    return {name: fields[name].read(name, text) if name in fields else text for name, text in texts.items()}


def _uploads(files: Mapping[str, list[bytes]]) -> tuple[bytes, bytes | None]:
    """The picture and the mask among the uploads. Raises ApiError."""
    images = [*files.get("image", ()), *files.get("image[]", ())]
    masks = files.get("mask", [])
    strange = next((name for name in files if name not in ("image", "image[]", "mask")), None)
    if strange is not None:
        raise ApiError(400, f"{strange[:100]!r} cannot be a file", "unknown_parameter", param=strange[:100])
    if not images:
        raise ApiError(400, "image is missing", "missing_required_parameter", param="image")
    for name, found in (("image", images), ("mask", masks)):
        if len(found) > 1:
            raise ApiError(
                400, f"{len(found)} of {name} were given; one is taken here", "invalid_value", param=name
            )
    return images[0], masks[0] if masks else None


def _client(request: Request, user: str = "") -> tuple[str, str]:
    """Who takes turns with others: keys, and within them their users; without keys addresses."""
    key = request.scope.get("driffusion_key")
    if key is not None:
        return str(key), user
    return (_site(request.client.host) if request.client else ""), user


def _site(host: str) -> str:
    """An address that takes turns with others: of IPv6 the /64, of which a site has all addresses."""
    try:
        address = ip_address(host)
    except ValueError:  # a socket of this machine, or what a proxy wrote
        return host
    if not isinstance(address, IPv6Address):
        return str(address)
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(IPv6Network((int(address), 64), strict=False))
