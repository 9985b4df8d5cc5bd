"""Pictures by FastAPI over an engine, for services that have their own server.

pip install . fastapi uvicorn  # in a clone of driffusion-trt
uvicorn examples.fastapi_service:app
curl -X POST 'http://127.0.0.1:8000/pictures?prompt=a+red+fox' -o fox.png
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import logging
import math
import os
from collections.abc import AsyncIterator

from fastapi import FastAPI, HTTPException, Request, Response

import driffusion_trt as dt

MOST_STEPS, MOST_CHARACTERS = 100, 1000  # what one client may ask for


@contextlib.asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """One engine for as long as the server runs; at the end it finishes what it took."""
    model = os.environ.get("PICTURES_MODEL", "demo")
    async with await asyncio.to_thread(dt.Engine.load, model, queue=32) as engine:
        app.state.engine = engine
        yield


app = FastAPI(lifespan=lifespan)


@app.post("/pictures")
async def picture(
    http: Request, prompt: str, seed: int = 0, steps: int = 30, deadline_ms: float | None = None
) -> Response:
    """A PNG. Clients take turns by their address; one that leaves frees its lanes."""
    if steps > MOST_STEPS or len(prompt) > MOST_CHARACTERS:
        raise HTTPException(400, f"at most {MOST_STEPS} steps, and {MOST_CHARACTERS} characters of prompt")
    engine: dt.Engine = http.app.state.engine
    client = http.client.host if http.client else ""
    try:
        ticket = await engine.submit(prompt, seed=seed, steps=steps, deadline_ms=deadline_ms, client=client)
    except (dt.InputError, dt.ModelError) as error:
        raise HTTPException(400, str(error)) from error
    except dt.QueueFullError as error:
        wait = {"Retry-After": str(math.ceil(error.retry_after_s))}
        raise HTTPException(429, str(error), wait) from error
    except (dt.DeadlineError, dt.DrainingError, dt.LaneError) as error:
        raise HTTPException(503, str(error)) from error
    try:
        result = await _unless_gone(http, ticket.result())
    except dt.NonFiniteError as error:
        raise HTTPException(422, "these settings made numbers that are not finite") from error
    except (dt.DeadlineError, dt.CancelledError) as error:
        raise HTTPException(503, str(error)) from error
    except dt.DriffusionError as error:  # it was taken, so its client has no part in this
        logging.getLogger(__name__).exception("the request %s failed", ticket.id)
        raise HTTPException(500, f"the picture could not be made; the log has {ticket.id}") from error
    finally:
        ticket.cancel()  # does nothing to one that is done
    if result is None:
        return Response(status_code=499)  # nobody reads it
    png = io.BytesIO()
    result.images[0].save(png, "PNG")
    return Response(png.getvalue(), media_type="image/png", headers={"X-Lanes": str(ticket.timeline.lanes)})


@app.get("/readyz")
async def ready(http: Request) -> Response:
    """200 while requests are taken."""
    return Response(status_code=200 if http.app.state.engine.status().ready else 503)


async def _unless_gone(http: Request, work):
    """The result of some work; None where the client leaves first."""

    async def gone() -> None:
        while not await http.is_disconnected():
            await asyncio.sleep(0.1)

    tasks = asyncio.ensure_future(work), asyncio.ensure_future(gone())
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        return await tasks[0] if tasks[0].done() else None
    finally:
        for task in tasks:
            task.cancel()
