"""`python -m driffusion_trt.export.demo.train`: the demo model, from nothing to its ONNX folder.

Every stage is resumable and is skipped when its result is there. Seeds are fixed; two
runs on one machine still differ in the last bits, because two processes train together.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from .checker import train_checker
from .denoiser import cache_latents, train_denoiser
from .vae import train_vae


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Train the bundled demo model on a CPU.")
    parser.add_argument("--work", type=Path, default=Path("demo-training"), help="folder for checkpoints")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--vae-samples", type=int, default=16_000)
    parser.add_argument("--checker-samples", type=int, default=40_000)
    parser.add_argument("--pictures", type=int, default=32_000, help="pictures that are encoded once")
    parser.add_argument("--samples", type=int, default=340_000, help="pictures the UNet sees in all")
    parser.add_argument(
        "--bf16", action="store_true", help="autocast to bfloat16 (time both: it depends on the CPU)"
    )
    options = parser.parse_args(arguments)
    options.work.mkdir(parents=True, exist_ok=True)
    train_vae(options.work, options.vae_samples, options.processes, options.bf16)
    cache_latents(options.work, options.pictures, options.processes)
    train_checker(options.work, options.checker_samples, options.processes, options.bf16)
    train_denoiser(options.work, options.samples, options.processes, options.bf16)


if __name__ == "__main__":
    main()
