"""`driffusion-trt plan`: what the modes cost, without running them."""

from __future__ import annotations

import argparse
from typing import Any

from ._console import Console
from ._options import BASELINES, MODES, SCHEDULERS, option, whole

DESCRIPTION = (
    "Show how many rounds of network calls a mode takes, and the speed-up if nothing else took time."
)
EPILOG = """\
example:
  driffusion-trt plan --steps 30 --lanes 4
  driffusion-trt plan --model sdxl/scheduler/scheduler_config.json --json"""

_LANES = (2, 3, 4, 8)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    option(
        parser,
        "--model",
        "NAME",
        "a model folder, a bundled model, or a scheduler_config.json (default: demo)",
    )
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
    option(parser, "--rounds", "N", "steps of mode skip, or rounds of window and paradigms", type=whole)
    option(parser, "--scheduler", "NAME", f"{', '.join(SCHEDULERS)} (default: the model's)", names=SCHEDULERS)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    parser.add_argument("-v", "--verbose", action="store_true", help="print tracebacks of errors")


def run(args: argparse.Namespace, console: Console) -> None:
    from .._errors import InputError
    from ..sampling.plan import WINDOW_LANES, make_plan
    from ._planning import read_schedule

    if args.rounds is not None and args.mode is None:
        raise InputError(f"--rounds {args.rounds} was given without a mode; name skip, window or paradigms")
    with console.warnings():
        schedule = read_schedule(args.model or "demo", args.steps, args.scheduler)
    for notice in schedule.notices:
        console.warn(notice)
    rows: list[dict[str, Any]] = []
    adaptive: list[bool] = []
    shown = [mode for mode in MODES if mode not in BASELINES] if args.mode is None else [args.mode]
    for mode in shown:
        widths = (1,) if mode == "sequential" else _LANES
        for lanes in widths if args.lanes is None else (args.lanes,):
            if args.mode is None and mode in ("window", "tolerance") and lanes > WINDOW_LANES:
                continue
            plan = make_plan(schedule, mode=mode, lanes=lanes, rounds=args.rounds)
            adaptive.append(plan.lanes > 1 and "tolerance" in plan.asked())
            rows.append(
                {
                    "mode": plan.mode,
                    "lanes": plan.lanes,
                    "rounds": plan.sequential_calls,
                    "predictions": plan.model_calls,
                    "ideal_speedup": plan.ideal_speedup,
                }
            )
    if args.json:
        console.out_json({"scheduler": schedule.solver, "steps": schedule.steps, "plans": rows})
        return
    console.out(f"{schedule.steps} steps of {schedule.solver}\n\n" + _table(rows, adaptive))


def _table(rows: list[dict[str, Any]], adaptive: list[bool]) -> str:
    lines = [f"{'mode':<14}{'lanes':>5}{'rounds':>9}{'predictions':>14}{'ideal speed-up':>17}"]
    for row, least in zip(rows, adaptive, strict=True):
        rounds, predictions = (f"{row[name]}{'+' if least else ''}" for name in ("rounds", "predictions"))
        most = f"{'at most ' if least else ''}{row['ideal_speedup']:.2f}x"
        lines.append(f"{row['mode']:<14}{row['lanes']:>5}{rounds:>9}{predictions:>14}{most:>17}")
    return "\n".join(lines)
