"""Prompts of a bundled model on one sheet, for eyes: `python -m bench.contact_sheet`."""

from __future__ import annotations

import argparse
import textwrap
from pathlib import Path

from PIL import Image, ImageDraw
from rich.progress import track

import driffusion_trt as dt
from driffusion_trt.evaluation.heldout import prompt

COLUMNS, SIDE, CAPTION = 8, 128, 42


def sheet(pipe: dt.Pipeline, mode: str, lanes: int, rows: int) -> Image.Image:
    """The first prompts of `heldout`, prompt k with seed k, each over its caption."""
    out = Image.new("RGB", (COLUMNS * (SIDE + 6) + 6, rows * (SIDE + CAPTION) + 6), "white")
    pen = ImageDraw.Draw(out)
    for k in track(range(COLUMNS * rows), "Drawing"):
        caption, _ = prompt(k)
        image = pipe(caption, seed=k, mode=mode, lanes=lanes).images[0]
        x, y = 6 + k % COLUMNS * (SIDE + 6), 6 + k // COLUMNS * (SIDE + CAPTION)
        out.paste(image.resize((SIDE, SIDE), Image.Resampling.BICUBIC), (x, y))
        pen.multiline_text(
            (x, y + SIDE + 2), "\n".join(textwrap.wrap(caption, 23)), fill="black", font_size=10
        )
    return out


def main(arguments: list[str] | None = None) -> None:
    """Write the sheet; see `--help`."""
    parser = argparse.ArgumentParser(description="Prompts of a bundled model on one sheet.")
    parser.add_argument("--model", default="demo")
    parser.add_argument("--mode", default="sequential")
    parser.add_argument("--lanes", type=int, default=2)
    parser.add_argument("--rows", type=int, default=5, help=f"of {COLUMNS} pictures")
    parser.add_argument("-o", "--output", type=Path, default=Path("docs/demo-contact-sheet.png"))
    options = parser.parse_args(arguments)
    with dt.Pipeline.load(options.model) as pipe:
        sheet(pipe, options.mode, options.lanes, options.rows).save(options.output, optimize=True)
    print(f"written to {options.output}")


if __name__ == "__main__":
    main()
