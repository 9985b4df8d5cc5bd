"""Elastic lanes against a fixed number for each request, all or one, under an open load, in one process.

    python -m bench.elastic [--model demo] [--devices 2] [--repeats 5] [--requests 20] [--write]

Every repeat first measures the capacity: requests a second with one lane each where there are always some
waiting. Then, for 10, 50, 100 and 300 % of it, the same Poisson arrivals come to three engines one after
another, over one pipeline: "elastic", "all" and "one". Which is first turns from repeat to repeat. Latencies
are from arrival to result, of requests that were taken; throughput counts what ended after the first
quarter of the arrivals' time and before their end. Ratios are within a repeat.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from rich.progress import Progress

import driffusion_trt as dt
from driffusion_trt.server.engine import SHARES, Engine
from driffusion_trt.server.orders import PipelineShop, Shop

from . import report
from .readme import renew
from .serve_parts import ELASTIC, elastic_table

LOADS = (0.1, 0.5, 1.0, 3.0)
QUEUE = 32
PROMPT = "a red fox left of a blue star on a yellow background"


class OpenShop(PipelineShop):
    """A pipeline that several engines have one after another."""

    def open(self) -> None: ...

    def close(self) -> None: ...


@dataclass(slots=True)
class Seen:
    """What became of the requests of one engine under one load."""

    latencies_ms: list[float] = field(default_factory=list)
    lanes: list[int] = field(default_factory=list)
    refused: int = 0
    failed: int = 0
    throughput: float = 0.0  # a second

    def figures(self) -> dict[str, float]:
        p50, p99 = np.percentile(self.latencies_ms, [50, 99])
        return {
            "p50_ms": float(p50),
            "p99_ms": float(p99),
            "throughput": self.throughput,
            "lanes": statistics.mean(self.lanes),
            "made": len(self.latencies_ms),
            "refused": self.refused,
        }


def arrivals(rate: float, count: int, seed: int) -> list[float]:
    """Seconds from the start, of a Poisson process with so many a second."""
    draw, now, found = random.Random(seed), 0.0, []
    for _ in range(count):
        now += draw.expovariate(rate)
        found.append(now)
    return found


async def capacity(shop: Shop, call: Mapping[str, Any], count: int) -> float:
    """Requests a second with one lane each, with twice as many at a time as there are lanes."""
    at_once = asyncio.Semaphore(2 * shop.lanes)
    ends: list[float] = []

    async def one(engine: Engine, seed: int) -> None:
        async with at_once:
            await engine.generate(PROMPT, seed=seed, **call)
            ends.append(time.perf_counter())

    async with _engine(shop, "one") as engine:
        await asyncio.gather(*(one(engine, seed) for seed in range(count)))
    first = shop.lanes - 1  # the first of each lane are only the beginning
    return (len(ends) - 1 - first) / (ends[-1] - ends[first])


async def loaded(shop: Shop, share: str, times: Sequence[float], call: Mapping[str, Any]) -> Seen:
    """Requests that come at these times, whatever becomes of those before them."""
    seen, ends, begun = Seen(), [], time.perf_counter()

    async def one(engine: Engine, seed: int, due: float) -> None:
        try:
            ticket = await engine.submit(PROMPT, seed=seed, **call)
            await ticket.result()
        except dt.QueueFullError:
            seen.refused += 1
            return
        except dt.DriffusionError:
            seen.failed += 1
            return
        ends.append(time.perf_counter() - begun)
        seen.latencies_ms.append(1e3 * (ends[-1] - due))
        seen.lanes.append(ticket.timeline.lanes)

    tasks = []
    async with _engine(shop, share) as engine:
        for seed, due in enumerate(times):
            await asyncio.sleep(max(0.0, due - (time.perf_counter() - begun)))
            tasks.append(asyncio.ensure_future(one(engine, seed, due)))
        await asyncio.gather(*tasks)
    if seen.failed or not seen.latencies_ms:
        raise RuntimeError(
            f"of {len(times)} requests {seen.failed} failed, {len(seen.latencies_ms)} were made"
        )
    start, end = times[-1] / 4, times[-1]
    seen.throughput = sum(start <= one <= end for one in ends) / (end - start)
    return seen


def _engine(shop: Shop, share: str) -> Engine:
    pipe: Any = getattr(shop, "_pipe", None)
    return Engine(pipe, queue=QUEUE, share=share, shop=shop)


async def measure(
    shop: Shop,
    call: Mapping[str, Any],
    *,
    repeats: int,
    requests: int,
    loads: Sequence[float] = LOADS,
    told: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Figures of every repeat, load and share.

    requests: arrivals at the lowest loads; there are more at high ones, which come faster.
    """
    found: dict[str, Any] = {"capacity": [], "repeats": []}
    for repeat in range(repeats):
        most = await capacity(shop, call, max(requests, 4 * shop.lanes))
        found["capacity"].append(most)
        row: dict[str, dict[str, dict[str, float]]] = {}
        for load in loads:
            times = arrivals(load * most, round(requests * max(1.0, 3 * load)), repeat)
            turn = repeat % len(SHARES)
            at_load = {}
            for share in (*SHARES[turn:], *SHARES[:turn]):
                at_load[share] = (await loaded(shop, share, times, call)).figures()
                told()
            row[f"{load:g}"] = at_load
        found["repeats"].append(row)
    return found


