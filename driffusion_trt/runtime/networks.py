"""The networks of a model folder, loaded on the devices that were chosen."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

from ..engines.gpus import Gpu
from ..engines.manifest import ModelFolder
from ..engines.onnx_session import OnnxSession
from ..engines.session import Network
from .devices import Devices
from .host import HostLanes

__all__ = ["GpuOptions", "Networks", "load_networks"]


@dataclass(frozen=True, slots=True)
class GpuOptions:
    """How GPU lanes work; see `Pipeline.load`."""

    split_guidance: bool = False
    cuda_graphs: bool = True
    peer_copies: bool = True
    deadline_s: float = 120.0


@dataclass(slots=True)
class Networks:
    """What a pipeline runs; closing it stops the lanes and gives all memory back."""

    text: Network
    decoder: Network
    lanes: Any  # HostLanes, or CudaLanes, which is loaded only where there is a GPU
    _resources: contextlib.ExitStack

    def close(self) -> None:
        """A second call does nothing."""
        self._resources.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def load_networks(folder: ModelFolder, devices: Devices, options: GpuOptions) -> Networks:
    """Load everything, or nothing.

    Raises:
        ModelError: a network or plan is missing, altered or cannot be loaded.
        EngineError, DeviceError: TensorRT or the driver refused.
        MissingExtraError: a package for GPUs is not installed.
    """
    with contextlib.ExitStack() as stack:
        load = _on_gpus if devices.gpus else _on_host
        text, decoder, lanes = load(folder, devices, options, stack)
        return Networks(text, decoder, lanes, stack.pop_all())


def _on_host(
    folder: ModelFolder, devices: Devices, options: GpuOptions, stack: contextlib.ExitStack
) -> tuple[Network, Network, Any]:
    text = stack.enter_context(OnnxSession(folder.network("text_encoder")))
    # One thread: the same bits whatever the number of lanes.
    decoder = stack.enter_context(OnnxSession(folder.network("vae_decoder")))
    return text, decoder, stack.enter_context(HostLanes(folder.network("denoiser"), devices.count))


def _on_gpus(
    folder: ModelFolder, devices: Devices, options: GpuOptions, stack: contextlib.ExitStack
) -> tuple[Network, Network, Any]:
    from ._driver import Device
    from .cuda import CudaLanes, Engine
    from .gpu_network import FirstOf, GpuNetwork
    from .gpu_sessions import close_session, load_session

    there = {
        gpu: stack.enter_context(Device(gpu.index)) for gpu in dict.fromkeys(devices.gpus)
    }  # in the order that was asked: the first is the lead
    engines = {}
    for gpu, device in there.items():
        session = load_session(folder, "denoiser", gpu, device)
        stack.callback(close_session, device, session)
        engines[gpu] = Engine(device, session)

    def network(name: str, gpu: Gpu) -> GpuNetwork:
        session = load_session(folder, name, gpu, there[gpu])
        return GpuNetwork(there[gpu], session, deadline_s=options.deadline_s)

    once = [
        stack.enter_context(FirstOf([(device, partial(network, name, gpu)) for gpu, device in there.items()]))
        for name in ("text_encoder", "vae_decoder")
    ]
    lanes = CudaLanes(
        [engines[gpu] for gpu in devices.gpus],
        latents=folder.spec.denoiser_inputs[0],
        split_guidance=options.split_guidance,
        graphs=options.cuda_graphs,
        peer_copies=options.peer_copies,
        deadline_s=options.deadline_s,
    )
    for one in once:
        one.make_room = lanes.make_room
    return once[0], once[1], stack.enter_context(lanes)
