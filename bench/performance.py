"""The performance model against real runs on 1 and 2 CPU lanes: what was expected over what was measured.

    python -m bench.performance [--model demo] [--repeats 10] [--steps N] [--write]

Before and after every repeat the model's figures are measured: a network call of one and of two rows alone,
two calls at once, the executor and its threads over a network that costs nothing, encoders, decoder. In the
repeat one picture of every mode is made, in an order that turns from repeat to repeat. A repeat's ratio is
what the figures around it foresee over what its pictures took, so that the machine's ups and downs hit both;
no picture has a part in the figures, and nothing is fitted. The rounds of a tolerance are foreseen by the
model's calibration.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from rich.progress import track

import driffusion_trt as dt
from driffusion_trt.engines.manifest import ModelFolder
from driffusion_trt.planning.machine import Machine

from . import cells, paper, report
from .lane_figures import LaneFigures

LANES = (1, 2)
GUIDANCE = 3.0


def measure(model: str, repeats: int, steps: int) -> dict[str, Any]:
    """Figures, predictions and times of every repeat."""
    call = {"prompt": cells.PROMPT, "steps": steps, "guidance_scale": GUIDANCE}
    asked = cells.cells(LANES, guided=True)
    with contextlib.ExitStack() as stack:
        pipes = {
            lanes: stack.enter_context(dt.Pipeline.load(model, devices=["cpu"] * lanes)) for lanes in LANES
        }
        figures = LaneFigures(stack, pipes[max(LANES)], call)
        for cell in asked:  # warm up
            cells.make(pipes[cell.devices], cell, call)
        figures()
        machines = [figures()]
        foreseen: dict[cells.Cell, list[cells.Foreseen]] = {cell: [] for cell in asked}
        took: dict[cells.Cell, list[cells.Took]] = {cell: [] for cell in asked}
        for repeat in track(range(repeats), "Measuring"):
            turn = repeat % len(asked)
            for cell in (*asked[turn:], *asked[:turn]):
                took[cell].append(cells.make(pipes[cell.devices], cell, {**call, "seed": repeat}))
            machines.append(figures())
            around = _middle(machines[-2:])
            for cell in asked:
                foreseen[cell].append(cells.foresee(around, pipes[cell.devices], cell, call))
        middle = _middle(machines)
        shown = {cell: cells.foresee(middle, pipes[cell.devices], cell, call) for cell in asked}
    rows = list(cells.compared(shown, took))
    for row, cell in zip(rows, asked, strict=True):
        pairs = list(zip(foreseen[cell], took[cell], strict=True))
        row["predicted_over_measured"] = report.spread([a.total_ms / b.total_ms for a, b in pairs])
        row["predicted_over_measured_loop"] = report.spread([a.loop_ms / b.loop_ms for a, b in pairs])
        row["by_rounds_taken"] = report.spread(
            [a.loop_ms * b.rounds / a.rounds / b.loop_ms for a, b in pairs]
        )
    return {"figures": middle.to_json(), "rows": rows}


def _middle(machines: Sequence[Machine]) -> Machine:
    """Medians of every figure."""

    def of(name: str) -> float:
        return float(statistics.median(getattr(one, name) for one in machines))

    def pair(name: str) -> tuple[float, float]:
        first, second = zip(*(getattr(one, name) for one in machines), strict=True)
        return statistics.median(first), statistics.median(second)

    return replace(
        machines[0],
        call_ms=pair("call_ms"),
        host_us=pair("host_us"),
        look_us=of("look_us"),
        encode_ms=of("encode_ms"),
        decode_ms=of("decode_ms"),
        crowded=of("crowded"),
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.performance", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--model", default="demo", help="a bundled model or a model folder")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--steps", type=int, help="default: the model's")
    parser.add_argument("--write", action="store_true", help="write bench/results/performance.json")
    options = parser.parse_args(arguments)
    steps = ModelFolder.open(options.model).spec.steps if options.steps is None else options.steps
    if options.repeats < 1 or steps < 2:
        parser.error("--repeats must be at least 1, and --steps 2")
    result = measure(options.model, options.repeats, steps)
    titles = {
        "predicted_over_measured": "predicted / measured",
        "predicted_over_measured_loop": "of the loop",
        "by_rounds_taken": "of the loop, by the rounds taken",
    }
    print(cells.table(result["rows"], titles))
    print("\nfigures, medians: " + ", ".join(f"{k} {v}" for k, v in result["figures"].items() if v))
    print("\nThe paper's figures beside the ideal:\n" + paper.table())
    if options.write:
        facts = {"model": options.model, "steps": steps, "guidance_scale": GUIDANCE}
        stored = {**facts, "repeats": options.repeats, **result, "paper": paper.rows()}
        print(f"written to {report.write(result_name(options.model), stored)}")


def result_name(model: str) -> str:
    """Of the JSON under bench/results."""
    return "performance" if model == "demo" else f"performance-{model.rstrip('/').rsplit('/', 1)[-1]}"


if __name__ == "__main__":
    main()
