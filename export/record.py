"""What a model folder was made from, network by network, so that a second build does only what is missing.

It is a hidden file, so that manifest.json, which users read, does not answer for it. Sizes and times of
files decide: reading gigabytes to find nothing new would take longer than users wait.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["RECORD", "Entry", "Record", "stamps"]

RECORD = ".export.json"
_FORMAT = 1  # raised when the same inputs make other files than they did before

Stamps = dict[str, list[int]]  # size in bytes and time of modification in nanoseconds, by relative path


def stamps(folder: Path, paths: Iterable[Path]) -> Stamps:
    """Sizes and times of files, which must exist; links are followed, as hubs' caches are made of them."""
    made = {}
    for path in paths:
        status = path.stat()
        made[os.path.relpath(path, folder).replace(os.sep, "/")] = [status.st_size, status.st_mtime_ns]
    return made


@dataclass(frozen=True, slots=True)
class Entry:
    """One thing that was made: from what, into which files, and its relative L2 against torch if known."""

    source: dict[str, Any]
    files: Stamps
    parity: float | None = None


@dataclass(slots=True)
class Record:
    """The entries of a model folder by name; `save` after every change."""

    folder: Path
    entries: dict[str, Entry] = field(default_factory=dict)

    @classmethod
    def load(cls, folder: Path) -> Record:
        """What the folder's record says; one that is missing or strange says nothing."""
        try:
            data = json.loads((folder / RECORD).read_text("utf-8"))
            if data["format"] != _FORMAT:
                return cls(folder)
            return cls(folder, {name: Entry(**entry) for name, entry in data["entries"].items()})
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return cls(folder)

    def is_current(self, name: str, source: Mapping[str, Any]) -> bool:
        """Whether `name` was made from this source and its files are as they were left."""
        entry = self.entries.get(name)
        if entry is None or entry.source != json.loads(json.dumps(source)):
            return False
        try:
            return entry.files == stamps(self.folder, (self.folder / file for file in entry.files))
        except OSError:
            return False

    def put(
        self, name: str, source: Mapping[str, Any], files: Iterable[Path], parity: float | None = None
    ) -> None:
        """Note that `name` was made, and save."""
        # As JSON gives it back, so that a comparison does not depend on tuples and lists.
        self.entries[name] = Entry(json.loads(json.dumps(source)), stamps(self.folder, files), parity)
        self.save()

    def drop(self, names: Iterable[str]) -> None:
        """Forget what is about to be made anew, before it is touched, and save."""
        for name in names:
            self.entries.pop(name, None)
        self.save()

    def save(self) -> None:
        """Write the record; it is there whole or as it was."""
        text = json.dumps(
            {"format": _FORMAT, "entries": {k: asdict(v) for k, v in self.entries.items()}}, indent=1
        )
        descriptor, temporary = tempfile.mkstemp(prefix=RECORD, suffix=".partial", dir=self.folder)
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, self.folder / RECORD)
        except BaseException:
            os.unlink(temporary)
            raise
