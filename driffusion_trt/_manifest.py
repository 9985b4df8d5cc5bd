"""manifest.json: what a model folder holds, written last and checked first.

It is here and not in `engines`, because `export` writes it and `engines` reads it, and
these two meet at files on disk only.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path, PurePosixPath
from typing import Any

from ._errors import ModelError, did_you_mean
from .models import get_spec

__all__ = [
    "CALIBRATION",
    "FORMAT",
    "MANIFEST",
    "FileEntry",
    "Manifest",
    "read_manifest",
    "sha256",
    "write_manifest",
]

MANIFEST = "manifest.json"
CALIBRATION = "calibration.json"
FORMAT = 1  # raised when an older reader would misread a newer folder
_NOT_LISTED = ("plans", CALIBRATION, MANIFEST)  # the first two come later; they have keys of their own


@dataclass(frozen=True, slots=True)
class FileEntry:
    """What one file must be."""

    sha256: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Manifest:
    """The content of manifest.json.

    `family` is a row of `driffusion_trt.models.MODELS`; `shapes` has lists of ints by name;
    `precision` says how weights are stored and in what they are multiplied; `parity` has the
    relative L2 of each network against its source, null where they were not compared; `options`
    are settings of the checkpoint's pipeline, such as "force_zeros_for_empty_prompt" of SDXL; `files` are
    relative paths with slashes.
    """

    format: int
    family: str
    precision: str
    shapes: dict[str, list[int]]
    scaling_factor: float
    shift_factor: float
    versions: dict[str, str]
    files: dict[str, FileEntry]
    parity: dict[str, float | None] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _content(folder: Path) -> Iterator[tuple[str, Path]]:
    """Every file that the manifest answers for; hidden and half-written ones are left out."""
    for path in sorted(folder.rglob("*")):
        parts = path.relative_to(folder).parts
        hidden = any(part.startswith(".") for part in parts) or path.suffix == ".partial"
        if path.is_file() and not hidden and parts[0] not in _NOT_LISTED:
            yield "/".join(parts), path


def write_manifest(
    folder: Path,
    *,
    family: str,
    precision: str,
    versions: Mapping[str, str],
    shapes: Mapping[str, list[int]],
    scaling_factor: float,
    shift_factor: float = 0.0,
    parity: Mapping[str, float | None] | None = None,
    options: Mapping[str, Any] | None = None,
) -> Path:
    """Hash everything in `folder` and write its manifest: the last act of a build.

    The file appears whole or not at all, so a folder without one is an interrupted build.

    Returns:
        The manifest's path.

    Raises:
        InputError: `family` is not known.
    """
    manifest = Manifest(
        format=FORMAT,
        family=get_spec(family).family,
        precision=precision,
        shapes={name: list(shape) for name, shape in shapes.items()},
        scaling_factor=scaling_factor,
        shift_factor=shift_factor,
        versions=dict(versions),
        files={name: FileEntry(sha256(path), path.stat().st_size) for name, path in _content(folder)},
        parity=dict(parity or {}),
        options=dict(options or {}),
    )
    text = json.dumps(asdict(manifest), indent=2) + "\n"
    descriptor, temporary = tempfile.mkstemp(prefix=f".{MANIFEST}.", suffix=".partial", dir=folder)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # mkstemp's 0600 would keep a packaged file from other users
        os.replace(temporary, folder / MANIFEST)
    except BaseException:
        os.unlink(temporary)
        raise
    return folder / MANIFEST


def read_manifest(folder: Path) -> Manifest:
    """The manifest of `folder`, checked for form but not yet against the files.

    Raises:
        ModelError: it is missing, is no JSON, is of another format, or has wrong or unknown entries.
    """
    path = folder / MANIFEST
    try:
        data = json.loads(path.read_text("utf-8"))
    except FileNotFoundError as error:
        what = "no such folder" if not folder.is_dir() else f"it has no {MANIFEST}"
        raise ModelError(
            f"{folder} is not a model folder ({what}); give the folder that a finished build wrote, or 'demo'"
        ) from error
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read ({error}); build the model again") from error
    if not isinstance(data, dict) or "format" not in data:
        raise ModelError(f"{path} is not a manifest of a model folder: it has no 'format'")
    if data["format"] != FORMAT:
        raise ModelError(
            f"{path} has format {data['format']!r}, this version reads {FORMAT}; "
            "build the model again, or install the version of driffusion-trt that built it"
        )
    return _parse(path, data)


_TYPES: dict[str, type | tuple[type, ...]] = {
    "family": str,
    "precision": str,
    "shapes": dict,
    "scaling_factor": (int, float),
    "shift_factor": (int, float),
    "versions": dict,
    "files": dict,
    "parity": dict,
    "options": dict,
}


def _parse(path: Path, data: dict[str, Any]) -> Manifest:
    known = [entry.name for entry in fields(Manifest)]
    for key in data:
        if key not in known:
            raise ModelError(f"{path} has an unknown entry {key!r}{did_you_mean(key, known)}")
    for key, kind in _TYPES.items():
        if key not in ("parity", "options") and key not in data:
            raise ModelError(f"{path} lacks {key!r}; build the model again")
        if key in data and not isinstance(data[key], kind):
            raise ModelError(f"{path}: {key!r} is {data[key]!r}, of the wrong type; build the model again")
    if not math.isfinite(data["scaling_factor"]) or data["scaling_factor"] <= 0:
        raise ModelError(f"{path}: 'scaling_factor' {data['scaling_factor']} is not positive; build it again")
    if not math.isfinite(data["shift_factor"]):
        raise ModelError(f"{path}: 'shift_factor' {data['shift_factor']} is not finite; build it again")
    files = {name: _parse_file(path, name, entry) for name, entry in data["files"].items()}
    return Manifest(**{**data, "files": files})


def _parse_file(path: Path, name: str, entry: object) -> FileEntry:
    pure = PurePosixPath(name)
    # A manifest may come with a downloaded folder: it must not reach outside of it.
    if not pure.parts or pure.is_absolute() or ".." in pure.parts or "\\" in name or ":" in name:
        raise ModelError(f"{path} lists {name!r}, which is not inside the folder; do not use this folder")
    match entry:
        case {"sha256": str(digest), "size_bytes": int(size), **rest} if not rest:
            return FileEntry(digest, size)
    raise ModelError(f"{path}: {name!r} must have 'sha256' and 'size_bytes', found {entry!r}")
