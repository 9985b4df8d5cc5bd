"""Threads for calls that may hang: unlike those of a ThreadPoolExecutor nobody waits for them at the end."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
from collections.abc import Callable

__all__ = ["Workers", "ended_within", "within"]


class Workers:
    """As many threads as calls run at once; idle ones are used again."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._calls: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._idle = threading.Semaphore(0)
        self._started = 0

    def run(self, call: Callable[[], None]) -> None:
        """Run it, at once, in a thread; it raises nothing. From one thread only."""
        self._calls.put(call)
        if not self._idle.acquire(blocking=False):
            self._started += 1
            threading.Thread(target=self._work, name=f"{self._name}-{self._started}", daemon=True).start()

    def close(self) -> None:
        """Idle threads end now, the others after their calls; waits for none."""
        for _ in range(self._started):
            self._calls.put(None)

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            call()
            del call  # an idle thread holds nothing of a request
            self._idle.release()


async def within(event: asyncio.Event, timeout_s: float | None) -> bool:
    """Whether it comes in time."""
    if event.is_set():
        return True
    try:
        await asyncio.wait_for(event.wait(), timeout_s)
    except TimeoutError:
        return False
    return True


async def ended_within(call: Callable[[], object], timeout_s: float | None, name: str) -> bool:
    """Whether it ends in time, in a thread of this name; raises what it raises by then."""
    done, loop, failures = asyncio.Event(), asyncio.get_running_loop(), list[BaseException]()

    def work() -> None:
        try:
            call()
        except BaseException as error:  # raised below
            failures.append(error)
        with contextlib.suppress(RuntimeError):  # the loop is gone
            loop.call_soon_threadsafe(done.set)

    threading.Thread(target=work, name=name, daemon=True).start()
    ended = await within(done, timeout_s)
    for error in failures:
        raise error
    return ended
