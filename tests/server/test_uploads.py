"""Uploaded pictures: kinds, masks, and those that would fill the memory."""

from __future__ import annotations

import io
import struct
import time
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngInfo

from driffusion_trt.server.answers import ApiError
from driffusion_trt.server.files import plain
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
    with pytest.raises(ApiError, match="image is no PNG, JPEG or WebP picture"):
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


# Files that take a decoder long


def scans(image: Image.Image, more: int) -> bytes:
    """A progressive JPEG whose last scan is there so many times more."""
    whole = data(image, "JPEG", progressive=True)
    last = whole[whole.rindex(b"\xff\xda") : -2]
    return whole[:-2] + last * more + whole[-2:]


def test_scans_of_a_jpeg_are_counted_before_it_is_decoded() -> None:
    image = Image.new("RGB", (1024, 1024), "red")
    assert decoded("image", scans(image, 20), MOST).size == image.size
    start = time.process_time()
    with pytest.raises(ApiError, match="has more than 64 scans"):
        decoded("image", scans(image, 50_000), MOST)
    assert time.process_time() - start < 1, "nothing was decoded"


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def with_chunks(image: Image.Image, *more: bytes) -> bytes:
    """A PNG with these before its pixels."""
    whole = data(image)
    at = whole.index(b"IDAT") - 4
    return whole[:at] + b"".join(more) + whole[at:]


@pytest.mark.parametrize("kind", [b"prVt", b"IDAT", b"tEXt"])
def test_chunks_of_a_png_are_counted(kind: bytes) -> None:
    image = Image.new("RGB", (8, 6), "red")
    assert decoded("image", with_chunks(image, *[chunk(kind, b"")] * 1000), MOST).getpixel((0, 0)) == (
        255,
        0,
        0,
    )
    with pytest.raises(ApiError, match="has more than 16384 chunks"):
        decoded("image", with_chunks(image, *[chunk(kind, b"")] * 20_000), MOST)


def test_texts_and_profiles_of_a_png_are_not_unpacked() -> None:
    """Some that Pillow refuses: it would have unpacked them."""
    much = zlib.compress(bytes(8 << 20), 9)
    texts = [
        chunk(b"zTXt", b"k\0\0" + much),
        chunk(b"iTXt", b"k\0\1\0\0\0" + much),
        chunk(b"iCCP", b"k\0\0" + much),
    ]
    file = with_chunks(Image.new("RGB", (8, 6), "red"), *texts)
    with pytest.raises(ValueError, match="too large"):
        Image.open(io.BytesIO(file)).load()
    found = decoded("image", file, MOST)
    assert found.size == (8, 6) and set(found.info) <= {"transparency"}


def test_of_several_pictures_in_a_file_the_still_one_is_taken() -> None:
    red, blue = Image.new("RGB", (8, 6), "red"), Image.new("RGB", (8, 6), "blue")
    for kind in ("PNG", "MPO"):
        several = data(red, kind, save_all=True, append_images=[blue] * 200)
        left = np.asarray(decoded("image", several, MOST).convert("RGB"))[0, 0]
        assert left[0] > 200 and left[2] < 50, kind
    with pytest.raises(ApiError, match="image is animated"):
        decoded("image", data(red, "WEBP", save_all=True, append_images=[blue]), MOST)


@pytest.mark.parametrize("marker", [b"\xff\xfe\x00\x02", b"\xff\xe1\x00\x02", b"\xff" * 20])
def test_segments_of_a_jpeg_are_counted(marker: bytes) -> None:
    whole = data(Image.new("RGB", (8, 6)), "JPEG")
    with pytest.raises(ApiError, match=r"image (has more than 1024 segments|is broken)"):
        decoded("image", whole[:2] + marker * 100_000 + whole[2:], MOST)


def overlapping(count: int) -> bytes:
    """Exif whose entries are all the same bytes."""
    entries = b"".join(struct.pack("<HHII", 0x1000 + tag, 7, 30_000, 8) for tag in range(count))
    return b"II*\0" + struct.pack("<IH", 8, count) + entries + bytes(30_000)


def test_a_decoder_sees_what_makes_pixels_alone() -> None:
    """Of Pillow's own reading of Exif, profiles and further pictures nothing is left to go wrong."""
    image, exif = Image.new("RGB", (8, 6), "red"), Image.Exif()
    exif[0x010E] = "beside"
    kept = {"exif": exif.tobytes(), "icc_profile": b"beside" * 100}
    text = PngInfo()
    text.add_text("beside", "beside", zip=True)
    png, jpeg = data(image, **kept, pnginfo=text), data(image, "JPEG", **kept, comment=b"beside")
    assert b"beside" in png and b"beside" in jpeg
    for file in (png, jpeg, data(image, "MPO", **kept, save_all=True, append_images=[image])):
        found = plain(file)
        assert found is not None and not any(
            word in found.data
            for word in (b"beside", b"Exif", b"eXIf", b"iCCP", b"ICC_PROFILE", b"MPF", b"zTXt")
        )
        with Image.open(io.BytesIO(found.data)) as again:
            assert not {"exif", "icc_profile", "comment", "beside", "mp"} & set(again.info)


def test_exif_is_read_for_the_turn_alone() -> None:
    exif = overlapping(2000)
    for kind in ("PNG", "JPEG", "WEBP"):
        start = time.process_time()
        found = decoded("image", data(Image.new("RGB", (8, 6)), kind, exif=exif), MOST)
        assert found.size == (8, 6) and time.process_time() - start < 0.5


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("order", ["<", ">"])
def test_a_camera_that_was_turned_is_turned_back(kind: str, turn: int, order: str) -> None:
    corners = np.zeros((16, 24, 3), np.uint8)
    corners[:8, :8], corners[8:, 16:] = (255, 0, 0), (0, 0, 255)
    turned = Image.Exif()
    turned.endian = order
    turned[0x0112] = turn
    options = (
        {"quality": 100, "subsampling": 0} if kind == "JPEG" else {"lossless": True} if kind == "WEBP" else {}
    )
    file = data(Image.fromarray(corners), kind, exif=turned.tobytes(), **options)
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(file)))
    found = decoded("image", file, MOST)
    assert found.size == expected.size and np.array_equal(np.asarray(found), np.asarray(expected))


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
