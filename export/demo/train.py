"""`python -m driffusion_trt.export.demo.train`: a bundled model, from nothing to its ONNX folder.

Every stage is resumable and is skipped when its result is there. Seeds are fixed; two
runs on one machine still differ in the last bits, because two processes train together.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from .checker import train_checker
from .denoiser import DEMOS, cache_latents, train_denoiser
from .finish import export_checker, finish
from .vae import train_vae


def main(arguments: list[str] | None = None) -> None:
    """Train and export; see `--help`."""
    parser = argparse.ArgumentParser(description="Train a bundled model on a CPU.")
    parser.add_argument("--family", choices=list(DEMOS), default="demo", help="which; they share --work")
    parser.add_argument("--work", type=Path, default=Path("demo-training"), help="folder for checkpoints")
    parser.add_argument("--processes", type=int, default=2, help="one-thread training processes")
    parser.add_argument("--vae-samples", type=int, default=16_000, help="pictures the autoencoder sees")
    parser.add_argument("--checker-samples", type=int, default=40_000, help="pictures the classifier sees")
    parser.add_argument("--pictures", type=int, default=32_000, help="pictures that are encoded once")
    parser.add_argument("--samples", type=int, default=500_000, help="noisy latents the denoiser sees")
    parser.add_argument("--bf16", action="store_true", help="autocast; time both, it depends on the CPU")
    options = parser.parse_args(arguments)
    work: Path = options.work
    work.mkdir(parents=True, exist_ok=True)
    train_vae(work, options.vae_samples, options.processes, options.bf16)
    cache_latents(work, options.pictures, options.processes)
    train_checker(work, options.checker_samples, options.processes, options.bf16)
    export_checker(work, work / "demo_checker.onnx")
    train_denoiser(work, options.samples, options.processes, options.bf16, options.family)
    finish(work, work / options.family, options.family)


if __name__ == "__main__":
    main()
