"""Persistent threads, one a lane: work for a lane is done there, in the order in which it was asked for."""

from __future__ import annotations

import queue
import threading
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from .._errors import LaneError

__all__ = ["LaneThreads"]

_T = TypeVar("_T")


@dataclass(slots=True, eq=False)
class _Task:
    """One call on its way through a lane; `done` gets it back with a result or an error."""

    call: Callable[[int], Any]
    lane: int
    done: queue.SimpleQueue[_Task]
    result: Any = None
    error: BaseException | None = None


_Queue = queue.SimpleQueue[_Task | None]  # None ends the thread


class LaneThreads:
    """Threads that run calls for any number of users at once."""

    def __init__(self, lanes: int, at_end: Callable[[], object]) -> None:
        """Start `lanes` threads; `at_end` is called once, when the last of them has ended."""
        self._queues: list[_Queue] = [queue.SimpleQueue() for _ in range(lanes)]
        self._threads = [
            threading.Thread(target=_work, args=(tasks,), name=f"driffusion-lane-{lane}", daemon=True)
            for lane, tasks in enumerate(self._queues)
        ]
        self._waiting = [0] * lanes  # calls that each lane has not finished
        self._lock = threading.Lock()
        self._closed = False
        # Threads that nobody closed are stopped when this object is collected, or at exit: a
        # daemon thread inside ONNX Runtime while the interpreter goes down could crash it.
        self._stop = weakref.finalize(self, _stop, self._queues, self._threads, at_end)
        for thread in self._threads:
            thread.start()

    def __len__(self) -> int:
        return len(self._threads)

    def check_open(self) -> None:
        """Raises LaneError if `close` was called."""
        if self._closed:
            raise LaneError("the lanes are closed; make new ones")

    def run(self, calls: Sequence[Callable[[int], _T]]) -> list[_T]:
        """Run every call on a lane, with its lane as argument, and wait for all of them.

        They go to the lanes in turn, beginning with the one that has the least to do, so
        that several users with one call each do not queue up on the first lane.

        Raises:
            LaneError: a call failed (that of the lowest lane, if several did) and its error is
                the cause; or the lanes are closed. No call of this round still runs then.
        """
        done: queue.SimpleQueue[_Task] = queue.SimpleQueue()
        # Under the lock that close() takes: a task is either ahead of the end mark or refused.
        with self._lock:
            self.check_open()
            first = self._waiting.index(min(self._waiting))
            tasks = [_Task(call, (first + k) % len(self), done) for k, call in enumerate(calls)]
            for task in tasks:
                self._waiting[task.lane] += 1
                self._queues[task.lane].put(task)
        for _ in tasks:
            finished = done.get()
            with self._lock:
                self._waiting[finished.lane] -= 1
        failed = min((task for task in tasks if task.error), key=lambda task: task.lane, default=None)
        if failed is not None:
            kind = type(failed.error).__name__
            raise LaneError(
                f"lane {failed.lane} of {len(self)} failed: {kind}: {failed.error}"
            ) from failed.error
        return [task.result for task in tasks]

    def close(self) -> None:
        """Finish what was asked for, then end the threads; later calls only wait for that."""
        with self._lock:
            self._closed = True
        self._stop()
        for thread in self._threads:
            thread.join()


def _work(tasks: _Queue) -> None:
    """A lane's thread. While it waits it holds nothing of its users, so that they can be collected."""
    while (task := tasks.get()) is not None:
        try:
            task.result = task.call(task.lane)
        except BaseException as error:  # handed over whole: the thread that asked raises it
            task.error = error
        task.done.put(task)
        del task


def _stop(queues: list[_Queue], threads: list[threading.Thread], at_end: Callable[[], object]) -> None:
    for tasks in queues:
        tasks.put(None)
    for thread in threads:
        # The last user may be let go by a lane's own thread, which then ends by itself.
        if thread is not threading.current_thread():
            thread.join()
    at_end()
