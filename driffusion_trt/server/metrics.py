"""Metrics in Prometheus' form: requests, stages, queue, lanes, drift, failures."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest

from .._call import Result
from .._errors import (
    CancelledError,
    DeadlineError,
    DrainingError,
    DriffusionError,
    InputError,
    LaneError,
    NonFiniteError,
    QueueFullError,
)
from .service import Seen, Status, Ticket

__all__ = ["Metrics"]

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_DRIFTS = (0.001, 0.003, 0.005, 0.01, 0.02, 0.03, 0.05, 0.1)
_LANES = (1, 2, 3, 4, 6, 8, 12, 16)
_KINDS: tuple[tuple[type[Exception], str], ...] = (
    (QueueFullError, "queue_full"),
    (DeadlineError, "deadline"),
    (DrainingError, "draining"),
    (CancelledError, "cancelled"),
    (LaneError, "lane"),
    (NonFiniteError, "non_finite"),
    (InputError, "input"),
)


def kind_of(error: BaseException) -> str:
    """A label for an error: few, whatever is asked."""
    return next((name for kind, name in _KINDS if isinstance(error, kind)), "other")


class Metrics:
    """An engine's observer, and what the HTTP side counts beside it; a registry of its own."""

    content_type = CONTENT_TYPE_PLAIN_0_0_4

    def __init__(self) -> None:
        own = self.registry = CollectorRegistry()
        ProcessCollector(registry=own)
        self._requests = Counter(
            "driffusion_http_requests", "HTTP requests answered.", ("route", "status"), registry=own
        )
        self._seconds = Histogram(
            "driffusion_http_request_seconds",
            "From a request's headers to the end of its answer.",
            ("route",),
            buckets=_SECONDS,
            registry=own,
        )
        self._stages = Histogram(
            "driffusion_stage_seconds",
            "Of a request: queue, encode, denoise, decode, and write, which makes files of pictures.",
            ("stage",),
            buckets=_SECONDS,
            registry=own,
        )
        self._rounds = Histogram(
            "driffusion_round_seconds", "Rounds of parallel predictions.", buckets=_SECONDS, registry=own
        )
        self._pictures = Counter("driffusion_pictures", "Pictures made.", ("mode",), registry=own)
        self._lanes = Histogram(
            "driffusion_request_lanes", "Lanes that a request was given.", buckets=_LANES, registry=own
        )
        self._drift = Histogram(
            "driffusion_drift",
            "How far drafts that were used were off, of each picture of a mode with a tolerance.",
            buckets=_DRIFTS,
            registry=own,
        )
        self._accepted = Counter("driffusion_accepted", "Requests taken into the queue.", registry=own)
        self._refused = Counter("driffusion_refused", "Requests not taken.", ("reason",), registry=own)
        self._failures = Counter(
            "driffusion_failures", "Requests that were taken and have no picture.", ("reason",), registry=own
        )
        self._turned_away = Counter(
            "driffusion_connections_refused", "Connections beyond the most that may be open.", registry=own
        )
        self._lost = Counter(
            "driffusion_lanes_lost",
            "Lanes that failed, or that a request hangs on; those may come back, and be lost again.",
            registry=own,
        )
        self._deadlines = Counter(
            "driffusion_deadline",
            "Requests taken with a deadline, by whether their pictures were there in time.",
            ("kept",),
            registry=own,
        )

    def watch(
        self, status: Callable[[], Status], draining: Callable[[], bool], stored: Callable[[], int]
    ) -> None:
        """Gauges that are read when the metrics are."""
        self.registry.register(_Gauges(status, draining, stored))

    def text(self) -> bytes:
        """Everything, in the text format."""
        return generate_latest(self.registry)

    def answered(self, route: str, status: int, seconds: float) -> None:
        """An HTTP request ended; `route` is one of few."""
        self._requests.labels(route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def connection_refused(self) -> None:
        """One too many: closed at once, or told to come again."""
        self._turned_away.inc()

    def stage(self, name: str, ms: float) -> None:
        self._stages.labels(name).observe(ms / 1e3)

    # What follows is `Observer`.

    def on_queued(self, ticket: Ticket) -> None:
        self._accepted.inc()

    def on_started(self, ticket: Ticket) -> None:
        self._lanes.observe(ticket.timeline.lanes)

    def on_round(self, ticket: Ticket, seen: Seen) -> None:
        """Counted from the result, where each round has its own time."""

    def on_finished(self, ticket: Ticket, result: Result) -> None:
        times = result.timings
        self.stage("queue", ticket.timeline.queue_ms)
        self.stage("encode", times.encode_ms)
        self.stage("denoise", times.denoise_ms)
        self.stage("decode", times.decode_ms)
        for ms in times.rounds_ms:
            self._rounds.observe(ms / 1e3)
        self._pictures.labels(result.plan.mode).inc(len(result.images))
        for drift in () if result.stats.drift is None else result.stats.drift:
            self._drift.observe(float(drift))
        self._deadline(ticket)

    def on_refused(self, error: DriffusionError) -> None:
        self._refused.labels(kind_of(error)).inc()

    def on_failed(self, ticket: Ticket, error: BaseException) -> None:
        self._failures.labels(kind_of(error)).inc()
        if not isinstance(error, CancelledError):
            self._deadline(ticket)

    def on_lanes_lost(self, lost: int, left: int) -> None:
        self._lost.inc(lost)

    def _deadline(self, ticket: Ticket) -> None:
        kept = ticket.deadline_kept
        if kept is not None:
            self._deadlines.labels("yes" if kept else "no").inc()


class _Gauges:
    """A collector of what the engine says of itself at the moment."""

    def __init__(
        self, status: Callable[[], Status], draining: Callable[[], bool], stored: Callable[[], int]
    ) -> None:
        self._status, self._draining, self._stored = status, draining, stored

    def describe(self) -> Iterator[Metric]:
        """Nothing in advance: there is an engine to ask later."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        now = self._status()
        yield _gauge("driffusion_queue_length", "Requests that wait.", now.queued)
        yield _gauge("driffusion_running", "Requests under way.", now.running)
        yield _gauge("driffusion_hanging", "Requests that were given up and do not end.", now.hanging)
        yield _gauge(
            "driffusion_expected_wait_seconds", "For a request that came now.", now.expected_wait_ms / 1e3
        )
        lanes = GaugeMetricFamily("driffusion_lanes", "Devices by what they do.", labels=("state",))
        lanes.add_metric(["usable"], now.lanes)
        lanes.add_metric(["in_use"], now.lanes_in_use)
        lanes.add_metric(["failed"], now.lanes_failed)
        yield lanes
        yield _gauge(
            "driffusion_costs_doubtful",
            "1 while what calls are expected to take was measured beside other work, and is to be anew.",
            float(now.costs_doubtful),
        )
        yield _gauge("driffusion_draining", "1 while the service ends.", float(self._draining()))
        yield _gauge("driffusion_stored_bytes", "Pictures kept behind links.", self._stored())


def _gauge(name: str, about: str, value: float) -> Metric:
    return GaugeMetricFamily(name, about, value=value)
