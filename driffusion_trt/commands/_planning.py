"""The schedule and plan of a model folder, before its networks are loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .._errors import InputError
from ..engines.manifest import ModelFolder
from ..sampling.schedule import Schedule

_STEPS = 50  # where a bare scheduler config does not say


def read_schedule(model: str, steps: int | None, scheduler: str | None) -> Schedule:
    """The schedule of a model folder, a bundled model, or a scheduler_config.json.

    steps: None for what the model's authors recommend.

    Raises InputError for settings that cannot be, ModelError for a folder that is no model.
    """
    if model.endswith(".json"):
        return Schedule.from_config(
            _read_config(Path(model)), _STEPS if steps is None else steps, scheduler=scheduler
        )
    folder = ModelFolder.open(model)
    count = folder.spec.steps if steps is None else steps
    return Schedule.from_config(folder.scheduler_config(), count, scheduler=scheduler)


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as a scheduler config ({error})") from error
    if not isinstance(config, dict):
        raise InputError(f"{path} is not a scheduler config: it holds no JSON object")
    return config
