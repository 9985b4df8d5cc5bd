"""`/v1/images`: pictures from prompts and from pictures, and those that are kept for a while."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from ipaddress import IPv6Address, IPv6Network, ip_address
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from .answers import ApiError, answer
from .bodies import form_of, object_of
from .desk import Desk
from .events import Events
from .fields import EDIT, GENERATION, Field, fields_of
from .uploads import starting_picture
from .wishes import Wish, check_size

__all__ = ["Images"]

_NO_STORE = {"Cache-Control": "no-store"}


class Images:
    """The endpoints, over one desk."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._generation = fields_of(GENERATION, desk.limits)
        self._edit = fields_of(EDIT, desk.limits)

    async def generations(self, request: Request) -> Response:
        """POST /v1/images/generations."""
        self._desk.service.admit(*_client(request))
        async with self._desk.bodies.read(request, "application/json") as body:
            wish = self._wish(self._generation, object_of(body))
        return await self._made(request, wish, "image_generation")

    async def edits(self, request: Request) -> Response:
        """POST /v1/images/edits: the form has the picture, and maybe a mask."""
        desk, limits = self._desk, self._desk.limits
        desk.service.admit(*_client(request))
        if "vae_encoder" not in desk.service.pipe.folder.networks:
            why = "this model has no encoder, which makes a start of a picture; see `edits` of /v1/models"
            raise ApiError(400, why, "not_supported_by_model")
        async with desk.bodies.read(request, "multipart/form-data") as body:
            texts, files = await desk.apart(request, form_of, request.headers, body)
            del body
            image, mask = _uploads(files)
            wish = self._wish(self._edit, _typed(self._edit, texts))
            picture, anew = await desk.apart(request, starting_picture, image, mask, limits.upload_pixels)
        if "height" not in wish.settings:  # then the picture's own size is taken
            check_size(limits, *picture.size, wish.count, wish.output_format)
        wish.settings.update({"image": picture} if anew is None else {"image": picture, "mask_image": anew})
        return await self._made(request, wish, "image_edit")

    async def file(self, request: Request) -> Response:
        """GET /v1/images/files/{name}: a picture that was kept."""
        async with self._desk._storing:
            found = await asyncio.to_thread(self._desk.store.get, request.path_params["name"])
        if found is None:
            raise ApiError(404, "there is no picture here, or no more", "not_found")
        data, media = found
        return Response(data, media_type=media, headers={"Cache-Control": "private, max-age=3600"})

    def _wish(self, fields: Mapping[str, Any], given: Mapping[str, Any]) -> Wish:
        desk = self._desk
        return Wish.check(desk.service.pipe.spec, desk.own_size, desk.names, desk.limits, fields, given)

    async def _made(self, request: Request, wish: Wish, kind: str) -> Response:
        order = await self._desk.submit(request, wish, *_client(request, wish.user))
        if wish.stream:
            return Events(order, kind)
        result = await order.result()
        data = await order.data(result)
        value = {"created": int(time.time()), "data": data, **order.head(result.images[0])}
        return answer({**value, "details": order.details(result)}, headers=_NO_STORE)


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
