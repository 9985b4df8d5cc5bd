"""`driffusion-trt plan`: what the modes cost, without running them; with --calibrate a measurement."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from .._errors import InputError
from ._console import Console
from ._options import (
    BASELINES,
    MODES,
    devices,
    model_option,
    number,
    option,
    scheduler_option,
    whole,
    wholes,
)

if TYPE_CHECKING:
    from ..sampling.plan import Plan
    from ._forecast import Forecast
    from ._planning import Plans

DESCRIPTION = (
    "Show how many rounds of network calls a mode takes, and the speed-up if nothing else took time; or\n"
    "what each lane does in each round; or measure a model for the best steps of each round."
)
EPILOG = """\
example:
  driffusion-trt plan --steps 30 --lanes 4
  driffusion-trt plan --model sdxl/scheduler/scheduler_config.json --json
  driffusion-trt plan --mode window --lanes 4 --rounds 20 --timeline -o window.svg
  driffusion-trt plan --model sdxl/ --costs one-gpu.json --devices 8
  driffusion-trt plan --calibrate sdxl/ --prompts prompts.txt --lanes 4"""

_LANES = (2, 3, 4, 8)
_EXPECTED = {  # titles, widths of the columns, and how figures are written
    "expected_rounds": ("expected", 10, ".1f"),
    "expected_ms": ("ms", 8, ".0f"),
    "expected_speedup": ("speed-up", 10, ".2f"),
    "expected_error": ("error", 9, ".4f"),
}
_OF_CALIBRATION = ("prompts", "seeds", "force")
_OF_PLANS = ("mode", "rounds", "blocks", "output", "timeline", "costs")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    model_option(parser, or_else=", or a scheduler_config.json")
    option(
        parser,
        "--steps",
        "N",
        "solver steps (default: the model's)",
        type=whole,
        aliases=["--denoising-steps", "--num-inference-steps"],
    )
    option(parser, "--mode", "MODE", f"{', '.join(MODES)} (default: all but the baselines)", names=MODES)
    option(parser, "--lanes", "N", "noises predicted at once (default: 2, 3, 4 and 8)", type=whole)
    option(parser, "--rounds", "N", "of modes skip, window and paradigms; of tolerance the most", type=whole)
    option(parser, "--blocks", "N,N,...", "steps of each round after the first, for --rounds", type=wholes)
    scheduler_option(parser)
    option(
        parser, "--guidance-scale", "G", "for what was, or is, calibrated (default: the model's)", type=number
    )
    option(parser, "--devices", "N", "whose times are expected, as for `run` (default: auto)", type=devices)
    option(parser, "--costs", "FILE", "what up to --devices would take, from the figures of one (.json)")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    parser.add_argument("-q", "--quiet", action="store_true", help="print results, warnings and errors only")
    parser.add_argument("-v", "--verbose", action="store_true", help="print tracebacks of errors")
    shown = parser.add_argument_group("the lanes over time")
    shown.add_argument(
        "--timeline", action="store_true", help="of one --mode (default: aggressive) and --lanes (default: 4)"
    )
    option(shown, "--output", "FILE", "the same as an .svg picture", short="-o")
    _of_calibration(parser.add_argument_group("measuring a model"))


def _of_calibration(group: argparse._ArgumentGroup) -> None:
    option(group, "--calibrate", "FOLDER", "measure this model, and keep the result in its calibration.json")
    group.add_argument(
        "--prompts", metavar="P", nargs="+", help="texts, or files with one a line; a few dozen are enough"
    )
    option(
        group, "--seeds", "N", "pictures of each prompt, with the seeds 0, 1, ... (default: 1)", type=whole
    )
    group.add_argument("--force", action="store_true", help="replace what was measured on more pictures")


def run(args: argparse.Namespace, console: Console) -> None:
    mixed = _OF_PLANS if args.calibrate is not None else _OF_CALIBRATION
    for name in mixed:
        if getattr(args, name):
            with_or_not = "does not go with" if args.calibrate is not None else "goes with"
            raise InputError(f"--{name} was given; it {with_or_not} --calibrate")
    if args.calibrate is not None:
        from ._calibrating import calibrate

        calibrate(args, console)
        return
    from ._planning import Plans

    if args.rounds is not None and args.mode is None and not args.timeline and args.output is None:
        raise InputError(f"--rounds {args.rounds} was given without a mode; name the --mode that it is for")
    with console.warnings():
        plans = Plans(args)
        for notice in plans.schedule.notices:
            console.warn(notice)
        if args.costs is not None:
            from ._what_if import show as show_costs

            show_costs(args, plans, console)
            return
        if args.timeline or args.output is not None:
            from ._timeline import show

            show(args, plans, console)
            return
        forecast = plans.forecast()
        rows = _table_rows(args, plans, forecast)
    choice = None if forecast is None else forecast.choice()
    if args.json:
        auto = (
            {} if choice is None else {"auto": choice.chosen.settings() | {"expected_ms": choice.chosen.ms}}
        )
        facts = {"scheduler": plans.schedule.solver, "steps": plans.schedule.steps, "plans": rows}
        console.out_json(facts | auto)
        return
    console.out(f"{plans.schedule.steps} steps of {plans.schedule.solver}\n\n" + _table(rows))
    if forecast is not None:
        console.out(f"\n{forecast.footnote()}" + ("" if choice is None else f"\nauto: {choice}"))


def _table_rows(args: argparse.Namespace, plans: Plans, forecast: Forecast | None) -> list[dict[str, Any]]:
    """A row for each mode and number of lanes; of lanes that nobody asked for those that can be.

    Raises InputError for what was asked and cannot be, or where there is no row at all.
    """
    rows: list[dict[str, Any]] = []
    refused: InputError | None = None
    for mode in [one for one in MODES if one not in BASELINES] if args.mode is None else [args.mode]:
        widths = (1,) if mode == "sequential" else _LANES
        for lanes in widths if args.lanes is None else (args.lanes,):
            if args.mode is None and not plans.takes(mode, lanes):
                continue
            try:
                rows.append(_row(plans.make(mode, lanes), forecast))
            except InputError as error:
                if args.mode is None or args.lanes is not None:
                    raise
                refused = error  # at last that of the most lanes, which take the fewest rounds
    if refused is not None and not rows:
        raise refused
    return rows


def _row(plan: Plan, forecast: Forecast | None) -> dict[str, Any]:
    return {
        "mode": plan.mode,
        "lanes": plan.lanes,
        "rounds": plan.sequential_calls,
        "predictions": plan.model_calls,
        "ideal_speedup": plan.ideal_speedup,
        "adapts": plan.lanes > 1 and "tolerance" in plan.asked(),
        **({} if forecast is None else forecast.row(plan)),
    }


def _table(rows: list[dict[str, Any]]) -> str:
    forecast = any(row.get(name) is not None for row in rows for name in _EXPECTED)
    head = f"{'mode':<14}{'lanes':>5}{'rounds':>9}{'predictions':>14}{'ideal speed-up':>17}"
    lines = [
        head + ("".join(f"{title:>{width}}" for title, width, _ in _EXPECTED.values()) if forecast else "")
    ]
    for row in rows:
        least = row["adapts"]
        rounds, predictions = (f"{row[name]}{'+' if least else ''}" for name in ("rounds", "predictions"))
        most = f"{'at most ' if least else ''}{row['ideal_speedup']:.2f}x"
        line = f"{row['mode']:<14}{row['lanes']:>5}{rounds:>9}{predictions:>14}{most:>17}"
        lines.append(line + (_expected(row) if forecast else ""))
    return "\n".join(lines)


def _expected(row: dict[str, Any]) -> str:
    forms = {
        "expected_rounds": ".1f",
        "expected_ms": ".0f",
        "expected_speedup": ".2f",
        "expected_error": ".4f",
    }
    shown = {name: "–" if row[name] is None else f"{row[name]:{form}}" for name, form in forms.items()}
    if shown["expected_rounds"] == "–":
        shown["expected_rounds"] = str(row["rounds"])
    if row["expected_speedup"] is not None:
        shown["expected_speedup"] += "x"
    return "".join(f"{shown[name]:>{width}}" for name, (_, width, _) in _EXPECTED.items())
