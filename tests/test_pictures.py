"""Pictures and their files."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from driffusion_trt import InputError
from driffusion_trt.pictures import psnr, read_settings, save_png, side_by_side, to_images

SETTINGS: dict[str, Any] = {
    "prompt": "a “red” fox\nsecond line",
    "negative_prompt": "blue",
    "seed": 7,
    "steps": 50,
    "guidance_scale": 3.0,
    "scheduler": "ddim",
    "model": "demo",
}


def picture(seed: int = 0, size: tuple[int, int] = (8, 6)) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    return Image.fromarray(pixels)


def test_numbers_become_pixels() -> None:
    decoded = np.zeros((2, 3, 2, 4), np.float32)
    decoded[0, 0, 0, :] = [-1, 0, 1, 7]  # the red channel; what is out of range is cut
    decoded[0, 1, 1, 3] = 1 / 127.5
    decoded[1] = -3
    first, second = to_images(decoded)
    assert first.size == (4, 2) and first.mode == "RGB"
    assert np.asarray(first)[0, :, 0].tolist() == [0, 128, 255, 255]
    assert np.asarray(first)[1, 3].tolist() == [128, 128, 128]  # 128.5 and 127.5 to even
    assert not np.asarray(second).any()


def test_psnr_is_the_textbook_formula() -> None:
    one = Image.fromarray(np.full((4, 4, 3), 100, np.uint8))
    other = Image.fromarray(np.full((4, 4, 3), 110, np.uint8))
    assert psnr(one, other) == pytest.approx(20 * np.log10(255 / 10))
    assert psnr(other, one) == psnr(one, other)
    assert psnr(one, one) == float("inf")
    with pytest.raises(InputError, match=r"\(8, 6\) and \(4, 4\)"):
        psnr(picture(), one)


def test_a_png_remembers_its_settings(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    save_png(picture(), path, SETTINGS)
    assert read_settings(path) == SETTINGS
    with Image.open(path) as saved:
        assert np.array_equal(np.asarray(saved), np.asarray(picture()))
        text = saved.info["parameters"]
    assert text.startswith("a “red” fox\nsecond line\nNegative prompt: blue\nSteps: 50, Sampler: ddim, ")
    assert "Seed: 7, Size: 8x6, Model: demo" in text


def test_a_png_has_the_permissions_of_any_new_file(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        save_png(picture(), tmp_path / "a.png", {})
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a.png").stat().st_mode) == 0o640


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.png"
    save_png(picture(), path, SETTINGS)
    before = path.read_bytes()

    def fail(image: Image.Image, file: Any, *_args: Any, **_more: Any) -> None:
        file.write(b"half a pict")
        raise OSError("no space left")

    monkeypatch.setattr(Image.Image, "save", fail)
    with pytest.raises(OSError, match="no space left"):
        save_png(picture(1), path, SETTINGS)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["a.png"]


def test_a_name_of_the_longest_kind_can_be_written(tmp_path: Path) -> None:
    path = tmp_path / ("x" * 251 + ".png")
    save_png(picture(), path, SETTINGS)
    assert read_settings(path) == SETTINGS


def test_pictures_without_our_settings_are_refused(tmp_path: Path) -> None:
    picture().save(tmp_path / "other.png")
    with pytest.raises(InputError, match="has no settings"):
        read_settings(tmp_path / "other.png")
    (tmp_path / "text.png").write_text("not a picture")
    for name in ("text.png", "missing.png"):
        with pytest.raises(InputError, match=f"{name} cannot be read as a picture"):
            read_settings(tmp_path / name)
    for damaged in ("{", "[1]"):
        info = PngInfo()
        info.add_itxt("driffusion_trt", damaged)
        picture().save(tmp_path / "damaged.png", pnginfo=info)
        with pytest.raises(InputError, match="settings that cannot be read"):
            read_settings(tmp_path / "damaged.png")


def test_side_by_side_shows_every_picture_whole() -> None:
    one, other = picture(1, (64, 64)), picture(2, (64, 64))
    pixels = np.asarray(side_by_side([one, other], ["first", "second\nof two"]))
    for shown, x in ((one, 8), (other, 8 + 320 + 8)):
        area = pixels[-8 - 320 : -8, x : x + 320]
        assert np.array_equal(area[::5, ::5], np.asarray(shown))
    titles = pixels[: -8 - 320]
    assert (titles[:, :336] < 128).any() and (titles[:, 336:] < 128).any()
    assert pixels.shape[1] == 8 + 2 * 328
    assert side_by_side([picture(1, (400, 9))], ["one"]).width == 416
