"""Builds SD2.1, SDXL and SD3-medium in full size, from random weights to TensorRT-RTX plans, without a GPU.

    python -m bench.full_build [--families sd21 sdxl sd3] [--target sm89,sm120] [--work build/full] [--keep]

For each family it writes a checkpoint and runs `driffusion-trt build` on it in steps: the export, its
comparison with torch, the plans, and once more with nothing to do. It notes seconds, processor seconds, the
largest resident memory of any of its processes, sizes and parity. Results go to
bench/results/full_build.json. Needs 60 GB of disk and 24 GB of memory; half an hour or more on two cores.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psutil

from . import report
from .full_sizes import FAMILIES, write_checkpoint

PACKAGES = ("torch", "diffusers", "transformers", "onnx", "onnxruntime", "tensorrt-rtx-cu13")


class Watch(threading.Thread):
    """The largest resident memory of any one process below a process, sampled ten times a second."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self._root = psutil.Process(pid)
        self._over = threading.Event()
        self.peak_bytes = 0

    def run(self) -> None:
        while not self._over.wait(0.1):
            try:
                for process in (self._root, *self._root.children(recursive=True)):
                    self.peak_bytes = max(self.peak_bytes, process.memory_info().rss)
            except psutil.NoSuchProcess:
                continue

    def stop(self) -> int:
        self._over.set()
        self.join()
        return self.peak_bytes


def _build(words: list[str]) -> dict[str, Any]:
    """One run of the command: its own JSON, with what was measured around it."""
    import resource

    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.perf_counter()
    with subprocess.Popen(
        [sys.executable, "-m", "driffusion_trt", "build", *words, "--json"], stdout=subprocess.PIPE, text=True
    ) as process:
        watch = Watch(process.pid)
        watch.start()
        out, _ = process.communicate()
    peak = watch.stop()
    if process.returncode:
        sys.exit(f"driffusion-trt build {' '.join(words)} failed")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    made: dict[str, Any] = json.loads(out)
    return {
        "seconds": round(time.perf_counter() - start, 1),
        "cpu_seconds": round(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, 1),
        "peak_rss_bytes": peak,
        "did": len(made["did"]),
        "parity": made["parity"],
        "plans": {
            plan["network"]: {name: plan[name] for name in ("seconds", "peak_memory_bytes", "size_bytes")}
            for plan in made["plans"]
        },
    }


def _without(facts: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in facts.items() if name not in names}


def measure(family: str, work: Path, target: str) -> dict[str, Any]:
    """The export alone, its comparison with torch, the plans, and then nothing."""
    checkpoint, output = work / f"{family}-checkpoint", work / family
    parameters = write_checkpoint(family, checkpoint)
    words = ["--model", family, "--checkpoint", str(checkpoint), "--output", str(output)]
    export = _build([*words, "--target", "cpu", "--precision", "fp16", "--no-verify"])
    parity = _build([*words, "--target", "cpu"])
    plans = _build([*words, "--target", target])
    again = _build([*words, "--target", target])
    sizes = {path.name: path.stat().st_size for path in sorted((output / "onnx").iterdir())}
    return {
        "parameters": parameters,
        "onnx_bytes": sizes,
        "export": _without(export, "plans", "parity"),
        "parity": _without(parity, "plans"),
        "plans": _without(plans, "parity"),
        "second_build_seconds": again["seconds"],
        "second_build_did": again["did"],
    }


def document(families: dict[str, Any]) -> None:
    """Write the table of docs/building.md anew."""
    head = ["", "SD2.1", "SDXL", "SD3-medium"]
    names = [name for name in FAMILIES if name in families]
    rows = [["parameters, millions", *(f"{families[n]['parameters'] / 1e6:,.0f}" for n in names)]]
    onnx = [sum(families[n]["onnx_bytes"].values()) / 1e9 for n in names]
    rows.append(["ONNX on disk, GB", *(f"{size:.1f}" for size in onnx)])
    for title, part in (("export", "export"), ("comparison with torch", "parity"), ("all plans", "plans")):
        facts = [families[n][part] for n in names]
        rows.append([f"{title}: seconds", *(f"{f['seconds']:.0f}" for f in facts)])
        rows.append([f"{title}: processor seconds", *(f"{f['cpu_seconds']:.0f}" for f in facts)])
        rows.append([f"{title}: memory, GB", *(f"{f['peak_rss_bytes'] / 1e9:.1f}" for f in facts)])
    plans = [sum(p["size_bytes"] for p in families[n]["plans"]["plans"].values()) / 1e9 for n in names]
    rows.append(["plans on disk, GB", *(f"{size:.1f}" for size in plans)])
    worst = [max(families[n]["parity"]["parity"].values()) for n in names]
    rows.append(["worst relative L2 against torch", *(f"{figure:.1e}" for figure in worst)])
    rows.append(["second build, seconds", *(f"{families[n]['second_build_seconds']}" for n in names)])
    begin, end = "<!-- full_build -->\n", "<!-- /full_build -->"
    path = report.RESULTS.parent.parent / "docs" / "building.md"
    before, _, rest = path.read_text("utf-8").partition(begin)
    path.write_text(f"{before}{begin}{report.table(head, rows)}\n{end}{rest.partition(end)[2]}", "utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--families", nargs="+", choices=FAMILIES, default=list(FAMILIES))
    parser.add_argument("--target", default="sm89,sm120")
    parser.add_argument("--work", type=Path, default=Path("build") / "full")
    parser.add_argument("--keep", action="store_true", help="keep what was built")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = {}
    for family in args.families:
        results[family] = measure(family, args.work, args.target)
        print(json.dumps({family: results[family]}), flush=True)
        if not args.keep:
            for folder in (args.work / f"{family}-checkpoint", args.work / family):
                shutil.rmtree(folder)
    path = report.write("full_build", {"target": args.target, "families": results}, PACKAGES)
    if list(results) == list(FAMILIES):
        document(results)
    print(json.dumps({"written": str(path), "families": list(results)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
