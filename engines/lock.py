"""One builder at a time in a folder, also where an earlier one was killed."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from .._errors import ModelError

__all__ = ["lock_folder", "lock_path"]

if sys.platform == "win32":
    import msvcrt

    def _try_lock(file: IO[str]) -> bool:
        try:
            file.seek(1 << 30)  # beyond the text, which others may read
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True
else:
    import fcntl

    def _try_lock(file: IO[str]) -> bool:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


def lock_path(folder: Path) -> Path:
    """The lock of a folder lies in it, so that every path to the folder leads to the same lock."""
    return folder / ".build.lock"


@contextlib.contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Hold `folder` while the block runs. The system lets go of it however the process ends.

    Raises:
        ModelError: another process holds it; the message says which and since when.
        OSError: the folder cannot be made or written to.
    """
    path = lock_path(folder)
    made = not folder.exists()
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            file = open(path, "a+", encoding="utf-8")  # noqa: SIM115
        except FileNotFoundError:  # its last holder has removed the folder with it
            continue
        with file:
            if not _try_lock(file):
                raise ModelError(_held(folder, file))
            # Its last holder may have removed it between our opening and our locking.
            if not _is_at(path, file):
                continue
            _sign(file)
            try:
                yield
            finally:
                with contextlib.suppress(OSError):  # Windows removes no open file; it may stay there
                    path.unlink()
                    if made:
                        folder.rmdir()  # where nothing came of it
            return


def _is_at(path: Path, file: IO[str]) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


def _sign(file: IO[str]) -> None:
    file.truncate(0)
    started = time.strftime("%Y-%m-%d %H:%M:%S")
    file.write(json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": started}))
    file.flush()


def _held(folder: Path, file: IO[str]) -> str:
    who = "another process"
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        file.seek(0)
        data = json.loads(file.read())
        who = f"process {data['pid']} on {data['host']}, since {data['since']}"
    return f"{folder} is being built by another ({who}); wait until it has finished, or name another --output"
