"""Faults of lanes, of disks, and the end of the service under load, on processes that serve."""

from __future__ import annotations

import os
import resource
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from .fault_rows import PATIENCE_S, Asked, Row, counted, outcome, ready_again, several, told, waits
from .fault_server import FOLDER
from .served import Served, served

_SMALL_BYTES = 1000  # less than a picture takes


@contextmanager
def breakable(asked: Asked, *words: str) -> Iterator[tuple[Served, Path]]:
    """A service, and the folder that its lanes look into."""
    with tempfile.TemporaryDirectory() as name:
        os.environ[FOLDER] = name
        try:
            with served(*asked.words(*words), python=("-m", "bench.fault_server")) as service:
                yield service, Path(name)
        finally:
            del os.environ[FOLDER]


def lanes_fail(asked: Asked) -> Iterator[Row]:
    with breakable(asked) as (service, folder):
        since, before = len(service.lines), service.metrics()
        (folder / "fail-1").touch()
        one = outcome(service)
        service_said = told(service, since, before)
        yield Row(
            "a lane fails once", "one call of the network raises, one request under way", one, service_said,
            ready_again(service), one == "200, a picture",
        )  # fmt: skip
        since, before = len(service.lines), service.metrics()
        (folder / "always").touch()
        with several(service, [{"seed": seed} for seed in range(6)]) as found:
            seen = [one.result() for one in found]
        service_said = told(service, since, before)
        (folder / "always").unlink()
        yield Row(
            "lanes fail again and again", "every call of the network raises, six requests; then none does",
            counted(seen), service_said, ready_again(service), all(one[0] == "5" for one in seen),
        )  # fmt: skip


def lanes_hang(asked: Asked) -> Iterator[Row]:
    with breakable(asked) as (service, folder):
        since, before = len(service.lines), service.metrics()
        (folder / "hang").touch()
        with several(service, [{"seed": seed, "steps": 8} for seed in range(4)]) as found:
            service.wait((folder / "hangs").exists, PATIENCE_S)
            time.sleep(2)
            health = service.call("GET", "/healthz", 5)[0]
            (folder / "hangs").unlink()
            seen = [one.result() for one in found]
        yield Row(
            "a lane hangs for two seconds", "one call of the network sleeps, four requests",
            f"{counted(seen)}; /healthz meanwhile: {health}", told(service, since, before),
            ready_again(service), set(seen) == {"200, a picture"},
        )  # fmt: skip
    yield from _hangs_for_good(asked)


def _hangs_for_good(asked: Asked) -> Iterator[Row]:
    """For longer than a request may; then it goes on, and another hangs until the process has ended."""
    bound_s = 3
    with breakable(asked, "--drain-timeout", "3", "--hang-timeout", str(bound_s)) as (service, folder):
        since, before = len(service.lines), service.metrics()
        seen = _hanging(service, folder)
        late, state = outcome(service), service.state()
        shown = ", ".join(f"{name} {state.get(name)}" for name in ("status", "running", "queued", "lanes"))
        service_said = f"/readyz: {shown}; {told(service, since, before)}"
        (folder / "hangs").unlink()
        yield Row(
            f"a lane hangs for longer than --hang-timeout {bound_s}",
            "one call of the network does not end, four requests, one more; then it ends",
            f"{counted(seen)}; the one more: {late}", service_said, ready_again(service),
            not any("no answer" in one for one in seen) and late.startswith("503 `no_device`")
            and any("a lane hangs" in one or one.startswith("500") for one in seen)
            and state.get("status") != "ready",
        )  # fmt: skip
        seen = _hanging(service, folder)
        begun = time.monotonic()
        status = service.end(PATIENCE_S)
        took = time.monotonic() - begun
        how = "did not end" if status is None else f"ended with status {status}"
        yield Row(
            "SIGTERM while a lane hangs", "--drain-timeout 3, one call of the network never ends",
            counted(seen), f"the process {how} after {took:.1f} s", None,
            status == 0 and not any("no answer" in one for one in seen),
        )  # fmt: skip


def _hanging(service: Served, folder: Path) -> list[str]:
    """Four requests, of which one finds a lane that hangs."""
    (folder / "hang").touch()
    with several(service, [{"seed": seed, "steps": 8} for seed in range(4)], timed=True) as found:
        service.wait((folder / "hangs").exists, PATIENCE_S)
        return [one.result() for one in found]


def stands_still(asked: Asked) -> Iterator[Row]:
    """As when a virtual machine is paused: no lane hangs, though more time goes by than one may."""
    bound_s = 2
    with served(*asked.words("--hang-timeout", str(bound_s))) as service:
        since, before = len(service.lines), service.metrics()
        fields = [{"seed": seed, "steps": 50, "mode": "sequential"} for seed in range(4)]
        with several(service, fields) as found:
            waits(service, len(fields))
            service.signal(signal.SIGSTOP)
            time.sleep(20)
            service.signal(signal.SIGCONT)
            seen = [one.result() for one in found]
        yield Row(
            "the process stands still", f"SIGSTOP for 20 s, four requests, --hang-timeout {bound_s}; SIGCONT",
            counted(seen), told(service, since, before), ready_again(service),
            set(seen) == {"200, a picture"},
        )  # fmt: skip


