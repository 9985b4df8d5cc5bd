"""What a Fréchet distance is from: a folder of pictures, or statistics that are known."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from .._errors import InputError
from .._manifest import sha256
from .frechet import Gaussian

__all__ = ["Reference", "read_reference"]

_PICTURES = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}


@dataclass(frozen=True, slots=True)
class Reference:
    """Pictures that a distance is from: files whose features are kept, or statistics that are known.

    digest: which they are; of files their names, sizes and times of change, of statistics the SHA-256.
    """

    name: str
    files: tuple[Path, ...] = ()
    known: Callable[[], Gaussian] | None = None
    digest: str = ""

    @classmethod
    def of(cls, name: str, files: tuple[Path, ...]) -> Reference:
        """Of files that are there."""
        lines = []
        for file in files:
            facts = file.stat()
            lines.append(f"{file} {facts.st_size} {facts.st_mtime_ns}")
        return cls(name, files, digest=hashlib.sha256("\n".join(lines).encode(errors="replace")).hexdigest())


def read_reference(path: Path, width: int) -> Reference:
    """A folder of pictures, with those in folders below it, or an .npz of statistics, `width` wide.

    Raises InputError where it is neither, or the folder has fewer than two pictures.
    """
    if path.is_file():
        known = Gaussian.read(path, width)
        return Reference(path.name, known=lambda: known, digest=sha256(path))
    if not path.is_dir():
        raise InputError(f"--reference {path}: there is no such folder, and no such .npz")
    files = tuple(sorted(file for file in path.rglob("*") if file.suffix.lower() in _PICTURES))
    if len(files) < 2:
        raise InputError(f"--reference {path} has {len(files)} pictures; a distance needs two at least")
    return Reference.of(f"{len(files)} pictures of {path.name}", files)
