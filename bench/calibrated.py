"""What calibrated blocks are worth on the demo, and the calibration that is bundled with it.

    python -m bench.calibrated [--pairs 32] [--guidance 3 7.5] [--lanes 4] [--rounds 14 20] [--first 1100]
    python -m bench.calibrated --bundle demo [--pairs 8] [--guidance 1 3 5 7.5] [--lanes 2 3 4 8]
    python -m bench.calibrated --bundle demo --rounds-anew

The first calibrates on prompts and seeds from 1000 on, makes the pictures of others, from 1100 on, with even
and with calibrated blocks, and compares the final latents with the sequential ones (relative L2, with 95 %
intervals of the mean by bootstrap over the pictures). Aggressive plans get the blocks that were calibrated
for windows. The second measures what `driffusion-trt plan --calibrate` does, on pairs from 1000 on, and adds
it to the model's calibration.json; entries that are there are not made again. The third counts the rounds of
a tolerance again in all of its entries, for when these are taken in another way.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.progress import Progress, track

import driffusion_trt as dt
from driffusion_trt._calibrate import measure, pictures_of, spent_by
from driffusion_trt.calibration import Calibration, Entry, Spent, add_entries, parsed, plain
from driffusion_trt.engines.manifest import ModelFolder
from driffusion_trt.sampling.sample import Stats

from . import report
from .crowd import Demo, make_pictures
from .drift import STEPS, Cells, compared

# Steps of which the bundled calibrations have rounds alone; the demo's also has blocks, of 50 steps.
ROUNDS_ALONE = {"demo": (10, 20, 30), "demo-xl": (10, 20, 30), "demo-sd3": (10, 20, 28)}
CALIBRATED_ON, EVALUATED_ON = 1000, 1100  # prompts and seeds from here on; how errors are weighed was chosen
# with a look at both, so that the result stands again on 1200 to 1231: --first 1200


def calibrated(
    demo: Demo, pairs: Sequence[int], guidance: float, lanes: int, progress: Progress, **options: Any
) -> Entry:
    """The entry for these pairs, all pictures of a plan in step with one another."""
    total = pictures_of(len(pairs), **options)
    task = progress.add_task(f"calibrating, guidance {guidance:g}, {lanes} lanes", total=total)

    def make(plans: Sequence[dt.Plan]) -> list[Stats]:
        made = make_pictures(demo, plans, pairs, guidance, lambda: progress.advance(task))
        return [one.stats for one in made]

    entry = measure(
        make, demo.schedule(STEPS), lanes=lanes, guidance_scale=guidance, pairs=len(pairs), **options
    )
    progress.remove_task(task)
    return entry


def spent(
    demo: Demo, pairs: Sequence[int], guidance: float, lanes: int, steps: int, tolerances: Sequence[float]
) -> dict[float, Spent]:
    """The rounds that mode `tolerance` takes for these pairs."""

    def make(plans: Sequence[dt.Plan]) -> list[Stats]:
        return [one.stats for one in make_pictures(demo, plans, pairs, guidance)]

    return spent_by(make, demo.schedule(steps), lanes=lanes, pairs=len(pairs), tolerances=tolerances)


def rounds_alone(demo: Demo, pairs: Sequence[int], guidance: float, lanes: int, steps: int) -> Entry:
    """What mode `tolerance` takes in fewer steps, without blocks."""
    found = spent(demo, pairs, guidance, lanes, steps, (0.003, 0.01, 0.05))
    schedule = demo.schedule(steps)
    plan = dt.make_plan(schedule, mode="tolerance", lanes=lanes).asked()
    how = (plan["carry"], plan["order"])
    return Entry(schedule.solver, steps, guidance, lanes, len(pairs), *how, {}, {}, {}, found, None)


def kept(
    path: Path, demo: Demo, pairs: Sequence[int], guidance: float, lanes: int, progress: Progress
) -> Entry:
    """The same, without tolerances, made once and kept."""
    if not path.exists():
        entry = calibrated(demo, pairs, guidance, lanes, progress, tolerances=())
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(plain(entry)))
        partial.replace(path)
    return parsed(json.loads(path.read_text()))


def evaluate(options: argparse.Namespace) -> dict[str, Any]:
    """For each guidance, number of lanes and rounds: even and calibrated, of both modes."""
    cells: dict[str, Any] = {}
    on = range(CALIBRATED_ON, CALIBRATED_ON + options.pairs)
    with Progress() as progress:
        made = Cells(options.work, range(options.first, options.first + options.pairs), progress)
        demo = Demo(on)
        for guidance in options.guidance:
            wanted = made(guidance, mode="sequential")["latents"]
            for lanes in options.lanes:
                path = options.work / f"calibration-g{guidance:g}-n{lanes}-{len(on)}.json"
                entry = kept(path, demo, on, guidance, lanes, progress)
                for rounds in options.rounds:
                    plans = plans_of(demo.schedule(STEPS), entry, rounds)
                    cells[f"guidance {guidance:g}, {lanes} lanes, {rounds} rounds"] = {
                        "blocks": list(entry.strides[rounds]),
                        "expected": {"even": entry.even_errors[rounds], "calibrated": entry.errors[rounds]},
                        "growth": plain(entry)["growth"],
                        "measured": {
                            name: compared(made(guidance, lanes=lanes, **how), wanted)
                            for name, how in plans.items()
                        },
                    }
    return {
        "pairs": options.pairs,
        "first": options.first,
        "steps": STEPS,
        "unit": "relative L2 of the latents",
        "cells": cells,
    }


def plans_of(schedule: dt.Schedule, entry: Entry, rounds: int) -> dict[str, dict[str, Any]]:
    """What is compared, as arguments of `make_plan`: the paper's own plan too, where it has these rounds."""
    even = dt.make_plan(schedule, mode="window", lanes=entry.lanes, rounds=rounds).blocks
    plans: dict[str, dict[str, Any]] = {
        f"{mode}, {name}": {"mode": mode, "blocks": blocks}
        for mode in ("window", "aggressive")
        for name, blocks in (("even", even), ("calibrated", entry.strides[rounds]))
    }
    if rounds == dt.make_plan(schedule, mode="aggressive", lanes=entry.lanes).sequential_calls:
        plans["aggressive, the paper's"] = {"mode": "aggressive"}
    return plans


