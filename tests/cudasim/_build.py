"""Building the simulator, and putting it where the real driver would be."""

from __future__ import annotations

import ctypes
import fcntl
import os
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

__all__ = ["BuildError", "MissingToolError", "build", "kernel_image", "load"]

SOURCE = Path(__file__).resolve().parent
BUILD = SOURCE.parent.parent / "build" / "cudasim"
SONAME = "libcuda.so.1"


class BuildError(RuntimeError):
    """The simulator can not be built or loaded; says what is missing."""


class MissingToolError(BuildError):
    """cmake or a C++ compiler is not there."""


@cache
def build(folder: Path = BUILD) -> Path:
    """Compile what has changed since the last time; the folder with the two libraries.

    Raises:
        MissingToolError: cmake or a C++ compiler is not there.
        BuildError: the sources do not compile.
    """
    for tool in ("cmake", os.environ.get("CXX", "g++")):
        if shutil.which(tool) is None:
            raise MissingToolError(f"{tool} is needed to build the simulated CUDA driver, and was not found")
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two test processes may start at once
        _run("cmake", "-S", str(SOURCE), "-B", str(folder))
        _run("cmake", "--build", str(folder), "--parallel", "2")
    return folder


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        words = "\n".join((done.stdout + done.stderr).splitlines()[-40:])
        raise BuildError(f"{' '.join(command)} failed:\n{words}")


@cache
def load() -> Any:
    """The simulator as this process's libcuda.so.1; no devices yet.

    Raises:
        BuildError: it can not be built, or this process has loaded another CUDA driver already.
    """
    library = build() / SONAME
    try:
        loaded = ctypes.CDLL(SONAME, mode=os.RTLD_NOLOAD)
    except OSError:
        loaded = None
    if loaded is not None and not hasattr(loaded, "cudasim_configure"):
        raise BuildError(
            f"this process has loaded the real {SONAME}: run the tests of the simulator by themselves"
        )
    simulator = ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
    simulator.cudasim_text.restype = ctypes.c_char_p
    simulator.cudasim_spent_seconds.restype = ctypes.c_double
    simulator.cudasim_released.restype = ctypes.c_size_t
    return simulator


def kernel_image(library: Path) -> bytes:
    """What `cuModuleLoadData` takes for a host library of kernels."""
    return b"CUDASIM\0" + os.fsencode(library.resolve()) + b"\0"
