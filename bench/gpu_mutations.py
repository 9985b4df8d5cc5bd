"""Mutations of the GPU lanes on simulated devices, and how each is found out: a survivor is a bug.

    python -m bench.gpu_mutations

Needs no GPU. Each event that is recorded or waited for, each copy and each launch of a picture is left out
in turn, on several machines, and buffers are swapped; tests/gpumutants.py and tests/gputrial.py have the
list. The program fails where a mutation survives.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from driffusion_trt.engines.manifest import ModelFolder

from . import report

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))
import gpulanes  # type: ignore[import-not-found]  # noqa: E402
import gputrial  # type: ignore[import-not-found]  # noqa: E402
import tiny  # type: ignore[import-not-found]  # noqa: E402

PACKAGES = ("numpy", "onnxruntime", "cuda-bindings")


def main(arguments: Sequence[str] | None = None) -> int:
    """Try all, print a table by kind, write bench/results/gpu_mutations.json; 1 where one survives."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu_mutations", description=__doc__.split("\n")[0])
    parser.add_argument("--no-write", action="store_true", help="print only, leave bench/results alone")
    options = parser.parse_args(arguments)
    setups: dict[str, dict[str, str]] = {}
    with tempfile.TemporaryDirectory() as work:
        folder = ModelFolder.open(tiny.make_model_folder(Path(work) / "model"))
        kernels = gpulanes.build_kernels(ROOT, Path(work) / "kernels")
        for name in gputrial.SETUPS:
            setups[name] = gputrial.verdicts(name, folder, kernels)
    print(table(setups))
    verdicts = [verdict for found in setups.values() for verdict in found.values()]
    survivors = [
        f"{setup}: {name}" for setup in setups for name in setups[setup] if escaped(setups[setup][name])
    ]
    result = {"mutations": len(verdicts), "survivors": survivors, "setups": setups}
    for survivor in survivors:
        print(f"survived: {survivor}")
    print(f"survivors: {len(survivors)} of {len(verdicts)} mutations")
    if not options.no_write:
        print(f"written to {report.write('gpu_mutations', result, PACKAGES)}")
    return 1 if survivors else 0


def escaped(verdict: str) -> bool:
    """Whether nothing but luck found it out: an exception is no check of the lanes."""
    return verdict not in ("race", "violation", "picture")


def table(setups: dict[str, dict[str, str]]) -> str:
    """How each kind of mutation was found out, by setup, as Markdown."""
    counted: dict[str, Any] = {name: gputrial.by_kind(found) for name, found in setups.items()}
    kinds = sorted({kind for kinds in counted.values() for kind in kinds})
    rows = [
        [
            kind,
            *(
                ", ".join(f"{v} {n}" for v, n in sorted(counted[name].get(kind, {}).items()))
                for name in setups
            ),
        ]
        for kind in kinds
    ]
    return report.table(["mutation", *setups], rows)


if __name__ == "__main__":
    sys.exit(main())
