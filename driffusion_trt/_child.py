"""Work in a process of its own: its memory is given back whole, a crash is an error, and it can be stopped.

Exporters and engine builders spend minutes inside C++ without looking up, and keep gigabytes. The
child gets its orders as one line of JSON on stdin and answers with lines of JSON; stdin stays
open as a lifeline, so that a child whose parent was killed ends too and writes no more.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from . import _errors
from ._errors import DriffusionError

__all__ = ["Children", "Event", "module_process", "peak_memory_bytes"]

Report = Callable[..., None]
_PARENT = Path(__file__).resolve().parent.parent
_STDIN = 0
_TAIL = 2000  # characters of its stderr that are shown where a child died


@dataclass(frozen=True, slots=True)
class Event:
    """What a child sent: a report while it works, or at the end its result or its error."""

    child: str
    report: dict[str, Any] = field(default_factory=dict)
    done: bool = False
    result: Any = None
    error: DriffusionError | None = None


def module_process(name: str) -> tuple[list[str], dict[str, str]]:
    """The command that runs a module of this package, and what its environment needs besides ours.

    Modules come from where this package lies, also from a source checkout, and never from the working folder
    (-P), where anybody may have left a `dataclasses.py`.
    """
    asked = [part for part in os.environ.get("PYTHONPATH", "").split(os.pathsep) if part]  # "" is that folder
    return [sys.executable, "-P", "-m", name], {"PYTHONPATH": os.pathsep.join([str(_PARENT), *asked])}


class Children:
    """Children by name. Whoever leaves the block ends all of them first."""

    def __init__(self) -> None:
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._running: dict[str, tuple[subprocess.Popen[str], threading.Thread, IO[str]]] = {}

    def start(
        self, name: str, function: str, arguments: Mapping[str, Any], *, env: Mapping[str, str] | None = None
    ) -> None:
        """Run `function` ("package.module:name") with JSON `arguments` and a `report` in a new process.

        `report(**facts)` sends facts to the parent at any time, from any thread.
        """
        if name in self._running:
            raise ValueError(f"there is a child named {name!r} already")
        command, path = module_process(f"{__package__}._child")
        # Kept in a file: a pipe that nobody reads would stop a child that says much.
        words = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=words,
            text=True,
            encoding="utf-8",
            env={**os.environ, **(env or {}), **path},
            start_new_session=True,  # Ctrl-C reaches the parent only, which then ends its children
        )
        order = json.dumps({"function": function, "arguments": dict(arguments)})
        thread = threading.Thread(target=self._read, args=(name, process, words, order), daemon=True)
        self._running[name] = (process, thread, words)
        thread.start()

    def __len__(self) -> int:
        return len(self._running)

    def wait(self) -> Event:
        """The next thing that any child sends; a child whose event is `done` is gone."""
        # With a limit, since an endless wait would keep Ctrl-C out on some systems.
        while True:
            try:
                event = self._events.get(timeout=0.5)
            except queue.Empty:
                continue
            if event.done:
                self._forget(event.child)
            return event

    def _read(self, name: str, process: subprocess.Popen[str], words: IO[str], order: str) -> None:
        assert process.stdin is not None and process.stdout is not None
        last: Event | None = None
        try:
            process.stdin.write(order + "\n")
            process.stdin.flush()
            for line in process.stdout:
                event = _event(name, json.loads(line))
                if event.done:
                    last = event
                else:
                    self._events.put(event)
        except (OSError, ValueError):  # it died while it read or wrote: its status says more
            pass
        status = process.wait()
        self._events.put(last or Event(name, done=True, error=_died(name, status, words)))

    def _forget(self, name: str) -> None:
        process, thread, words = self._running.pop(name)
        _join(thread)
        for pipe in (process.stdin, process.stdout, words):
            assert pipe is not None
            with contextlib.suppress(BrokenPipeError):  # an order that a child did not live to read
                pipe.close()

    def close(self) -> None:
        """End every child at once; a second call does nothing."""
        for process, _, _ in self._running.values():
            process.kill()
        for name in list(self._running):
            self._forget(name)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _join(thread: threading.Thread) -> None:
    """Wait for a thread's end; of one that Ctrl-C overtook as it began, which runs in a moment or never."""
    for _ in range(100):
        try:
            return thread.join()
        except RuntimeError:  # it has not begun
            time.sleep(0.01)


def _event(name: str, data: dict[str, Any]) -> Event:
    if "error" in data:
        # By name: some of these errors are made with other arguments than their message.
        kind: type[DriffusionError] = getattr(_errors, data["error"] or "DriffusionError")
        error = kind.__new__(kind)
        message = data["message"]
        error.args = (message if data["error"] else f"the process that worked on {name} failed: {message}",)
        error.add_note(f"In the process that worked on {name}:\n{data['trace']}")
        return Event(name, done=True, error=error)
    if "result" in data:
        return Event(name, done=True, result=data["result"])
    return Event(name, report=data["report"])


def _died(name: str, status: int, words: IO[str]) -> DriffusionError:
    words.seek(0)
    said = words.read()[-_TAIL:].strip()
    if status < 0:
        how = f"was ended by signal {-status} ({signal.Signals(-status).name})"
        if -status == getattr(signal, "SIGKILL", 9):
            how += ", most likely because memory ran out: build with --jobs 1, or on a larger machine"
    else:
        how = f"ended with status {status} and no result"
    return DriffusionError(
        f"the process that worked on {name} {how}" + (f"; it said: {said}" if said else "")
    )


def peak_memory_bytes() -> int:
    """The most memory that this process has had at once; 0 where that is not known."""
    if sys.platform == "win32":
        return 0
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def _read_order() -> dict[str, Any]:
    """The one line of stdin.

    Not by way of `sys.stdin`: a thread that waits in it keeps its lock, and Python aborts where it finds
    that lock taken as it shuts down.
    """
    line = b""
    while not line.endswith(b"\n") and (part := os.read(_STDIN, 1 << 16)):
        line += part
    order: dict[str, Any] = json.loads(line)
    return order


def _end_with_parent() -> None:
    while os.read(_STDIN, 1 << 16):
        pass
    os._exit(1)


def main() -> None:
    """The child's side."""
    # Libraries print where they like: what they print must not get between our lines.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    lock = threading.Lock()

    def send(**data: Any) -> None:
        with lock:
            answers.write(json.dumps(data) + "\n")
            answers.flush()

    def report(**facts: Any) -> None:
        send(report=facts)

    def fail(error: Exception, kind: str = "") -> None:
        send(error=kind, message=str(error) if kind else _in_a_line(error), trace=traceback.format_exc())

    order = _read_order()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    module, _, function = order["function"].partition(":")
    try:
        result = getattr(importlib.import_module(module), function)(**order["arguments"], report=report)
    except DriffusionError as error:
        kind = next(kind.__name__ for kind in type(error).__mro__ if kind.__name__ in _errors.__all__)
        fail(error, kind)
    except OSError as error:
        fail(DriffusionError(_os_words(error)), "DriffusionError")
    except Exception as error:  # a bug of ours or of a library: the parent says it in a line
        fail(error)
    else:
        send(result=result)


def _os_words(error: OSError) -> str:
    """What the system refused, with the file; a full disk with what to do."""
    words = f"{error.strerror or error}" + (f": {error.filename}" if error.filename else "")
    if error.errno == errno.ENOSPC:
        words += "; make room and run the same command again, which goes on from there"
    return words


def _in_a_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())


if __name__ == "__main__":
    main()
