"""What `driffusion-trt run` does for mode auto: measure the devices once, choose a plan, say which."""

from __future__ import annotations

from typing import Any

from ..pipeline import Pipeline
from ._console import Console


def name_plan(
    pipe: Pipeline,
    settings: dict[str, Any],
    prompts: list[str],
    console: Console,
    *,
    explain: bool,
    again: bool,
) -> dict[str, Any]:
    """The settings with the plan named that mode auto chooses for a batch of these prompts.

    explain: say what it was chosen from. again: measure the devices, though it was done before.

    Raises InputError where no plan is there by the deadline.
    """
    with console.progress(100) as tick:

        def told(done: int, of: int) -> None:
            tick(100 * done // of, "measuring these devices, once")

        if again:
            pipe.measure(told=told, again=True)
        choice = pipe.choice(prompts, told=told, **settings)
    console.note(f"auto: {choice}")
    for line in choice.explained() if explain else ():
        console.note(f"  {line}")
    return choice.chosen.named(settings)
