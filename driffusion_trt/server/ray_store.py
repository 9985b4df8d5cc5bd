"""Pictures behind links where there are several replicas: in a folder that all read, or not at all."""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from .answers import ApiError
from .store import MEDIA, Store, Stored, kept_in, prepare

__all__ = ["NoLinks", "SharedStore"]

_NAME = re.compile(r"[0-9a-f]{32}")
_SWEPT_S = 60.0  # between looks at the whole folder, and by how much the clocks of nodes may differ


class SharedStore(Store):
    """A store that also finds what other replicas wrote to the same folder.

    Only an id of 32 hexadecimal digits is looked for there, under the few names that it can have. Pictures of
    others do not count, and make no room: they may be fresh. They go a while after their time, since the
    replica that wrote them may not be there to do it.
    """

    def __init__(
        self, most_bytes: int, keep_s: float, folder: Path, now: Callable[[], float] = time.time
    ) -> None:
        self._swept = 0.0
        super().__init__(most_bytes, keep_s, folder, now)

    def get(self, name: str) -> Stored | None:
        found = super().get(name)
        if found is not None or _NAME.fullmatch(name) is None:
            return found
        for kind, media in MEDIA.items():
            try:
                file = open(self._path(name, kind), "rb")  # noqa: SIM115
            except OSError:  # not there
                continue
            status = os.fstat(file.fileno())
            left_s = status.st_mtime + self._keep_s - self._now()
            if left_s > 0:
                return Stored(file, status.st_size, media, left_s)
            file.close()
        return None

    def drop_old(self) -> None:
        """Also those of other replicas whose time is over."""
        super().drop_old()
        now = self._now()
        if now - self._swept < _SWEPT_S:
            return
        self._swept = now
        folder = self._folder
        assert folder is not None
        with contextlib.suppress(OSError):  # the folder is away for a while
            for name, kind, status in kept_in(folder):
                if status.st_mtime + self._keep_s + _SWEPT_S <= now:
                    self._path(name, kind).unlink(missing_ok=True)

    def _find_again(self, folder: Path) -> None:
        prepare(folder)


class NoLinks(Store):
    """Keeps nothing: a link would lead to another replica, in whose memory the picture is not."""

    def __init__(self) -> None:
        super().__init__(1, 1.0)

    def check(self, size_bytes: int) -> None:
        raise ApiError(
            400, "response_format url cannot be had here: the picture would lie in the memory of one "
            "replica, and its link may lead to another; take b64_json, or serve with --output-dir and a "
            "folder that all nodes share", "unsupported_value", param="response_format",
        )  # fmt: skip

    def put(self, pictures: Sequence[bytes], kind: str) -> list[str]:
        self.check(0)
        return []
