"""What is known of a fault of the service: what the client saw, and what the log and the metrics said."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPException
from typing import Any

from .served import Served, words_of

PATIENCE_S = 60.0
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


def ready_again(service: Served, within_s: float = PATIENCE_S) -> float:
    """Seconds until a picture is made again. Raises TimeoutError where that does not come."""
    start = time.monotonic()
    while service.alive and time.monotonic() - start < within_s:
        if service.ready() and outcome(service) == "200, a picture":
            return time.monotonic() - start
        time.sleep(0.2)
    raise TimeoutError(f"no picture was made again within {within_s:.0f} s")


def told(service: Served, since: int, before: dict[str, float]) -> str:
    """The log's statuses and other lines, and the metrics that grew, in short."""
    lines = [line for line in service.others(since) if re.match(r"\d{4}-\d\d-\d\d", line)]
    logged = [_IDS.sub("…", line.split(" ", 2)[2]) for line in lines]
    parts = [f"log: {count} × {what[:160]}" for what, count in Counter(logged).most_common(3)]
    statuses = Counter(one["status"] for one in service.requests(since) if one["status"] != 200)
    parts += [f"log: {count} × status {status}" for status, count in sorted(statuses.items())]
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
def several(
    service: Served, fields: Sequence[dict[str, Any]], timed: bool = False
) -> Iterator[list[Future[str]]]:
    """Requests at a time, each of a client of its own. timed: what is no picture is told with its seconds."""

    def one(**asked: Any) -> str:
        start = time.monotonic()
        came = outcome(service, **asked)
        late = timed and not came.startswith("200")
        return f"{came} after {time.monotonic() - start:.0f} s" if late else came

    with ThreadPoolExecutor(len(fields)) as pool:
        yield [pool.submit(one, **asked) for asked in fields]


def waits(service: Served, accepted: int) -> None:
    """Until so many requests run or wait. Raises TimeoutError."""

    def there() -> bool:
        state = service.state()
        return bool(state) and state["running"] >= 1 and state["running"] + state["queued"] >= accepted

    service.wait(there, PATIENCE_S)
