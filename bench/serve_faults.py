"""Faults on processes that serve, and what the clients saw of each.

    python -m bench.serve_faults [--model demo] [--devices 2] [--bodies 10000] [--only CASE ...] [--write]

Lanes that fail or hang, clients that leave, are slow or send what is no request, the end under load, full
disks: each is done to a service in a process of its own, `driffusion-trt serve`; faults of lanes are built
into its network calls (bench.fault_server). Ends with 1 where one did harm.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict

from rich.console import Console

from driffusion_trt.server.serving import LOOP

from . import fault_cases, fault_clients, report
from .fault_rows import Asked, Row
from .readme import renew
from .serve_parts import FAULTS, faults_table
from .served import PACKAGES

CASES: dict[str, Callable[[Asked], Iterator[Row]]] = {
    "lanes-fail": fault_cases.lanes_fail,
    "lanes-hang": fault_cases.lanes_hang,
    "stands-still": fault_cases.stands_still,
    "leave": fault_clients.leave,
    "slow": fault_clients.slow,
    "malformed": fault_clients.malformed,
    "sigterm": fault_cases.ends_under_load,
    "sigterm-twice": fault_cases.ends_at_once,
    "disk": fault_cases.disk_is_full,
}


def measure(
    asked: Asked,
    names: Sequence[str],
    done: Callable[[Row], None],
    cases: Mapping[str, Callable[[Asked], Iterator[Row]]] = CASES,
) -> list[Row]:
    """The rows of these cases; one that cannot be done is a row that says so."""
    rows = []
    for name in names:
        try:
            for row in cases[name](asked):
                rows.append(row)
                done(row)
        except (OSError, RuntimeError) as error:
            why = f"it could not be done: {type(error).__name__}: {error}"
            rows.append(Row(name, "-", "-", why, None, False))
    return rows


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Faults of the service, and what clients see of them.")
    parser.add_argument("--model", default="demo")
    parser.add_argument("--devices", type=int, default=2)
    parser.add_argument("--bodies", type=int, default=10_000, help="malformed ones")
    parser.add_argument("--seed", type=int, default=1, help="of the bodies")
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES), help="these cases")
    parser.add_argument("--write", action="store_true", help="keep the result in bench/results")
    options = parser.parse_args(arguments)
    asked = Asked(options.model, options.devices, options.bodies, options.seed)
    console = Console(stderr=True)
    with console.status("Faults") as status:
        rows = measure(asked, options.only, lambda row: status.update(f"Faults: {row.fault}"))
    found = [asdict(row) for row in rows]
    print(faults_table(found))
    if options.write and options.only == list(CASES):
        path = report.write(FAULTS, {**asdict(asked), "loop": LOOP, "rows": found}, PACKAGES)
        print(f"written to {path}, {', '.join(renew())}")
    elif options.write:
        print("not written: only all cases together are kept")
    return not all(row.good for row in rows)


if __name__ == "__main__":
    sys.exit(main())
