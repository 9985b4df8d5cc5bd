"""The service under a load that does not wait for it: from 10 % to 300 % of what it can do.

    python -m bench.serve_load [--model demo] [--devices 2] [--minutes 10] [--rates 10 25 ...] [--write]

`driffusion-trt serve` runs as a child, the requests come from another. First the capacity is measured:
pictures a second where 40 clients at a time ask again as soon as they are answered. Then the queue is filled
until some are refused, which ends the warm-up. Then, for each rate, requests come in a Poisson process, for
an equal part of the minutes; each has an id and a seed of its own, and every second one names its mode
(sequential; aggressive on all lanes). A fourth of each kind has a deadline, four times the median latency of
requests that come one at a time: by the client's clock, as all latencies, kept, missed (a late picture, or
504), or refused (422) at once. Latencies are from the time a request was due to the end of its answer;
p50 and p99 are of pictures. Goodput counts pictures that came after the first quarter of a rate's time and
before its end.

Lost is what was not answered. Twice is what was answered twice, has two lines in the service's log, or shares
a ticket with another. Wrong is a picture of another seed, one that two seeds got, or one of those that are
made again at the end, with the settings in their files, and have other pixels. Memory is the service's
resident set, each second; its growth is from the end of the warm-up to the end.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from rich.progress import Progress

from driffusion_trt.server.serving import LOOP

from . import report
from .elastic import arrivals
from .load_checks import faults, kept, memory, out_of_time, pictures, was_made
from .load_client import NICE
from .readme import renew
from .serve_parts import LOAD, draw, load_table, load_words
from .served import PACKAGES, ROOT, Served, served, words_of

RATES = (10, 25, 50, 75, 90, 100, 125, 150, 200, 300)
PROMPT = "a red fox left of a blue star on a yellow background"
QUEUE = 64
AT_ONCE = 40
FLOODS = 3
TIMEOUT_S = 120.0
ALONE = 16
DEADLINE = 4  # times the latency of a request that comes alone
_MOST_A_SECOND = 300  # more pictures than that in the closed loop are not asked for


@dataclass(slots=True)
class Load:
    """A service that runs, and what came of the requests so far."""

    service: Served
    modes: Sequence[dict[str, Any]]
    steps: int
    told: Callable[[float], None] = lambda _: None
    begun: float = field(default_factory=time.perf_counter)
    rss: list[tuple[float, int]] = field(default_factory=list)  # seconds since the start, bytes
    seeds: Iterator[int] = field(default_factory=itertools.count)
    seen: list[dict[str, Any]] = field(default_factory=list)
    deadline_ms: float | None = None  # of a fourth of the requests

    def asked(self, name: str, times: Sequence[float | None]) -> list[dict[str, Any]]:
        made = []
        for number, due_s in enumerate(times):
            seed = next(self.seeds)
            mode = self.modes[seed % len(self.modes)]
            fields = {"prompt": PROMPT, "seed": seed, "steps": self.steps, **mode}
            if self.deadline_ms is not None and (seed // 4) % 4 == seed % 4:  # a fourth of each mode
                fields["deadline_ms"] = self.deadline_ms
            request = {"id": f"{name}-{number}", "fields": fields}
            made.append(request if due_s is None else {**request, "due_s": due_s})
        return made

    def phase(
        self, name: str, times: Sequence[float | None], keep: int = 0, **closed: float
    ) -> dict[str, Any]:
        """Have the client send these requests; memory and queue are looked at meanwhile."""
        spec: dict[str, Any] = {"port": self.service.port, "timeout_s": TIMEOUT_S, "keep": keep, **closed}
        spec["requests"] = self.asked(name, times)
        client = subprocess.Popen(
            [sys.executable, "-m", "bench.load_client"],
            cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        queued, text = 0, None
        try:
            given: str | None = json.dumps(spec)
            while text is None:
                try:
                    text = client.communicate(given, timeout=1.0)[0]
                except subprocess.TimeoutExpired:
                    given = None
                    self.rss.append((time.perf_counter() - self.begun, self.service.rss_bytes))
                    queued = max(queued, self.service.state().get("queued", 0))
                    self.told(1.0)
        finally:
            client.kill()
            client.wait()
        if client.returncode:
            raise RuntimeError("the client failed; its error is above")
        found: dict[str, Any] = json.loads(text)
        self.seen += found["seen"]
        return {**found, "queued": queued}

    def capacity(self, name: str, seconds: float) -> float:
        """Pictures a second where there are always some waiting."""
        found = self.phase(name, [None] * round(_MOST_A_SECOND * seconds), at_once=AT_ONCE, stop_s=seconds)
        start = seconds / 4
        ends = [one["end_s"] for one in found["seen"] if was_made(one)]
        return len([end for end in ends if start <= end <= seconds]) / (seconds - start)

    def alone(self, name: str) -> float:
        """Milliseconds of a request where there are no others, the median."""
        seen = self.phase(name, [None] * ALONE, at_once=1, stop_s=TIMEOUT_S)["seen"]
        return float(statistics.median(one["ms"] for one in seen if was_made(one)))

    def flood(self, name: str) -> int:
        """More at once than may wait; how many of them were refused."""
        found = self.phase(name, [0.0] * (QUEUE + AT_ONCE))
        return sum(one["status"] == 429 for one in found["seen"])


def at_rate(load: Load, percent: float, capacity: float, seconds: float, keep: int) -> dict[str, Any]:
    """One rate: what was seen of it."""
    rate = percent / 100 * capacity
    times = [due for due in arrivals(rate, round(2 * rate * seconds) + 20, round(percent)) if due < seconds]
    found = load.phase(f"at{percent:g}", times, keep)
    return {"percent": percent, "a_second": rate, "seconds": seconds, **figures(found, seconds)}


def figures(found: dict[str, Any], seconds: float) -> dict[str, Any]:
    seen = found["seen"]
    made = [one for one in seen if was_made(one)]
    refused = [one for one in seen if one["status"] == 429]
    hurried = [one for one in seen if one["deadline_ms"] is not None]
    waits = [one["retry_after_ms"] for one in refused]
    start = seconds / 4
    return {
        "sent": len(seen),
        "made": len(made),
        "refused": len(refused),
        "others": len(seen) - len(made) - len(refused) - sum(map(out_of_time, seen)),
        "deadlines": len(hurried),
        "deadlines_kept": sum(was_made(one) and one["ms"] <= one["deadline_ms"] for one in hurried),
        "deadlines_missed": sum(
            (was_made(one) and one["ms"] > one["deadline_ms"]) or one["status"] == 504 for one in hurried
        ),
        "deadlines_refused": sum(one["status"] == 422 for one in hurried),
        "p50_ms": _percentile([one["ms"] for one in made], 50),
        "p99_ms": _percentile([one["ms"] for one in made], 99),
        "refused_p50_ms": _percentile([one["ms"] for one in refused], 50),
        "goodput": sum(start <= one["end_s"] <= seconds for one in made) / (seconds - start),
        "retry_after_ms": _percentile([wait for wait in waits if wait is not None], 50),
        "without_retry_after": waits.count(None),
        "mean_lanes": statistics.mean(one["lanes"] for one in made) if made else None,
        "queued": found["queued"],
        "late_p50_ms": _percentile([one["late_ms"] for one in seen], 50),
        "late_p99_ms": _percentile([one["late_ms"] for one in seen], 99),
        "client_cpu": found["cpu_s"] / found["wall_s"],
    }


def _percentile(values: Sequence[float], percent: float) -> float | None:
    return float(np.percentile(values, percent)) if values else None


def measure(
    *,
    model: str,
    devices: int,
    minutes: float,
    rates: Sequence[float] = RATES,
    steps: int = 10,
    verified: int = 300,
    told: Callable[[float], None] = lambda _: None,
) -> dict[str, Any]:
    """The whole of it. verified: pictures that are made again at the end, about."""
    seconds = 60 * minutes / len(rates)
    modes: Sequence[dict[str, Any]] = (
        {},
        {"mode": "sequential"},
        {},
        {"mode": "aggressive", "lanes": devices},
    )
    warm_s = _warm_s(minutes, len(rates))
    # Where both want a core the client comes second; it is not to be cut off for being slow.
    words = words_of(model, devices, "--queue", str(QUEUE), "--header-timeout", "60")
    with served(*words) as service:
        load = Load(service, modes, steps, told)
        capacity = load.capacity("warm", warm_s)
        refused = [load.flood(f"flood{number}") for number in range(FLOODS)]
        warm = len(load.rss)
        load.deadline_ms = DEADLINE * load.alone("alone")
        rows = [at_rate(load, rate, capacity, seconds, -(-verified // len(rates))) for rate in rates]
        deadline_ms, load.deadline_ms = load.deadline_ms, None
        after = load.capacity("again", warm_s)
        counted, status = service.metrics(), service.end()
        lines, log = service.requests(), service.others()
    return {
        "capacity": capacity,
        "capacity_after": after,
        "deadline_ms": deadline_ms,
        "flooded": refused,
        "rates": rows,
        "client_nice": NICE,
        "kept": kept(load.seen, lines, counted),
        "pictures": pictures(load.seen, model, devices),
        "memory": memory(load.rss, warm),
        "exit_status": status,
        "complaints": [line for line in log if " WARNING " in line or " ERROR " in line][:20],
        "longest_gap_s": max(b - a for (a, _), (b, _) in itertools.pairwise(load.rss)),
    }


def _warm_s(minutes: float, rates: int) -> float:
    """For which the capacity is measured, before and after."""
    return max(8.0, min(60 * minutes / rates, 30.0))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="The service from 10 % to 300 % of its capacity.")
    parser.add_argument("--model", default="demo")
    parser.add_argument("--devices", type=int, default=2)
    parser.add_argument("--minutes", type=float, default=10.0, help="of all rates together")
    parser.add_argument("--rates", type=float, nargs="+", default=RATES, help="percent of the capacity")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--write", action="store_true", help="keep the result in bench/results")
    options = parser.parse_args(arguments)
    asked = {name: getattr(options, name) for name in ("model", "devices", "minutes", "rates", "steps")}
    with Progress() as progress:
        warm_s = 2 * _warm_s(options.minutes, len(options.rates))
        task = progress.add_task("Load", total=60 * options.minutes + warm_s)
        found = measure(**asked, told=lambda seconds: progress.advance(task, seconds))
    print(load_table(found["rates"]))
    print(load_words(found))
    wrong = faults(found)
    for line in wrong:
        print(f"NOT AS IT SHOULD BE: {line}")
    if options.write:
        path = report.write(
            LOAD, {**asked, "loop": LOOP, "queue": QUEUE, "prompt": PROMPT, **found}, PACKAGES
        )
        draw()
        print(f"written to {path}, {', '.join(renew())}")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