def bundle(options: argparse.Namespace) -> None:
    """Add what is missing to a bundled model's calibration."""
    folder = ModelFolder.open(options.bundle)
    pairs = range(CALIBRATED_ON, CALIBRATED_ON + options.pairs)
    demo = Demo(pairs, options.bundle)
    solver, shorter = demo.schedule().solver, ROUNDS_ALONE[options.bundle]
    kinds = [(lanes, guidance) for lanes in options.lanes for guidance in options.guidance]
    with Progress() as progress:
        task = progress.add_task(options.bundle, total=len(kinds) * len(shorter))
        for lanes, guidance in kinds:
            there = {entry.key for entry in Calibration.read(folder).entries}
            if options.bundle == "demo" and (solver, STEPS, guidance, lanes) not in there:
                add_entries(folder, [calibrated(demo, pairs, guidance, lanes, progress)])
            for steps in shorter:
                if (solver, steps, guidance, lanes) not in there:
                    add_entries(folder, [rounds_alone(demo, pairs, guidance, lanes, steps)])
                progress.advance(task)


def count_anew(model: str) -> None:
    """Replace the rounds of a tolerance in all entries of a bundled model's calibration."""
    folder = ModelFolder.open(model)
    demo = Demo((), model)
    for entry in track(Calibration.read(folder).entries, model):
        pairs = range(CALIBRATED_ON, CALIBRATED_ON + entry.pairs)
        demo.learn(pairs)
        found = spent(demo, pairs, entry.guidance_scale, entry.lanes, entry.steps, tuple(entry.spent))
        add_entries(folder, [replace(entry, spent=found)])


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a table and write bench/results/calibrated.json, or add to a bundled model's calibration."""
    parser = argparse.ArgumentParser(prog="python -m bench.calibrated", description=__doc__.split("\n")[0])
    parser.add_argument("--pairs", type=int)
    parser.add_argument("--guidance", type=float, nargs="+")
    parser.add_argument("--lanes", type=int, nargs="+")
    parser.add_argument("--rounds", type=int, nargs="+", default=[14, 20])
    parser.add_argument("--work", type=Path, default=Path("build/calibrated"))
    parser.add_argument("--first", type=int, default=EVALUATED_ON, help="pairs to evaluate on, from here on")
    parser.add_argument("--bundle", choices=list(ROUNDS_ALONE), help="measure for its own calibration.json")
    parser.add_argument("--no-write", action="store_true", help="print only, leave bench/results alone")
    parser.add_argument("--rounds-anew", action="store_true", help="of --bundle: count a tolerance's rounds")
    options = parser.parse_args(arguments)
    if options.rounds_anew and not options.bundle:
        parser.error("--rounds-anew goes with --bundle")
    options.pairs = options.pairs or (8 if options.bundle else 32)
    options.guidance = options.guidance or ([1.0, 3.0, 5.0, 7.5] if options.bundle else [3.0, 7.5])
    options.lanes = options.lanes or ([2, 3, 4, 8] if options.bundle else [4])
    if options.bundle:
        if options.rounds_anew:
            count_anew(options.bundle)
        else:
            bundle(options)
        return
    result = evaluate(options)
    rows = [
        [
            where,
            name,
            f"{one['mean']:.4f}",
            f"{one['interval'][0]:.4f} to {one['interval'][1]:.4f}",
            f"{one['worst']:.3f}",
        ]
        for where, cell in result["cells"].items()
        for name, one in cell["measured"].items()
    ]
    print(report.table(["", "plan", "mean", "95 %", "worst"], rows), end="\n\n")
    if not options.no_write:
        name = "calibrated" if options.first == EVALUATED_ON else f"calibrated-{options.first}"
        print(f"written to {report.write(name, result, ('numpy', 'onnxruntime'))}")


if __name__ == "__main__":
    main()
