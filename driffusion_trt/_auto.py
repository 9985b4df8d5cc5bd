"""`mode="auto"`: what a pipeline's devices take is measured once and kept, and a plan chosen from it."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, cast

from ._errors import InputError
from ._expected import Expectations
from ._kept_costs import KeptCosts
from ._planner import Planner, PlanSettings
from ._request import Request
from ._stages import Stages
from .engines.manifest import ModelFolder
from .planning.candidates import Choice, Wanted
from .planning.choice import choose, tolerance_of
from .planning.costs import Costs
from .planning.measuring import measured
from .runtime.devices import Devices
from .runtime.networks import GpuOptions
from .sampling.checks import check_tolerance, check_whole, is_auto
from .sampling.plan import WINDOW_LANES

__all__ = ["AUTO_ONLY", "Auto", "check_auto", "leaves_open"]

AUTO_ONLY = ("quality", "deadline_ms")
_NOT_AUTO = ("rounds", "order", "carry", "blocks")
Told = Callable[[int, int], None]


def leaves_open(settings: Mapping[str, Any]) -> bool:
    """Whether a call leaves its plan to the devices' costs: where it names no mode."""
    return is_auto(settings.get("mode", "auto"))


def check_auto(settings: Mapping[str, Any]) -> None:
    """Raises InputError for settings that do not go together with the mode, or cannot be."""
    given = [name for name in AUTO_ONLY if settings.get(name) is not None]
    if not leaves_open(settings):
        if given:
            raise InputError(f"{given[0]}={settings[given[0]]!r} was given; it goes with mode 'auto'")
        return
    fixed = [name for name in _NOT_AUTO if settings.get(name) is not None and not is_auto(settings[name])]
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
    if deadline is not None and (
        isinstance(deadline, bool)
        or not isinstance(deadline, int | float)
        or not 0 < deadline <= sys.float_info.max
    ):
        raise InputError(f"deadline_ms must be a number of milliseconds above 0, not {deadline!r}")


class Auto:
    """Chooses the plans of one pipeline; safe from several threads."""

    def __init__(
        self, folder: ModelFolder, devices: Devices, options: GpuOptions, planner: Planner, stages: Stages
    ) -> None:
        self._folder, self._devices = folder, devices
        self._expectations = Expectations(folder)
        self._kept = KeptCosts(folder, devices, options)
        self._planner, self._stages = planner, stages
        self._lock = threading.Lock()
        self._costs: dict[tuple[int, int], Costs] = {}

    def named(self, request: Request, settings: PlanSettings) -> tuple[Request, PlanSettings]:
        """The request and its settings with the plan named that `choice` finds."""
        chosen = self.choice(request, settings).chosen
        open_ = {name: value for name, value in settings.items() if name not in (*AUTO_ONLY, "tolerance")}
        named = cast(PlanSettings, {**open_, **chosen.settings()})
        return replace(request, split_guidance=chosen.split), named

    def choice(self, request: Request, settings: PlanSettings) -> Choice:
        """The plan for a checked request. Measures the devices where that was never done.

        Raises InputError where no plan is there by the deadline.
        """
        schedule, quality = self._planner.schedule(**settings), settings.get("quality")
        lanes = settings.get("lanes")
        tolerance = check_tolerance(settings.get("tolerance")) if quality is None else tolerance_of(quality)
        wanted = Wanted(
            schedule.steps,
            request.guided,
            len(request.prompts),
            tolerance,
            settings.get("deadline_ms"),
            WINDOW_LANES if lanes is None else lanes,
            settings.get("split_guidance"),
        )
        costs = self.costs(request.height, request.width)
        left = len(self._stages.lanes)  # devices that failed are out
        expected = self._expectations.of(schedule, request.guidance_scale)
        choice = choose(replace(costs, devices=min(costs.devices, left)), wanted, expected)
        return replace(choice, basis=expected.basis)

    def known(self, height: int, width: int) -> Costs | None:
        """The costs of pictures of this size, where they were measured: in this process, or one before it."""
        size = height, width
        with self._lock:
            if size not in self._costs and (found := self._kept.read(size)) is not None:
                self._costs[size] = found
            return self._costs.get(size)

    def costs(self, height: int, width: int, told: Told = lambda done, of: None) -> Costs:
        """The same, measured now if need be, and kept; `told` is called after each of so many runs."""
        found = self.known(height, width)
        if found is not None:
            return found
        with self._lock:
            size = height, width
            if size not in self._costs:  # another thread may have measured meanwhile
                self._costs[size] = self._measured(size, told)
                self._kept.write(size, self._costs[size])
            return self._costs[size]

    def _measured(self, size: tuple[int, int], told: Told) -> Costs:
        height, width = size
        settings = {"height": height, "width": width, "guidance_scale": 2.0}
        request = Request.check(self._folder.spec, self._planner.own_size, "", settings)
        trial, beside_ms = self._stages.trial(
            request, lambda steps: self._planner.schedule(steps=steps, height=height, width=width)
        )
        rows = self._stages.rows
        return measured(
            trial.timed,
            min(self._devices.count, WINDOW_LANES),
            picture_ms=beside_ms,
            rows=(1, 0) if rows is None else (rows.min, rows.max),
            told=told,
        )
