"""Pictures that are kept for a while behind links that nobody can guess, in memory or in a folder."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import re
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from .._errors import InputError
from .answers import ApiError

__all__ = ["MEDIA", "Store", "Stored", "kept_in", "prepare"]

MEDIA = {"png": "image/png", "jpeg": "image/jpeg", "webp": "image/webp"}
_NAME = re.compile(r"driffusion-([0-9a-f]{32})\.(png|jpeg|webp)")
_HALF_WRITTEN_S = 60.0  # after which whoever began to write a file is not there any more
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True, slots=True)
class Stored:
    """A picture that was found; who asked closes the file. media: its type. left_s: that it is kept on."""

    file: BinaryIO
    size_bytes: int
    media: str
    left_s: float


@dataclass(frozen=True, slots=True)
class _Kept:
    kind: str
    size_bytes: int
    until: float
    data: bytes | None  # None: in the folder


class Store:
    """At most so many bytes, each picture for so many seconds; the oldest go first.

    folder: where files are written, under names of their own and whole or not at all. Those of an earlier
    process are found again. None keeps pictures in memory. A request never names a file: its id is looked up
    here, and the file's name comes from what was found. Not for several threads at once.

    Raises InputError where `folder` cannot be written to.
    """

    def __init__(
        self,
        most_bytes: int,
        keep_s: float,
        folder: Path | None = None,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._most, self._keep_s, self._folder, self._now = most_bytes, keep_s, folder, now
        self._kept: OrderedDict[str, _Kept] = OrderedDict()
        self.size_bytes = 0
        if folder is not None:
            try:
                self._find_again(folder)
            except OSError as error:
                raise InputError(
                    f"pictures cannot be kept in {folder} ({error.strerror}); give --output-dir a folder "
                    "that is there and can be written to"
                ) from error

    def __len__(self) -> int:
        return len(self._kept)

    def check(self, size_bytes: int) -> None:
        """Whether pictures of at most so many bytes can be kept, before they are made.

        Raises ApiError where they cannot.
        """
        if size_bytes > self._most:
            raise ApiError(
                507, f"pictures of up to {size_bytes} bytes do not fit in the {self._most} that are kept "
                "here; take response_format b64_json, or fewer or smaller pictures", "store_full",
                headers={"x-should-retry": "false"},
            )  # fmt: skip

    def put(self, pictures: Sequence[bytes], kind: str) -> list[str]:
        """Ids of pictures of this kind, a key of `MEDIA`: all are kept, or none.

        Raises ApiError where they do not fit, or the disk is full.
        """
        self.drop_old()
        self.check(sum(map(len, pictures)))
        names: list[str] = []
        try:
            for data in pictures:
                name = secrets.token_hex(16)
                names.append(name)
                self._add(name, kind, data)
        except OSError as error:
            for name in names:
                self._drop(name)
            full = error.errno in _FULL
            why = "the disk that pictures are kept on is full" if full else "the picture could not be kept"
            raise ApiError(
                507 if full else 500, f"{why}; take response_format b64_json",
                "disk_full" if full else "store_failed", headers={"x-should-retry": "false"},
            ) from error  # fmt: skip
        while self.size_bytes > self._most:
            self._drop(next(iter(self._kept)))
        return names

    def get(self, name: str) -> Stored | None:
        """A picture; None where there is none of this id, or no more."""
        self.drop_old()
        kept = self._kept.get(name)
        if kept is None:
            return None
        file: BinaryIO
        if kept.data is not None:
            file = io.BytesIO(kept.data)  # no copy, as long as nobody writes to it
        else:
            try:
                file = open(self._path(name, kept.kind), "rb")  # noqa: SIM115
            except OSError:  # somebody tidied up
                self._drop(name)
                return None
        return Stored(file, kept.size_bytes, MEDIA[kept.kind], kept.until - self._now())

    def _add(self, name: str, kind: str, data: bytes) -> None:
        if self._folder is not None:
            path = self._path(name, kind)
            partial = path.with_name(f".{path.name}.partial")
            try:
                with open(partial, "xb", opener=_for_us_alone) as file:
                    file.write(data)
                os.replace(partial, path)
            except BaseException:
                with contextlib.suppress(OSError):
                    partial.unlink(missing_ok=True)
                raise
        inside = None if self._folder is not None else data
        self._kept[name] = _Kept(kind, len(data), self._now() + self._keep_s, inside)
        self.size_bytes += len(data)

    def _drop(self, name: str) -> None:
        kept = self._kept.pop(name, None)
        if kept is None:
            return
        self.size_bytes -= kept.size_bytes
        if kept.data is None:
            with contextlib.suppress(OSError):
                self._path(name, kept.kind).unlink(missing_ok=True)

    def drop_old(self) -> None:
        """Those whose time is over; to be called now and then, so that they go where nobody asks for any."""
        now = self._now()
        while self._kept and next(iter(self._kept.values())).until <= now:
            self._drop(next(iter(self._kept)))

    def _path(self, name: str, kind: str) -> Path:
        assert self._folder is not None
        return self._folder / f"driffusion-{name}.{kind}"

    def _find_again(self, folder: Path) -> None:
        """Pictures of an earlier process, which may not have ended yet; what was left half-written goes."""
        prepare(folder)
        for name, kind, status in sorted(kept_in(folder), key=lambda item: item[2].st_mtime):
            until = status.st_mtime + self._keep_s
            self._kept[name] = _Kept(kind, status.st_size, until, None)
            self.size_bytes += status.st_size
        self.drop_old()


def prepare(folder: Path) -> None:
    """See whether it can be written to, and remove what was left half-written. Raises OSError."""
    for partial in folder.glob(".driffusion-*.partial"):
        with contextlib.suppress(FileNotFoundError):
            if partial.stat().st_mtime < time.time() - _HALF_WRITTEN_S:
                partial.unlink()
    probe = folder / f".driffusion-{secrets.token_hex(4)}.partial"
    probe.touch()
    probe.unlink()


def kept_in(folder: Path) -> Iterator[tuple[str, str, os.stat_result]]:
    """Pictures in a folder: their ids, kinds, sizes and times. Raises OSError."""
    for path in folder.iterdir():
        if match := _NAME.fullmatch(path.name):
            with contextlib.suppress(FileNotFoundError):
                yield match.group(1), match.group(2), path.stat()


def _for_us_alone(path: str, flags: int) -> int:
    """An opener of files that others of this machine cannot read."""
    return os.open(path, flags, 0o600)
