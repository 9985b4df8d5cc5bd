"""Timed runs of a pipeline's networks, for what plans cost on its devices."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .planning.measuring import ROUNDS, Shape
from .sampling.noise import noise_streams
from .sampling.plan import Plan, make_plan
from .sampling.schedule import Schedule

__all__ = ["Trial"]

_ANY = 1e9  # a tolerance that takes every draft
_JUDGED_MS, _LEAST_SHARE = 2.0, 0.7  # a share of an idle machine's cores is 0.9 with calls of 5 ms


class Trial:
    """Plans of one picture, run with and without guidance on the lanes that pictures are made on."""

    def __init__(
        self,
        jobs: dict[bool, Any],
        shape: tuple[int, ...],
        schedule: Callable[[int], Schedule],
        going: Callable[[], None] | None = None,
    ) -> None:
        """jobs: on the lanes, by whether they are guided. shape: of latents. schedule: of so many steps.

        going: called after every round; what it raises ends the plan.
        """
        self._told = None if going is None else lambda _: going()
        self._jobs, self._schedule = jobs, schedule
        self._noise: NDArray[np.float32] = noise_streams(0, 1).draw(shape)
        self._plans: dict[Shape, Plan] = {}
        self._took: dict[Shape, tuple[float, float]] = {}

    def timed(self, shape: Shape) -> float:
        """Milliseconds of a plan with one round of a single noise, and `ROUNDS` of this shape."""
        if shape not in self._plans:
            self._plans[shape] = self._plan(shape)
        begun, at_work = time.perf_counter(), time.process_time()
        self._jobs[shape.guided].sample(self._plans[shape], self._noise, noise_streams(1, 1), self._told)
        took, work = time.perf_counter() - begun, time.process_time() - at_work
        self._took[shape] = min(self._took.get(shape, (took, work)), (took, work))
        return 1e3 * took

    def disturbed(self, cores: int) -> bool:
        """Whether CPU lanes did not get the cores that their calls of several drafts could have used.

        cores: that there are for them. Calls are judged that are long beside what the host does between them.
        """
        return any(
            took > 1e-3 * _JUDGED_MS * (1 + ROUNDS)
            and work / took < _LEAST_SHARE * (1 + ROUNDS * min(shape.drafts, cores)) / (1 + ROUNDS)
            for shape, (took, work) in self._took.items()
            if shape.drafts > 1
        )

    def _plan(self, shape: Shape) -> Plan:
        schedule = self._schedule(1 + ROUNDS * shape.drafts)
        if shape.looks:
            return make_plan(schedule, mode="tolerance", lanes=shape.drafts, tolerance=_ANY)
        return make_plan(schedule, mode="aggressive", lanes=shape.drafts)
