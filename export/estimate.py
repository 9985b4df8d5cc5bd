"""What an export will take, before it starts: time, disk and memory; and whether this machine has them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from .._errors import ModelError
from .checkpoint import Checkpoint

__all__ = [
    "Estimate",
    "available_memory_bytes",
    "check_room",
    "duration",
    "estimate_export",
    "free_disk_bytes",
]

_BYTES = {"fp32": 4, "fp16": 2, "bf16": 2}
# Fitted to exports of SD2.1, SDXL and SD3 on two cores of an x86 server: seconds to load the libraries,
# for each network, and for each thousand million parameters to export and to check.
_START_S, _NETWORK_S, _EXPORT_S, _VERIFY_S, _HASH_S = 12.0, 4.0, 40.0, 20.0, 3.0
_LIBRARIES_BYTES = 1_200_000_000  # torch and the exporter themselves, with the graph of SDXL
_GRAPH_BYTES = 2_000_000  # of the largest graph, without its weights
# Of each parameter while it is compared: torch's float32, and the checkpoint's file that it is read from.
# Full-size SD2.1 and SDXL took 16.0 GB for 2,567 million parameters and 6.2 for 866.
_CHECK_BYTES = 5.5
_SPARE = 1.1


@dataclass(frozen=True, slots=True)
class Estimate:
    """`seconds` of work, `disk_bytes` to be written, `memory_bytes` at once for the network `largest`."""

    seconds: float
    disk_bytes: int
    memory_bytes: int
    largest: str

    def __str__(self) -> str:
        return f"{duration(self.seconds)}, {_gb(self.disk_bytes)} of disk, {_gb(self.memory_bytes)} of memory"


def estimate_export(
    checkpoint: Checkpoint, precision: str, *, export: Collection[str], verify: Collection[str]
) -> Estimate:
    """What it takes to export some networks of a checkpoint, and to compare some with torch."""
    seconds, disk, memory, largest = 0.0, 0.0, 0.0, ""
    copy = 0.0  # what ONNX Runtime is given in place of bfloat16, one network at a time
    for component in checkpoint.components.values():
        width = _BYTES[checkpoint.precision_of(component, precision)]
        for name in component.part.networks:
            # The two halves of an autoencoder are loaded whole, and each written for itself.
            size = width * component.parameters / len(component.part.networks)
            billions = component.parameters / 1e9
            needed = 0.0
            if name in export:
                seconds += _NETWORK_S + _EXPORT_S * billions
                disk += size + _GRAPH_BYTES
                needed = width * component.parameters
            if name in verify:
                seconds += _NETWORK_S + _VERIFY_S * billions
                needed = max(needed, _CHECK_BYTES * component.parameters)
                if precision == "bf16":
                    copy = max(copy, _BYTES["fp32"] * size / width)
            if needed > memory:
                memory, largest = needed, name
            seconds += _HASH_S * size / 1e9
    if not largest:
        return Estimate(0.0, 0, 0, "")
    seconds += _START_S * (bool(export) + bool(verify))
    return Estimate(seconds, int(_SPARE * (disk + copy)), int(_SPARE * memory) + _LIBRARIES_BYTES, largest)


def check_room(estimate: Estimate, output: Path) -> None:
    """Refuse what this machine has no room for.

    Raises:
        ModelError: there is not enough memory, or disk where `output` will be.
    """
    there, free = free_disk_bytes(output)
    if estimate.disk_bytes > free:
        raise ModelError(
            f"the export needs {_gb(estimate.disk_bytes)} of disk, and {there} has {_gb(free)} free; "
            "make room, or name a folder on another disk"
        )
    memory = available_memory_bytes()
    if memory is not None and estimate.memory_bytes > memory:
        skip = (
            "; or skip text_encoder_3, which SD3 can do without"
            if estimate.largest == "text_encoder_3"
            else ""
        )
        raise ModelError(
            f"the export of {estimate.largest} needs {_gb(estimate.memory_bytes)} of memory, and "
            f"{_gb(memory)} are free; close other programs, or build on a larger machine{skip}"
        )


def duration(seconds: float) -> str:
    """An expected time for people."""
    return "under a minute" if seconds < 60 else f"about {round(seconds / 60)} min"


def free_disk_bytes(path: Path) -> tuple[Path, int]:
    """The folder that `path` is or will be made in, and what its disk has free."""
    there = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    return there, shutil.disk_usage(there).free


def available_memory_bytes(
    meminfo: Path = Path("/proc/meminfo"), cgroup: Path = Path("/sys/fs/cgroup")
) -> int | None:
    """Memory that this process may still take; None where the system does not say."""
    free = [size for size in (_system_free(meminfo), _container_free(cgroup)) if size is not None]
    return min(free, default=None)


def _system_free(meminfo: Path) -> int | None:
    try:
        for line in meminfo.read_text("ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return 1024 * int(line.split()[1])
    except (OSError, ValueError):
        pass
    if "SC_AVPHYS_PAGES" in getattr(os, "sysconf_names", {}):
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return None


def _container_free(cgroup: Path) -> int | None:
    """What a container's limit (cgroup v2) leaves, the cache of files counted as free."""
    try:
        limit = int((cgroup / "memory.max").read_text("ascii"))  # "max" is no limit
        used = int((cgroup / "memory.current").read_text("ascii"))
        stat = dict(line.split() for line in (cgroup / "memory.stat").read_text("ascii").splitlines())
        return limit - used + int(stat.get("inactive_file", 0)) + int(stat.get("active_file", 0))
    except (OSError, ValueError):
        return None


def _gb(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.0f} MB"
