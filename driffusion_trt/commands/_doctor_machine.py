"""What `driffusion-trt doctor` finds out about the machine: host, packages, driver, disk."""

from __future__ import annotations

import importlib
import os
import platform
import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path

from .. import __version__
from .._errors import DeviceError, MissingExtraError
from .._machine import driver_version, installed, memory_bytes, system
from ..engines.flavours import FLAVOURS, Flavour, choose_flavour, installed_version, missing
from ..engines.gpus import Gpus, find_gpus
from ..export.estimate import available_memory_bytes
from ..runtime._driver import driver
from ..runtime.host import auto_lanes
from ..runtime.peers import PeerLink
from ._doctor_gpus import GpuState, examine_gpus

__all__ = ["Disk", "Findings", "Host", "Machine", "examine_machine"]

# What the GPU lanes need beside TensorRT, in the order of the report; pip's names for CUDA 13 and 12.
_PACKAGES = {
    "cuda-bindings": ("cuda-bindings",),
    "nvidia-cuda-nvrtc": ("nvidia-cuda-nvrtc", "nvidia-cuda-nvrtc-cu12"),
    "polygraphy": ("polygraphy",),
}
_GET_DRIVER = "install NVIDIA's driver 580 or newer (or start the container with --gpus all)"
_NO_DEVICE = "100"  # cuInit's answer where the driver is well and sees no GPU


@dataclass(slots=True)
class Findings:
    """What is broken, and what would be good to have; each is a sentence that ends in what to do."""

    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def problem(self, text: str) -> None:
        if text not in self.problems:
            self.problems.append(text)

    def note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)


@dataclass(frozen=True, slots=True)
class Host:
    """cpu_lanes: what CPU lanes there are by default; onnxruntime: None where it does not load."""

    system: str
    python: str
    cores: int | None
    cpu_lanes: int
    memory_bytes: int | None
    free_memory_bytes: int | None
    onnxruntime: str | None


@dataclass(frozen=True, slots=True)
class Disk:
    """Where models go by default, and how much room there is."""

    path: str
    free_bytes: int | None


@dataclass(frozen=True, slots=True)
class Machine:
    """packages: versions by name, None for those that are not installed. cuda: what the driver supports."""

    version: str
    host: Host
    disk: Disk
    packages: dict[str, str | None]
    driver: str | None
    cuda: tuple[int, int] | None
    why_no_gpu: str
    gpus: tuple[GpuState, ...]
    peers: tuple[PeerLink, ...]


def examine_machine(findings: Findings) -> Machine:
    """Look at everything that does not depend on a model; nothing is written but NVRTC's cache."""
    gpus = find_gpus()
    packages = _packages(findings)
    why = gpus.why_none
    states: tuple[GpuState, ...] = ()
    links: tuple[PeerLink, ...] = ()
    if gpus.found:
        _check_versions(gpus, packages, findings)
        _want_tensorrt(gpus, packages, findings)
        command = _command(choose_flavour(gpus.found[0]), gpus.cuda)
        states, links = examine_gpus(gpus.found, command, findings.problem, findings.note)
    else:
        _why_no_gpu(why, findings)
    return Machine(
        __version__,
        _host(findings),
        _disk(),
        packages,
        driver_version(),
        gpus.cuda,
        why,
        states,
        links,
    )


def _host(findings: Findings) -> Host:
    version = None
    try:
        version = str(importlib.import_module("onnxruntime").__version__)
    except Exception as error:  # an import can fail in any way, and the report must go on
        findings.problem(
            f"ONNX Runtime, which CPU lanes run on, cannot be loaded ({error}); run: pip install "
            "--force-reinstall onnxruntime"
        )
    return Host(
        system(),
        platform.python_version(),
        os.cpu_count(),
        auto_lanes(),
        memory_bytes(),
        available_memory_bytes(),
        version,
    )


def _disk() -> Disk:
    path = Path("models").absolute()
    there = next(folder for folder in (path, *path.parents) if folder.exists())
    try:
        return Disk(str(path), shutil.disk_usage(there).free)
    except OSError:
        return Disk(str(path), None)


def _packages(findings: Findings) -> dict[str, str | None]:
    found = {name: installed(names) for name, names in _PACKAGES.items()}
    for flavour in FLAVOURS.values():
        version = found[flavour.name] = installed_version(flavour)
        if version is None:
            continue
        try:
            importlib.import_module(flavour.module)
        except Exception as error:  # as above: a library of it may be missing, or be of another version
            again = _command(flavour, None).replace("pip install", "pip install --force-reinstall")
            findings.problem(
                f"{flavour.title} {version} is installed and cannot be loaded ({error}); run: {again}"
            )
    return found


def _command(flavour: Flavour, cuda: tuple[int, int] | None) -> str:
    """What installs a flavour and all that the GPU lanes need with it."""
    return str(missing(flavour, cuda)).rpartition("run: ")[2]


def _check_versions(gpus: Gpus, packages: dict[str, str | None], findings: Findings) -> None:
    """An old driver goes with packages for CUDA 12 only."""
    if gpus.cuda is None or gpus.cuda >= (13, 0):
        return
    has = "the NVIDIA driver supports CUDA {}.{}".format(*gpus.cuda)
    update = "update the driver to 580 or newer"
    bindings = packages["cuda-bindings"]
    if gpus.cuda < (12, 0):
        findings.problem(f"{has}, which is too old; {update}")
    elif bindings is not None and not bindings.startswith("12."):
        instead = _command(FLAVOURS["tensorrt"], gpus.cuda)
        findings.problem(f"{has}, and cuda-bindings {bindings} needs 13; {update}, or run: {instead}")


def _want_tensorrt(gpus: Gpus, packages: dict[str, str | None], findings: Findings) -> None:
    for gpu in gpus.kinds:
        flavour = choose_flavour(gpu)
        if packages[flavour.name] is None:
            findings.note(f"for {gpu}: {missing(flavour, gpus.cuda)}")


def _why_no_gpu(why: str, findings: Findings) -> None:
    """A driver that is there and fails is broken; no driver or no GPU is a machine like many."""
    if " failed with " in why and f" failed with {_NO_DEVICE} " not in why:
        findings.problem(_advised(why))
    elif "cannot be loaded" in why and _nvidia_on_pci(Path("/sys/bus/pci/devices")):
        findings.note(f"there is an NVIDIA GPU in this machine, and no driver for it; {_GET_DRIVER}")
    elif sys.platform != "darwin":
        findings.note(
            f"to make pictures on NVIDIA GPUs as well: {_GET_DRIVER}, check CUDA_VISIBLE_DEVICES, and run: "
            "pip install '.[tensorrt]' in a clone of driffusion-trt"
        )


def _advised(why: str) -> str:
    """The driver's failure with what to do, which our own table of its errors knows best."""
    try:
        driver()
    except DeviceError as error:
        return str(error)
    except MissingExtraError:
        pass
    return f"{why}; see nvidia-smi and the kernel's log (dmesg), and install the driver again"


def _nvidia_on_pci(devices: Path) -> bool:
    """Whether a display or compute card of NVIDIA's (0x10de, class 0x03....) is plugged in."""
    for device in devices.glob("*"):
        try:
            if (device / "vendor").read_text("ascii").strip() == "0x10de" and (device / "class").read_text(
                "ascii"
            ).startswith("0x03"):
                return True
        except OSError:
            continue
    return False
