"""The largest resident memory of a process that makes one picture on a CPU, beside diffusers'.

    python -m bench.memory [--families demo sd21] [--size 256] [--work build/memory] [--keep]

The demo is measured as it is. Of a family a checkpoint of the published size with random weights is written
and exported in float32, as diffusers computes on a CPU; pictures are small, two steps each, so that weights
and not activations are what counts. SD2.1 needs 15 GB of disk and 8 GB of memory; SDXL, whose weights take
14 GB in float32, and SD3 (without T5, 12 GB) are made if they are named, into a result file of their own.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from . import report
from .cold_start import picture, save_for_diffusers

FAMILIES = ("demo", "sd21", "sdxl", "sd3")
_DEFAULT = ["demo", "sd21"]


def _sources(family: str, work: Path) -> tuple[str, str]:
    """The model folder and the checkpoint of a family."""
    checkpoint, model = work / f"{family}-checkpoint", work / family
    if family == "demo":
        save_for_diffusers(checkpoint)
        return "demo", str(checkpoint)
    if (model / "manifest.json").exists():  # of a run that kept it, or was cut off
        return str(model), str(checkpoint)
    from .full_sizes import write_checkpoint

    write_checkpoint(family, checkpoint)
    words = ["--model", family, "--checkpoint", str(checkpoint), "--output", str(model)]
    command = [sys.executable, "-m", "driffusion_trt", "build", *words]
    subprocess.run([*command, "--target", "cpu", "--precision", "fp32", "--no-verify"], check=True)
    return str(model), str(checkpoint)


def measure(family: str, work: Path, size: int, repeats: int) -> dict[str, Any]:
    """Peak resident bytes: of a picture here on 2 lanes, and in diffusers."""
    model, checkpoint = _sources(family, work)
    asked = ["--steps", "2"] + ([] if family == "demo" else ["--size", str(size)])
    rivals: dict[str, tuple[Sequence[str], str]] = {
        "driffusion-trt": (("driffusion", *asked), model),
        "diffusers": (("diffusers", *asked), checkpoint),
    }
    found: dict[str, list[float]] = {name: [] for name in rivals}
    for _ in range(repeats):
        for name, (words, folder) in rivals.items():
            found[name].append(picture(words, folder, work / "out.png")["peak_rss_bytes"])
    weights = sum(path.stat().st_size for path in Path(model).glob("onnx/*")) if family != "demo" else None
    return {"weights_bytes": weights, "peak_rss_bytes": {k: report.spread(v) for k, v in found.items()}}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--families", nargs="+", choices=FAMILIES, default=_DEFAULT)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--work", type=Path, help="where to put what is built (default: a temporary folder)")
    parser.add_argument("--keep", action="store_true", help="keep what was built")
    args = parser.parse_args()
    work = args.work or Path(tempfile.mkdtemp())
    work.mkdir(parents=True, exist_ok=True)
    results = {family: measure(family, work, args.size, args.repeats) for family in args.families}
    if not args.keep:
        shutil.rmtree(work)
    rows = [
        [family, *(f"{one['median'] / 1e9:.2f}" for one in facts["peak_rss_bytes"].values())]
        for family, facts in results.items()
    ]
    print(report.table(["peak RSS, GB", "driffusion-trt", "diffusers"], rows))
    result = {"size": args.size, "repeats": args.repeats, "families": results}
    name = "memory" if args.families == _DEFAULT else f"memory-{'-'.join(args.families)}"
    path = report.write(name, result, ("numpy", "onnxruntime", "torch", "diffusers", "transformers"))
    print(f"written to {path}")


if __name__ == "__main__":
    main()
