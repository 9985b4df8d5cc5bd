"""Facts of this machine and of this copy of the code, which measurements are kept with."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import subprocess
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from .engines.flavours import FLAVOURS, installed_version
from .engines.gpus import find_gpus
from .runtime.host import auto_lanes

__all__ = [
    "circumstances",
    "commit",
    "driver_version",
    "installed",
    "machine",
    "memory_bytes",
    "processor",
    "system",
    "versions",
]

_QUESTIONS = (["ls-files"], ["rev-parse", "--short=12", "HEAD"], ["status", "--porcelain", "-uno"])
_MODULE_VERSION = Path("/proc/driver/nvidia/version")


def processor() -> str:
    """The name that Linux has for it; elsewhere what Python says."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def system() -> str:
    """Kernel and architecture: "Linux x86_64"."""
    return f"{platform.system()} {platform.machine()}"


def memory_bytes() -> int | None:
    """All memory there is; None where the system does not tell."""
    if "SC_PHYS_PAGES" not in getattr(os, "sysconf_names", {}):
        return None
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def driver_version(path: Path = _MODULE_VERSION) -> str | None:
    """NVIDIA's kernel module's own version, "580.65.06"; only Linux tells."""
    try:
        match = re.search(r"\s(\d+\.\d+(?:\.\d+)?)\s", path.read_text("utf-8", errors="replace"))
    except OSError:
        return None
    return match.group(1) if match else None


def installed(names: Sequence[str]) -> str | None:
    """The version of the first of these packages that is installed."""
    for name in names:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Python's version, and those of the packages that are installed.

    TensorRT's flavours by their names here, whichever CUDA version their wheels are named after.
    """
    found = {name: version for name in packages if (version := _version(name)) is not None}
    return {"python": platform.python_version(), **found}


def _version(name: str) -> str | None:
    return installed_version(FLAVOURS[name]) if name in FLAVOURS else installed((name,))


def commit(folder: Path) -> str:
    """The commit that the files of a folder are of, with "+changes" where the working copy has some.

    "unknown" where git does not have these files: an installed copy may lie in somebody else's repository.
    """
    try:
        files, head, dirty = (_git(folder.resolve(), *words) for words in _QUESTIONS)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return head + ("+changes" if dirty else "") if files else "unknown"


def _git(folder: Path, *words: str) -> str:
    done = subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, timeout=30, check=True)
    return done.stdout.strip()


def machine() -> dict[str, Any]:
    """Processor, cores, memory and GPUs. cores: that this process may use, by affinity and quota."""
    gpus = find_gpus()
    named = [{"name": one.name, "target": one.target, "memory_bytes": one.memory_bytes} for one in gpus.found]
    return {
        "processor": processor(),
        "cores": auto_lanes(),
        "memory_bytes": memory_bytes(),
        "system": platform.platform(terse=True),
        "gpus": named,
        "driver": driver_version(),
        "cuda": None if gpus.cuda is None else "{}.{}".format(*gpus.cuda),
    }


def circumstances(folder: Path, packages: Iterable[str]) -> dict[str, Any]:
    """What makes a measurement comparable: date, commit of the code in `folder`, machine, versions."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(folder),
        "machine": machine(),
        "versions": versions(packages),
    }
