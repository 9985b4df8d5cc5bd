"""Work in a child: reports, results, errors, crashes, and its end with its parent's."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from driffusion_trt import DriffusionError, InputError, MissingExtraError
from driffusion_trt._child import Children, Event, peak_memory_bytes

# What the children below run: this very file, as a module of its own.
HERE = {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])}


def add(*, a: int, b: int, report: Callable[..., None]) -> dict[str, int]:
    report(phase="adding", at=1)
    print("what a library prints does not get in the way")
    os.write(1, b"not even past Python\n")
    report(phase="added")
    return {"sum": a + b}


def refuse(*, kind: str, report: Callable[..., None]) -> None:
    if kind == "missing":
        raise MissingExtraError("TensorRT", "tensorrt")
    if kind == "full":
        raise OSError(28, "No space left on device", "x.plan")
    if kind == "bug":
        raise KeyError("a bug of ours")
    raise InputError("the sizes cannot be")


def leave(*, status: int, report: Callable[..., None]) -> None:
    sys.exit(status)


def die(*, how: int, report: Callable[..., None]) -> None:
    print("last words", file=sys.stderr, flush=True)
    os.kill(os.getpid(), how)


def linger(*, file: str, report: Callable[..., None]) -> None:
    with open(file, "ab", buffering=0) as beat:
        report(pid=os.getpid())
        while True:
            beat.write(b".")
            time.sleep(0.02)


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", HERE["PYTHONPATH"])


def events(children: Children) -> list[Event]:
    found = []
    while len(children):
        found.append(children.wait())
    return found


def run(function: str, **arguments: Any) -> list[Event]:
    with Children() as children:
        children.start("one", f"test_child:{function}", arguments)
        return events(children)


def test_reports_come_in_order_and_the_result_last() -> None:
    first, second, last = run("add", a=2, b=3)
    assert first.report == {"phase": "adding", "at": 1} and second.report == {"phase": "added"}
    assert last.done and last.result == {"sum": 5} and last.error is None


def test_several_children_at_once() -> None:
    with Children() as children:
        for name in ("a", "b"):
            children.start(name, "test_child:add", {"a": 1, "b": ord(name)})
        results = {event.child: event.result for event in events(children) if event.done}
    assert results == {"a": {"sum": 98}, "b": {"sum": 99}}


@pytest.mark.parametrize(
    ("kind", "error", "words"),
    [
        ("input", InputError, "the sizes cannot be"),
        ("missing", MissingExtraError, "pip install '.[tensorrt]'"),
        (
            "full",
            DriffusionError,
            "device: x.plan; make room and run the same command again",
        ),
        ("bug", DriffusionError, "a bug of ours"),
    ],
)
def test_errors_arrive_as_what_they_were(kind: str, error: type[DriffusionError], words: str) -> None:
    (last,) = run("refuse", kind=kind)
    assert type(last.error) is error
    assert words in str(last.error)


def test_an_error_that_nobody_foresaw_is_one_line_and_its_traceback_a_note() -> None:
    (last,) = run("refuse", kind="bug")
    assert str(last.error) == "the process that worked on one failed: KeyError: 'a bug of ours'"
    assert last.error is not None
    (note,) = last.error.__notes__
    assert note.startswith("In the process that worked on one:\nTraceback") and "in refuse" in note


def test_a_child_may_end_while_its_lifeline_is_waited_on() -> None:
    (last,) = run("leave", status=3)
    assert "worked on one ended with status 3 and no result" in str(last.error), "Python aborted as it ended"


@pytest.mark.parametrize(("how", "words"), [(signal.SIGKILL, "memory ran out"), (signal.SIGSEGV, "SIGSEGV")])
def test_a_child_that_dies_is_an_error_with_its_last_words(how: signal.Signals, words: str) -> None:
    (last,) = run("die", how=int(how))
    assert last.done and last.error is not None
    assert words in str(last.error) and "last words" in str(last.error)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_whoever_leaves_the_block_ends_the_children(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), Children() as children:
        children.start("one", "test_child:linger", {"file": str(tmp_path / "beat")})
        pid = children.wait().report["pid"]
        raise KeyboardInterrupt
    assert not alive(pid)


@pytest.mark.parametrize("begins", [True, False])
def test_ctrl_c_as_a_child_begins_is_not_another_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, begins: bool
) -> None:
    """Whether its thread comes to run a moment later, or never does."""
    begin, made = threading.Thread.start, list[subprocess.Popen[str]]()

    def interrupted(thread: threading.Thread) -> None:
        if begins:
            later = threading.Timer(0.05, begin, [thread])
            begin(later)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), Children() as children:
        try:
            with monkeypatch.context() as patch:
                patch.setattr(threading.Thread, "start", interrupted)
                children.start("one", "test_child:linger", {"file": str(tmp_path / "beat")})
        finally:
            made += [process for process, _, _ in children._running.values()]
    assert len(made) == 1 and not len(children)
    assert made[0].wait(timeout=10) == -signal.SIGKILL


PARENT = """
import sys
from driffusion_trt._child import Children
with Children() as children:
    children.start("one", "test_child:linger", {"file": sys.argv[1]})
    print(children.wait().report["pid"], flush=True)
    children.wait()
"""


def test_a_child_ends_when_its_parent_is_killed(tmp_path: Path) -> None:
    beat = tmp_path / "beat"
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, str(beat)], stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        int(parent.stdout.readline())
        parent.kill()
    deadline = time.monotonic() + 30
    # By its work and not by its number: who reaps it depends on the system.
    while True:
        before = beat.stat().st_size
        time.sleep(0.5)
        if beat.stat().st_size == before:
            break
        assert time.monotonic() < deadline, "the child works on without its parent"


def test_peak_memory_is_in_bytes() -> None:
    assert 1 << 20 < peak_memory_bytes() < 1 << 40


def test_a_child_runs_no_code_of_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "dataclasses.py").write_text("raise SystemExit('code of the working folder was run')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", HERE["PYTHONPATH"] + os.pathsep)  # its empty part is that folder
    with Children() as children:
        children.start("one", f"{__name__}:add", {"a": 2, "b": 3})
        while not (event := children.wait()).done:
            pass
    assert event.error is None and event.result == {"sum": 5}
