"""What `driffusion-trt run` does for mode auto: measure the devices once, choose a plan, say which."""

from __future__ import annotations

from typing import Any

from .._auto import AUTO_ONLY
from ..pipeline import Pipeline
from ._console import Console


def name_plan(
    pipe: Pipeline, settings: dict[str, Any], pictures: int, console: Console, *, explain: bool
) -> dict[str, Any]:
    """The settings with the plan named that mode auto chooses for batches of so many pictures.

    explain: say what it was chosen from.

    Raises InputError where no plan is there by the deadline.
    """
    with console.progress(100) as tick:
        pipe.measure(
            settings.get("height"),
            settings.get("width"),
            lambda done, of: tick(100 * done // of, "measuring these devices, once"),
        )
    choice = pipe.choice(**{**settings, "num_images": pictures})
    console.note(f"auto: {choice}")
    for line in choice.explained() if explain else ():
        console.note(f"  {line}")
    open_ = {name: value for name, value in settings.items() if name not in (*AUTO_ONLY, "tolerance")}
    return {**open_, **choice.chosen.settings()}
