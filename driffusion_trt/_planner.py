"""The plan that a call runs: from its settings, the model's scheduler and the devices there are."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, TypedDict, Unpack, cast

from ._errors import InputError, did_you_mean
from .engines.manifest import ModelFolder
from .sampling.plan import Plan, default_lanes, make_plan
from .sampling.schedule import Schedule, dynamic_mu

__all__ = ["PlanSettings", "Planner", "planned"]

_PLANS_KEPT = 64


class PlanSettings(TypedDict, total=False):
    """What of a call makes a difference to its plan; `Pipeline.__call__` explains each."""

    steps: int | None
    mode: str
    lanes: int | None
    rounds: int | None
    order: int | str
    carry: str
    tolerance: float | None
    scheduler: str | None
    eta: float | None
    height: int | None
    width: int | None
    strength: float | None


class Planner:
    """Plans for one model; safe from several threads. Plans that were made before are given again."""

    def __init__(self, folder: ModelFolder) -> None:
        self._spec = folder.spec
        self._config = folder.scheduler_config()
        _, height, width = folder.shape("picture")
        self.own_size = height, width
        self._plans: OrderedDict[str, Plan] = OrderedDict()
        self._lock = threading.Lock()

    def schedule(self, **settings: Unpack[PlanSettings]) -> Schedule:
        """The noise levels for these settings.

        Raises InputError for settings that cannot be, and ConfigError for a scheduler that is not supported.
        """
        for name in settings:
            if name not in PlanSettings.__annotations__:
                raise InputError(
                    f"there is no setting {name!r} of plans{did_you_mean(name, PlanSettings.__annotations__)}"
                )
        steps, scheduler = settings.get("steps"), settings.get("scheduler")
        if scheduler is not None and not isinstance(scheduler, str):
            raise InputError(f"scheduler must be a name, not {scheduler!r}")
        count = self._spec.steps if steps is None else steps
        whole = Schedule.from_config(
            self._config, count, eta=settings.get("eta"), scheduler=scheduler, mu=self._mu(settings)
        )
        strength = settings.get("strength")
        return whole if strength is None else self._late(whole, count, strength)

    def plan(self, devices: int, **settings: Unpack[PlanSettings]) -> Plan:
        """The plan for these settings on so many devices. Raises as `schedule` and `make_plan` do."""
        key = repr((devices, sorted(settings.items())))  # by equality True would be 1
        with self._lock:
            if key not in self._plans:
                schedule = self.schedule(**settings)
                lanes = settings.get("lanes")
                made = make_plan(
                    schedule,
                    mode=settings.get("mode", "aggressive"),
                    lanes=default_lanes(devices, schedule.steps) if lanes is None else lanes,
                    rounds=settings.get("rounds"),
                    order=settings.get("order", "auto"),
                    carry=settings.get("carry", "auto"),
                    tolerance=settings.get("tolerance"),
                )
                while len(self._plans) >= _PLANS_KEPT:
                    self._plans.popitem(last=False)
                self._plans[key] = made
            self._plans.move_to_end(key)
            return self._plans[key]

    def _late(self, whole: Schedule, steps: int, strength: object) -> Schedule:
        """The share of a schedule that diffusers' pipelines run at this strength.

        Those of SD3 round the steps up, the others down.
        """
        if isinstance(strength, bool) or not isinstance(strength, int | float) or not 0 < strength <= 1:
            raise InputError(f"strength must be a number above 0, and at most 1, not {strength!r}")
        share = steps * strength
        first = int(steps - share) if self._spec.architecture == "sd3" else steps - int(share)
        if first >= whole.steps:
            raise InputError(f"strength={strength} of {steps} steps leaves none to run; take more of either")
        return whole.starting_at(first)

    def _mu(self, settings: PlanSettings) -> float | None:
        """The shift for pictures of this size, where the model's scheduler depends on it."""
        if self._spec.architecture != "sd3":
            return None
        height, width = settings.get("height"), settings.get("width")
        rows, columns = self._spec.latent_size(
            self.own_size[0] if height is None else height, self.own_size[1] if width is None else width
        )
        patch = self._spec.latent_multiple
        return dynamic_mu(self._config, (rows // patch) * (columns // patch))


def planned(settings: Mapping[str, Any]) -> PlanSettings:
    """Those of a call's settings that its plan depends on.

    Inpainting at strength 1 begins with noise alone, as a call without a picture does.
    """
    names = PlanSettings.__annotations__
    found = {name: value for name, value in settings.items() if name in names}
    strength = found.get("strength")
    whole = isinstance(strength, int | float) and not isinstance(strength, bool) and strength == 1
    if whole and settings.get("mask_image") is not None:
        del found["strength"]
    return cast(PlanSettings, found)
