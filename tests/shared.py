"""Folders that take long to make, made once for all tests and all processes of a run."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock

Stamps = dict[str, tuple[int, int]]


class Shared:
    """`shared(name, make)` is the folder `name`, which `make(folder)` fills for whoever asks first.

    pytest-xdist's workers share it: the others wait meanwhile. Nobody may change what is in there;
    `changed` says who did.
    """

    def __init__(self, factory: pytest.TempPathFactory) -> None:
        own = factory.getbasetemp()
        self._root = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "shared"
        self._seen: dict[str, Stamps] = {}

    def __call__(self, name: str, make: Callable[[Path], object]) -> Path:
        folder, whole = self._root / name, self._root / f"{name}.whole"
        if name not in self._seen:
            folder.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(f"{folder}.lock"):
                if not whole.exists():
                    shutil.rmtree(folder, ignore_errors=True)  # of somebody who came to no end
                    make(folder)
                    whole.touch()
            self._seen[name] = _stamps(folder)
        return folder

    def changed(self) -> list[str]:
        """Files that are not what they were when this process first saw them."""
        return [
            f"{name}/{path}"
            for name, before in self._seen.items()
            for path in sorted(dict(before.items() ^ _stamps(self._root / name).items()))
        ]


def _stamps(folder: Path) -> Stamps:
    """Size and time of every file."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {
        path.relative_to(folder).as_posix(): (path.stat().st_size, path.stat().st_mtime_ns) for path in files
    }
