"""Pictures out of the VAE's numbers, and PNG files that remember how they were made."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from ._errors import InputError

# What Pillow raises for broken files, and for one that would fill the memory.
UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)
SETTINGS_KEY = "driffusion_trt"


def to_images(decoded: NDArray[np.float32]) -> list[Image.Image]:
    """Decoded pictures (B, 3, H, W) in [-1, 1] to PIL images, rounded to 8 bits."""
    pixels = np.rint((decoded.clip(-1, 1) + 1) * 127.5).astype(np.uint8)
    return [Image.fromarray(np.ascontiguousarray(picture.transpose(1, 2, 0))) for picture in pixels]


def relative_l2(latents: NDArray[np.floating[Any]], exact: NDArray[np.floating[Any]]) -> float:
    """‖latents − exact‖ / ‖exact‖, in the precision that they have."""
    return float(np.linalg.norm(latents - exact) / np.linalg.norm(exact))


def psnr(one: Image.Image, other: Image.Image) -> float:
    """Peak signal-to-noise ratio of two pictures in dB; infinite where they are equal.

    Raises InputError where their sizes differ.
    """
    if one.size != other.size:
        raise InputError(
            f"pictures of {one.size} and {other.size} pixels cannot be compared; make them alike"
        )
    difference = np.asarray(one, np.float64) - np.asarray(other, np.float64)
    error = float(np.mean(difference**2))
    return float("inf") if error == 0 else 10 * float(np.log10(255**2 / error))


def save_png(image: Image.Image, path: Path, settings: Mapping[str, Any]) -> None:
    """Write a PNG whole or not at all, with its settings in its metadata.

    They are there twice: as JSON under `driffusion_trt`, which `read_settings` reads, and
    as the `parameters` text that picture browsers show.

    Raises OSError where the folder cannot be written.
    """
    info = png_info(image, settings)
    temporary = path.with_name(f".{path.name[:40]}.{secrets.token_hex(4)}.partial")
    try:
        with temporary.open("xb") as file:
            image.save(file, "PNG", pnginfo=info)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def png_info(image: Image.Image, settings: Mapping[str, Any]) -> PngInfo:
    """The settings as a PNG holds them: see `save_png`."""
    info = PngInfo()
    info.add_itxt(SETTINGS_KEY, json.dumps(dict(settings), ensure_ascii=False))
    info.add_itxt("parameters", _parameters(image, settings))
    return info


def _parameters(image: Image.Image, settings: Mapping[str, Any]) -> str:
    lines = [str(settings.get("prompt", ""))]
    if settings.get("negative_prompt"):
        lines.append(f"Negative prompt: {settings['negative_prompt']}")
    facts = {
        "Steps": settings.get("steps"),
        "Sampler": settings.get("scheduler"),
        "CFG scale": settings.get("guidance_scale"),
        "Seed": settings.get("seed"),
        "Size": f"{image.width}x{image.height}",
        "Model hash": settings.get("model_hash"),
        "Model": settings.get("model"),
    }
    lines.append(", ".join(f"{name}: {value}" for name, value in facts.items() if value is not None))
    return "\n".join(lines)


def read_settings(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The settings that `save_png` wrote into a picture.

    Raises InputError where the file is no PNG of ours.
    """
    try:
        with Image.open(path) as image:
            text = image.info.get(SETTINGS_KEY)
    except UNREADABLE as error:
        raise InputError(f"{os.fspath(path)} cannot be read as a picture ({error})") from error
    if text is None:
        raise InputError(f"{os.fspath(path)} has no settings in it; only pictures of this program have")
    try:
        settings = json.loads(text)
    except ValueError:
        settings = None
    if not isinstance(settings, dict):
        raise InputError(f"{os.fspath(path)} has settings that cannot be read; the picture was altered")
    return settings


def side_by_side(images: Sequence[Image.Image], titles: Sequence[str], least_width: int = 320) -> Image.Image:
    """Pictures in a row with a title over each, enlarged by whole factors to be seen."""
    factor = max(1, -(-least_width // images[0].width))
    shown = [
        image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
        for image in images
    ]
    margin, bar = 8, 17 * max(title.count("\n") + 1 for title in titles) + 10
    width, height = shown[0].size
    sheet = Image.new("RGB", (margin + (width + margin) * len(shown), bar + height + margin), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    for place, (image, title) in enumerate(zip(shown, titles, strict=True)):
        x = margin + place * (width + margin)
        pen.multiline_text((x, 5), title, fill="black", font=font)
        sheet.paste(image, (x, bar))
    return sheet
