"""The process that serves: a socket, uvicorn, and an end in which no accepted request is lost."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
import warnings
from collections.abc import Callable, Sequence
from types import FrameType

import uvicorn

from .._call import PromptWarning
from .._errors import InputError, NoDeviceError
from .app import App
from .edge import ACCESS
from .limits import Limits
from .protocol import timed_protocol

__all__ = ["LAST_WORDS_S", "LOOP", "bound", "configured", "logged", "serve"]

_log = logging.getLogger("driffusion_trt.server")
LOOP = "asyncio"  # "auto" would take uvloop where something else happened to bring it
LAST_WORDS_S = 10  # for answers that are made, to clients that read slowly
_LOOK_TICKS = 10  # of uvicorn's, a second


def bound(host: str, port: int) -> socket.socket:
    """A socket that is bound, so that nobody loads a model in vain; it listens once the engine is there.

    Raises InputError where the address cannot be had.
    """
    try:
        if not 0 <= port <= 65535:  # the resolver would take it modulo 65536
            raise OverflowError("a port is at most 65535")
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        found = socket.socket(family, kind, protocol)
        try:
            found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            found.bind(address)
        except BaseException:
            found.close()
            raise
    except (OSError, OverflowError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise InputError(
            f"the service cannot listen at {host}:{port} ({why}); choose another --port or --host"
        ) from error
    found.set_inheritable(True)
    return found


class _Server(uvicorn.Server):
    """The first signal begins the end: no requests are taken, those that were are answered, then it ends.

    A second one ends it at once, with its number + 128 as the status. Where every device has failed it ends
    as after a signal, but as a failure, so that what watches over the process starts it anew.
    """

    def __init__(
        self, config: uvicorn.Config, app: App, drain_s: float | None, ready: Callable[[], None]
    ) -> None:
        super().__init__(config)
        self._app, self._drain_s, self._ready = app, drain_s, ready
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ending: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._loop = asyncio.get_running_loop()
        if self.started:
            self._ready()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._app.draining or self.should_exit:  # which the first one sets while the engine warms up
            os._exit(128 + sig)  # whatever hangs, and with it all that would wait for it
        if self._loop is None:
            self.should_exit = True
            return
        self._app.draining = True
        self._loop.call_soon_threadsafe(self._begin_to_end, signal.Signals(sig).name)

    async def on_tick(self, counter: int) -> bool:
        if counter % _LOOK_TICKS == 0 and not self._app.draining:
            now = self._app.service.status()
            if not now.lanes and not now.hanging:  # what hangs may come back
                self._app.draining = True
                self._app.failed = NoDeviceError(
                    "every device has failed, and the service ends; the log has why, see also "
                    "driffusion-trt doctor"
                )
                self._begin_to_end("no device is left")
        return await super().on_tick(counter)

    def _begin_to_end(self, why: str) -> None:
        _log.info("%s: no more requests are taken; those that were are finished", why)
        self._ending = asyncio.ensure_future(self._end())

    async def _end(self) -> None:
        try:
            await self._app.service.drain(self._drain_s)
        finally:
            self.should_exit = True


def configured(app: App, limits: Limits, proxies: Sequence[str] = ()) -> uvicorn.Config:
    """uvicorn's settings. proxies: addresses and networks whose X-Forwarded-For and -Proto are believed."""
    return uvicorn.Config(
        app,
        loop=LOOP,
        http=timed_protocol(limits, app.metrics.connection_refused),
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=bool(proxies),
        forwarded_allow_ips=list(proxies),
        timeout_keep_alive=max(1, int(limits.header_s)),
        timeout_graceful_shutdown=LAST_WORDS_S,
    )


def serve(
    app: App,
    listener: socket.socket,
    limits: Limits,
    drain_s: float | None,
    proxies: Sequence[str] = (),
    *,
    ready: Callable[[], None] = lambda: None,
) -> None:
    """Serve until a signal comes.

    drain_s: for requests that were accepted; None for as long as they take. proxies: see `configured`.
    ready: called once requests are taken, after the model was warmed up and measured.

    Raises what the engine raises at its start, and NoDeviceError where every device has failed.
    """
    config = configured(app, limits, proxies)
    # What of a prompt cannot be read goes to who asked.
    warnings.filterwarnings("ignore", category=PromptWarning)
    try:
        _Server(config, app, drain_s, ready).run([listener])
    finally:  # uvicorn exits where the start fails, or comes back, by its version
        if app.failed is not None:
            raise app.failed


def logged(quiet: bool = False) -> None:
    """Our log as lines on stderr: of requests as JSON alone, others with time and level.

    quiet: of the others failures only.
    """
    lines = logging.StreamHandler(sys.stderr)
    lines.setFormatter(logging.Formatter("%(message)s"))
    ACCESS.addHandler(lines)
    ACCESS.setLevel(logging.INFO)
    ACCESS.propagate = False
    logging.getLogger("python_multipart").setLevel(logging.ERROR)  # else a line for every form that is odd
    others = logging.StreamHandler(sys.stderr)
    others.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    for name, level in (
        ("driffusion_trt", logging.WARNING if quiet else logging.INFO),
        ("uvicorn.error", logging.WARNING),
    ):
        logger = logging.getLogger(name)
        logger.addHandler(others)
        logger.setLevel(level)
        logger.propagate = False
