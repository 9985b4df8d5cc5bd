"""The plan that a call runs: from its settings, the model's scheduler and the devices there are."""

from __future__ import annotations

import sys
import threading
import warnings
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict, Unpack, cast

from ._errors import InputError, did_you_mean
from .calibration import Calibration, CalibrationWarning
from .engines.manifest import ModelFolder
from .sampling.plan import Plan, default_lanes, make_plan
from .sampling.schedule import Schedule, dynamic_mu
from .sampling.window import least_rounds

__all__ = ["PlanSettings", "Planner", "flag", "planned", "scale"]

_PLANS_KEPT = 64
_OF_WIDTH = ("guidance_scale", "split_guidance")  # they say how many devices a lane is, and no more


class PlanSettings(TypedDict, total=False):
    """What of a call makes a difference to its plan; `Pipeline.__call__` explains each."""

    steps: int | None
    guidance_scale: float | None
    mode: str
    lanes: int | None
    split_guidance: bool
    rounds: int | None
    order: int | str
    carry: str
    tolerance: float | None
    blocks: Sequence[int] | None
    quality: str | None
    deadline_ms: float | None
    scheduler: str | None
    eta: float | None
    height: int | None
    width: int | None
    strength: float | None


class Planner:
    """Plans for one model; safe from several threads. Plans that were made before are given again."""

    def __init__(self, folder: ModelFolder) -> None:
        self._spec, self._folder = folder.spec, folder
        self._calibration: Calibration | None = None
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

    def devices_per_lane(self, **settings: Unpack[PlanSettings]) -> int:
        """Two where guidance is split, and there is some; else one. Raises InputError as `flag`, `scale`."""
        split = flag("split_guidance", settings.get("split_guidance", False))
        wanted = settings.get("guidance_scale")
        guided = scale(self._spec.guidance_scale if wanted is None else wanted) > 1
        return 2 if split and guided else 1

    def plan(self, devices: int, **settings: Unpack[PlanSettings]) -> Plan:
        """The plan for these settings on so many devices; on a single one a lane is that one.

        Raises as `schedule`, `devices_per_lane` and `make_plan` do.
        """
        width, lanes = max(1, devices // self.devices_per_lane(**settings)), settings.get("lanes")
        # The guidance scale chooses among calibrations, and these are of windows.
        dropped = ("split_guidance",) if settings.get("mode") == "window" else _OF_WIDTH
        rest = {name: value for name, value in settings.items() if name not in dropped}
        key = repr((width if lanes is None else None, sorted(rest.items())))  # by equality True would be 1
        with self._lock:
            if key not in self._plans:
                made = self._made(width, settings)
                while len(self._plans) >= _PLANS_KEPT:
                    self._plans.popitem(last=False)
                self._plans[key] = made
            self._plans.move_to_end(key)
            return self._plans[key]

    def _made(self, width: int, settings: PlanSettings) -> Plan:
        schedule = self.schedule(**settings)
        asked, rounds, blocks = settings.get("lanes"), settings.get("rounds"), settings.get("blocks")
        lanes = default_lanes(width, schedule.steps) if asked is None else asked
        if blocks is None and settings.get("mode") == "window":
            blocks = self._calibrated(schedule, lanes, settings)
            rounds = rounds if blocks is None else None
        return make_plan(
            schedule,
            mode=settings.get("mode", "sequential"),
            lanes=lanes,
            rounds=rounds,
            order=settings.get("order", "auto"),
            carry=settings.get("carry", "auto"),
            tolerance=settings.get("tolerance"),
            blocks=blocks,
        )

    def _calibrated(self, schedule: Schedule, lanes: int, settings: PlanSettings) -> tuple[int, ...] | None:
        """The blocks that were calibrated for exactly this request, but for the nearest guidance scale.

        Raises ModelError where the folder's calibration is damaged.
        """
        own = dict(zip(("height", "width"), self.own_size, strict=True)) | {"strength": None}
        if schedule.eta or any(settings.get(name) not in (None, value) for name, value in own.items()):
            return None
        if self._calibration is None:
            self._calibration = Calibration.read(self._folder)
        if self._calibration.notice:
            warnings.warn(f"{self._calibration.notice}; it is not used", CalibrationWarning, stacklevel=6)
        wanted = settings.get("guidance_scale")
        entry = self._calibration.find(
            solver=schedule.solver,
            steps=schedule.steps,
            guidance_scale=scale(self._spec.guidance_scale if wanted is None else wanted),
            lanes=lanes,
        )
        if entry is None or any(
            settings.get(name, "auto") not in ("auto", value)
            for name, value in (("order", entry.order), ("carry", entry.carry))
        ):
            return None
        rounds = settings.get("rounds")
        if rounds is None:
            rounds = least_rounds(schedule.steps, lanes)
        return entry.blocks(rounds) if isinstance(rounds, int) else None

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


def flag(name: str, given: object) -> bool:
    """A switch. Raises InputError for what is neither True nor False."""
    if not isinstance(given, bool):
        raise InputError(f"{name} must be True or False, not {given!r}")
    return given


def scale(given: object) -> float:
    """A guidance scale. Raises InputError for what cannot be one."""
    if isinstance(given, bool) or not isinstance(given, int | float):
        raise InputError(f"guidance_scale must be a number, not {given!r}")
    if not 0 <= given <= sys.float_info.max:  # not NaN, nor a whole number that no float is near
        raise InputError(f"guidance_scale={given} was asked; it must be finite and at least 0")
    return float(given)


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
