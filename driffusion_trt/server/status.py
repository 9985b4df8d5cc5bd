"""What an engine is doing, as numbers."""

from __future__ import annotations

from dataclasses import dataclass

from .policy import per_second
from .scheduler import Scheduler

__all__ = ["Status", "status_of"]


@dataclass(frozen=True, slots=True)
class Status:
    """What an engine is doing.

    ready: whether it takes requests. draining: whether it ends.
    queued, running: requests. queue: how many may wait.
    lanes: that can be used; lanes_in_use: that requests keep; lanes_failed: that were lost.
    hanging: requests that were given up since they do not end; no others are taken meanwhile.
    expected_wait_ms: from now to the start of a request with default settings that comes last; 0 where no
        lane is left.
    expected_ms: what such a request takes with all lanes. per_second: how many of them there can be.
    pace: how many times as long as was measured calls take at present.
    costs_doubtful: whether what was measured was disturbed, and is to be measured anew.
    """

    ready: bool
    draining: bool
    queued: int
    running: int
    queue: int
    lanes: int
    lanes_in_use: int
    lanes_failed: int
    hanging: int
    expected_wait_ms: float
    expected_ms: float
    per_second: float
    pace: float
    costs_doubtful: bool


def status_of(
    scheduler: Scheduler, queue: int, *, draining: bool, takes: bool, costs_doubtful: bool
) -> Status:
    """takes: whether it would take requests, given lanes."""
    leases = scheduler.leases
    there, pace, typical = leases.lanes > 0, leases.pace, leases.typical
    return Status(
        ready=there and takes and not leases.hung,
        draining=draining,
        queued=scheduler.queued,
        running=len(leases),
        queue=queue,
        lanes=leases.lanes,
        lanes_in_use=leases.in_use,
        lanes_failed=leases.failed,
        hanging=leases.hung,
        expected_wait_ms=scheduler.waits.last_ms() if there else 0.0,
        expected_ms=typical.least_ms * pace,
        per_second=per_second(leases.machine, typical) / pace if there else 0.0,
        pace=pace,
        costs_doubtful=costs_doubtful,
    )
