"""Schedules and plans of a model folder, before its networks are loaded."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .._errors import InputError
from .._expected import Expectations, Expected
from .._planner import Planner, PlanSettings, scale
from ..engines.manifest import ModelFolder
from ..sampling.plan import WINDOW_LANES, Plan, make_plan
from ..sampling.schedule import Schedule

if TYPE_CHECKING:
    from ._forecast import Forecast

_STEPS = 50  # where a bare scheduler config does not say


class Plans:
    """The plans of a model folder, a bundled model, or a scheduler_config.json, as `run` would make them.

    Raises InputError for settings that cannot be, ModelError for a folder that is no model.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        self._args = args
        self._planner: Planner | None = None
        model = args.model or "demo"
        if model.endswith(".json"):
            steps = _STEPS if args.steps is None else args.steps
            self.schedule = Schedule.from_config(_read_config(Path(model)), steps, scheduler=args.scheduler)
        else:
            self._folder = ModelFolder.open(model)
            self._planner = Planner(self._folder)
            self.schedule = self._planner.schedule(**self._common())
        if args.mode is None and args.blocks is not None and not args.timeline and args.output is None:
            raise InputError("--blocks was given; it goes with --mode window or aggressive")

    def forecast(self) -> Forecast | None:
        """What to expect on this machine; None for a bare scheduler config, which has no network."""
        if self._planner is None:
            return None
        from ._forecast import Forecast

        return Forecast(self._folder, self.schedule, self._args)

    @property
    def guidance_scale(self) -> float | None:
        """What was asked for, or is the model's own; None where a bare scheduler config does not say."""
        asked = self._args.guidance_scale
        if asked is None and self._planner is None:
            return None
        return scale(self._folder.spec.guidance_scale if asked is None else asked)

    def expected(self) -> Expected | None:
        """How many rounds a tolerance takes; None for a bare scheduler config."""
        if self._planner is None or self.guidance_scale is None:
            return None
        return Expectations(self._folder).of(self.schedule, self.guidance_scale)

    def _common(self) -> PlanSettings:
        args = self._args
        return {
            "steps": args.steps,
            "scheduler": args.scheduler,
            "guidance_scale": args.guidance_scale,
        }

    def takes(self, mode: str, lanes: int) -> bool:
        """Whether a mode that nobody asked for by name goes with so many lanes."""
        return mode not in ("window", "tolerance") or lanes <= WINDOW_LANES

    def make(self, mode: str, lanes: int) -> Plan:
        """One plan; --rounds and --blocks are of the mode that was asked for.

        Raises InputError for what cannot be.
        """
        args = self._args
        asked: dict[str, Any] = {"mode": mode, "lanes": lanes}
        named = args.mode in (None, mode)
        if named and args.rounds is not None:
            asked["rounds"] = args.rounds
        if named and args.blocks is not None:
            asked["blocks"] = args.blocks
        if self._planner is None:
            return make_plan(self.schedule, **asked)
        return self._planner.plan(lanes, **self._common(), **asked)


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as a scheduler config ({error})") from error
    if not isinstance(config, dict):
        raise InputError(f"{path} is not a scheduler config: it holds no JSON object")
    return config
