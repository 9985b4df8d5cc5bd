"""`mode="auto"`: a plan is chosen by what a pipeline's devices take."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

from ._errors import InputError, LaneError, did_you_mean
from ._expected import Expectations, Expected
from ._measured_costs import MeasuredCosts, Told, untold
from ._planner import Planner, PlanSettings
from ._request import Request
from ._stages import Stages
from .engines.manifest import ModelFolder
from .planning.candidates import FOUND, WISHES, Choice, Wanted
from .planning.choice import choose, least_ms, tolerance_of
from .planning.costs import Costs
from .planning.latency import Work, latency_ms
from .runtime.devices import Devices
from .runtime.networks import GpuOptions
from .sampling.checks import check_tolerance, check_whole, is_auto
from .sampling.plan import MODES, WINDOW_LANES, Plan

__all__ = ["Auto", "check_auto", "leaves_open"]


def leaves_open(settings: Mapping[str, Any]) -> bool:
    """Whether a call leaves its plan to the devices' costs: where it names no mode."""
    return is_auto(settings.get("mode", "auto"))


def check_auto(settings: Mapping[str, Any]) -> None:
    """Raises InputError for settings that do not go together with the mode, or cannot be."""
    mode = settings.get("mode", "auto")
    if isinstance(mode, str) and mode not in ("auto", *MODES):
        raise InputError(f"there is no mode {mode!r}{did_you_mean(mode, ('auto', *MODES))}")
    given = [name for name in WISHES if settings.get(name) is not None]
    if not leaves_open(settings):
        if given:
            raise InputError(f"{given[0]}={settings[given[0]]!r} was given; it goes with mode 'auto'")
        return
    fixed = [name for name in FOUND if settings.get(name) is not None and not is_auto(settings[name])]
    if fixed:
        raise InputError(
            f"{fixed[0]}={settings[fixed[0]]!r} was given, and mode 'auto' chooses it; name the mode that it "
            "is for, or leave it out"
        )
    given += ["tolerance"] if settings.get("tolerance") is not None else []
    if len(given) > 1:
        raise InputError(f"{' and '.join(given)} were given; mode 'auto' goes by one of them")
    check_tolerance(settings.get("tolerance"))
    if settings.get("lanes") is not None:
        check_whole("lanes", settings["lanes"], 1, None)
    if settings.get("quality") is not None:
        tolerance_of(settings["quality"])
    deadline = settings.get("deadline_ms")
    number = isinstance(deadline, int | float) and not isinstance(deadline, bool)
    if deadline is not None and not (number and 0 < deadline <= sys.float_info.max):
        raise InputError(f"deadline_ms must be a number of milliseconds above 0, not {deadline!r}")


class Auto:
    """Chooses the plans of one pipeline; safe from several threads."""

    def __init__(
        self, folder: ModelFolder, devices: Devices, options: GpuOptions, planner: Planner, stages: Stages
    ) -> None:
        self._expectations = Expectations(folder)
        self._planner, self._stages = planner, stages
        self.costs = MeasuredCosts(folder, devices, options, planner, stages)

    def named(
        self, request: Request, settings: PlanSettings, told: Told = untold
    ) -> tuple[Request, PlanSettings]:
        """The request and its settings with the plan named that `choice` finds."""
        named = self.choice(request, settings, told).chosen.named(settings)
        return replace(request, split_guidance=named["split_guidance"]), cast(PlanSettings, named)

    def choice(
        self,
        request: Request,
        settings: PlanSettings,
        told: Told = untold,
        *,
        devices: int | None = None,
    ) -> Choice:
        """The plan for a checked request. Measures the devices where that was never done, and matters.

        devices: choose for at most so many of them, while the others work for somebody else. Without it, and
            without a deadline, costs that are doubted are measured anew before, where that is due.

        Raises InputError where no plan is there by the deadline, LaneError where no device is left.
        """
        wanted, expected = self._wanted(request, settings)
        left = self._left()
        if devices is not None:
            costs = self._share(request, devices, told)
        elif self._open_to_choice(wanted, left):
            if wanted.deadline_ms is None:
                self.costs.renew_in_passing(told)
            costs = self._all(request, told)
        else:
            costs = Costs.assumed(left)
        return replace(choose(costs, wanted, expected), basis=expected.basis)

    def least_ms(self, request: Request, settings: PlanSettings, devices: int) -> float:
        """What the fastest plan takes on so many devices, however far from the sequential picture it ends."""
        return least_ms(self._share(request, devices), self._wanted(request, settings)[0])

    def expected_ms(self, request: Request, plan: Plan, devices: int) -> tuple[tuple[float, ...], float]:
        """What this plan takes on 1, 2, ... so many devices; and how many a mean round has work for."""
        asked, rounds = plan.asked(), None
        if plan.mode == "tolerance" and plan.lanes > 1:
            expected = self._expectations.of(plan.schedule, request.guidance_scale)
            most = asked.get("rounds") or plan.steps
            rounds = min(max(expected(plan.lanes, asked["tolerance"]), plan.sequential_calls), most)
        work, split = Work.of(plan, rounds), request.split_guidance and request.guided
        costs = self._all(request)
        shares = [costs.share(min(count, costs.devices)) for count in range(1, devices + 1)]
        pictures, guided = len(request.prompts), request.guided
        times = tuple(
            latency_ms(share, work, guided=guided, split=split and share.devices > 1, pictures=pictures)
            for share in shares
        )
        width = sum(drafts * count for drafts, count in work.rounds) / work.count
        return times, width * (2 if split else 1)

    def _wanted(self, request: Request, settings: PlanSettings) -> tuple[Wanted, Expected]:
        schedule, quality = self._planner.schedule(**settings), settings.get("quality")
        lanes = settings.get("lanes")
        wanted = Wanted(
            schedule.steps,
            request.guided,
            len(request.prompts),
            check_tolerance(settings.get("tolerance")) if quality is None else tolerance_of(quality),
            settings.get("deadline_ms"),
            WINDOW_LANES if lanes is None else lanes,
            settings.get("split_guidance"),
        )
        return wanted, self._expectations.of(schedule, request.guidance_scale)

    def _left(self) -> int:
        """Devices that did not fail, as far as one picture can use them. Raises LaneError for none."""
        left = min(len(self._stages.lanes), WINDOW_LANES)
        if not left:
            raise LaneError("every device has failed; load the pipeline again, or see driffusion-trt doctor")
        return left

    def _share(self, request: Request, devices: int, told: Told = untold) -> Costs:
        costs = self._all(request, told)
        return costs.share(min(devices, costs.devices))

    def _all(self, request: Request, told: Told = untold) -> Costs:
        """Of all devices that are left."""
        return replace(self.costs.of((request.height, request.width), told), devices=self._left())

    def _open_to_choice(self, wanted: Wanted, devices: int) -> bool:
        """Whether there is more than one plan, or a deadline: else nothing needs to be measured."""
        drafts = wanted.most_lanes > 1 and wanted.steps > 1 and wanted.tolerance > 0
        useful = devices > 1 or self._stages.rows is not None  # calls of one thread are one after another
        splits = wanted.guided and wanted.split is None and devices > 1
        return wanted.deadline_ms is not None or (drafts and useful) or splits
