"""Metrics of several replicas: any of them answers for all, with a label that says whose a number is."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from prometheus_client.core import Metric
from prometheus_client.exposition import generate_latest

from .metrics import Metrics

__all__ = ["Board", "ReplicaMetrics", "merged"]

STALE_S = 20.0  # after which a replica that says nothing is taken to be gone


class Board:
    """Where replicas leave their metrics and take those of the others; an actor of Ray's."""

    def __init__(self) -> None:
        self._left: dict[str, tuple[float, list[Metric]]] = {}

    def exchange(self, replica: str, families: list[Metric]) -> list[Metric]:
        """Leave one's own; what the others left of late comes back."""
        now = time.monotonic()
        self._left[replica] = now, families
        self._left = {name: (when, got) for name, (when, got) in self._left.items() if now - when < STALE_S}
        return [one for name, (_, got) in self._left.items() if name != replica for one in got]


@dataclass
class _Given:
    """A registry of what is there."""

    families: Iterable[Metric] = field(default_factory=list)

    def collect(self) -> Iterator[Metric]:
        return iter(self.families)


class ReplicaMetrics(Metrics):
    """Metrics of one replica. others: families of the other ones, as they were a moment ago."""

    def __init__(self, replica: str) -> None:
        super().__init__()
        self._replica = replica
        self.others: list[Metric] = []

    def families(self) -> list[Metric]:
        """Its own, with the label `replica`."""
        return [_labelled(one, self._replica) for one in self.registry.collect()]

    def text(self) -> bytes:
        """Everything of every replica, in the text format."""
        registry: Any = _Given(merged([*self.families(), *self.others]))
        return generate_latest(registry)


def _labelled(family: Metric, replica: str) -> Metric:
    found = Metric(family.name, family.documentation, family.type, family.unit)
    found.samples = [one._replace(labels={**one.labels, "replica": replica}) for one in family.samples]
    return found


def merged(families: Iterable[Metric]) -> list[Metric]:
    """One family of each name, as the text format wants it."""
    found: dict[str, Metric] = {}
    for one in families:
        into = found.setdefault(one.name, Metric(one.name, one.documentation, one.type, one.unit))
        into.samples = [*into.samples, *one.samples]
    return list(found.values())
