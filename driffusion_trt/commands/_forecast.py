"""What plans are expected to take on the devices of this machine, and how far off their pictures to be."""

from __future__ import annotations

import argparse
from typing import Any

from .._expected import Expectations, Expected
from .._kept_costs import KeptCosts
from .._planner import scale
from ..calibration import Calibration
from ..engines.manifest import ModelFolder
from ..planning.candidates import Choice, Wanted
from ..planning.choice import choose
from ..planning.costs import Costs
from ..planning.latency import Work, latency_ms
from ..runtime.devices import Devices, choose_devices
from ..runtime.networks import GpuOptions
from ..sampling.plan import Plan
from ..sampling.schedule import Schedule


class Forecast:
    """For pictures of the model's own size, one at a time, with guidance in one batch.

    Raises InputError for devices that cannot be had, ModelError for a damaged calibration.
    """

    def __init__(self, folder: ModelFolder, schedule: Schedule, args: argparse.Namespace) -> None:
        wanted = folder.spec.guidance_scale if args.guidance_scale is None else args.guidance_scale
        self._guidance, self._schedule = scale(wanted), schedule
        self._devices: Devices = choose_devices("auto" if args.devices is None else args.devices, folder)
        _, height, width = folder.shape("picture")
        self._costs: Costs | None = KeptCosts(folder, self._devices, GpuOptions()).read((height, width))
        self._expected: Expected = Expectations(folder).of(schedule, self._guidance)
        self._calibration = Calibration.read(folder)

    def row(self, plan: Plan) -> dict[str, Any]:
        """Rounds, milliseconds, times as fast as sequential on one device, error; None for the unknown."""
        rounds, ms, exact = self._expected.of_plan(plan), None, None
        if self._costs is not None:
            ms = self._ms(self._costs, plan, rounds)
            exact = self._costs.picture_ms + self._schedule.steps * self._round_ms(1)
        return {
            "expected_rounds": rounds,
            "expected_ms": ms,
            "expected_speedup": None if ms is None or exact is None else exact / ms,
            "expected_error": self._error(plan),
        }

    def choice(self) -> Choice | None:
        """What mode auto takes, where costs are known."""
        if self._costs is None:
            return None
        return choose(self._costs, Wanted(self._schedule.steps, self._guidance > 1), self._expected)

    def footnote(self) -> str:
        """Where the figures are from."""
        if self._costs is None:
            return (
                f"expected times: nothing was measured on {self._devices} yet; "
                "`driffusion-trt run` does so at its first picture in mode auto"
            )
        return f"expected on {self._devices}, guidance {self._guidance:g}; {self._expected.basis}"

    def _round_ms(self, drafts: int) -> float:
        assert self._costs is not None
        return self._costs.round_ms(drafts, guided=self._guidance > 1, split=False)

    def _ms(self, costs: Costs, plan: Plan, rounds: float | None) -> float | None:
        if not costs.fits(plan.lanes, guided=self._guidance > 1, split=False):
            return None
        if rounds is None and plan.lanes > 1 and "tolerance" in plan.asked():
            return None  # of ParaDiGMS nothing was calibrated
        return latency_ms(costs, Work.of(plan, rounds), guided=self._guidance > 1)

    def _error(self, plan: Plan) -> float | None:
        """Of windows with calibrated blocks: root of the summed squares, relative to the latents' size."""
        if plan.mode != "window":
            return None
        entry = self._calibration.find(
            solver=plan.schedule.solver, steps=plan.steps, guidance_scale=self._guidance, lanes=plan.lanes
        )
        calibrated = entry is not None and plan.blocks == entry.blocks(plan.sequential_calls)
        return entry.errors[plan.sequential_calls] if entry is not None and calibrated else None
