"""Where this system keeps what a program can make again."""

from __future__ import annotations

import contextlib
import os
import secrets
import sys
from pathlib import Path

__all__ = ["cache_folder", "keep"]


def cache_folder(kind: str) -> Path | None:
    """The folder for one kind of things, which need not exist; None for a user without a home folder."""
    try:
        if sys.platform == "darwin":
            base = Path.home() / "Library" / "Caches"
        elif os.name == "nt":
            base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
        else:
            base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:  # no HOME, and no such user
        return None
    return base / "driffusion-trt" / kind


def keep(path: Path | None, data: bytes) -> None:
    """Write a file whole or not at all; a folder that is not there or cannot be written to is no error."""
    if path is None:
        return
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
        try:
            partial.write_bytes(data)
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
