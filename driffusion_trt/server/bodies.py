"""Bodies of requests, read within bounds of size and time, and taken apart."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from typing import Any

from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

from .answers import ApiError

__all__ = ["Gone", "read_form", "read_json"]

_MOST_FIELDS, _MOST_FILES, _MOST_TEXT_BYTES = 64, 4, 1 << 18


class Gone(Exception):
    """The client has left; there is nobody to answer."""


async def read_json(request: Request, most_bytes: int, within_s: float) -> dict[str, Any]:
    """The object that the body is. Raises ApiError, Gone."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise ApiError(415, f"the body must be application/json, not {kind[:60] or 'nothing'}", "media_type")
    body = await _read(request, most_bytes, within_s)
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


async def read_form(
    request: Request, most_bytes: int, within_s: float
) -> tuple[dict[str, str], dict[str, list[bytes]]]:
    """Texts by name, and uploads by name, of a multipart body. Raises ApiError, Gone."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "multipart/form-data":
        what = kind[:60] or "nothing"
        raise ApiError(415, f"the body must be multipart/form-data, not {what}", "media_type")
    body = await _read(request, most_bytes, within_s)
    most = {"max_files": _MOST_FILES, "max_fields": _MOST_FIELDS, "max_part_size": _MOST_TEXT_BYTES}
    parser = _InMemory(request.headers, _once(body), **most)
    try:
        return await _parts(await parser.parse())
    except MultiPartException as error:
        raise ApiError(400, f"the form cannot be read ({error.message})"[:200], "invalid_form") from None
    except (ValueError, LookupError, TypeError) as error:  # odd boundaries, dispositions, character sets
        raise ApiError(400, "the form cannot be read", "invalid_form") from error
    finally:
        # Those in the form, and one that was begun and did not end.
        for file in parser._files_to_close_on_error:
            file.close()


async def _parts(form: FormData) -> tuple[dict[str, str], dict[str, list[bytes]]]:
    texts: dict[str, str] = {}
    files: dict[str, list[bytes]] = {}
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


async def _read(request: Request, most_bytes: int, within_s: float) -> bytes:
    too_large = ApiError(
        413, f"the body is larger than {most_bytes} bytes, the most here", "too_large",
        headers={"Connection": "close"},
    )  # fmt: skip
    told = request.headers.get("content-length", "")
    if told.isdecimal() and int(told[:20]) > most_bytes:
        raise too_large
    found = bytearray()
    try:
        async with asyncio.timeout(within_s):
            async for chunk in request.stream():
                found += chunk
                if len(found) > most_bytes:
                    raise too_large
    except TimeoutError:
        raise ApiError(
            408, f"the body was not there within {within_s:g} seconds", "body_timeout",
            headers={"Connection": "close", "x-should-retry": "false"},
        ) from None  # fmt: skip
    except ClientDisconnect:
        raise Gone from None
    return bytes(found)
