"""The HTTP service over an engine, as an ASGI application."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field, replace
from importlib import resources
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .._errors import DriffusionError
from .answers import ApiError, answer, body_of, refusal
from .bodies import Gone
from .desk import Desk, note
from .edge import Edge, Keys
from .images import Images
from .limits import Limits
from .metrics import Metrics
from .openapi import document
from .service import Service
from .sites import Sites
from .store import Store
from .wishes import check_model

__all__ = ["App", "Options", "make_app"]

_PAGE = {
    "/": ("page.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
    "/stream.js": ("stream.js", "text/javascript"),
    "/chart.js": ("chart.js", "text/javascript"),
}
_PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_OPEN = (*_PAGE, "/healthz", "/readyz", "/openapi.json", "/v1/images/files/")


@dataclass(frozen=True)
class Options:
    """How the service is to be.

    names: of the model in requests; the first is what it is listed as. keys: None are asked for where there
    are none. origins: of pages of other sites that may use it. hosts: names that it goes by, or none for any.
    public_url: before links to pictures, in place of the address that a request came to.
    """

    names: tuple[str, ...]
    limits: Limits = field(default_factory=Limits)
    keys: Keys = field(default_factory=lambda: Keys(()))
    origins: Sequence[str] = ()
    hosts: Sequence[str] = ()
    public_url: str = ""


@dataclass(eq=False)
class App:
    """The application; its lifespan starts the engine, and drains and closes it.

    draining: requests are refused, and /readyz says so; those that were accepted go on.
    failed: what the engine raised at its start, or why the service ended by itself.
    """

    app: ASGIApp
    service: Service
    desk: Desk
    metrics: Metrics
    draining: bool = False
    failed: DriffusionError | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan":
            await self.app(scope, receive, send)
            return

        async def told(message: Message) -> None:
            """`failed` is told by whoever serves, and not as a traceback."""
            if message["type"] == "lifespan.startup.failed" and self.failed is not None:
                message = {"type": message["type"]}
            await send(message)

        await self.app(scope, receive, told)


def make_app(service: Service, options: Options, store: Store, metrics: Metrics) -> App:
    """The service. metrics: also the engine's observer."""
    _, height, width = service.pipe.folder.manifest.shapes["picture"]
    options = replace(options, limits=options.limits.of_model(height, width))
    desk = Desk(service, options.limits, store, metrics, options.names, options.public_url.rstrip("/"))
    found = App(_nothing, service, desk, metrics)
    metrics.watch(service.status, lambda: found.draining, lambda: store.size_bytes)
    images, about = Images(desk), _About(found, options)
    routes = [
        _Route("/v1/images/generations", images.generations, methods=["POST"]),
        _Route("/v1/images/edits", images.edits, methods=["POST"]),
        _Route("/v1/images/files/{name}", images.file),
        _Route("/v1/models", about.models),
        _Route("/v1/models/{model:path}", about.model),
        _Route("/healthz", about.healthy),
        _Route("/readyz", about.ready),
        _Route("/metrics", about.metrics),
        _Route("/openapi.json", about.schema),
        *(_Route(path, _page(*file)) for path, file in _PAGE.items()),
    ]

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        async with desk, contextlib.AsyncExitStack() as stack:
            try:
                await stack.enter_async_context(service)
            except DriffusionError as error:
                found.failed = error
                raise
            yield

    handlers: Any = {
        ApiError: _failed,
        DriffusionError: _failed,
        HTTPException: _no_route,
        Gone: _left,
        Exception: _failed,
    }
    inner: ASGIApp = Starlette(routes=routes, exception_handlers=handlers, lifespan=lifespan)
    sites = Sites(options.origins, options.hosts, options.public_url)
    inner = Edge(inner, options.keys, _OPEN, sites, metrics)
    if options.origins:
        inner = CORSMiddleware(
            inner,
            allow_origins=list(options.origins),
            allow_methods=["GET", "POST"],
            allow_headers=["*"],  # OpenAI's client for browsers sends a dozen of its own
            expose_headers=["X-Request-ID", "Retry-After", "retry-after-ms", "x-should-retry"],
        )
    found.app = inner
    return found


