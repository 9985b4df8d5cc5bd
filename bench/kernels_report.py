"""What the compilers make of the kernels: registers, spills and stack on every architecture, and build times.

    python -m bench.kernels_report

Needs nvcc; no GPU. Every architecture is compiled by itself with `-Xptxas -v`, whose log is
printed with -v. Then the fatbin of the wheel is built whole, by one process and by as many as
there are cores, and NVRTC compiles each architecture, as it does where a wheel has no fatbin.
The program fails where a kernel spills registers or uses a stack.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from driffusion_trt.runtime._images import ARCHITECTURES, compile_kernels

from . import report

SOURCE = Path(__file__).resolve().parent.parent / "driffusion_trt" / "csrc" / "kernels.cu"
PACKAGES = ("cuda-bindings", "nvidia-cuda-nvrtc")
_ENTRY = re.compile(r"Compiling entry function '(\w+)' for 'sm_(\d+)\w*'")
_MEMORY = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
_REGISTERS = re.compile(r"Used (\d+) registers")


def parse(log: str) -> list[dict[str, Any]]:
    """A row for each kernel and architecture of a log of `ptxas -v`."""
    rows: list[dict[str, Any]] = []
    for line in log.splitlines():
        if found := _ENTRY.search(line):
            rows.append({"kernel": found[1], "architecture": int(found[2])})
        elif not rows:
            continue
        elif found := _MEMORY.search(line):
            names = ("stack_bytes", "spill_store_bytes", "spill_load_bytes")
            rows[-1] |= dict(zip(names, map(int, found.groups()), strict=True))
        elif found := _REGISTERS.search(line):
            rows[-1]["registers"] = int(found[1])
    return rows


def _nvcc(*options: str) -> tuple[str, dict[str, float]]:
    """The log of a compilation, and its seconds: those that passed, and those of all processors."""
    program = shutil.which("nvcc") or "/usr/local/cuda/bin/nvcc"
    start, before = time.perf_counter(), os.times()
    done = subprocess.run([program, "-std=c++17", *options, str(SOURCE)], capture_output=True, text=True)
    after, seconds = os.times(), time.perf_counter() - start
    processors = sum(after[2:4]) - sum(before[2:4])  # of child processes, user and system
    if done.returncode:
        sys.exit(f"{program} failed:\n{done.stdout}{done.stderr}")
    return done.stdout + done.stderr, {"wall_s": round(seconds, 2), "processors_s": round(processors, 2)}


def _version() -> str:
    program = shutil.which("nvcc") or "/usr/local/cuda/bin/nvcc"
    try:
        text = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout
    except OSError as error:
        sys.exit(f"nvcc is needed and cannot be run ({error}); install a CUDA toolkit")
    (version,) = re.findall(r"release [\d.]+, V([\d.]+)", text)
    return str(version)


def compiled(folder: Path) -> tuple[list[dict[str, Any]], str]:
    """The rows of every architecture, and the whole log."""
    logs = [
        _nvcc("-cubin", f"-arch=sm_{a}", "-Xptxas", "-v", "-o", str(folder / f"{a}.cubin"))[0]
        for a in ARCHITECTURES
    ]
    return [row for log in logs for row in parse(log)], "".join(logs)


def build_times(folder: Path) -> dict[str, Any]:
    """Seconds of the fatbin as CMakeLists.txt builds it, and of NVRTC."""
    codes = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in ARCHITECTURES]
    last = ARCHITECTURES[-1]
    codes.append(f"-gencode=arch=compute_{last},code=compute_{last}")
    path = folder / "kernels.fatbin"
    times: dict[str, Any] = {}
    for name, threads in (("one_thread", "1"), ("threads_0", "0")):
        times[name] = _nvcc("-fatbin", "--threads", threads, "-o", str(path), *codes)[1]
    times["fatbin_bytes"] = path.stat().st_size
    times["nvrtc_s"] = {}
    for architecture in ARCHITECTURES:
        start = time.perf_counter()
        compile_kernels(f"sm_{architecture}")
        times["nvrtc_s"][f"sm_{architecture}"] = round(time.perf_counter() - start, 2)
    return times


def tables(result: dict[str, Any]) -> str:
    """Registers by kernel and architecture, and the times, as Markdown."""
    rows = result["kernels"]
    names = list(dict.fromkeys(row["kernel"] for row in rows))
    registers = {(row["kernel"], row["architecture"]): row["registers"] for row in rows}
    head = ["registers", *(f"sm_{a}" for a in ARCHITECTURES)]
    body = [[name, *(str(registers[name, a]) for a in ARCHITECTURES)] for name in names]
    build = result["build"]
    one, all_cores = build["one_thread"], build["threads_0"]
    times = (
        f"fatbin of {build['fatbin_bytes']} bytes: {one['wall_s']} s with one thread, "
        f"{all_cores['wall_s']} s with one for each core ({all_cores['processors_s']} s of processor time)\n"
        f"NVRTC: {max(build['nvrtc_s'].values())} s at most for one architecture"
    )
    return f"{report.table(head, body)}\n\n{times}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Compile, print and write bench/results/kernels.json; 1 where a kernel spills."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.kernels_report", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--no-write", action="store_true", help="print only, leave bench/results alone")
    parser.add_argument("-v", action="store_true", dest="verbose", help="print the log of ptxas")
    options = parser.parse_args(arguments)
    version = _version()
    with tempfile.TemporaryDirectory() as folder:
        rows, log = compiled(Path(folder))
        result = {"nvcc": version, "kernels": rows, "build": build_times(Path(folder))}
    if options.verbose:
        print(log)
    print(tables(result))
    counts = ("stack_bytes", "spill_store_bytes", "spill_load_bytes")
    spilled = [row for row in rows if any(row[count] for count in counts)]
    for row in spilled:
        print(f"{row['kernel']} on sm_{row['architecture']} spills or uses a stack: {row}")
    print(f"spills: {len(spilled)} of {len(rows)} kernels on {len(ARCHITECTURES)} architectures")
    if not options.no_write:
        print(f"written to {report.write('kernels', result, PACKAGES)}")
    return 1 if spilled else 0


if __name__ == "__main__":
    sys.exit(main())
