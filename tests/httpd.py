"""A service for tests: a small model, an engine that does what it is told, and a real socket."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import http.client
import io
import json
import resource
import secrets
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import uvicorn
from PIL import Image

from driffusion_trt import Pipeline
from driffusion_trt._errors import DrainingError, QueueFullError
from driffusion_trt.server.app import App, Options, make_app
from driffusion_trt.server.bodies import Bodies
from driffusion_trt.server.limits import Limits
from driffusion_trt.server.metrics import Metrics
from driffusion_trt.server.serving import bound, configured
from driffusion_trt.server.store import Store

DEADLINE_S = 60.0  # for whatever a test waits for, on a busy machine


@dataclass
class Seen:
    number: int
    of: int
    state: int
    steps: int
    ms: float
    preview: Image.Image | None


@dataclass
class Times:
    queue_ms: float = 0.0
    lanes: int = 0


class Ticket:
    """A request of `Engine`; its rounds as they end."""

    def __init__(self, engine: Engine, previews: bool) -> None:
        self.id, self.timeline, self.cancelled = secrets.token_hex(4), Times(), threading.Event()
        self.position = len(engine.tickets)
        self.engine, self.previews = engine, previews
        self.news: asyncio.Queue[Seen | None] = asyncio.Queue()
        self.work: asyncio.Task[Any] | None = None
        self.deadline_kept: bool | None = None

    def cancel(self) -> None:
        self.cancelled.set()

    async def result(self) -> Any:
        assert self.work is not None
        return await asyncio.shield(self.work)

    async def rounds(self) -> AsyncIterator[Seen]:
        while (seen := await self.news.get()) is not None:
            yield seen


@dataclass
class Status:
    queued: int = 0
    running: int = 0
    lanes: int = 2
    lanes_in_use: int = 0
    lanes_failed: int = 0
    hanging: int = 0
    expected_wait_ms: float = 0.0
    costs_doubtful: bool = False


class Engine:
    """`driffusion_trt.server.service.Service` with levers: requests are made one after another.

    gate: while it is not set, no round goes on. refuse, fail: raised by the next `submit`, or by `result`.
    """

    def __init__(self, pipe: Pipeline, observer: Metrics, most: int = 8) -> None:
        self.pipe, self.observer, self.most = pipe, observer, most
        self.gate = threading.Event()
        self.gate.set()
        self.refuse: Exception | None = None
        self.fail: Exception | None = None
        self.tickets: list[Ticket] = []
        self.asked: list[dict[str, Any]] = []
        self.lanes = 2
        self.hanging, self.costs_doubtful = 0, False
        self.draining = False
        self.loop: asyncio.AbstractEventLoop | None = None  # of the last request

    def admit(self, client: str = "", user: str = "") -> None:
        if self.draining:
            raise DrainingError("the engine ends")
        if len(self.under_way) >= self.most:
            raise QueueFullError("all places are taken", 1.5)

    async def submit(
        self,
        prompt: str,
        *,
        client: str = "",
        user: str = "",
        deadline_ms: float | None = None,
        since_s: float | None = None,
        previews: bool = False,
        **settings: Any,
    ) -> Ticket:
        asked = {"prompt": prompt, "client": client, "user": user, "deadline_ms": deadline_ms}
        self.asked.append({**asked, "since_s": since_s, **settings})
        self.loop = asyncio.get_running_loop()
        self.admit(client, user)
        if self.refuse is not None:
            raise self.refuse
        self.pipe.plan(prompt, **settings)  # checks them
        ticket = Ticket(self, previews)
        ticket.work = asyncio.ensure_future(self._make(ticket, prompt, settings))
        ticket.work.add_done_callback(lambda done: done.cancelled() or done.exception())
        self.tickets.append(ticket)
        self.observer.on_queued(ticket)
        return ticket

    @property
    def under_way(self) -> list[Ticket]:
        return [ticket for ticket in self.tickets if ticket.work and not ticket.work.done()]

    async def _make(self, ticket: Ticket, prompt: str, settings: dict[str, Any]) -> Any:
        loop, start = asyncio.get_running_loop(), time.perf_counter()
        ticket.timeline = replace(ticket.timeline, lanes=2)
        self.observer.on_started(ticket)

        def told(done: Any) -> None:
            while not self.gate.wait(0.01):
                if ticket.cancelled.is_set():
                    return
            preview = self.pipe.preview(done.latents())[0] if ticket.previews else None
            ms = 1e3 * (time.perf_counter() - start)
            seen = Seen(done.round, done.rounds, done.state, done.steps, ms, preview)
            loop.call_soon_threadsafe(ticket.news.put_nowait, seen)

        try:
            if self.fail is not None:
                raise self.fail
            result = await self.pipe.generate(
                prompt, **settings, cancel=ticket.cancelled, callback_on_round_end=told
            )
        except BaseException as error:
            self.observer.on_failed(ticket, error)
            raise
        finally:
            ticket.news.put_nowait(None)
        self.observer.on_finished(ticket, result)
        return result

    def status(self) -> Status:
        going = len(self.under_way)
        return Status(
            queued=max(0, going - 1),
            running=min(1, going),
            lanes=self.lanes,
            lanes_in_use=2 * min(1, going),
            lanes_failed=2 - self.lanes,
            hanging=self.hanging,
            costs_doubtful=self.costs_doubtful,
        )

    async def drain(self, timeout_s: float | None = None) -> None:
        self.draining = True
        works = [ticket.work for ticket in self.under_way if ticket.work]
        if works:
            await asyncio.wait(works, timeout=timeout_s)

    async def __aenter__(self) -> Engine:
        return self

    async def __aexit__(self, *error: object) -> None:
        for ticket in self.under_way:
            ticket.cancel()
        await self.drain()


@dataclass
class Answer:
    status: int
    headers: http.client.HTTPMessage
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Service:
    """A service that listens; `call` asks it. engine: without use where another one was given."""

    port: int
    engine: Engine
    app: App
    store: Store
    metrics: Metrics
    server: uvicorn.Server

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def state(self) -> Any:
        """What /readyz says."""
        return self.call("GET", "/readyz").json

    @property
    def bodies(self) -> Bodies:
        """What the service holds of them."""
        return self.app.desk.bodies

    def open_connections(self) -> int:
        return len(self.server.server_state.connections)

    def connect(self, receive_bytes: int | None = None) -> socket.socket:
        """receive_bytes: that the kernel takes of what nobody has read yet."""
        found = socket.socket()
        if receive_bytes is not None:
            found.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        found.settimeout(DEADLINE_S)
        found.connect(("127.0.0.1", self.port))
        return found

    def call(self, method: str, path: str, body: bytes | str | None = None, **headers: str) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=DEADLINE_S)
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        try:
            connection.request(method, path, body, named)
            response = connection.getresponse()
            return Answer(response.status, response.headers, response.read())
        finally:
            connection.close()

    def generate(self, **fields: Any) -> Answer:
        """POST /v1/images/generations; few steps where none are given."""
        body = json.dumps({"prompt": "a red fox", "steps": 4, **fields})
        return self.call("POST", "/v1/images/generations", body, content_type="application/json")

    def edit(self, files: dict[str, bytes], **fields: Any) -> Answer:
        """POST /v1/images/edits."""
        kind, body = multipart({"prompt": "a red fox", "steps": "4", **fields}, files)
        return self.call("POST", "/v1/images/edits", body, content_type=kind)

    def metric(self, name: str) -> float:
        """A sample of /metrics, by its name and labels as they are written there; 0 where there is none."""
        lines = self.call("GET", "/metrics").body.decode().splitlines()
        return next((float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(f"{name} ")), 0.0)


def multipart(fields: dict[str, Any], files: dict[str, bytes]) -> tuple[str, bytes]:
    """Content type and body of a form."""
    parts = [
        f'--edge\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()
        for name, value in fields.items()
    ]
    for name, data in files.items():
        head = f'--edge\r\nContent-Disposition: form-data; name="{name}"; filename="a.png"\r\n'
        parts.append(head.encode() + b"Content-Type: image/png\r\n\r\n" + data + b"\r\n")
    return "multipart/form-data; boundary=edge", b"".join(parts) + b"--edge--\r\n"


@contextlib.contextmanager
def serving(
    pipe: Pipeline,
    *,
    limits: Limits | None = None,
    folder: Path | None = None,
    engine: Callable[[Metrics], Any] | None = None,
    queue: int = 8,
    proxies: Sequence[str] = (),
    **options: Any,
) -> Iterator[Service]:
    """A service in a thread of its own, until the block ends. engine: makes one that is to be no `Engine`."""
    limits = limits or Limits()
    metrics = Metrics()
    levers = Engine(pipe, metrics, queue)
    scheduled = levers if engine is None else engine(metrics)
    store = Store(limits.stored_bytes, limits.stored_s, folder)
    app = make_app(scheduled, Options(names=("tiny",), limits=limits, **options), store, metrics)
    listener = bound("127.0.0.1", 0)
    server = uvicorn.Server(configured(app, limits, proxies))
    thread = threading.Thread(target=server.run, args=([listener],), name="httpd")
    thread.start()
    try:
        until(lambda: server.started)
        yield Service(listener.getsockname()[1], levers, app, store, metrics, server)
    finally:
        levers.gate.set()
        server.should_exit = True
        thread.join(DEADLINE_S)
        listener.close()
        assert not thread.is_alive()


def until(condition: Callable[[], object], within_s: float = DEADLINE_S) -> None:
    """Wait for it. Raises AssertionError where it does not come."""
    end = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.005)


@contextlib.contextmanager
def nearly_full(most_bytes: int) -> Iterator[None]:
    """The kernel lets no file of this process grow beyond so many bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


