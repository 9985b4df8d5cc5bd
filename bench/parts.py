"""Parts of a long measurement: each kept as soon as it is there, begun only while there is time for it."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from driffusion_trt._errors import DriffusionError

__all__ = ["Parts"]


class Parts:
    """Values by name in a folder.

    left_out: why parts are not there, in words, in the order in which they were wanted.
    """

    def __init__(
        self,
        folder: Path,
        key: Mapping[str, Any],
        minutes: float,
        end: float | None = None,
        told: Callable[[str], None] = print,
    ) -> None:
        """key: what all parts depend on; those that were kept for another key are made again.

        minutes: after so many no further part is begun. end: when that is, by `time.monotonic`, where others
        share it; by default so many from now.
        """
        self._folder, self._key, self._told = folder, dict(key), told
        self._end = time.monotonic() + 60 * minutes if end is None else end
        self._minutes = minutes
        self.left_out: list[str] = []
        folder.mkdir(parents=True, exist_ok=True)

    @property
    def over(self) -> str:
        """Why nothing more may be begun, in words; "" while there is time."""
        late = time.monotonic() >= self._end
        return f"the {self._minutes:g} minutes are over; the same command goes on from here" if late else ""

    def __call__(self, name: str, make: Callable[[], Any], **own: Any) -> Any:
        """The value of a part, from before or made now; None where it is left out.

        own: what this one depends on besides.
        """
        path, key = self._folder / f"{name}.json", json.loads(json.dumps(self._key | own))
        kept = self._kept(path, key)
        if kept is not None:
            self._told(f"{name}: kept from before")
            return kept
        if self.over:
            self.skip(name, self.over)
            return None
        begun = time.monotonic()
        try:
            value = make()
        except DriffusionError as error:
            self.skip(name, str(error))
            return None
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps({"key": key, "value": value}, indent=1) + "\n")
        os.replace(partial, path)
        self._told(f"{name}: {time.monotonic() - begun:.0f} s")
        return value

    def skip(self, name: str, why: str) -> None:
        """Leave a part out, and say so in a line."""
        line = f"{name}: left out: {why}"
        self.left_out.append(line)
        self._told(line)

    @staticmethod
    def _kept(path: Path, key: Mapping[str, Any]) -> Any:
        try:
            stored = json.loads(path.read_text())
        except (OSError, ValueError):
            return None
        return stored["value"] if isinstance(stored, dict) and stored.get("key") == key else None
