"""The demo's training log as an SVG: `python -m bench.loss_curve` (needs the standard library only)."""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

from . import report

WIDTH, HEIGHT, MARGIN = 360, 220, 44
TITLES = {"vae": "autoencoder", "checker": "classifier", "denoiser": "text encoder and UNet"}
TITLES |= {"denoiser-xl": "demo-xl", "denoiser-sd3": "demo-sd3"}


def panel(name: str, points: list[tuple[int, float]], left: int) -> str:
    """One network: samples seen against loss, logarithmic."""
    last = max(samples for samples, _ in points)
    low, high = (f(loss for _, loss in points) for f in (min, max))
    span = max(math.log(high / low), 1e-9)

    def place(samples: int, loss: float) -> str:
        x = left + MARGIN + samples / last * (WIDTH - MARGIN - 10)
        y = 30 + (1 - math.log(loss / low) / span) * (HEIGHT - 70)
        return f"{x:.1f},{y:.1f}"

    line = " ".join(place(*point) for point in points)
    bottom = HEIGHT - 40
    return (
        f'<text x="{left + MARGIN}" y="18" font-weight="bold">{TITLES.get(name, name)}</text>'
        f'<rect x="{left + MARGIN}" y="30" width="{WIDTH - MARGIN - 10}" height="{HEIGHT - 70}" fill="none" '
        f'stroke="#bbb"/><polyline points="{line}" fill="none" stroke="#2a5bd7" stroke-width="1.5"/>'
        f'<text x="{left + MARGIN - 4}" y="36" text-anchor="end">{high:.2g}</text>'
        f'<text x="{left + MARGIN - 4}" y="{bottom}" text-anchor="end">{low:.2g}</text>'
        f'<text x="{left + WIDTH - 10}" y="{bottom + 16}" text-anchor="end">{last:,} samples</text>'
    )


def main(arguments: list[str] | None = None) -> None:
    """Draw the log; see `--help`."""
    parser = argparse.ArgumentParser(description="Plot the losses of the demo's training.")
    parser.add_argument("log", type=Path, nargs="?", default=report.RESULTS / "demo_training.jsonl")
    parser.add_argument("-o", "--output", type=Path, default=report.RESULTS / "demo_training.svg")
    options = parser.parse_args(arguments)
    curves: dict[str, list[tuple[int, float]]] = {}
    for line in options.log.read_text().splitlines():
        row = json.loads(line)
        curves.setdefault(row["network"], []).append((row["samples"], row["loss"]))
    panels = "".join(panel(name, points, WIDTH * k) for k, (name, points) in enumerate(curves.items()))
    size = f'width="{WIDTH * len(curves)}" height="{HEIGHT}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="12">'
    options.output.write_text(f"{head}{panels}</svg>\n")
    print(f"written to {options.output}")


if __name__ == "__main__":
    main()
