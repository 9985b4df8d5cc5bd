"""Bodies of requests, read within bounds of size and time, and taken apart."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

from python_multipart.multipart import parse_options_header
from starlette.datastructures import FormData, Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

from .answers import ApiError
from .limits import Limits

__all__ = ["Bodies", "Form", "Gone", "form_of", "object_of"]

_MOST_FIELDS, _MOST_FILES, _MOST_TEXT_BYTES = 64, 4, 1 << 18
_MOST_BOUNDARIES = 2 * (_MOST_FIELDS + _MOST_FILES)

Form = tuple[dict[str, str], dict[str, list[bytes]]]


class Gone(Exception):
    """The client has left; there is nobody to answer."""


class Bodies:
    """Reads bodies; of all that are held together there are at most `limits.held_bytes` bytes."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self.held_bytes = 0

    @contextlib.asynccontextmanager
    async def read(self, request: Request, kind: str) -> AsyncIterator[bytes]:
        """A body of this media type, which counts as held until the block ends. Raises ApiError, Gone."""
        given = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if given != kind:
            raise ApiError(415, f"the body must be {kind}, not {given[:60] or 'nothing'}", "media_type")
        most = self._limits.body_bytes if kind == "application/json" else self._limits.upload_bytes
        found = bytearray()
        try:
            await self._fill(found, request, most)
            yield bytes(found)
        finally:
            self.held_bytes -= len(found)

    async def _fill(self, found: bytearray, request: Request, most_bytes: int) -> None:
        """The body into `found`, whose bytes are counted as held, whatever happens."""
        too_large = ApiError(
            413, f"the body is larger than {most_bytes} bytes, the most here", "too_large",
            headers={"Connection": "close"},
        )  # fmt: skip
        told = request.headers.get("content-length", "")
        if told.isdecimal() and int(told[:20]) > most_bytes:
            raise too_large
        limits = self._limits
        try:
            async with asyncio.timeout(limits.body_s):
                async for chunk in request.stream():
                    if self.held_bytes + len(chunk) > limits.held_bytes:
                        raise ApiError(
                            503, f"bodies have {limits.held_bytes} bytes together, the most here; come again "
                            "in a moment", "busy", headers={"Connection": "close", "Retry-After": "1"},
                        )  # fmt: skip
                    self.held_bytes += len(chunk)
                    found += chunk
                    if len(found) > most_bytes:
                        raise too_large
        except TimeoutError:
            raise ApiError(
                408, f"the body was not there within {limits.body_s:g} seconds", "body_timeout",
                headers={"Connection": "close", "x-should-retry": "false"},
            ) from None  # fmt: skip
        except ClientDisconnect:
            raise Gone from None


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
