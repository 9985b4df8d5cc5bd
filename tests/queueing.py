"""Simulated machines under simulated load: the policy and the queue of an engine, on a clock of their own."""

from __future__ import annotations

import heapq
import itertools
import random
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from driffusion_trt.server.fair import FairQueue
from driffusion_trt.server.policy import Machine, Offered, Profile, Running, lanes_for_next, per_second


def profile(lanes: int, *, steps: int = 50, step_ms: float = 10.0, beside_ms: float = 0.0, over: float = 0.0):
    """Of pictures whose rounds take a step each; `over`: how many more there are than with ideal lanes."""
    ms, keeps, best = [], [], (float("inf"), 1)
    for count in range(1, lanes + 1):
        rounds = steps if count == 1 else 1 + (steps - 1) / count * (1 + over * (count - 1))
        best = min(best, (beside_ms + step_ms * min(rounds, steps), count))
        ms.append(best[0])
        keeps.append(best[1])
    return Profile(tuple(ms), tuple(keeps))


@dataclass(slots=True, eq=False)
class Asked:
    """A request: when it came, and what became of it."""

    at_ms: float
    profile: Profile
    client: str = ""
    user: str = ""
    lanes: int = 0
    start_ms: float = float("nan")
    end_ms: float = float("nan")
    refused: bool = False

    @property
    def work(self) -> float:
        return self.profile.ms_on(1)

    @property
    def latency_ms(self) -> float:
        return self.end_ms - self.at_ms


def poisson(rate: float, count: int, profile: Profile, seed: int, client: str = "") -> list[Asked]:
    """Arrivals at so many a second."""
    draw, now, found = random.Random(seed), 0.0, []
    for _ in range(count):
        now += 1e3 * draw.expovariate(rate)
        found.append(Asked(now, profile, client))
    return found


def serve(machine: Machine, arrivals: Sequence[Asked], bound: int = 64) -> list[Asked]:
    """Let them come, and all that were taken end; what a request takes is what was expected of it."""
    queue: FairQueue[Asked] = FairQueue()
    under_way: dict[Asked, int] = {}
    offered = Offered(20 * arrivals[0].work / machine.lanes)
    events: list[tuple[float, int, Asked]] = [(one.at_ms, k, one) for k, one in enumerate(arrivals)]
    heapq.heapify(events)
    number = itertools.count(len(arrivals))

    def running(now: float) -> Iterator[Running]:
        for one, keeps in under_way.items():
            yield Running(keeps, now - one.start_ms, one.end_ms - one.start_ms)

    while events:
        now, _, one = heapq.heappop(events)
        if one in under_way:
            del under_way[one]
        elif len(queue) >= bound:
            one.refused = True
        else:
            queue.add(one)
            offered.add(now, one.work)
        while (head := next(iter(queue), None)) is not None:
            crowd = len(queue) >= max(2, bound // 2)
            lanes = lanes_for_next(
                machine,
                head.profile,
                len(queue),
                list(running(now)),
                offered=offered.at(now),
                crowd=crowd,
            )
            if not lanes:
                break
            queue.take()
            head.lanes, head.start_ms, head.end_ms = lanes, now, now + head.profile.ms_on(lanes)
            under_way[head] = head.profile.kept_of(lanes)
            assert sum(under_way.values()) <= machine.lanes
            heapq.heappush(events, (head.end_ms, next(number), head))
    assert not queue and not under_way
    return [one for one in arrivals if not one.refused]


def median_ms(served: Sequence[Asked]) -> float:
    return statistics.median(one.latency_ms for one in served)


def throughput(served: Sequence[Asked], until_ms: float) -> float:
    """Pictures a second that were there by then."""
    return 1e3 * sum(one.end_ms <= until_ms for one in served) / until_ms


def capacity(lanes: int, profile: Profile) -> float:
    """Requests a second with one lane each."""
    return per_second(Machine(lanes, each=1), profile)
