"""Bodies of requests, read within bounds of size and time, and taken apart."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import Counter
from collections.abc import AsyncGenerator, Iterator
from typing import Any

from python_multipart.multipart import parse_options_header
from starlette.datastructures import FormData, Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

from .answers import ApiError
from .limits import Limits

__all__ = ["Bodies", "Form", "Gone", "Share", "form_of", "object_of"]

_MOST_FIELDS, _MOST_FILES, _MOST_TEXT_BYTES = 64, 4, 1 << 18
_UNCOUNTED_BYTES = 16 << 10  # of a body of JSON
_MOST_BOUNDARIES = 2 * (_MOST_FIELDS + _MOST_FILES)

Form = tuple[dict[str, str], dict[str, list[bytes]]]


class Gone(Exception):
    """The client has left; there is nobody to answer."""


class Bodies:
    """What requests hold of their bodies, and of pictures in them while these wait: bounded for all together.

    Of `limits.held_bytes` one client has at most half. What is alone, of all or of its client, is always let
    in: other limits bound it. So that uploads hold up no other request, the first 16 KiB of a body of JSON
    are not counted; the number of connections bounds them.
    """

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.held_bytes = 0
        self._by_client: Counter[str] = Counter()

    @contextlib.contextmanager
    def share(self, client: str) -> Iterator[Share]:
        """Of a request of this client, until the block ends."""
        found = Share(self, client)
        try:
            yield found
        finally:
            found.hold(0)

    def changed(self, client: str, old_bytes: int, new_bytes: int) -> None:
        """One share holds more or less than it did. Raises ApiError where it is too much."""
        more, most = new_bytes - old_bytes, self.limits.held_bytes
        if more > 0:
            for held, bound, whose in (
                (self._by_client[client], most // 2, "of one client"),
                (self.held_bytes, most, "of all requests"),
            ):
                if held > old_bytes and held + more > bound:
                    raise ApiError(
                        503, f"uploads {whose} have {bound} bytes together, the most here; come again in a "
                        "moment", "busy", headers={"Connection": "close", "Retry-After": "1"},
                    )  # fmt: skip
        self.held_bytes += more
        self._by_client[client] += more
        if not self._by_client[client]:
            del self._by_client[client]


class Share:
    """What one request holds; make one with `Bodies.share`."""

    def __init__(self, bodies: Bodies, client: str) -> None:
        self._bodies, self._client, self._size_bytes = bodies, client, 0

    def hold(self, size_bytes: int) -> None:
        """So many bytes, in place of what it held. Raises ApiError where they are too many."""
        self._bodies.changed(self._client, self._size_bytes, size_bytes)
        self._size_bytes = size_bytes

    async def read(self, request: Request, kind: str) -> bytes:
        """A body of this media type, which is held then. Raises ApiError, Gone."""
        given = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if given != kind:
            raise ApiError(415, f"the body must be {kind}, not {given[:60] or 'nothing'}", "media_type")
        limits, json_ = self._bodies.limits, kind == "application/json"
        most_bytes = limits.body_bytes if json_ else limits.upload_bytes
        too_large = ApiError(
            413, f"the body is larger than {most_bytes} bytes, the most here", "too_large",
            headers={"Connection": "close"},
        )  # fmt: skip
        told = request.headers.get("content-length", "")
        if told.isdecimal() and int(told[:20]) > most_bytes:
            raise too_large
        found = bytearray()
        try:
            async with asyncio.timeout(limits.body_s):
                async for chunk in request.stream():
                    size_bytes = len(found) + len(chunk)
                    if size_bytes > most_bytes:
                        raise too_large
                    self.hold(max(0, size_bytes - _UNCOUNTED_BYTES) if json_ else size_bytes)
                    found += chunk
        except TimeoutError:
            raise ApiError(
                408, f"the body was not there within {limits.body_s:g} seconds", "body_timeout",
                headers={"Connection": "close", "x-should-retry": "false"},
            ) from None  # fmt: skip
        except ClientDisconnect:
            raise Gone from None
        return bytes(found)


def object_of(body: bytes) -> dict[str, Any]:
    """The object that a body of JSON is. Raises ApiError."""
    try:
        found = json.loads(body, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError
        what = "is nested too deeply" if isinstance(error, RecursionError) else f"is no JSON ({error})"
        raise ApiError(400, f"the body {what}"[:200], "invalid_json") from None
    if not isinstance(found, dict):
        raise ApiError(400, "the body must be a JSON object", "invalid_json")
    return found


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no number of JSON")


class _InMemory(MultiPartParser):
    """Uploads are bounded, so they stay in memory: nothing that a client sends becomes a file."""

    spool_max_size = 1 << 40


def form_of(headers: Headers, body: bytes) -> Form:
    """Texts by name, and uploads by name, of a multipart body; in a thread, since it may take seconds.

    Raises ApiError.
    """
    boundary = parse_options_header(headers["content-type"])[1].get(b"boundary", b"")
    if boundary and body.count(b"\r\n--" + boundary) > _MOST_BOUNDARIES:
        raise ApiError(400, "the form has too many parts", "invalid_form")
    most = {"max_files": _MOST_FILES, "max_fields": _MOST_FIELDS, "max_part_size": _MOST_TEXT_BYTES}
    parser = _InMemory(headers, _once(body), **most)
    try:
        # Nothing in it waits: it is asynchronous for forms that come in parts, or go to files.
        return asyncio.run(_parts(parser))
    except MultiPartException as error:
        raise ApiError(400, f"the form cannot be read ({error.message})"[:200], "invalid_form") from None
    except (ValueError, LookupError, TypeError) as error:  # odd boundaries, dispositions, character sets
        raise ApiError(400, "the form cannot be read", "invalid_form") from error
    finally:
        # Those in the form, and one that was begun and did not end.
        for file in parser._files_to_close_on_error:
            file.close()


async def _parts(parser: MultiPartParser) -> Form:
    texts: dict[str, str] = {}
    files: dict[str, list[bytes]] = {}
    form: FormData = await parser.parse()
    for name, value in form.multi_items():
        if isinstance(value, UploadFile):
            files.setdefault(name, []).append(await value.read())
        elif name in texts:
            raise ApiError(400, f"{name[:100]} was given twice", "invalid_form", param=name[:100])
        else:
            texts[name] = value
    return texts, files


async def _once(body: bytes) -> AsyncGenerator[bytes, None]:
    yield body
