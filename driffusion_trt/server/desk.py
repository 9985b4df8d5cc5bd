"""Requests for pictures on their way through the service: submitted, waited for, encoded, kept."""

from __future__ import annotations

import asyncio
import io
import time
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, ParamSpec, Self, TypeVar

from PIL import Image
from starlette.requests import Request
from starlette.types import Receive

from .._call import Result
from .._errors import DeadlineError, DriffusionError, InputError, ModelError, NonFiniteError
from ..pictures import png_info
from ..sampling.recording import Recorder
from .answers import ApiError, Base64
from .bodies import Bodies, Gone
from .limits import Limits
from .metrics import Metrics
from .service import Seen, Service, Ticket
from .store import Store
from .wishes import Wish

__all__ = ["Desk", "Order", "gone", "note"]


P = ParamSpec("P")
T = TypeVar("T")
_UPLOADS = 2  # that are taken apart at a time
_TIDIED_S = 10.0
_SIDES = ("height", "width")
_MOST_PIXEL_BYTES, _MOST_FILE_BYTES = 4, 64 << 10  # of a file, in every format: noise grows a little


def note(request: Request, **facts: Any) -> None:
    """Facts of a request for its line in the log."""
    request.scope.setdefault("driffusion", {}).update(facts)


async def gone(receive: Receive) -> None:
    """Comes back when the client has left. For after the body was read."""
    while (await receive())["type"] != "http.disconnect":
        pass


@dataclass(eq=False)
class Desk:
    """What requests for pictures share: the engine, bounds, the store, metrics and the model's names."""

    service: Service
    limits: Limits
    store: Store
    metrics: Metrics
    names: tuple[str, ...]
    public_url: str = ""
    bodies: Bodies = field(init=False)
    _storing: asyncio.Lock = field(default_factory=asyncio.Lock)
    _workers: ThreadPoolExecutor = field(init=False)
    _tidying: asyncio.Task[None] = field(init=False)

    def __post_init__(self) -> None:
        self.bodies = Bodies(self.limits)

    async def __aenter__(self) -> Self:
        self._workers = ThreadPoolExecutor(_UPLOADS, thread_name_prefix="uploads")
        self._tidying = asyncio.create_task(self._tidy())
        return self

    async def __aexit__(self, *error: object) -> None:
        self._tidying.cancel()
        self._workers.shutdown(wait=False, cancel_futures=True)

    async def _tidy(self) -> None:
        """Pictures go when their time is over, whether or not anybody asks for one."""
        while True:
            await asyncio.sleep(min(_TIDIED_S, self.limits.stored_s))
            async with self._storing:
                await asyncio.to_thread(self.store.drop_old)

    async def apart(self, request: Request, work: Callable[P, T], *given: P.args, **more: P.kwargs) -> T:
        """What `work` makes of an upload, in one of few threads, so that uploads hold up nothing else.

        Raises Gone where the client leaves before its turn.
        """
        job = self._workers.submit(work, *given, **more)
        left = asyncio.ensure_future(gone(request.receive))
        done = asyncio.wrap_future(job)
        try:
            both: set[asyncio.Future[Any]] = {done, left}
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            if left.done() and job.cancel():
                raise Gone
            return await done
        finally:
            left.cancel()

    @property
    def own_size(self) -> tuple[int, int]:
        """Height and width of the model's pictures where nobody asks for another."""
        _, height, width = self.service.pipe.folder.manifest.shapes["picture"]
        return height, width

    async def submit(self, request: Request, wish: Wish, client: str, user: str) -> Order:
        """Into the queue, or refused at once. Raises ApiError and what the engine raises."""
        if wish.link:
            height, width = (
                wish.settings.get(name, own) for name, own in zip(_SIDES, self.own_size, strict=True)
            )
            self.store.check(wish.count * (height * width * _MOST_PIXEL_BYTES + _MOST_FILE_BYTES))
        recorder = Recorder() if wish.timeline else None
        settings = {**wish.settings, **({} if recorder is None else {"recorder": recorder})}
        ticket = await self.service.submit(
            wish.prompt,
            client=client,
            user=user,
            deadline_ms=wish.deadline_ms,
            since_s=request.scope["driffusion_since_s"],
            previews=wish.stream and wish.partial_images > 0,
            **settings,
        )
        note(request, ticket=ticket.id, n=wish.count, position=ticket.position)
        return Order(self, request, wish, ticket, recorder)


