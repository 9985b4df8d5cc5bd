"""Options that several commands share, and the kinds of their values."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence

# Repeated here, since their modules import numpy; a test holds the copies together.
BASELINES = ("skip", "paradigms")
MODES = ("sequential", "aggressive", "conservative", "window", "tolerance", *BASELINES)
QUALITIES = ("exact", "high", "balanced", "fast")
NAN_POLICIES = ("error", "retry-fp32")
SCHEDULERS = ("ddpm", "ddim", "euler", "dpmsolver++", "flow")


def option(
    group: argparse._ActionsContainer,
    name: str,
    metavar: str,
    help: str,
    *,
    type: Callable[[str], object] = str,
    aliases: Sequence[str] = (),
    short: str | None = None,
    names: Sequence[str] = (),
) -> None:
    """An option with one value. Aliases are kept out of the help; `names` is what a shell completes."""
    spelt = [short, name] if short else [name]
    action = group.add_argument(*spelt, metavar=metavar, help=help, type=type, default=None)
    if names:
        action.completer = lambda **_: names  # type: ignore[attr-defined]
    if aliases:
        group.add_argument(*aliases, dest=action.dest, type=type, default=None, help=argparse.SUPPRESS)


# Repeated here, since the module that has them loads more than help needs; a test holds the copies together.
DEMOS = ("demo", "demo-xl", "demo-sd3")


def model_option(group: argparse._ActionsContainer, metavar: str = "NAME", or_else: str = "") -> None:
    """--model: a bundled model or a folder; shells complete both."""
    named = f"{', '.join(DEMOS)}, or a model folder{or_else} (default: demo)"
    action = group.add_argument("--model", metavar=metavar, help=named, default=None)
    action.completer = models  # type: ignore[attr-defined]


def steps_option(group: argparse._ActionsContainer) -> None:
    """--steps, with the names that diffusers and TensorRT's demo have for it."""
    option(
        group,
        "--steps",
        "N",
        "solver steps (default: the model's, demo: 50)",
        type=whole,
        aliases=["--denoising-steps", "--num-inference-steps"],
    )


def guidance_option(group: argparse._ActionsContainer) -> None:
    option(group, "--guidance-scale", "G", "1 is none (default: the model's, demo: 3)", type=number)


def scheduler_option(group: argparse._ActionsContainer) -> None:
    option(group, "--scheduler", "NAME", f"{', '.join(SCHEDULERS)} (default: the model's)", names=SCHEDULERS)


def size_options(group: argparse._ActionsContainer) -> None:
    for side in ("--height", "--width"):
        option(group, side, "N", "of the pictures in pixels (default: the model's)", type=whole)


def models(prefix: str, **_: object) -> list[str]:
    """Bundled models and folders that begin so, for a shell."""
    from argcomplete.completers import DirectoriesCompleter

    return [*(name for name in DEMOS if name.startswith(prefix)), *DirectoriesCompleter()(prefix)]


def whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None


def wholes(text: str) -> list[int]:
    return [whole(part.strip()) for part in text.split(",")]


def number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None


def devices(text: str) -> int | str | list[str]:
    """A number of devices, "auto", or a list with commas, as `Pipeline.load` takes them."""
    if text.strip().lstrip("+-").isdecimal():
        return int(text)
    return text if text in ("auto", "cuda") else [part.strip() for part in text.split(",")]