# What tests look at


def stored(store: Store, name: str) -> tuple[bytes, str] | None:
    """Of a picture behind a link its bytes and media type."""
    found = store.get(name)
    if found is None:
        return None
    with found.file as file:
        data = file.read()
    assert len(data) == found.size_bytes
    return data, found.media


def picture(entry: dict[str, Any]) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(entry["b64_json"])))


def events(body: bytes) -> list[dict[str, Any]]:
    """Those of a stream, with the name checked against what is in them."""
    found = []
    for block in body.decode().split("\n\n"):
        lines = [line for line in block.split("\n") if line and not line.startswith(":")]
        if lines:
            name, data = lines
            found.append(json.loads(data.removeprefix("data: ")))
            assert name == f"event: {found[-1]['type']}"
    return found


def error(answer: Answer, status: int, code: str) -> dict[str, Any]:
    assert (answer.status, answer.json["error"]["code"]) == (status, code), answer.body
    told: dict[str, Any] = answer.json["error"]
    assert told["request_id"] == answer.headers["X-Request-ID"]
    return told


def open_request(service: Service, **fields: Any) -> socket.socket:
    """A request for a picture on a socket of its own, sent and not yet answered."""
    body = json.dumps({"prompt": "a red fox", "steps": 4, **fields}).encode()
    connection = service.connect()
    head = (
        "POST /v1/images/generations HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    connection.sendall(head.encode() + body)
    return connection


def closed(connection: socket.socket) -> bytes:
    """What is still sent until the other side closes."""
    found = b""
    try:
        while data := connection.recv(65536):
            found += data
    except ConnectionResetError:
        pass
    return found


def read_until(connection: socket.socket, words: bytes) -> bytes:
    found = b""
    end = time.monotonic() + DEADLINE_S
    while words not in found and time.monotonic() < end and (data := connection.recv(65536)):
        found += data
    return found
