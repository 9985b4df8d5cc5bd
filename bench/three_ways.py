"""One prompt of the demo three ways at strong guidance, with rounds and drift over each, for eyes.

python -m bench.three_ways [--index 1117] [--guidance 7.5] [--lanes 4] [-o docs/three-ways.png]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

import driffusion_trt as dt
from driffusion_trt.evaluation.heldout import prompt
from driffusion_trt.pictures import side_by_side

MODES = ("sequential", "aggressive", "tolerance")


def main(arguments: list[str] | None = None) -> None:
    """Write the sheet; see `--help`."""
    parser = argparse.ArgumentParser(description="One prompt in three modes, side by side.")
    parser.add_argument("--index", type=int, default=1117, help="number of the held-out prompt, and its seed")
    parser.add_argument("--guidance", type=float, default=7.5)
    parser.add_argument("--lanes", type=int, default=4)
    parser.add_argument("-o", "--output", type=Path, default=Path("docs/three-ways.png"))
    options = parser.parse_args(arguments)
    caption, _ = prompt(options.index)
    with dt.Pipeline.load("demo") as pipe:
        made = {
            mode: pipe(
                caption, seed=[options.index], guidance_scale=options.guidance, mode=mode, lanes=options.lanes
            )
            for mode in MODES
        }
    exact = made["sequential"].latents
    titles = []
    for mode, result in made.items():
        drift = np.linalg.norm(result.latents - exact) / np.linalg.norm(exact)
        titles.append(f"{mode}, {result.stats.rounds} rounds\nrelative L2 {drift:.4f}")
    images = [result.images[0] for result in made.values()]
    side_by_side(images, titles, least_width=240).save(options.output, optimize=True)
    print(f"{caption!r}, guidance {options.guidance:g}, {options.lanes} lanes")
    print(f"written to {options.output}")


if __name__ == "__main__":
    main()
