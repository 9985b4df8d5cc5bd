"""The service as a deployment of Ray Serve: every replica has an engine, devices of its own, and the API."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import queue
import secrets
import socket
import threading
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ray import serve
from starlette.datastructures import MutableHeaders
from starlette.types import Message, Receive, Scope, Send

from .._address import is_remote
from .._errors import DriffusionError, InputError, LaneError
from ..remote import digest_of, fetched, here
from .app import App, Options, make_app
from .engine import Engine, Status
from .ray_front import REPLICA
from .ray_metrics import ReplicaMetrics
from .ray_store import NoLinks, SharedStore
from .serving import logged

__all__ = ["Facts", "Failed", "Pictures", "Recipe", "ReplicaApp", "tried"]

_log = logging.getLogger("driffusion_trt.server")
_EXCHANGE_S = 5.0


@dataclass(frozen=True)
class Recipe:
    """What a replica is made of; it travels to every node, so it holds no key, but digests.

    model: as `Pipeline.load` takes it, or an address of storage. how: further arguments of `Engine.load`.
    output_dir: a folder that all replicas read and write, for pictures behind links. quiet: log requests and
    failures only. board: the actor that replicas exchange metrics by. digests: by address, of the content
    that replicas have to find there.
    """

    model: str
    options: Options
    how: Mapping[str, Any] = field(default_factory=dict)
    output_dir: str | None = None
    quiet: bool = False
    board: Any = None
    digests: Mapping[str, str] = field(default_factory=dict)

    def store(self) -> SharedStore | NoLinks:
        """Raises InputError where the folder cannot be written to on this node."""
        if self.output_dir is None:
            return NoLinks()
        limits = self.options.limits
        return SharedStore(limits.stored_bytes, limits.stored_s, Path(self.output_dir))

    def settled(self, told: Any = None) -> Recipe:
        """The same, for what lies at its addresses now; it is fetched. Raises as `fetched` does."""
        named = [
            one for one in (self.model, self.how.get("fp32_model")) if one is not None and is_remote(one)
        ]
        return replace(self, digests={one: digest_of(fetched(one, told)) for one in named})

    def engine(self, metrics: ReplicaMetrics | None = None, told: Any = None) -> Engine:
        """Fetch the model where it is elsewhere, and load it. Raises as `fetched` and `Engine.load` do."""

        def found(model: str) -> str | Path:
            return here(model, told, self.digests.get(model))

        how = dict(self.how)
        if "fp32_model" in how:
            how["fp32_model"] = found(how["fp32_model"])
        return Engine.load(found(self.model), observer=metrics, **how)


class ReplicaApp:
    """An ASGI application that makes itself when its lifespan begins: in the replica, on its devices."""

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe
        self._app: App | None = None
        self._name = b""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" and self._app is None:
            self._app = await asyncio.to_thread(self._made)
        assert self._app is not None, "requests come after the lifespan has begun"
        if scope["type"] != "lifespan":
            await self._app(scope, receive, self._signed(send))
            return
        async with self._exchanging(self._app):
            await self._app(scope, receive, send)

    def check_health(self) -> None:
        """Raises LaneError where no more requests are taken; Ray then puts another replica in its place."""
        status = self._app.service.status() if self._app is not None else None
        if not isinstance(status, Status) or status.ready or status.draining:
            return
        if status.hanging:
            raise LaneError(f"no more requests are taken: {status.hanging} of them do not end")
        raise LaneError(f"no device is left: {status.lanes_failed} failed")

    def _made(self) -> App:
        recipe, name = self._recipe, _own_name()
        logged(recipe.quiet)
        self._name = name.encode()
        metrics = ReplicaMetrics(name)
        told = _Told(recipe.model)
        engine = recipe.engine(metrics, told)
        _log.info("replica %s: %s on %s", name, recipe.options.names[0], engine.pipe.where)
        return make_app(engine, recipe.options, recipe.store(), metrics)

    def _signed(self, send: Send) -> Send:
        async def signed(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)[REPLICA] = self._name.decode()
            await send(message)

        return signed

    @contextlib.asynccontextmanager
    async def _exchanging(self, app: App) -> AsyncIterator[None]:
        """Metrics go to the other replicas, and theirs come here, while the block runs."""
        metrics, board = app.metrics, self._recipe.board
        assert isinstance(metrics, ReplicaMetrics)

        async def exchange() -> None:
            while True:
                await asyncio.sleep(_EXCHANGE_S)
                try:
                    metrics.others = await board.exchange.remote(self._name.decode(), metrics.families())
                except Exception as error:  # the board is gone with whoever started the service, or moves
                    _log.warning("metrics of the other replicas cannot be had: %s", error)
                    metrics.others = []

        task = asyncio.ensure_future(exchange()) if board is not None else None
        try:
            yield
        finally:
            if task is not None:
                task.cancel()


class Pictures:
    """The deployment's class; `serve.ingress` gives it the application."""

    async def check_health(self) -> None:
        app: Any = getattr(self, "app", None)
        if app is not None:
            app.check_health()


def _own_name() -> str:
    context: Any = serve.get_replica_context()
    return str(context.replica_tag).rpartition("#")[2] or secrets.token_hex(4)


class _Told:
    """Says in the log how far a model is fetched, at every tenth."""

    def __init__(self, model: str) -> None:
        self._model, self._said = model, -1

    def __call__(self, done: int, total: int, name: str) -> None:
        tenth = 10 * done // max(1, total)
        if tenth > self._said:
            self._said = tenth
            _log.info("%s: %d %% of %.2f GB are here", self._model, 10 * tenth, total / 1e9)


@dataclass(frozen=True)
class Facts:
    """What a trial found: the devices of one replica in words, what they can do, and which model."""

    where: str
    lanes: int
    per_second: float
    expected_ms: float
    digests: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Failed:
    """Why a trial failed. Our errors do not all survive the way between processes; what they say does."""

    message: str
    misuse: bool


def tried(recipe: Recipe) -> Iterator[str | Facts | Failed]:
    """Load and measure once, as a replica will: where, how far it is fetched, then facts or a failure."""
    said: queue.SimpleQueue[str | Facts | Failed] = queue.SimpleQueue()

    def told(done: int, total: int, name: str) -> None:
        said.put(f"{recipe.model}: {done / 1e9:.2f} of {total / 1e9:.2f} GB are on the first node")

    def work() -> None:
        said.put(f"the model is tried on {socket.gethostname()}")
        try:
            said.put(asyncio.run(_facts(recipe, told)))
        except Exception as error:
            ours = isinstance(error, DriffusionError)
            said.put(Failed(str(error) if ours else repr(error), isinstance(error, InputError)))

    threading.Thread(target=work, daemon=True).start()
    while True:
        one = said.get()
        yield one
        if not isinstance(one, str):
            return


async def _facts(recipe: Recipe, told: Any) -> Facts:
    recipe.store()
    recipe = await asyncio.to_thread(recipe.settled, told)
    engine = await asyncio.to_thread(recipe.engine)
    async with engine:
        now = engine.status()
        return Facts(engine.pipe.where, now.lanes, now.per_second, now.expected_ms, recipe.digests)
