"""What is drawn: MS-COCO's captions, a file of prompts, or the bundled models' held-out ones."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .._errors import InputError
from .heldout import prompt

__all__ = ["HELD_OUT", "Prompts", "held_out", "prompts_of_file", "read_captions"]

HELD_OUT = "held-out"
_FORM = (
    "it must be MS-COCO's captions_val2017.json, from annotations_trainval2017.zip on cocodataset.org: an "
    'object with "images" (each with an id) and "annotations" (each with an id, an image_id and a caption)'
)


@dataclass(frozen=True, slots=True)
class Prompts:
    """Prompts in a fixed order; picture k is of prompt k.

    source: where they come from, for people. digest: of all prompts of the source, however few are used.
    held_out: whether they are the bundled models' own, whose labels are known.
    """

    source: str
    digest: str
    texts: tuple[str, ...]
    held_out: bool = False


def read_captions(path: str, count: int | None = None) -> Prompts:
    """The first caption of each picture of an MS-COCO annotations file, pictures in the order of their ids.

    The first one is that with the lowest id. count: of pictures; None for all.

    Raises InputError where the file is no such file, has an empty caption, or has fewer pictures.
    """
    try:
        data = json.loads(Path(path).read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} cannot be read as captions ({error}); {_FORM}") from error
    try:
        first: dict[int, tuple[int, str]] = {}
        empty: list[int] = []
        for note in data["annotations"]:
            found = (int(note["id"]), " ".join(note["caption"].split()))
            empty += [] if found[1] else [found[0]]
            picture = int(note["image_id"])
            first[picture] = min(first.get(picture, found), found)
        pictures = sorted(int(picture["id"]) for picture in data["images"])
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise InputError(f"{path} is no file of captions ({error!r}); {_FORM}") from error
    if empty:
        raise InputError(
            f"{path} has {len(empty)} empty captions, such as that with the id {empty[0]}; {_FORM}"
        )
    bare = [picture for picture in pictures if picture not in first]
    if bare or not pictures:
        what = f"{len(bare)} pictures without a caption, such as {bare[0]}" if bare else "no pictures"
        raise InputError(f"{path} has {what}; {_FORM}")
    return _some(Path(path).name, [first[picture][1] for picture in pictures], count)


def prompts_of_file(path: str, prompts: list[str], count: int | None = None) -> Prompts:
    """Prompts that were read from a file. Raises InputError where it has fewer than `count`."""
    return _some(Path(path).name, prompts, count)


def held_out(count: int) -> Prompts:
    """Captions of the bundled models' first held-out scenes, of which there is no end."""
    digest = hashlib.sha256(_joined([prompt(k)[0] for k in range(8)])).hexdigest()
    return Prompts(HELD_OUT, digest, tuple(prompt(k)[0] for k in range(_checked(count))), held_out=True)


def _some(source: str, texts: list[str], count: int | None) -> Prompts:
    if count is not None and _checked(count) > len(texts):
        raise InputError(f"count={count} was asked, and {source} has {len(texts)} prompts; ask for fewer")
    return Prompts(source, hashlib.sha256(_joined(texts)).hexdigest(), tuple(texts[:count]))


def _checked(count: Any) -> int:
    if not isinstance(count, int) or count < 1:
        raise InputError(f"count={count} was asked; it must be at least 1")
    return count


def _joined(texts: list[str]) -> bytes:
    return json.dumps(texts, ensure_ascii=False).encode()
