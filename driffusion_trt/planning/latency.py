"""How long pictures of a plan take on devices of some costs, and what of that is what."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Self

from ..sampling.plan import Plan
from ..sampling.timeline import timeline
from .costs import Costs

__all__ = ["TERMS", "Work", "latency_ms", "pays_up_to", "terms_ms"]

# What a latency is made of, in the order in which the terms are taken away.
TERMS = ("looks", "host", "exchange", "crowding", "beside", "network")


@dataclass(frozen=True, slots=True)
class Work:
    """What a plan asks of devices.

    rounds: noises that a round predicts at once, and how many such rounds there are.
    looks: whether the host looks at every round to decide the next one, or to fit how it extrapolates.
    """

    rounds: tuple[tuple[int, float], ...]
    looks: bool = False

    @classmethod
    def of(cls, plan: Plan, rounds: float | None = None) -> Self:
        """Of a plan; of one that adapts, with every draft near.

        rounds: how many one with a tolerance is expected to take; all but the first one on all lanes.
        """
        asked = plan.asked()
        if rounds is not None and plan.lanes > 1 and "tolerance" in asked:
            return cls(((1, 1.0), (plan.lanes, rounds - 1)), True)
        counts = Counter(len(turn.cells) for turn in timeline(plan))
        looks = plan.lanes > 1 and ("tolerance" in asked or asked.get("order", 0) > 0)
        return cls(tuple((drafts, float(count)) for drafts, count in sorted(counts.items())), looks)

    @property
    def count(self) -> float:
        """Rounds in all."""
        return sum(count for _, count in self.rounds)


def latency_ms(costs: Costs, work: Work, *, guided: bool, split: bool = False, pictures: int = 1) -> float:
    """From the prompt to the picture, or the batch of pictures.

    Raises InputError where guidance is split over fewer than two devices.
    """
    how = {"guided": guided, "split": split, "looked": work.looks}
    rounds = sum(count * costs.round_ms(drafts, pictures=pictures, **how) for drafts, count in work.rounds)
    return costs.picture_ms * pictures + rounds


def terms_ms(costs: Costs, work: Work, *, guided: bool, split: bool = False) -> dict[str, float]:
    """What of a latency is what, by the names in `TERMS`; the terms add up to it.

    Each is what the latency falls by without it, one after another: where the host works ahead, or an
    exchange is hidden behind the lead's own call, it is what shows; `looks` has in it what the host
    can then not do ahead. `beside` are encoders and decoder.
    """
    without: dict[str, dict[str, object]] = {
        "host": {"host_ms": (0.0, 0.0)},
        "exchange": {"exchange_ms": (0.0, 0.0)},
        "crowding": {"crowded": 1.0},
        "beside": {"picture_ms": 0.0},
    }
    left = latency_ms(costs, work, guided=guided, split=split)
    work = replace(work, looks=False)
    ms = latency_ms(costs, work, guided=guided, split=split)
    terms, left = {"looks": left - ms}, ms
    for name in TERMS[1:-1]:
        costs = replace(costs, **without[name])  # type: ignore[arg-type]
        ms = latency_ms(costs, work, guided=guided, split=split)
        terms[name], left = left - ms, ms
    return {**terms, "network": left}


def pays_up_to(latencies_ms: Mapping[int, float], least_gain: float = 0.05) -> int:
    """The most devices that are faster, by at least this share, than every smaller number of them.

    latencies_ms: by number of devices. Raises ValueError where there are none.
    """
    best, most = float("inf"), min(latencies_ms)
    for devices in sorted(latencies_ms):
        if latencies_ms[devices] <= (1 - least_gain) * best:
            most = devices
        best = min(best, latencies_ms[devices])
    return most
