"""diffusers in torch on one GPU, as the baseline of `bench.gpu`, in a process of its own.

    python -m bench.gpu_diffusers CHECKPOINT --steps N [--compile] [--device cuda]

The last line is JSON: milliseconds of every picture by CUDA events, and the peak of torch's memory; or why
nothing was measured. Networks are in fp16, `--compile` compiles the denoiser.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from typing import Any


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """One process's figures, or `left_out` with the reason."""
    try:
        import diffusers
        import torch
        from diffusers import DiffusionPipeline
    except ImportError as error:
        return {"left_out": f"{error.name} is not installed"}
    on_gpu = options.device.startswith("cuda")
    if on_gpu and not torch.cuda.is_available():
        return {"left_out": f"torch {torch.__version__} finds no GPU"}
    half = torch.float16 if on_gpu else torch.float32
    pipe: Any = DiffusionPipeline.from_pretrained(options.checkpoint, local_files_only=True)
    pipe = pipe.to(options.device, half)  # what loading calls its dtype depends on the version
    pipe.set_progress_bar_config(disable=True)
    name = "transformer" if hasattr(pipe, "transformer") else "unet"
    dtype = getattr(pipe, name).dtype
    if options.compile:
        setattr(pipe, name, torch.compile(getattr(pipe, name), mode="reduce-overhead"))

    def once(seed: int) -> float:
        generator = torch.Generator("cpu").manual_seed(seed)
        size = {} if options.size is None else {"height": options.size, "width": options.size}
        asked = {"num_inference_steps": options.steps, "guidance_scale": options.guidance_scale, **size}
        if not on_gpu:
            begun = time.perf_counter()
            pipe(options.prompt, generator=generator, **asked)
            return 1e3 * (time.perf_counter() - begun)
        event: Any = torch.cuda.Event
        start, end = event(enable_timing=True), event(enable_timing=True)
        start.record()
        pipe(options.prompt, generator=generator, **asked)
        end.record()
        torch.cuda.synchronize()
        return float(start.elapsed_time(end))

    warm_ms = [once(0), once(0)]
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    took = [once(seed) for seed in range(options.iterations)]
    return {
        "ms": took,
        "first_ms": warm_ms[0],
        "peak_bytes": torch.cuda.max_memory_allocated() if on_gpu else None,
        "compiled": options.compile,
        "dtype": str(dtype).removeprefix("torch."),
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "device": torch.cuda.get_device_name() if on_gpu else options.device,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.gpu_diffusers", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("checkpoint", help="a diffusers folder")
    parser.add_argument("--prompt", default="a red fox left of a blue star on a yellow background")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--guidance-scale", type=float, default=5.0)
    parser.add_argument("--size", type=int, default=None, help="pixels of both sides")
    parser.add_argument("--iterations", type=int, default=5)
    parser.add_argument("--compile", action="store_true", help="compile the denoiser with torch.compile")
    parser.add_argument("--device", default="cuda", help="for a trial of the program: cpu, in float32")
    print(json.dumps(measure(parser.parse_args(arguments))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