class _Route(Route):
    """One that tells the log and the metrics which it was; new starlettes alone do."""

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["driffusion_route"] = self.path
        await super().handle(scope, receive, send)


async def _nothing(scope: Scope, receive: Receive, send: Send) -> None:
    raise AssertionError("the application is not complete")


class _About:
    """The endpoints that say what is here, and how it is."""

    def __init__(self, app: App, options: Options) -> None:
        self._app, self._options = app, options
        self._schema = document(options.limits, bool(options.keys))
        pipe = app.service.pipe
        _, height, width = pipe.folder.manifest.shapes["picture"]
        self._model = {
            "object": "model",
            "created": int(time.time()),
            "owned_by": "driffusion-trt",
            "family": pipe.spec.family,
            "model_hash": pipe.model_hash,
            "size": f"{width}x{height}",
            "size_multiple": pipe.spec.downscale * pipe.spec.latent_multiple,
            "steps": pipe.spec.steps,
            "guidance_scale": pipe.spec.guidance_scale,
            "edits": "vae_encoder" in pipe.folder.networks,
            "devices": pipe.where,
        }

    async def models(self, request: Request) -> Response:
        names = self._options.names
        return answer({"object": "list", "data": [{"id": name, **self._model} for name in names]})

    async def model(self, request: Request) -> Response:
        name = request.path_params["model"]
        check_model(self._options.names, name)
        return answer({"id": name, **self._model})

    async def healthy(self, request: Request) -> Response:
        return answer({"status": "alive"})

    async def ready(self, request: Request) -> Response:
        now = self._app.service.status()
        well = "no device is left" if not now.lanes else "a lane hangs" if now.hanging else "ready"
        state = "draining" if self._app.draining else well
        told = {
            "status": state,
            "queued": now.queued,
            "running": now.running,
            "lanes": now.lanes,
            "lanes_in_use": now.lanes_in_use,
            "lanes_failed": now.lanes_failed,
            "hanging": now.hanging,
            "expected_wait_ms": round(now.expected_wait_ms, 1) if now.lanes else None,
        }
        return answer(told, 200 if state == "ready" else 503, {"Cache-Control": "no-store"})

    async def metrics(self, request: Request) -> Response:
        return Response(self._app.metrics.text(), media_type=self._app.metrics.content_type)

    async def schema(self, request: Request) -> Response:
        return answer(self._schema)


def _page(name: str, media: str) -> Any:
    """A file of the page, read once: requests do not reach the file system."""
    content = resources.files(__package__).joinpath("page", name).read_bytes()
    headers = {"Content-Security-Policy": _PAGE_POLICY, "Cache-Control": "no-cache"}

    async def served(request: Request) -> Response:
        return Response(content, media_type=media, headers=headers)

    return served


async def _failed(request: Request, error: Exception) -> Response:
    told = refusal(error)
    if told is None:
        if isinstance(error, DriffusionError):  # of others Starlette lets the traceback go on
            import logging

            logging.getLogger("driffusion_trt.server").error(
                "request %s failed", request.scope["driffusion_id"], exc_info=error
            )
        told = ApiError(
            500, "the picture could not be made; the log has the reason by this id", "server_error"
        )
    note(request, error=told.code)
    return answer(body_of(told, request.scope["driffusion_id"]), told.status, told.headers)


async def _no_route(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "http_error")
    told = ApiError(error.status_code, f"{request.method} {request.url.path[:100]}: {error.detail}", code)
    return answer(body_of(told, request.scope["driffusion_id"]), told.status, error.headers)


async def _left(request: Request, error: Exception) -> Response:
    """Nobody reads it."""
    note(request, gone=True)
    return Response(status_code=499)
