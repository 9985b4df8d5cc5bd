"""Uploaded pictures: kinds, masks, and those that would fill the memory."""

from __future__ import annotations

import io
import struct
import time
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image

from driffusion_trt.server.answers import ApiError
from driffusion_trt.server.uploads import decoded, starting_picture

MOST = 1 << 20


def data(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few kilobytes that says it has so many pixels, and has many of them."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        )

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    rows = zlib.compress(b"\0" * (1 << 20), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_pictures_of_three_kinds_are_read(kind: str) -> None:
    image, mask = starting_picture(data(Image.new("RGB", (8, 6), "red"), kind), None, MOST)
    assert (image.size, image.mode, mask) == ((8, 6), "RGB", None)


@pytest.mark.parametrize("kind", ["GIF", "BMP", "TIFF", "PPM"])
def test_other_kinds_are_not(kind: str) -> None:
    with pytest.raises(ApiError, match="image cannot be read as a PNG, JPEG or WebP picture"):
        decoded("image", data(Image.new("RGB", (8, 6)), kind), MOST)


@pytest.mark.parametrize("size", [(1025, 1024), (12_000, 12_000), (60_000, 60_000), (2**31 - 1, 2**31 - 1)])
def test_a_bomb_is_refused_by_its_header(size: tuple[int, int]) -> None:
    start = time.process_time()
    with pytest.raises(ApiError) as refused:
        decoded("image", bomb(*size), MOST)
    assert (refused.value.status, refused.value.code) == (400, "image_too_large")
    assert time.process_time() - start < 0.5, "nothing was decoded"


@pytest.mark.parametrize("cut", [0, 1, 20, 60])
def test_a_broken_picture_is_refused(cut: int) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (9, 9, 3), np.uint8)
    with pytest.raises(ApiError) as refused:
        decoded("image", data(Image.fromarray(noise))[:cut], MOST)
    assert refused.value.code == "invalid_image"


def test_sixteen_bits_a_channel_are_refused_before_they_are_misread() -> None:
    with pytest.raises(ApiError, match="more than 8 bits"):
        decoded("image", data(Image.fromarray(np.zeros((4, 4), np.uint16))), MOST)


def test_a_camera_that_was_turned_is_turned_back() -> None:
    image = Image.new("RGB", (8, 6))
    turned = Image.Exif()
    turned[0x0112] = 6
    assert decoded("image", data(image, "JPEG", exif=turned), MOST).size == (6, 8)


def transparent(size: tuple[int, int], *places: tuple[int, int], colour: str = "red") -> Image.Image:
    image = Image.new("RGBA", size, colour)
    for place in places:
        image.putpixel(place, (0, 0, 0, 0))
    return image


def test_what_is_transparent_in_the_mask_is_made_anew() -> None:
    image = data(Image.new("RGB", (4, 3), "red"))
    picture, mask = starting_picture(image, data(transparent((4, 3), (1, 2))), MOST)
    assert mask is not None and picture.getpixel((0, 0)) == (255, 0, 0)
    white = np.zeros((3, 4), np.uint8)
    white[2, 1] = 255
    assert np.array_equal(np.asarray(mask), white)


def test_without_a_mask_the_picture_s_own_transparency_counts() -> None:
    _, mask = starting_picture(data(transparent((4, 3), (0, 0))), None, MOST)
    assert mask is not None and mask.getpixel((0, 0)) == 255 and mask.getpixel((1, 0)) == 0
    assert starting_picture(data(transparent((4, 3))), None, MOST)[1] is None


@pytest.mark.parametrize(
    ("mask", "said"),
    [
        (transparent((3, 4), (0, 0)), "3 x 4 pixels, and the image 4 x 3"),
        (Image.new("RGB", (4, 3)), "no transparent pixel"),
        (transparent((4, 3)), "no transparent pixel"),
    ],
)
def test_masks_that_say_nothing_are_refused(mask: Image.Image, said: str) -> None:
    with pytest.raises(ApiError, match=said) as refused:
        starting_picture(data(Image.new("RGB", (4, 3))), data(mask), MOST)
    assert refused.value.param == "mask"
