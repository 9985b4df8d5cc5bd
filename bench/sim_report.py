"""What the GPU lanes ask of driver, devices and host, counted on the simulated driver: no GPU is needed.

    python -m bench.sim_report

For 1, 2, 4 and 8 lanes in aggressive mode, one device a lane, with CUDA graphs: driver calls for a
round and for a picture, bytes that are copied, memory on each device beside the engine, and the host's
time for a round (`bench.sim_host` tells how that is measured). Networks have the inputs of SDXL and SD3
in full size and no weights, since only the lanes' own buffers count: an engine's weights and its scratch
memory come on top, as do the contexts and graphs of a real driver.

Calls and bytes of a round are the difference of two pictures that differ in their number of rounds.
All runs but the timed ones have random delays, and races and broken rules are counted over all of them;
where groups of devices are at work at the same time, every thread of the host counts by itself, and each
picture has what is encoded and decoded on the lead of its group. The program fails where there is one, or
where a goal is missed.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from . import report
from .sim_groups import GROUPS_OF, group_memory, group_runs, group_table
from .sim_host import host_times
from .sim_lanes import SD3, SDXL, SMALL, Bench, Model, picture

PACKAGES = ("cuda-bindings", "numpy", "onnxruntime")
LANES = (1, 2, 4, 8)
GOAL_MEMORY_MB, GOAL_HOST_US, GOAL_LANES = 10.0, 150.0, 4
_FEW, _MANY = 3, 7  # rounds of the two pictures that are compared
# Asked until the picture is there, so that their number says how long that took; and the stand-in's own.
_UNCOUNTED = {"cuEventQuery", "cudasim_enqueue"}


def _difference(count: Callable[[], Mapping[str, int]], run: Callable[[], object]) -> Counter[str]:
    before = Counter(count())
    run()
    after = Counter(count())
    after.subtract(before)
    return Counter({name: number for name, number in after.items() if number and name not in _UNCOUNTED})


def counts(bench: Bench, model: Model, devices: int, *, peer_copies: bool, seed: int = 1) -> dict[str, Any]:
    """Calls and bytes of a round and of a picture, and memory, on one machine."""
    with (
        bench.machine(devices, delays=seed, delay_us=100) as simulator,
        bench.lanes(model, devices, peer_copies=peer_copies) as lanes,
    ):
        few, many = (picture(model, lanes, rounds) for rounds in (_FEW, _MANY))
        few()
        calls_few = _difference(simulator.calls, few)
        memory = simulator.memory_bytes()
        many()
        calls = _difference(simulator.calls, many)
        copied = _difference(simulator.copied_bytes, many)
        copied.subtract(_difference(simulator.copied_bytes, few))
        calls_of_rounds = Counter(calls)
        calls_of_rounds.subtract(calls_few)
    rounds = _MANY - _FEW
    assert not any(number % rounds for number in (*calls_of_rounds.values(), *copied.values()))
    return {
        "model": model.name,
        "lanes": devices,
        "peer_copies": peer_copies,
        "calls_per_round": sum(calls_of_rounds.values()) // rounds,
        "calls_per_round_by_name": {k: v // rounds for k, v in sorted(calls_of_rounds.items()) if v},
        "calls_per_picture": {str(_MANY): sum(calls.values()), str(_FEW): sum(calls_few.values())},
        "bytes_per_round": {kind: number // rounds for kind, number in sorted(copied.items()) if number},
        "lead_bytes": memory["device 0"],
        "lane_bytes": memory.get("device 1", 0),
        "pinned_bytes": memory["pinned"],
    }


def race_runs(bench: Bench, seeds: Sequence[int], counts_of_lanes: Sequence[int] = LANES) -> int:
    """More pictures with random delays; returns how many."""
    made = 0
    for seed in seeds:
        for count in counts_of_lanes:
            for options in ({}, {"peer_copies": False}, {"graphs": False}):
                with (
                    bench.machine(count, delays=seed, delay_us=300) as simulator,
                    bench.lanes(SMALL, count, **options) as lanes,
                ):
                    for mode in ("aggressive", "conservative"):
                        run = picture(SMALL, lanes, 4, mode)
                        run()
                        run()
                        made += 2
                    assert simulator.unknown_calls() == {}
    return made


def tables(result: Mapping[str, Any]) -> str:
    """The figures as Markdown."""
    rows = result["counts"]
    calls = report.table(
        ["model", "lanes", "copies", "calls a round", f"calls a picture of {_MANY} rounds", "copied a round"],
        [
            [
                row["model"],
                str(row["lanes"]),
                "peer" if row["peer_copies"] else "staged",
                str(row["calls_per_round"]),
                str(row["calls_per_picture"][str(_MANY)]),
                f"{sum(row['bytes_per_round'].values()) / 1e6:.2f} MB",
            ]
            for row in rows
        ],
    )
    memory = report.table(
        ["beside the engine, MB", "lanes", "copies", "lead", "lane", "pinned"],
        [
            [
                row["model"],
                str(row["lanes"]),
                "peer" if row["peer_copies"] else "staged",
                *(f"{row[name] / 1e6:.2f}" for name in ("lead_bytes", "lane_bytes", "pinned_bytes")),
            ]
            for row in rows
            if row["model"] != SMALL.name
        ],
    )
    host = report.table(
        [
            "lanes",
            "host's time for a round, us",
            "quartiles",
            "Python's alone",
            "the simulator's, not counted",
        ],
        [
            [
                str(row["lanes"]),
                f"{row['host_us']['median']:.0f}",
                f"{row['host_us']['low']:.0f} to {row['host_us']['high']:.0f}",
                f"{row['python_us']['median']:.0f}",
                f"{row['simulator_us']['median']:.0f}",
            ]
            for row in result["host"]
        ],
    )
    return "\n\n".join((calls, memory, group_table(result["groups"]), host))


def missed(result: Mapping[str, Any]) -> list[str]:
    """Goals that were not reached, in words."""
    words = []
    for row in result["counts"]:
        most = max(row["lead_bytes"], row["lane_bytes"]) / 1e6
        if row["model"] == SDXL.name and most >= GOAL_MEMORY_MB:
            words.append(f"{row['lanes']} lanes at {SDXL.name} take {most:.1f} MB on a device")
    calls: dict[tuple[int, bool], set[int]] = {}
    for row in result["counts"]:
        calls.setdefault((row["lanes"], row["peer_copies"]), set()).add(row["calls_per_round"])
    words += [
        f"calls a round differ by model: {' and '.join(map(str, sorted(numbers)))}"
        for numbers in calls.values()
        if len(numbers) > 1
    ]
    for row in result["host"]:
        median = row["host_us"]["median"]
        if row["lanes"] == GOAL_LANES and median >= GOAL_HOST_US:
            words.append(f"a round takes {median:.0f} us of the host with {GOAL_LANES} lanes")
    return words


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print and write bench/results/sim_report.json; 1 for a race or a missed goal."""
    parser = argparse.ArgumentParser(prog="python -m bench.sim_report", description=__doc__.split("\n")[0])
    parser.add_argument("--no-write", action="store_true", help="print only, leave bench/results alone")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder))
        rows = [
            counts(bench, model, lanes, peer_copies=peer_copies)
            for model in (SMALL, SDXL, SD3)
            for peer_copies in (True, False)
            for lanes in LANES
        ]
        host = host_times(bench, LANES)
        pictures = race_runs(bench, seeds=(1, 2, 3))
        at_once = group_runs(bench, seeds=(1, 2, 3))
        groups = [group_memory(bench, model, count) for model in (SDXL, SD3) for count in GROUPS_OF]
    result = {
        "counts": rows,
        "host": host,
        "groups": groups,
        "pictures_with_delays": pictures,
        "pictures_in_groups": at_once,
        "races": len(bench.races),
    }
    print(tables(result))
    print(
        f"\ngoals: under {GOAL_MEMORY_MB:g} MB on every device at {SDXL.name}, and under {GOAL_HOST_US:g} us "
        f"of the host for a round with {GOAL_LANES} lanes"
    )
    words = missed(result)
    for line in (*(f"missed: {word}" for word in words), *bench.races):
        print(line)
    if not options.no_write:
        print(f"written to {report.write('sim_report', result, PACKAGES)}")
    print(f"races: {len(bench.races)}")
    return 1 if words or bench.races else 0


if __name__ == "__main__":
    sys.exit(main())
