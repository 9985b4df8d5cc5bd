"""`driffusion-trt` with CPU lanes that fail or hang when they are told to, for bench.serve_faults.

    DRIFFUSION_FAULTS=FOLDER python -m bench.fault_server serve ...

A call of the network fails for each file fail-* in FOLDER, which it takes away, and every call while there is
a file named always. The first one that finds a file named hang renames it to hangs, and does not come back
while that is there.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from driffusion_trt.cli import main
from driffusion_trt.runtime.host_job import _Call

FOLDER = "DRIFFUSION_FAULTS"
WHY = "the lane was told to fail"


def break_lanes(folder: Path) -> None:
    work = _Call.work

    def broken(self: _Call, lane: int) -> None:
        for name in os.listdir(folder):
            if name == "always" or (name.startswith("fail-") and _taken(folder / name)):
                raise RuntimeError(WHY)
            if name == "hang" and _taken(folder / name, folder / "hangs"):
                while (folder / "hangs").exists():
                    time.sleep(0.02)
        work(self, lane)

    _Call.work = broken  # type: ignore[method-assign]


def _taken(path: Path, to: Path | None = None) -> bool:
    """Whether it was this thread that took the file."""
    try:
        path.unlink() if to is None else path.rename(to)
    except FileNotFoundError:
        return False
    return True


if __name__ == "__main__":
    break_lanes(Path(os.environ[FOLDER]))
    sys.exit(main())
