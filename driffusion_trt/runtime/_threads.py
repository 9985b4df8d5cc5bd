"""Persistent threads, one a lane: work for a lane is done in the order in which it was asked for.

A lane that is idle is worked by the thread that asks, which would only wait: that spares a wake-up.
"""

from __future__ import annotations

import queue
import threading
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
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


@dataclass(slots=True, eq=False)
class _State:
    """What the lanes' threads share with those that ask; it holds no users, so that they can be collected.

    lock: for `waiting`, the calls that each lane has not finished, and `callers`, the users' threads that
    work a lane, by lane. working: held by whoever runs a call on that lane, for good once its thread ended.
    """

    waiting: list[int]
    working: list[threading.Lock]
    lock: threading.Lock = field(default_factory=threading.Lock)
    callers: dict[int, int] = field(default_factory=dict)


class LaneThreads:
    """Threads that run calls for any number of users at once."""

    def __init__(self, lanes: int, at_end: Callable[[], object]) -> None:
        """Start `lanes` threads; `at_end` is called once, when the last of them has ended."""
        self._queues: list[_Queue] = [queue.SimpleQueue() for _ in range(lanes)]
        self._state = _State([0] * lanes, [threading.Lock() for _ in range(lanes)])
        self._threads = [
            threading.Thread(
                target=_work, args=(tasks, self._state, lane), name=f"driffusion-lane-{lane}", daemon=True
            )
            for lane, tasks in enumerate(self._queues)
        ]
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
        """Run every call on a lane, with its lane as argument, and wait for all of them; see `run_made`."""
        return self.run_made(len(calls), lambda k, lane: calls[k])

    def run_made(self, count: int, make: Callable[[int, int], Callable[[int], _T]]) -> list[_T]:
        """Run so many calls, each on a lane and with its lane as argument, and wait for all of them.

        They go to the lanes in turn, beginning with the one that has the least to do, so
        that several users with one call each do not queue up on the first lane. If that one
        has nothing to do at all, this thread runs its calls, as the lane's own would.

        make: of a call's number and lane the call; of all of them before the first runs, on this thread and
            in its turn, while other users and lanes go on. What it raises is raised, and nothing has run.

        Raises:
            LaneError: a call failed (that of the lowest lane, if several did) and its error is
                the cause; or the lanes are closed. No call of this round still runs then.
            KeyboardInterrupt, SystemExit: they reached this thread; other lanes end what they have.
        """
        done: queue.SimpleQueue[_Task] = queue.SimpleQueue()
        tasks, own = list[_Task](), list[_Task]()
        reserved, alone = self._reserve(count)
        try:
            self._make(tasks, reserved, make, done)
            own = self._hand_over(tasks, alone)
            reserved = reserved[:1] * len(own)
            for k in range(len(own)):
                try:
                    own[k].result = own[k].call(own[k].lane)
                except Exception as error:  # raised below, once the other lanes are done
                    own[k].error = error
        finally:
            if reserved:
                self._release(reserved, alone)
        for _ in range(len(tasks) - len(own)):
            done.get()
        if failed := [task for task in tasks if task.error]:
            first_failed = min(failed, key=lambda task: task.lane)
            lane, cause = first_failed.lane, first_failed.error
            # An error of a call made here holds this frame, which is not to hold the error: nobody would
            # let go of the buffers that the call was about.
            del tasks[:], own[:], failed, first_failed
            try:
                name = f"{type(cause).__name__}: {cause}"
                raise LaneError(f"lane {lane} of {len(self)} failed: {name}") from cause
            finally:
                del cause
        return [task.result for task in tasks]

    def _reserve(self, count: int) -> tuple[list[int], bool]:
        """The lanes of so many calls; and whether this thread works the first of them, since it is idle.

        It is this thread's turn there then, whatever others ask for. Raises LaneError after `close`.
        """
        state, width = self._state, len(self._threads)
        with state.lock:
            self.check_open()
            first = state.waiting.index(min(state.waiting))
            lanes = [(first + k) % width for k in range(count)]
            # Where nothing waits nobody is overtaken, and the lane's thread is idle.
            alone = bool(count) and not state.waiting[first] and state.working[first].acquire(blocking=False)
            if alone:
                state.callers[first] = threading.get_ident()
            for lane in lanes:
                state.waiting[lane] += 1
        return lanes, alone

    def _make(
        self,
        tasks: list[_Task],
        lanes: Sequence[int],
        make: Callable[[int, int], Callable[[int], Any]],
        done: queue.SimpleQueue[_Task],
    ) -> None:
        """Add a task for each of the lanes. Raises whatever `make` does, or LaneError after `close`."""
        try:
            for k, lane in enumerate(lanes):
                tasks.append(_Task(make(k, lane), lane, done))
        except Exception:
            self.check_open()  # what calls are made of may be closed with the lanes
            raise

    def _hand_over(self, tasks: Sequence[_Task], alone: bool) -> list[_Task]:
        """Give the tasks to the lanes' threads, but for those of the first lane where this thread works it.

        Returns these. Raises LaneError after `close`; then nobody has got any.
        """
        own = list(tasks[:: len(self._threads)]) if alone else []
        # Under the lock that close() takes: a task is either ahead of the end mark or refused.
        with self._state.lock:
            self.check_open()
            for k, task in enumerate(tasks):
                if not alone or k % len(self._threads):
                    self._queues[task.lane].put(task)
        return own

    def _release(self, lanes: Sequence[int], alone: bool) -> None:
        """The calls that were reserved there are done, or nobody will do them."""
        state = self._state
        if alone:
            state.working[lanes[0]].release()
        with state.lock:
            if alone:
                state.callers.pop(lanes[0], None)
            for lane in lanes:
                state.waiting[lane] -= 1

    def _working(self) -> set[int | None]:
        """Threads in which calls run."""
        return {*self._state.callers.values(), *(thread.ident for thread in self._threads)}

    def close(self) -> None:
        """Finish what was asked for, then end the threads; later calls only wait for that.

        Raises:
            LaneError: it was called by a call on these lanes, which would wait for itself.
        """
        with self._state.lock:
            if threading.get_ident() in self._working():
                raise LaneError("a call that runs on the lanes cannot close them; close them after it")
            self._closed = True
        self._stop()
        for thread in self._threads:
            thread.join()


def _work(tasks: _Queue, state: _State, lane: int) -> None:
    """A lane's thread. While it waits it holds nothing of its users, so that they can be collected."""
    while (task := tasks.get()) is not None:
        with state.working[lane]:
            try:
                task.result = task.call(lane)
            except BaseException as error:  # handed over whole: the thread that asked raises it
                task.error = error
        with state.lock:
            state.waiting[lane] -= 1
        task.done.put(task)
        del task
    # Whoever asked may still be at work here, with what `at_end` closes; nobody will be any more.
    state.working[lane].acquire()


def _stop(queues: list[_Queue], threads: list[threading.Thread], at_end: Callable[[], object]) -> None:
    for tasks in queues:
        tasks.put(None)
    for thread in threads:
        # The last user may be let go by a lane's own thread, which then ends by itself.
        if thread is not threading.current_thread():
            thread.join()
    at_end()