@dataclass(eq=False)
class Order:
    """One accepted request."""

    desk: Desk
    request: Request
    wish: Wish
    ticket: Ticket
    recorder: Recorder | None

    async def result(self) -> Result:
        """The pictures; the request is cancelled where whoever waits here is.

        Raises ApiError, Gone, and DriffusionError for what the client has no part in: its request was checked
        before it was taken.
        """
        work = asyncio.ensure_future(self.ticket.result())
        left = asyncio.ensure_future(gone(self.request.receive))
        try:
            await asyncio.wait({work, left}, return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                raise Gone
            return self._noted(await work)
        except DeadlineError as error:
            raise ApiError(
                504, str(error), "deadline_exceeded", param="deadline_ms",
                headers={"x-should-retry": "false"},
            ) from error  # fmt: skip
        except NonFiniteError:  # by its settings
            raise
        except (InputError, ModelError) as error:
            raise DriffusionError(f"request {self.ticket.id} was taken and failed: {error}") from error
        finally:
            left.cancel()
            if not work.done():
                self.ticket.cancel()
                work.add_done_callback(lambda done: done.cancelled() or done.exception())

    def rounds(self) -> AsyncIterator[Seen]:
        return self.ticket.rounds()

    def _noted(self, result: Result) -> Result:
        """The same result, after the log was told of it."""
        timeline, times = self.ticket.timeline, result.timings
        note(
            self.request,
            mode=result.plan.mode,
            steps=result.plan.steps,
            rounds=result.stats.rounds,
            lanes=timeline.lanes,
            queue_ms=round(timeline.queue_ms, 1),
            made_ms=round(times.total_ms, 1),
        )
        return result

    def _encoded(self, result: Result) -> list[bytes]:
        start = time.perf_counter()
        found = []
        for image, settings in zip(result.images, result.settings, strict=True):
            file = io.BytesIO()
            if self.wish.output_format == "png":
                image.save(file, "PNG", pnginfo=png_info(image, settings))
            else:
                image.save(file, self.wish.output_format.upper(), quality=self.wish.compression)
            found.append(file.getvalue())
        self.desk.metrics.stage("write", 1e3 * (time.perf_counter() - start))
        return found

    async def data(self, result: Result) -> list[dict[str, Any]]:
        """For each picture its entry in `data`, for `json_parts`. Raises ApiError where it cannot be kept."""
        files = await asyncio.to_thread(self._encoded, result)
        seeds = [self.wish.seed + k for k in range(len(files))]
        if not self.wish.link:
            return [{"b64_json": Base64(one), "seed": seed} for one, seed in zip(files, seeds, strict=True)]
        kind, desk = self.wish.output_format, self.desk
        async with desk._storing:
            names = await asyncio.to_thread(desk.store.put, files, kind)
        base = desk.public_url or str(self.request.base_url).rstrip("/")
        return [
            {"url": f"{base}/v1/images/files/{name}", "seed": seed}
            for name, seed in zip(names, seeds, strict=True)
        ]

    def head(self, image: Image.Image) -> dict[str, Any]:
        """What OpenAI's answers and events say of pictures."""
        return {
            "background": "opaque",
            "output_format": self.wish.output_format,
            "quality": self.wish.asked.get("quality", "auto"),
            "size": f"{image.width}x{image.height}",
        }

    def details(self, result: Result) -> dict[str, Any]:
        """How the pictures came about: beyond what OpenAI's API tells."""
        timeline, times, plan = self.ticket.timeline, result.timings, result.plan
        found = {
            "id": self.ticket.id,
            "model_hash": self.desk.service.pipe.model_hash,
            "mode": plan.mode,
            "split_guidance": bool(result.settings[0].get("split_guidance", False)),
            "steps": plan.steps,
            "sequential_calls": result.stats.rounds,
            "lanes": timeline.lanes,
            "queue_ms": round(timeline.queue_ms, 3),
            "encode_ms": round(times.encode_ms, 3),
            "denoise_ms": round(times.denoise_ms, 3),
            "decode_ms": round(times.decode_ms, 3),
            "rounds_ms": [round(ms, 3) for ms in times.rounds_ms],
            "warnings": self.desk.service.pipe.complaints(self.wish.prompt),
        }
        if self.ticket.deadline_kept is not None:
            found["deadline_kept"] = self.ticket.deadline_kept
        drift = result.stats.drift
        if drift is not None:
            found["drift"] = [float(one) for one in drift]
        if self.recorder is not None:
            found["spans"] = _spans(self.recorder)
        return found


def _spans(recorder: Recorder) -> list[Mapping[str, Any]]:
    """When each lane predicted, in milliseconds since the first thing that was done."""
    begin = min((span.start_s for span in recorder.spans), default=0.0)
    return [
        {
            "lane": span.track,
            "start_ms": round(1e3 * (span.start_s - begin), 3),
            "end_ms": round(1e3 * (span.end_s - begin), 3),
            "round": span.round,
        }
        for span in sorted(recorder.spans, key=lambda span: span.start_s)
        if span.name == "predict"
    ]
