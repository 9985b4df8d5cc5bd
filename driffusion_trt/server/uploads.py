"""Uploaded pictures and masks, decoded within bounds."""

from __future__ import annotations

import io
from typing import Any

from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from .._source import fitted, resolved
from ..models import ModelSpec
from ..pictures import UNREADABLE
from .answers import ApiError
from .files import orientation_of, plain
from .limits import Limits
from .wishes import Wish, check_size

__all__ = ["decoded", "kept_bytes", "start_of", "starting_picture"]

_Image = PngImageFile | JpegImageFile | WebPImageFile
_OPENED: dict[str, type[_Image]] = {"PNG": PngImageFile, "JPEG": JpegImageFile, "WEBP": WebPImageFile}
_OPAQUE = 128  # alpha below it is transparent
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def decoded(name: str, data: bytes, most_pixels: int) -> Image.Image:
    """The picture in `data`, turned as its camera says; its size is looked at before a pixel is decoded.

    Raises ApiError where it is none, of another kind than PNG, JPEG and WebP, or too large.
    """
    if not data:
        raise _unreadable(name, "is empty")
    try:
        file = plain(data)
    except ValueError as error:
        raise _unreadable(name, str(error)) from error
    if file is None:
        raise _unreadable(name, "is no PNG, JPEG or WebP picture")
    try:
        # The class itself: Image.open would look for further pictures in a JPEG.
        with _OPENED[file.kind](io.BytesIO(file.data)) as image:
            if image.width * image.height > most_pixels:
                raise _too_large(name, most_pixels)
            if image.mode[0] in "IF":
                raise _unreadable(name, "has more than 8 bits a channel; make it 8 bits first")
            image.load()
            exif = image.info.get("exif", b"") if file.kind == "WEBP" else b""
            turn = _TURNS.get(orientation_of(exif.removeprefix(b"Exif\0\0")) if exif else file.orientation)
            return image if turn is None else image.transpose(turn)
    except Image.DecompressionBombError as error:
        raise _too_large(name, most_pixels) from error
    except (*UNREADABLE, MemoryError) as error:
        raise _unreadable(name, f"cannot be read as the {file.kind} picture that it begins as") from error


def _too_large(name: str, most_pixels: int) -> ApiError:
    why = f"{name} has more pixels than {most_pixels}, the most here; make it smaller"
    return ApiError(400, why, "image_too_large", param=name)


def _unreadable(name: str, why: str) -> ApiError:
    return ApiError(400, f"{name} {why}", "invalid_image", param=name)


def starting_picture(
    image: bytes, mask: bytes | None, most_pixels: int
) -> tuple[Image.Image, Image.Image | None]:
    """The picture to start from, RGB, and the mask as the pipeline takes it: white where it is made anew.

    As in OpenAI's API transparent pixels of `mask` are those to make anew, or of the picture itself where
    there is no mask. Raises ApiError.
    """
    picture = decoded("image", image, most_pixels)
    if mask is None:
        return picture.convert("RGB"), _transparent(picture)
    given = decoded("mask", mask, most_pixels)
    if given.size != picture.size:
        raise ApiError(
            400,
            f"the mask has {given.width} x {given.height} pixels, and the image {picture.width} x "
            f"{picture.height}; make them alike",
            "invalid_mask",
            param="mask",
        )
    anew = _transparent(given)
    if anew is None:
        why = "the mask has no transparent pixel; make transparent what is to be made anew"
        raise ApiError(400, why, "invalid_mask", param="mask")
    return picture.convert("RGB"), anew


def start_of(spec: ModelSpec, limits: Limits, wish: Wish, image: bytes, mask: bytes | None) -> dict[str, Any]:
    """Settings of a call that starts from an upload: picture and mask at the size that they are needed in.

    Raises ApiError.
    """
    picture, anew = starting_picture(image, mask, limits.upload_pixels)
    if "height" not in wish.settings:  # then the picture's own size is taken
        check_size(limits, *picture.size, wish.count, wish.output_format)
    given = {"image": picture} if anew is None else {"image": picture, "mask_image": anew}
    sized = resolved(spec, {**wish.settings, **given})
    height, width = sized["height"], sized["width"]
    return {**fitted(given, (height, width)), "height": height, "width": width}


def kept_bytes(settings: dict[str, Any]) -> int:
    """Of the pictures in memory that `start_of` made: Pillow has four bytes for a pixel with colours."""
    images = [*settings["image"], *settings.get("mask_image", ())]
    return sum(one.width * one.height * (1 if one.mode == "L" else 4) for one in images)


def _transparent(image: Image.Image) -> Image.Image | None:
    """White where the picture is transparent; None where it nowhere is."""
    if not image.has_transparency_data:
        return None
    alpha = image.convert("RGBA").getchannel("A")
    if int(alpha.getextrema()[0]) >= _OPAQUE:  # type: ignore[arg-type]
        return None
    return alpha.point(lambda value: 255 if value < _OPAQUE else 0)