def summary(found: Mapping[str, Any]) -> dict[str, Any]:
    """Medians and quartiles over the repeats, and the ratios of elastic to the others within them."""
    loads = list(found["repeats"][0])
    shown: dict[str, Any] = {"capacity": report.spread(found["capacity"]), "loads": {}}
    for load in loads:
        rows = [repeat[load] for repeat in found["repeats"]]
        figures = {
            share: {name: report.spread([row[share][name] for row in rows]) for name in rows[0][share]}
            for share in SHARES
        }
        ratios = {
            f"{name} over {other}": report.spread([_over(row, name, other) for row in rows])
            for other in SHARES[1:]
            for name in ("p50_ms", "p99_ms", "throughput")
        }
        shown["loads"][load] = {"figures": figures, "elastic": ratios}
    return shown


def _over(row: Mapping[str, Mapping[str, float]], name: str, other: str) -> float:
    return row["elastic"][name] / row[other][name] if row[other][name] else float("inf")


def show(shown: Mapping[str, Any]) -> None:
    """As Markdown."""
    print(elastic_table(shown["loads"]))
    for load, at_load in shown["loads"].items():
        for name, ratio in at_load["elastic"].items():
            print(f"{100 * float(load):.0f} %: elastic's {name}: {report.words(ratio, '.3f')}")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Elastic lanes against all or one for each request.")
    parser.add_argument("--model", default="demo")
    parser.add_argument("--devices", type=int, default=2)
    parser.add_argument("--steps", type=int, help="default: the model's own")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--requests", type=int, default=20, help="arrivals at the lowest load")
    parser.add_argument("--measure", action="store_true", help="measure the costs again before")
    parser.add_argument("--write", action="store_true", help="keep the result in bench/results")
    options = parser.parse_args(arguments)
    call: dict[str, Any] = {} if options.steps is None else {"steps": options.steps}
    with dt.Pipeline.load(options.model, devices=["cpu"] * options.devices) as pipe:
        pipe.warm_up()
        costs = pipe.measure(again=options.measure)
        with Progress() as progress:
            task = progress.add_task("Measuring", total=options.repeats * len(LOADS) * len(SHARES))
            found = asyncio.run(
                measure(
                    OpenShop(pipe),
                    call,
                    repeats=options.repeats,
                    requests=options.requests,
                    told=lambda: progress.advance(task),
                )
            )
    shown = summary(found)
    show(shown)
    if options.write:
        asked = {"model": options.model, "devices": options.devices, "call": call, "queue": QUEUE}
        path = report.write(ELASTIC, {**asked, "costs": costs.to_json(), **found, "summary": shown})
        print(f"written to {path}, {', '.join(renew())}")


if __name__ == "__main__":
    main()
