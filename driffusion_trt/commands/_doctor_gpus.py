"""What `driffusion-trt doctor` finds out about the GPUs: memory, kernels, and copies between them."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from importlib import resources

from .._errors import DeviceError, InputError, MissingExtraError
from ..engines.gpus import Gpu
from ..runtime._driver import Device, driver
from ..runtime._images import IMAGE_VARIABLE, find_kernels
from ..runtime._resources import Module
from ..runtime.peers import PeerLink, check_peers

__all__ = ["GpuState", "examine_gpus", "packaged_kernels"]

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class GpuState:
    """One GPU: `gpu` as the driver lists it; kernels: where those come from that were loaded onto it.

    What could not be found out without cuda-bindings is None.
    """

    gpu: Gpu
    free_bytes: int | None = None
    pci_bus_id: str | None = None
    kernels: str | None = None
    usable: bool = False


def packaged_kernels() -> bytes | None:
    """The fatbin that was built into the package, if it was."""
    try:
        return (resources.files(__package__.partition(".")[0]) / "csrc" / "kernels.fatbin").read_bytes()
    except OSError:
        return None


def examine_gpus(
    gpus: Sequence[Gpu], command: str, problem: Say, note: Say
) -> tuple[tuple[GpuState, ...], tuple[PeerLink, ...]]:
    """Open every GPU, load the kernels onto it, try and time the copies between all; then let go of them.

    Args:
        command: what installs the packages for these GPUs.
        problem: told what is broken. note: told what is missing.
    """
    states = {gpu.index: GpuState(gpu) for gpu in gpus}
    try:
        driver()
    except MissingExtraError:
        note(f"the GPUs could only be listed, since cuda-bindings is not installed; run: {command}")
        return tuple(states.values()), ()
    except DeviceError as error:
        problem(str(error))
        return tuple(states.values()), ()
    with ExitStack() as stack:
        devices: list[Device] = []
        for gpu in gpus:
            try:
                device = Device(gpu.index)
                stack.callback(_close, device)
                states[gpu.index] = _examine(gpu, device, problem, note)
                devices.append(device)
            except DeviceError as error:
                problem(str(error))
        links = tuple(check_peers(devices, measure=True).values())
        for device in devices:
            if device.lost:
                states[device.ordinal] = replace(states[device.ordinal], usable=False)
    _tell(links, problem, note)
    return tuple(states.values()), links


def _close(device: Device) -> None:
    with suppress(DeviceError):  # what broke it has been told
        device.close()


def _examine(gpu: Gpu, device: Device, problem: Say, note: Say) -> GpuState:
    state = GpuState(gpu, device.memory_bytes()[0], device.pci_bus_id())
    try:
        image = find_kernels(device.compute_capability)
        with Module(device, image):
            pass
    except MissingExtraError as error:
        note(str(error))
        return state
    except (DeviceError, InputError) as error:
        problem(f"the kernels cannot be had for {gpu}: {error}")  # once for all of its kind
        return state
    named = os.environ.get(IMAGE_VARIABLE)
    origin = "of the package" if image == packaged_kernels() else "compiled by NVRTC"
    return replace(state, kernels=f"from {named}" if named else origin, usable=True)


def _tell(links: Sequence[PeerLink], problem: Say, note: Say) -> None:
    detours = []
    for link in links:
        if not link.verified:
            problem(link.problem)
        elif not link.access:
            detours.append(link)
    if detours:
        pairs = sorted({tuple(sorted((link.source, link.target))) for link in detours})
        named = ", ".join(f"{one} and {other}" for one, other in pairs[:4])
        more = f" and {len(pairs) - 4} more pairs" if len(pairs) > 4 else ""
        note(
            f"no direct access between GPUs {named}{more}: their copies go through the host's memory, which "
            "is slower; GPUs on one PCIe switch or with NVLink have it"
        )
