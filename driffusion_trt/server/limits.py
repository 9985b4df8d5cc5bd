"""What a request may ask for, and how long a connection may take: bounds that hold before any work."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import Self

from .._errors import InputError

__all__ = ["Limits"]

_LEAST_AREA = 4  # times the model's own


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of the service; every one is a positive number.

    prompt_chars: of a prompt, and of a negative one. images: pictures of one request. pixels: of all pictures
    of a request together; None for those of so many pictures of the model's own size, see `of_model`. steps:
    of the solver. body_bytes: of a body that is not an upload. upload_bytes: of the body of an upload.
    upload_pixels: of an uploaded picture, before it is decoded.

    held_bytes: of all uploads together, while they are read and decoded and while their pictures wait.

    header_s: from a connection's start, or a request's first byte, to the end of the headers. body_s: from
    there to the end of the body. stall_s: a client is looked at so often that does not take what is sent to
    it, and must have taken `stall_s * read_rate` bytes since. read_rate: in bytes a second.
    connections: open at once, beside a few for questions about health.

    stored_bytes, stored_s: of the pictures that are kept for `response_format: url`, and for how long each.
    """

    prompt_chars: int = 4000
    images: int = 8
    pixels: int | None = None
    steps: int = 200
    body_bytes: int = 1 << 20
    upload_bytes: int = 32 << 20
    upload_pixels: int = 16 << 20
    held_bytes: int = 128 << 20
    header_s: float = 10.0
    body_s: float = 30.0
    stall_s: float = 30.0
    read_rate: float = 8192.0
    connections: int = 512
    stored_bytes: int = 256 << 20
    stored_s: float = 3600.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value is None and field.name == "pixels":
                continue
            if not 0 < value < math.inf:  # NaN is neither
                raise InputError(f"the limit {field.name} must be a positive number, not {value!r}")

    def of_model(self, height: int, width: int) -> Self:
        """The same for a model with pictures of this size, with all bounds known.

        What attention takes, time and memory, grows with the square of a picture's area: the most is in
        proportion to the model's own.
        """
        if self.pixels is not None:
            return self
        return replace(self, pixels=max(self.images, _LEAST_AREA) * height * width)
