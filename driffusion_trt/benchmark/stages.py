"""A call's time by stage, from what its recorder took down."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

from ..sampling.recording import Recorder, Span

__all__ = ["STAGES", "Split", "split"]

# `wait` of the spans is network and exchange; `other` is what is left of the call.
STAGES = ("tokenize", "encode", "draft", "network", "exchange", "refine", "look", "decode", "other")


@dataclass(frozen=True, slots=True)
class Split:
    """Milliseconds of one call.

    stages: by `STAGES`; they add up to the call. rounds_ms: of each round the network time of the lane that
    was busiest in it. denoise_ms: the sampling loop, on the host's clock.
    """

    stages: dict[str, float]
    rounds_ms: tuple[float, ...]
    denoise_ms: float


def split(recorder: Recorder, latency_ms: float) -> Split:
    """What the spans of one call come to.

    exchange: of every round the wait for its predictions, less the time that the busiest lane was in its
    network: latents to the lanes and back, handing work over, lanes that wait for one another, and guidance
    that is combined afterwards.
    """
    totals: defaultdict[str, float] = defaultdict(float)
    for one in recorder.spans:
        totals[one.name] += one.ms
    rounds_ms = tuple(_busiest(recorder.spans).values())
    network = sum(rounds_ms)
    stages = {name: totals[name] for name in STAGES}
    stages |= {"network": network, "exchange": totals["wait"] - network}
    stages["other"] = latency_ms - sum(value for name, value in stages.items() if name != "other")
    return Split(stages, rounds_ms, totals["denoise"])


def _busiest(spans: list[Span]) -> dict[int, float]:
    """By round the network time of the busiest lane; a lane may have several calls in one."""
    lanes: defaultdict[int, defaultdict[str, float]] = defaultdict(lambda: defaultdict(float))
    for one in spans:
        if one.name == "network":
            lanes[one.round][one.track] += one.ms
    return {round: max(times.values()) for round, times in sorted(lanes.items())}
