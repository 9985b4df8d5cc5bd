"""Clients that leave, are slow, or send what is no request, on a process that serves."""

from __future__ import annotations

import contextlib
import json
import socket
import time
from collections.abc import Iterator

from . import fuzz
from .fault_rows import PATIENCE_S, Asked, Row, outcome, ready_again, several, told, waits
from .served import Served, served

_STRICT = ("--header-timeout", "1", "--body-timeout", "1", "--stall-timeout", "1")
OPEN = "nothing; the connection is still open"
_LONG = {"steps": 200, "mode": "sequential"}


def connect(service: Served) -> socket.socket:
    return socket.create_connection(("127.0.0.1", service.port), timeout=PATIENCE_S)


def head(length: int) -> bytes:
    return (
        "POST /v1/images/generations HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        f"Content-Length: {length}\r\n\r\n"
    ).encode()


def read(connection: socket.socket) -> tuple[bytes, str]:
    """What is still sent until the other side closes; and how it ended."""
    found = b""
    try:
        while data := connection.recv(65536):
            found += data
    except ConnectionResetError:
        return found, "the connection was reset"
    except TimeoutError:
        return found, OPEN
    return found, "the connection was closed"


def rest(connection: socket.socket) -> str:
    """The same in short."""
    found, end = read(connection)
    return f"`{found.split(bytes([13]))[0].decode('latin-1')}`, then {end}" if found else end


def leave(asked: Asked) -> Iterator[Row]:
    """While it is made, while it waits, and in the middle of a stream."""
    with served(*asked.words()) as service:
        for fault, stream, count in (
            ("a client leaves while its picture is made", False, 1),
            ("a client leaves while it waits", False, 3 * asked.devices + 3),
            ("a client leaves in the middle of a stream", True, 1),
        ):
            yield _left(service, fault, stream, count)


def _left(service: Served, fault: str, stream: bool, count: int) -> Row:
    since, before = len(service.lines), service.metrics()
    more = {"stream": True, "partial_images": 100} if stream else {}
    body = json.dumps({"prompt": "a red fox", **_LONG, **more}).encode()
    with contextlib.ExitStack() as clients:
        connections = [clients.enter_context(connect(service)) for _ in range(count)]
        for connection in connections:
            connection.sendall(head(len(body)) + body)
        waits(service, count)
        first = connections[0].recv(1000) if stream else b""
        begun = time.monotonic()
    idle = {"running": 0, "queued": 0}
    with contextlib.suppress(TimeoutError):
        service.wait(lambda: idle.items() <= service.state().items(), PATIENCE_S)
    took = time.monotonic() - begun
    service.wait(lambda: len(_gone(service, since)) >= count, PATIENCE_S)
    return Row(
        fault, f"{count} closed; a picture of {_LONG['steps']} steps each",
        f"`{first.split(bytes([13]))[0].decode()}` and part of the stream" if stream else "-",
        f"nothing under way after {took:.1f} s; {told(service, since, before)}", ready_again(service),
        took < PATIENCE_S / 2,
    )  # fmt: skip


def _gone(service: Served, since: int) -> list[object]:
    return [one for one in service.requests(since) if one["status"] == 499]


def slow(asked: Asked) -> Iterator[Row]:
    """Bounds of one second each."""
    with served(*asked.words(*_STRICT)) as service:
        for fault, sent, drip in (
            ("headers come slowly", head(100)[:40], b"a"),
            ("a body comes slowly", head(100) + b"{", b" "),
        ):
            yield _drips(service, fault, sent, drip)
        yield _reads_nothing(service)


def _drips(service: Served, fault: str, sent: bytes, drip: bytes) -> Row:
    since, before, begun = len(service.lines), service.metrics(), time.monotonic()
    with connect(service) as connection, several(service, [{}]) as others:
        connection.sendall(sent)
        connection.settimeout(0.25)
        seen = "nothing"
        while time.monotonic() - begun < PATIENCE_S and seen == "nothing":
            try:
                connection.sendall(drip)
                if connection.recv(1, socket.MSG_PEEK) is not None:
                    seen = rest(connection)
            except TimeoutError:
                continue
            except OSError as error:
                seen = f"the connection was reset ({type(error).__name__})"
        took = time.monotonic() - begun
        other = others[0].result()
    return Row(
        fault, "a byte every quarter of a second, the bound is one second",
        f"{seen}, after {took:.1f} s; another client meanwhile: {other}", told(service, since, before),
        ready_again(service), 0.9 < took < 15 and other == "200, a picture",
    )  # fmt: skip


def _reads_nothing(service: Served) -> Row:
    """More answers are asked for than the kernel keeps for a client."""
    since, before, begun = len(service.lines), service.metrics(), time.monotonic()
    with socket.socket() as connection, several(service, [{}]) as others:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.settimeout(PATIENCE_S)
        connection.connect(("127.0.0.1", service.port))
        connection.sendall(b"GET /openapi.json HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n" * 1000)
        other = others[0].result()
        time.sleep(4)
        found, end = read(connection)
        answers, took = found.count(b"HTTP/1.1 200"), time.monotonic() - begun
        cut_off = answers < 1000 and end != OPEN
    return Row(
        "a client reads nothing", "asks for /openapi.json a thousand times and reads four seconds later",
        f"{answers} answers, then {end}, after {took:.1f} s; another client meanwhile: {other}",
        told(service, since, before), ready_again(service), cut_off and other == "200, a picture",
    )  # fmt: skip


def malformed(asked: Asked) -> Iterator[Row]:
    with served(*asked.words()) as service:
        since, before = len(service.lines), service.metrics()
        found = fuzz.run(service.port, asked.bodies, asked.seed)
        tracebacks = sum("Traceback" in line for line in service.lines[since:])
        statuses = ", ".join(f"{count} × {status}" for status, count in sorted(found["statuses"].items()))
        bad = f"; bad: {found['bad'][:3]}" if found["bad"] else ""
        harmless = not found["bad"] and not tracebacks and outcome(service) == "200, a picture"
        yield Row(
            "malformed bodies",
            f"{asked.bodies} bodies, JSON and forms, made and damaged by chance (seed {asked.seed}), over "
            f"{fuzz.CONNECTIONS} kept connections",
            f"{statuses}; {len(found['bad'])} unanswered, 5xx or without OpenAI's form{bad}",
            f"{tracebacks} tracebacks; {told(service, since, before)}",
            ready_again(service), harmless,
        )  # fmt: skip
