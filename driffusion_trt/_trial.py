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


class Trial:
    """Plans of one picture, run with and without guidance on the lanes that pictures are made on."""

    def __init__(
        self, jobs: dict[bool, Any], shape: tuple[int, ...], schedule: Callable[[int], Schedule]
    ) -> None:
        """jobs: on the lanes, by whether they are guided. shape: of latents. schedule: of so many steps."""
        self._jobs, self._schedule = jobs, schedule
        self._noise: NDArray[np.float32] = noise_streams(0, 1).draw(shape)
        self._plans: dict[Shape, Plan] = {}

    def timed(self, shape: Shape) -> float:
        """Milliseconds of a plan with one round of a single noise, and `ROUNDS` of this shape."""
        if shape not in self._plans:
            self._plans[shape] = self._plan(shape)
        begun = time.perf_counter()
        self._jobs[shape.guided].sample(self._plans[shape], self._noise, noise_streams(1, 1))
        return 1e3 * (time.perf_counter() - begun)

    def _plan(self, shape: Shape) -> Plan:
        schedule = self._schedule(1 + ROUNDS * shape.drafts)
        if shape.looks:
            return make_plan(schedule, mode="tolerance", lanes=shape.drafts, tolerance=_ANY)
        return make_plan(schedule, mode="aggressive", lanes=shape.drafts)
