"""Faults of lanes, clients, disks and signals on a service that runs, and what each of them saw.

Every case gives a row: what it was, what was done, what the client saw, what the log and the metrics said, and
how long it took until requests were answered with pictures again.
"""

from __future__ import annotations

import os
import re
import resource
import signal
import socket
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any

from . import fuzz
from .fault_server import FOLDER
from .served import Served, served, words_of

PATIENCE_S = 60.0
STRICT = ("--header-timeout", "1", "--body-timeout", "1", "--stall-timeout", "1")
SMALL = ("--max-steps", "200", "--max-images", "2")
_IDS = re.compile(r"\b[0-9a-f]{8,16}\b|\d+(\.\d+)? ms")


@dataclass(frozen=True, slots=True)
class Row:
    """What is known of one fault. good: whether it was as docs/serving.md says."""

    fault: str
    done: str
    client: str
    service: str
    ready_again_s: float | None
    good: bool


@dataclass(frozen=True, slots=True)
class Asked:
    """What all cases need to know."""

    model: str
    devices: int
    bodies: int
    seed: int
    hang_s: float

    def words(self, *more: str) -> Sequence[str]:
        return words_of(self.model, self.devices, *more)


def outcome(service: Served, **fields: Any) -> str:
    """One request, and what came of it in a few words."""
    try:
        status, value = service.generate(PATIENCE_S, **fields)
    except (HTTPException, OSError, ValueError) as error:
        return f"no answer ({type(error).__name__})"
    return "200, a picture" if status == 200 else said(status, value)


def said(status: int, value: Any) -> str:
    """An error as a client reads it."""
    error = value.get("error", {}) if isinstance(value, dict) else {}
    return f'{status} `{error.get("code")}`: "{_IDS.sub("…", str(error.get("message", value)))}"'


def counted(outcomes: Sequence[str]) -> str:
    return "; ".join(f"{count} × {what}" for what, count in Counter(outcomes).most_common())


def ready_again(service: Served, within_s: float = PATIENCE_S) -> float | None:
    """Seconds until a picture is made again; None where that does not come."""
    start = time.monotonic()
    while service.alive and time.monotonic() - start < within_s:
        if service.ready() and outcome(service) == "200, a picture":
            return time.monotonic() - start
        time.sleep(0.2)
    return None


def told(service: Served, since: int, before: dict[str, float]) -> str:
    """The log's statuses and other lines, and the metrics that grew, in short."""
    lines = [line for line in service.others(since) if re.match(r"\d{4}-\d\d-\d\d", line)]
    logged = [_IDS.sub("…", line.split(" ", 2)[2]) for line in lines]
    parts = [f"log: {count} × {what[:160]}" for what, count in Counter(logged).most_common(3)]
    gone = sum(one["status"] == 499 for one in service.requests(since))
    if gone:
        parts.append(f"log: {gone} × status 499")
    try:
        after = service.metrics()
    except (HTTPException, OSError):
        return "; ".join([*parts, "metrics: not there"])
    names = ("driffusion_failures_total", "driffusion_lanes_lost_total", "driffusion_refused_total")
    for name, value in after.items():
        grown = value - before.get(name, 0.0)
        if name.startswith(names) and grown:
            parts.append(f"`{name}` +{grown:g}")
    return "; ".join(parts) or "nothing"


@contextmanager
def several(service: Served, fields: Sequence[dict[str, Any]]) -> Iterator[list[Future[str]]]:
    """Requests at a time, each of a client of its own."""
    with ThreadPoolExecutor(len(fields)) as pool:
        yield [pool.submit(outcome, service, **one) for one in fields]


def waits(service: Served, running: int = 1, queued: int = 0) -> None:
    """Until so many are under way. Raises TimeoutError."""

    def there() -> bool:
        state = service.state()
        return bool(state) and state["running"] >= running and state["queued"] >= queued

    service.wait(there, PATIENCE_S)


# Lanes


@contextmanager
def breakable(asked: Asked, *words: str) -> Iterator[tuple[Served, Path]]:
    """A service, and the folder that its lanes look into."""
    with tempfile.TemporaryDirectory() as name:
        os.environ[FOLDER] = name
        try:
            with served(*asked.words(*words), module="bench.fault_server") as service:
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
    yield from _hangs_for_ever(asked)


def _hangs_for_ever(asked: Asked) -> Iterator[Row]:
    with breakable(asked, "--drain-timeout", "3") as (service, folder):
        since, before = len(service.lines), service.metrics()
        (folder / "hang").touch()
        start = time.monotonic()
        with several(service, [{"seed": seed, "steps": 8} for seed in range(4)]) as found:
            service.wait((folder / "hangs").exists, PATIENCE_S)
            seen = [f"{one.result()} after {time.monotonic() - start:.0f} s" for one in found]
        state = service.state()
        shown = {name: state.get(name) for name in ("status", "running", "queued", "lanes", "lanes_failed")}
        yield Row(
            "a lane hangs for good",
            f"one call of the network never ends, four requests, clients that wait for {PATIENCE_S:g} s",
            counted(seen), f"/readyz: {shown}; {told(service, since, before)}", ready_again(service, 10),
            not any("no answer" in one for one in seen),
        )  # fmt: skip
        begun = time.monotonic()
        status = service.end(60)
        took = time.monotonic() - begun
        how = f"ended with status {status} after {took:.1f} s" if status is not None else "did not end in 60 s"
        yield Row(
            "SIGTERM while a lane hangs", "--drain-timeout 3", "-", f"the process {how}", None,
            status is not None and took < 45,
        )  # fmt: skip
