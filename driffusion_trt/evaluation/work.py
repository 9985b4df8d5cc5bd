"""The folder of an evaluation: one settings file, a folder for each mode, and what is done in each.

<work>/eval.json                     what all pictures have in common; fixed once there is one
<work>/<row>/row.json                the mode and its options
<work>/<row>/pictures.jsonl          a line for each picture: prompt, seed, settings, calls, drift
<work>/<row>/00012.png               picture 12
<work>/sequential/latents/00012.npy  what drift is measured from
<work>/<row>/scores/…                what networks said of the pictures
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._errors import InputError, ModelError
from ..engines.lock import lock_folder

__all__ = ["RowFolder", "Work"]


class Work:
    """One evaluation's folder, held by this process alone; make one with `Work.opened`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @classmethod
    @contextlib.contextmanager
    def opened(cls, folder: Path, settings: Mapping[str, Any]) -> Iterator[Work]:
        """Hold a folder for these settings, which are written down if it is new.

        Raises:
            InputError: it was begun with other settings, or is in use, or holds something else.
            OSError: it cannot be made or written to.
        """
        if folder.exists() and not folder.is_dir():
            raise InputError(f"--work {folder} is a file; name a folder, which is made if it is missing")
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(lock_folder(folder))
            except ModelError as error:
                raise InputError(
                    f"{folder} is in use by another evaluation; wait until it has finished, or name another "
                    "--work"
                ) from error
            work = cls(folder)
            work._check(settings)
            yield work

    def _check(self, settings: Mapping[str, Any]) -> None:
        path = self.folder / "eval.json"
        asked = json.loads(json.dumps(settings))
        if not path.exists():
            strange = [one.name for one in self.folder.iterdir() if not one.name.startswith(".")]
            if strange:
                raise InputError(
                    f"--work {self.folder} holds {min(strange)!r} and no eval.json, so it is not of an "
                    "evaluation; name an empty folder, or one that is not there"
                )
            write_json(path, asked)
            return
        _compare(path, asked, "name another --work for them, or ask for what is there")

    def rows(self) -> dict[str, dict[str, Any]]:
        """The options of all modes that there are pictures of, by the names of their folders.

        Raises InputError where those of one are damaged.
        """
        found = {}
        for path in sorted(self.folder.glob("*/row.json")):
            options = _read_object(path, f"remove {path.parent}, or name another --work")
            if not isinstance(options.get("mode"), str) or not isinstance(options.get("lanes"), int):
                raise InputError(
                    f"{path} has no mode and lanes; remove {path.parent}, or name another --work"
                )
            found[path.parent.name] = options
        return found

    def row(self, name: str, options: Mapping[str, Any]) -> RowFolder:
        """The folder of one mode. Raises InputError where its pictures were made with other options."""
        folder = self.folder / name
        folder.mkdir(exist_ok=True)
        path, asked = folder / "row.json", json.loads(json.dumps(options))
        if path.exists():
            _compare(path, asked, "name another --work for them")
        else:
            write_json(path, asked)
        return RowFolder(folder)


class RowFolder:
    """The pictures of one mode, as far as they are made."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._log = folder / "pictures.jsonl"
        self.records = self._read()

    def _read(self) -> dict[int, dict[str, Any]]:
        """The records of pictures that are there; a last line that was cut off is taken out of the file."""
        if not self._log.exists():
            return {}
        found: dict[int, dict[str, Any]] = {}
        text = self._log.read_text("utf-8", errors="replace")
        whole = text[: text.rfind("\n") + 1]
        # Not `splitlines`: JSON may have U+2028, U+0085 and others of its line ends in a text.
        for number, line in enumerate(whole.split("\n")[:-1], 1):
            try:
                record = json.loads(line)
                found[int(record["index"])] = record
            except (ValueError, KeyError, TypeError) as error:
                raise ModelError(
                    f"{self._log} is damaged in line {number} ({error!r}); remove that line, and its picture "
                    "is made again"
                ) from error
        if whole != text:
            write_text(self._log, whole)
        return {index: record for index, record in found.items() if self.picture(index).exists()}

    def picture(self, index: int) -> Path:
        return self.folder / f"{index:05}.png"

    def missing(self, count: int, batch_size: int = 1) -> list[int]:
        """Of the first `count` pictures those that are still to be made, in batches of so many.

        One that was made in a shorter or a longer batch, when it was of the last ones, is made again: in mode
        tolerance a picture depends on its neighbours.
        """
        return [
            index
            for index in range(count)
            if index not in self.records
            or self._batch(index) != min(batch_size, count - index // batch_size * batch_size)
        ]

    def _batch(self, index: int) -> int:
        found: int = self.records[index].get("settings", {}).get("batch", 1)
        return found

    def add(self, record: dict[str, Any]) -> None:
        """Write down a picture, once its file is there."""
        with self._log.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
        self.records[record["index"]] = record

    def keep_latents(self, index: int, latents: NDArray[np.float32]) -> None:
        """What drift is measured from, float32 (C, h, w)."""
        self._latents(index).parent.mkdir(exist_ok=True)
        save_array(self._latents(index), latents)

    def latents(self, index: int) -> NDArray[np.float32]:
        """Raises ModelError where they are not there, though the picture is."""
        try:
            found: NDArray[np.float32] = np.load(self._latents(index), allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise ModelError(
                f"{self._latents(index)} cannot be read ({error}), and drift is measured from it; remove "
                f"{self.folder}, and it is made again"
            ) from error
        return found

    def _latents(self, index: int) -> Path:
        return self.folder / "latents" / f"{index:05}.npy"


def save_array(path: Path, array: NDArray[Any]) -> None:
    """Write an .npy whole or not at all."""
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("wb") as file:
        np.save(file, array)
    os.replace(partial, path)


def write_text(path: Path, text: str) -> None:
    """Write a text whole or not at all."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, "utf-8")
    os.replace(partial, path)


def write_json(path: Path, value: Any) -> None:
    """Write JSON whole or not at all."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def _read_object(path: Path, remedy: str) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} cannot be read ({error}); {remedy}") from error
    if not isinstance(found, dict):
        raise InputError(f"{path} holds no JSON object; {remedy}")
    return found


def _compare(path: Path, asked: dict[str, Any], remedy: str) -> None:
    was = _read_object(path, remedy)
    differs = [name for name in sorted({*was, *asked}) if was.get(name) != asked.get(name)]
    if differs:
        words = ", ".join(f"{name} {was.get(name)!r} (now {asked.get(name)!r})" for name in differs)
        raise InputError(f"the pictures of {path.parent} were made with {words}; {remedy}")
