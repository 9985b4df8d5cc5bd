"""Where pictures go: names from prompts and seeds, and whether they can be written, before any work."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path

from .._errors import InputError

_SLUG_BYTES = 60


def slug(prompt: str) -> str:
    """A file name's worth of the prompt: its words in lower case with hyphens."""
    words = re.sub(r"\W+", "-", prompt.lower()).strip("-")
    if len(words.encode()) > _SLUG_BYTES:
        words = words.encode()[:_SLUG_BYTES].decode(errors="ignore")
        words = words.rpartition("-")[0] or words
    return words or "picture"


def places(output: str | None, pictures: Sequence[tuple[str, int]]) -> list[Path]:
    """The path of each picture, a (prompt, seed).

    `output` is None for names of their own in the working folder, a folder for such names
    in there, or a .png file, numbered where there are several pictures.

    Raises InputError where `output` is neither.
    """
    if output is None or output.endswith(("/", os.sep)) or os.path.isdir(output):
        folder = Path(output or ".")
        return [folder / f"{slug(prompt)}-{seed}.png" for prompt, seed in pictures]
    path = Path(output)
    if path.suffix.lower() != ".png":
        raise InputError(
            f"output {output!r} is neither a .png file nor a folder; pictures are written as PNG: "
            f"give {path.with_suffix('.png').name if path.suffix else path.name + '.png'!s}, "
            f"or {path.name + '/'} for a folder"
        )
    if len(pictures) == 1:
        return [path]
    return [path.with_name(f"{path.stem}-{k}{path.suffix}") for k in range(len(pictures))]


def comparison(path: Path) -> Path:
    """Where the comparison of a picture goes."""
    return path.with_name(f"{path.stem}-compare.png")


def check_writable(paths: Sequence[Path], *, make_folder: bool) -> None:
    """Make sure that files can be written at `paths`, which lie in one folder; nothing is left behind.

    make_folder: the folder may be missing, and will be made in its own parent, which must be there.

    Raises InputError with the reason.
    """
    folder = paths[0].parent
    if make_folder and not folder.exists() and folder.parent.is_dir():
        try:
            folder.mkdir()  # only this shows whether it can be
        except OSError as error:
            raise InputError(f"the output folder {folder} cannot be made ({error.strerror})") from error
        try:
            return check_writable(paths, make_folder=False)
        finally:
            folder.rmdir()
    if not folder.is_dir():
        what = "is not a folder" if folder.exists() else "does not exist"
        raise InputError(f"the output folder {folder} {what}; make it first, or write elsewhere with -o")
    try:
        with tempfile.TemporaryFile(
            dir=folder
        ):  # asking for permissions would not find a full or read-only disk
            pass
    except OSError as error:
        raise InputError(
            f"the output folder {folder} cannot be written to ({error.strerror}); write elsewhere with -o"
        ) from error
    for path in paths:
        try:
            os.lstat(path)
        except FileNotFoundError:
            pass
        except OSError as error:  # a name that is too long, say
            raise InputError(f"the output {path} cannot be written ({error.strerror})") from error
        if path.is_dir():
            raise InputError(f"the output {path} is a folder; give a file name, or {path}/ to write into it")
