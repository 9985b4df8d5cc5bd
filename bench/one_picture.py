"""One picture in a process of its own, with the time of each stage, for `cold_start` and `memory`.

    python -m bench.one_picture {driffusion,diffusers} FOLDER OUT.png [--steps N --size N --mode MODE]

The last line of its output is JSON: seconds since the clock that the parent read before it started the
process (in BENCH_START) at which everything was imported, loaded, made and written.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any

PROMPT = "a red circle above a blue square"


def driffusion(args: argparse.Namespace, mark: Any) -> Any:
    import driffusion_trt

    make = driffusion_trt.Pipeline.load
    mark("imported")
    with make(args.folder, devices=2) as pipe:
        mark("loaded")
        size = {} if args.size is None else {"height": args.size, "width": args.size}
        result = pipe(PROMPT, steps=args.steps, guidance_scale=3.0, seed=0, mode=args.mode, **size)
    return result.images[0]


def diffusers(args: argparse.Namespace, mark: Any) -> Any:
    import torch
    from diffusers import DiffusionPipeline

    torch.set_num_threads(2)
    mark("imported")
    index = json.loads((Path(args.folder) / "model_index.json").read_text("utf-8"))
    left_out = {part: None for part, kind in index.items() if kind == [None, None]}
    pipe: Any = DiffusionPipeline.from_pretrained(
        args.folder, local_files_only=True, torch_dtype=torch.float32, **left_out
    )
    pipe.set_progress_bar_config(disable=True)
    mark("loaded")
    size = {} if args.size is None else {"height": args.size, "width": args.size}
    generator = torch.Generator().manual_seed(0)
    made = pipe(PROMPT, num_inference_steps=args.steps, guidance_scale=3.0, generator=generator, **size)
    return made.images[0]


def peak_rss_bytes() -> int:
    """Of this process. Not `ru_maxrss` on Linux, which begins with what the parent had when it forked."""
    try:
        status = Path("/proc/self/status").read_text("ascii")
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    (line,) = (line for line in status.splitlines() if line.startswith("VmHWM:"))
    return 1024 * int(line.split()[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("who", choices=("driffusion", "diffusers"))
    parser.add_argument("folder")
    parser.add_argument("out")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--size", type=int)
    parser.add_argument("--mode", default="aggressive")
    args = parser.parse_args()
    begun = float(os.environ["BENCH_START"])
    marks: dict[str, float] = {}

    def mark(name: str) -> None:
        marks[name] = time.time() - begun

    image = {"driffusion": driffusion, "diffusers": diffusers}[args.who](args, mark)
    mark("made")
    image.save(args.out)
    mark("written")
    print(json.dumps({**marks, "peak_rss_bytes": peak_rss_bytes()}))


if __name__ == "__main__":
    main()
