"""`python -m driffusion_trt.export.demo.train`: the demo model, from nothing to its ONNX folder.

Every stage is resumable and is skipped when its result is there. Seeds are fixed; two
runs on one machine still differ in the last bits, because two processes train together.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from .vae import train_vae


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Train the bundled demo model on a CPU.")
    parser.add_argument("--work", type=Path, default=Path("demo-training"), help="folder for checkpoints")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--vae-samples", type=int, default=24_000)
    options = parser.parse_args(arguments)
    options.work.mkdir(parents=True, exist_ok=True)
    train_vae(options.work, options.vae_samples, options.processes)


if __name__ == "__main__":
    main()
