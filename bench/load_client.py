"""Requests at given times, whatever becomes of those before them: a process of its own.

    python -m bench.load_client < asked.json > seen.json

asked: `port`; `requests`, each with `id`, `fields` and, in an open loop, `due_s` from the start; in a closed
loop `at_once`, until `stop_s`; `timeout_s` of each; `keep`, of how many pictures, the first ones, all
settings are kept. Every request has a connection of its own, which is read to its end, so that a second
answer would be seen. Latencies are from the time a request was due, so that a late client cannot hide them.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import http.client
import io
import json
import os
import sys
import time
from typing import Any

from PIL import Image

from driffusion_trt.pictures import SETTINGS_KEY

NICE = 5  # behind the service where both want a core
_ANSWERED = 200


async def _answer(port: int, request: dict[str, Any]) -> bytes:
    """All that comes back. Raises OSError."""
    body = json.dumps(request["fields"]).encode()
    head = (
        f"POST /v1/images/generations HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n"
        f"X-Request-ID: {request['id']}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(head.encode() + body)
        return await reader.read()
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


def parsed(raw: bytes) -> dict[str, Any]:
    """An HTTP answer with JSON in it; `why` where it is none, or more than one."""
    file = io.BytesIO(raw)
    try:
        status = int(file.readline().split()[1])
        headers = http.client.parse_headers(file)
        length = int(headers["Content-Length"])
        text, rest = file.read(length), file.read()
        if len(text) < length or rest:
            return {"status": status, "why": f"{len(text) + len(rest)} bytes instead of {length}"}
        return {"status": status, "headers": headers, "value": json.loads(text)}
    except (http.client.HTTPException, IndexError, TypeError, ValueError) as error:
        return {"status": 0, "why": f"{type(error).__name__}: {error}, of {raw[:80]!r}"}


def facts(found: dict[str, Any], keep: bool) -> dict[str, Any]:
    """What of an answer is looked at later."""
    value, headers = found.get("value"), found.pop("headers", None)
    if value is None:
        return found
    del found["value"]
    found["id"] = headers["X-Request-ID"]
    if found["status"] != _ANSWERED:
        wait = headers["retry-after-ms"]
        return {
            **found,
            "code": value["error"]["code"],
            "retry_after_ms": None if wait is None else int(wait),
        }
    (one,), details = value["data"], value["details"]
    png = base64.b64decode(one["b64_json"])
    with Image.open(io.BytesIO(png)) as image:
        settings = json.loads(image.info[SETTINGS_KEY])
        pixels = hashlib.sha256(image.tobytes()).hexdigest()
    return {
        **found,
        "seed": one["seed"],
        "ticket": details["id"],
        "mode": details["mode"],
        "lanes": details["lanes"],
        "queue_ms": details["queue_ms"],
        "pixels": pixels,
        "settings": settings if keep else {"seed": settings["seed"]},
    }


class Client:
    """The requests of one file, and what was seen of each."""

    def __init__(self, asked: dict[str, Any]) -> None:
        self.port, self.timeout_s = asked["port"], asked["timeout_s"]
        self.asked, self.seen = asked, list[dict[str, Any]]()
        self.begun, self.cpu_s = 0.0, 0.0

    async def one(self, request: dict[str, Any], due_s: float) -> dict[str, Any]:
        sent_s = time.perf_counter() - self.begun
        try:
            async with asyncio.timeout(self.timeout_s):
                raw = await _answer(self.port, request)
        except (OSError, TimeoutError) as error:
            raw, found = b"", {"status": 0, "why": f"{type(error).__name__}: {error}"}
        else:
            found = {"raw": raw}
        end_s = time.perf_counter() - self.begun
        seen = {
            "asked": request["id"],
            "wanted_seed": request["fields"]["seed"],
            "deadline_ms": request["fields"].get("deadline_ms"),
            "late_ms": 1e3 * (sent_s - due_s),
            "end_s": end_s,
            "ms": 1e3 * (end_s - due_s),
            **found,
        }
        self.seen.append(seen)
        return seen

    async def open_loop(self) -> None:
        tasks = []
        for request in self.asked["requests"]:
            await asyncio.sleep(max(0.0, request["due_s"] - (time.perf_counter() - self.begun)))
            tasks.append(asyncio.ensure_future(self.one(request, request["due_s"])))
        await asyncio.gather(*tasks)

    async def closed_loop(self) -> None:
        waiting = iter(self.asked["requests"])

        async def worker() -> None:
            while (now := time.perf_counter() - self.begun) < self.asked["stop_s"]:
                request = next(waiting, None)
                if request is None:
                    return
                seen = await self.one(request, now)
                if not seen.get("raw", b"").startswith(b"HTTP/1.1 200"):
                    await asyncio.sleep(0.2)

        await asyncio.gather(*(worker() for _ in range(self.asked["at_once"])))

    async def run(self) -> None:
        self.begun, before = time.perf_counter(), time.process_time()
        await (self.closed_loop() if "at_once" in self.asked else self.open_loop())
        self.cpu_s = time.process_time() - before

    def result(self) -> dict[str, Any]:
        """Answers are taken apart once all are there, so that none waits for that."""
        wall_s, kept = time.perf_counter() - self.begun, 0
        for seen in self.seen:
            if (raw := seen.pop("raw", None)) is not None:
                keep = kept < self.asked["keep"]
                seen.update(facts(parsed(raw), keep))
                kept += keep and seen["status"] == _ANSWERED
        return {"seen": self.seen, "cpu_s": self.cpu_s, "wall_s": wall_s}


def main() -> None:
    os.nice(NICE)
    client = Client(json.load(sys.stdin))
    asyncio.run(client.run())
    json.dump(client.result(), sys.stdout)


if __name__ == "__main__":
    main()
