"""A call of the pipeline for asyncio: in a thread of its own, and given up where its task is cancelled."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Unpack

from ._call import Result
from ._settings import Settings

__all__ = ["awaited"]


async def awaited(call: Callable[..., Result], prompt: Any, **settings: Unpack[Settings]) -> Result:
    """`call(prompt, **settings)` in a thread; a task that is cancelled waits for the round under way."""
    cancel = settings.get("cancel")
    if cancel is None:
        settings["cancel"] = cancel = threading.Event()
    # A thread of its own: in a shared pool a call could wait for others, deaf to its `cancel`.
    thread = ThreadPoolExecutor(1, "driffusion-call")
    inside = contextvars.copy_context()
    work = asyncio.wrap_future(thread.submit(inside.run, partial(call, prompt, **settings)))
    thread.shutdown(wait=False)
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        cancel.set()
        # What it raises now is not news; asked for, since asyncio would report it as lost.
        work.add_done_callback(lambda done: done.cancelled() or done.exception())
        await asyncio.wait([work])
        raise