# The end


def ends_under_load(asked: Asked) -> Iterator[Row]:
    with served(*asked.words()) as service:
        fields = [{"seed": seed, "steps": 100} for seed in range(12)]
        since = len(service.lines)
        with several(service, fields) as found:
            waits(service, len(fields))
            service.signal(signal.SIGTERM)
            begun, late = time.monotonic(), list[str]()
            while service.alive and time.monotonic() - begun < PATIENCE_S:
                late.append(outcome(service))
                time.sleep(0.1)
            seen = [one.result() for one in found]
        status, took = service.end(PATIENCE_S), time.monotonic() - begun
        made = [one["ticket"] for one in service.requests(since) if one["status"] == 200 and "ticket" in one]
    good = set(seen) == {"200, a picture"} and status == 0 and len(set(made)) == len(made) == len(seen)
    yield Row(
        "SIGTERM under load", "12 requests under way or waiting; others come until the process has ended",
        f"accepted: {counted(seen)}; later ones: {counted(late)}",
        f"status {status} after {took:.1f} s; log: {len(set(made))} tickets with a picture", None,
        good and not any(one.startswith("200") for one in late),
    )  # fmt: skip


def ends_at_once(asked: Asked) -> Iterator[Row]:
    with served(*asked.words()) as service:
        fields = [{"seed": seed, "steps": 200, "mode": "sequential"} for seed in range(6)]
        with several(service, fields) as found:
            waits(service, len(fields))
            service.signal(signal.SIGTERM)
            time.sleep(0.5)
            service.signal(signal.SIGTERM)
            begun = time.monotonic()
            seen = [one.result() for one in found]
        status, took = service.end(PATIENCE_S), time.monotonic() - begun
    yield Row(
        "a second SIGTERM", "half a second after the first, six long requests under way", counted(seen),
        f"status {status} after {took:.1f} s", None, status is not None and took < 15,
    )  # fmt: skip


# Disks


def disk_is_full(asked: Asked) -> Iterator[Row]:
    with tempfile.TemporaryDirectory() as name:
        limit = f"RLIMIT_FSIZE of the process at {_SMALL_BYTES} bytes (any user can set it)"
        yield _full_disk(asked, Path(name), limit, _small_files)
    yield from _small_disk(asked)
    yield _full_log(asked)


def _small_files() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (_SMALL_BYTES, _SMALL_BYTES))


def _full_disk(asked: Asked, folder: Path, how: str, before: Callable[[], None] | None) -> Row:
    """Links until the folder takes no more."""
    with served(*asked.words("--output-dir", str(folder)), before=before) as service:
        since, counts = len(service.lines), service.metrics()
        seen = [outcome(service, response_format="url") for _ in range(12)]
        without = outcome(service)
        left = sorted(path.name for path in folder.iterdir() if path.name.endswith(".partial"))
        again = ready_again(service)
        service_said = f"{len(left)} half-written files; {told(service, since, counts)}"
    refused = [one for one in seen if one.startswith("507")]
    return Row(
        "the disk of --output-dir is full", f"{how}; 12 pictures behind links, one in the answer",
        f"links: {counted(seen)}; in the answer: {without}", service_said,
        again, bool(refused) and without == "200, a picture" and not left,
    )  # fmt: skip


def _small_disk(asked: Asked) -> Iterator[Row]:
    """On a file system of 16 KiB, where this user may mount one."""
    with tempfile.TemporaryDirectory() as name:
        mount = ["mount", "-t", "tmpfs", "-o", "size=16k", "driffusion-faults", name]
        if os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
            return
        try:
            yield _full_disk(asked, Path(name), "a tmpfs of 16 KiB (needs root)", None)
        finally:
            subprocess.run(["umount", name], check=True)


def _full_log(asked: Asked) -> Row:
    """stderr is a file that may not grow, so that all but the first lines of the log are lost."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with tempfile.TemporaryFile() as log:
        with served(*asked.words(), log=log, port=port, before=_small_files) as service:
            seen = [outcome(service) for _ in range(12)]
            again, status = ready_again(service), service.end(PATIENCE_S)
        size = os.fstat(log.fileno()).st_size
    return Row(
        "the disk of the log is full",
        f"stderr is a file of at most {_SMALL_BYTES} bytes, 12 requests, then SIGTERM",
        counted(seen), f"{size} bytes of the log were written; the process ended with status {status}", again,
        set(seen) == {"200, a picture"} and status == 0 and size == _SMALL_BYTES,
    )  # fmt: skip
