"""Files of pictures as strangers send them: taken apart, so that a decoder sees what makes pixels alone.

Pillow reads what else is in a file too, chunk by chunk in Python, and libjpeg every scan: files of a few
megabytes with millions of empty chunks, or of scans, take minutes.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass

__all__ = ["Plain", "orientation_of", "plain"]

_MOST_SCANS = 64  # of a JPEG; encoders write about ten, and each goes through the whole picture
_MOST_SEGMENTS = 1024  # of a JPEG before its first scan
_MOST_CHUNKS = 1 << 14  # of a PNG; libpng writes one for 8 KiB
_PNG = b"\x89PNG\r\n\x1a\n"
_MARKER = re.compile(rb"\xff{1,16}([\xc0-\xfe])(..)", re.DOTALL)
_PNG_KEPT = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")
_NOT_KEPT = {*range(0xE1, 0xEE), 0xEF, 0xFE}  # applications' segments but JFIF's and Adobe's, and comments


@dataclass(frozen=True, slots=True)
class Plain:
    """A file with one picture and nothing beside it.

    kind: Pillow's name of its format. orientation: how to turn it, from 1 to 8, as Exif has it; not looked
    for in a WebP.
    """

    kind: str
    data: bytes
    orientation: int


def plain(data: bytes) -> Plain | None:
    """What of a file makes pixels; None where it begins as neither PNG, JPEG nor WebP.

    Of an animated PNG that is the picture which others show, of a JPEG with several pictures the first.

    Raises ValueError, with what is wrong, for a file that is broken or more than a decoder should get.
    """
    if data.startswith(_PNG):
        return _plain_png(data)
    if data.startswith(b"\xff\xd8\xff"):
        return _plain_jpeg(data)
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return _plain_webp(data)
    return None


def _plain_png(data: bytes) -> Plain:
    kept, orientation, at = [_PNG], 1, len(_PNG)
    for _ in range(_MOST_CHUNKS):
        if at + 12 > len(data):
            break
        (size,) = struct.unpack_from(">I", data, at)
        kind, end = data[at + 4 : at + 8], at + 12 + size
        if kind in _PNG_KEPT:
            kept.append(data[at:end])
        elif kind == b"eXIf":
            orientation = orientation_of(data[at + 8 : end - 4])
        at = end
        if kind == b"IEND":
            break
    else:
        raise ValueError(f"has more than {_MOST_CHUNKS} chunks")
    return Plain("PNG", b"".join(kept), orientation)


def _plain_jpeg(data: bytes) -> Plain:
    kept, orientation, at = [data[:2]], 1, 2
    for _ in range(_MOST_SEGMENTS):
        marker = _MARKER.match(data, at)
        if marker is None:
            raise ValueError("is broken")
        kind, size = marker[1][0], int.from_bytes(marker[2], "big")
        begin, at = marker.start(2), marker.start(2) + size
        if kind == 0xDA:
            # From the first scan on everything up to the end of the picture, after which others may follow.
            rest = data[begin - 2 : data.find(b"\xff\xd9", begin) + 2 or None]
            if rest.count(b"\xff\xda") > _MOST_SCANS:
                raise ValueError(f"has more than {_MOST_SCANS} scans")
            return Plain("JPEG", b"".join([*kept, rest]), orientation)
        segment = data[begin + 2 : at]
        if kind == 0xE1 and segment.startswith(b"Exif\0\0"):
            orientation = orientation_of(segment[6:])
        if kind not in _NOT_KEPT:
            kept.append(data[begin - 2 : at])
    raise ValueError(f"has more than {_MOST_SEGMENTS} segments before the picture")


def _plain_webp(data: bytes) -> Plain:
    """As it is: libwebp reads it in C, and makes no more of it than the size that its header has."""
    if data[12:16] == b"VP8X" and data[20:21] and data[20] & 2:
        raise ValueError("is animated")
    return Plain("WEBP", data, 1)


def orientation_of(exif: bytes) -> int:
    """Tag 0x0112 of the first directory (Exif 2.32, 4.6.2); 1, as it is, where there is none."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(exif[:4])
    if order is None:
        return 1
    try:
        (at,) = struct.unpack_from(f"{order}I", exif, 4)
        (count,) = struct.unpack_from(f"{order}H", exif, at)
        for entry in range(at + 2, at + 2 + 12 * count, 12):
            tag, _, _, value = struct.unpack_from(f"{order}HHIH", exif, entry)
            if tag == 0x0112:
                return value if 1 <= value <= 8 else 1
    except struct.error:  # it ends before its directory does
        pass
    return 1
