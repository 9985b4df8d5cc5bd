"""Calls of GPU and CPU lanes that tests make: every scheduler over the tiny model, and a plan that adapts."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import tiny
from numpy.typing import NDArray

import driffusion_trt as dt
from driffusion_trt.runtime.cuda import CudaLanes
from driffusion_trt.runtime.host import HostLanes
from driffusion_trt.sampling.known import Known
from driffusion_trt.sampling.noise import noise_streams
from driffusion_trt.sampling.plan import Plan, Walk
from driffusion_trt.sampling.rounds import Refiner, Round, with_keeps
from driffusion_trt.sampling.sample import RoundDone
from driffusion_trt.sampling.tables import Column, Float64, Table

Floats = NDArray[np.float32]
OnRound = Callable[[RoundDone], None]

_BETAS = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "timestep_spacing": "leading",
}
# The network is a linear one with random weights: with v-prediction its pictures stay in bounds.
SCHEDULES: dict[str, tuple[dict[str, Any], float | None]] = {
    "ddim": (tiny.SCHEDULER, None),
    "ddim, eta 0.7": (tiny.SCHEDULER, 0.7),
    "ddpm": (
        {**_BETAS, "_class_name": "DDPMScheduler", "prediction_type": "v_prediction", "clip_sample": False},
        None,
    ),
    "euler": ({**_BETAS, "_class_name": "EulerDiscreteScheduler", "prediction_type": "epsilon"}, None),
    "dpm-solver++": (
        {
            **_BETAS,
            "_class_name": "DPMSolverMultistepScheduler",
            "prediction_type": "v_prediction",
            "algorithm_type": "dpmsolver++",
            "solver_order": 2,
        },
        None,
    ),
    "flow": (
        {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 999, "shift": 3.0},
        None,
    ),
}


def normal(seed: int, *shape: int) -> Floats:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@dataclass(frozen=True)
class Asked:
    """One call: how it is planned, and what the network is told."""

    mode: str = "aggressive"
    lanes: int = 2
    schedule: str = "ddim"
    steps: int = 7
    guidance_scale: float = 3.0
    pictures: int = 1
    seed: int = 0
    first: int | None = None  # the state to start at, from a picture
    inpaint: bool = False
    split: bool = False  # guidance over two devices
    devices: int | None = None  # that are enough for it
    plan: Plan | None = field(default=None, compare=False)

    def planned(self) -> Plan:
        config, eta = SCHEDULES[self.schedule]
        schedule = dt.Schedule.from_config(config, self.steps, eta=eta)
        schedule = schedule if self.first is None else schedule.starting_at(self.first)
        return self.plan or dt.make_plan(schedule, mode=self.mode, lanes=self.lanes)

    def again(self) -> Asked:
        """With one plan for all calls, so that what was compiled for it is used again."""
        return replace(self, plan=self.planned())

    def latents(self, lanes: HostLanes | CudaLanes, on_round: OnRound | None = None) -> Floats:
        """The picture that these lanes make."""
        text, empty = (normal(self.seed + k, self.pictures, tiny.LENGTH, tiny.WIDTH) for k in (1, 2))
        limited = isinstance(lanes, CudaLanes) and self.devices is not None
        share = {"devices": self.devices} if limited else {}
        job = lanes.job(text, self.guidance_scale, empty, split_guidance=self.split, **share)
        noise = normal(self.seed + 3, self.pictures, tiny.CHANNELS, tiny.SIDE, tiny.SIDE)
        known, streams = self.known(noise) if self.inpaint else None, noise_streams(self.seed, self.pictures)
        made = job.sample(self.planned(), noise, streams, on_round, known).latents
        assert np.isfinite(made).all() and made.std() > 0.01
        return made

    def known(self, noise: Floats) -> Known:
        """A picture, and the part of it that is made anew; each of a batch has its own."""
        random = np.random.default_rng(self.seed + 4)
        repaint = random.random((self.pictures, 1, *noise.shape[2:])) < 0.5
        return Known(normal(self.seed + 5, *noise.shape), noise, repaint)


class Deciding(Plan):
    """Drafts one, two or three states ahead, as far as the last drafts were near."""

    def walk(self) -> Walk:
        schedule, at, ahead = self.schedule, 0, 1
        while at < schedule.steps:
            block = self._block(at, min(ahead, schedule.steps - 1 - at))
            for item in block:
                seen = yield item
            at += len(block[-1].predict) + len(block) - 1
            ahead = self.ahead(seen[0] if seen else None)
        return None

    @staticmethod
    def ahead(seen: Float64 | None) -> int:
        """By the distance between the last state and its draft; far from where rounding decides."""
        if seen is None or not np.isfinite(seen).all():
            return 2
        whole, part = seen[:, 0, 0].sum(), seen[:, 1, 1].sum()
        return 1 + int(1000 * math.sqrt(part / whole)) % 3

    def _block(self, at: int, drafted: int) -> tuple[Round, ...]:
        refiner = Refiner(self.schedule, at, drafted=False)
        if drafted == 0:
            refiner.advance()
            return with_keeps([Round((at,), Table.of({}), Table.of(refiner.results()))])
        drafts = refiner.draft(at + drafted)
        for _ in range(drafted + 1):
            refiner.advance()
        end, last = Column("state", refiner.at), Column("input", at + drafted)
        rows = {end: {end: 1.0}, last: {end: 1.0, last: -1.0}}
        return with_keeps(
            [
                Round((at,), Table.of({}), Table.of({})),
                Round(
                    tuple(range(at + 1, at + drafted + 1)),
                    Table.of(drafts),
                    Table.of(refiner.results()),
                    observe=(Table.of(rows),) if refiner.at < self.schedule.steps else (),
                ),
            ]
        )
