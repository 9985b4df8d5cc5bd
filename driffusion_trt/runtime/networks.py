"""The networks of a model folder, loaded on the devices that were chosen."""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Self

from .._errors import InputError
from ..engines.gpus import Gpu
from ..engines.manifest import ModelFolder
from ..engines.onnx_session import OnnxSession
from ..engines.profiles import Profile, Range
from ..engines.session import Network
from ..models import ON_HOST
from .devices import Devices, choose_plan
from .host import HostLanes, auto_lanes

__all__ = ["GpuOptions", "Networks", "load_networks"]

_SMALL_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class GpuOptions:
    """How lanes work; see `Pipeline.load`. threads_per_lane: of CPU lanes, see `HostLanes`."""

    cuda_graphs: bool = True
    peer_copies: bool = True
    deadline_s: float = 120.0
    threads_per_lane: int = 1

    def __post_init__(self) -> None:
        seconds = self.deadline_s
        if not (isinstance(seconds, int | float) and math.isfinite(seconds) and seconds > 0):
            raise InputError(f"deadline_s must be a number of seconds above 0, not {seconds!r}")


@dataclass(slots=True)
class Networks:
    """What a pipeline runs; closing it stops the lanes and gives all memory back.

    text: the text encoders by name.
    encoder: loads the VAE's encoder at its first call, since few pictures are made from others; None
        where the model has none.
    rows: that one call of the denoiser takes, two for each picture with guidance; None where it takes any
        number, and several drafts on one device are calls of their own.
    vae_profile: the sizes that the VAE's plans take; None where its networks take any.
    lanes: HostLanes, or CudaLanes, which is loaded only where there is a GPU.
    """

    text: Mapping[str, Network]
    decoder: Network
    encoder: Callable[[], Network] | None
    rows: Range | None
    vae_profile: Profile | None
    lanes: Any
    _resources: contextlib.ExitStack = field(repr=False)

    def close(self) -> None:
        """A second call does nothing."""
        self._resources.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


Load = Callable[[str], Network]


def load_networks(folder: ModelFolder, devices: Devices, options: GpuOptions) -> Networks:
    """Load everything, or nothing.

    Raises:
        ModelError: a network or plan is missing, altered or cannot be loaded.
        EngineError, DeviceError: TensorRT or the driver refused.
        MissingExtraError: a package for GPUs is not installed.
    """
    stack = contextlib.ExitStack()  # it also takes what is loaded later
    try:
        on_host: Load = _OnHost(folder, stack)
        load = on_host
        if devices.gpus:
            load, lanes = _on_gpus(folder, devices, options, stack)
        else:
            network, threads = folder.network("denoiser"), options.threads_per_lane
            lanes = stack.enter_context(HostLanes(network, devices.count, threads))
        names = [name for name in folder.networks if name.startswith("text_encoder")]
        text = {name: (on_host if name in ON_HOST else load)(name) for name in names}
        encoder = _Once(partial(load, "vae_encoder")) if "vae_encoder" in folder.networks else None
        rows = profile = None
        if devices.gpus:
            denoiser, profile = (
                _profile(folder, name, devices.gpus[0]) for name in ("denoiser", "vae_decoder")
            )
            rows = None if denoiser is None else denoiser.batch
        return Networks(text, load("vae_decoder"), encoder, rows, profile, lanes, stack)
    except BaseException:
        stack.close()
        raise


class _Once:
    """Calls a function once, whichever threads ask, and keeps what it gave."""

    def __init__(self, load: Callable[[], Network]) -> None:
        self._load, self._lock = load, threading.Lock()
        self._made: Network | None = None

    def __call__(self) -> Network:
        with self._lock:
            if self._made is None:
                self._made = self._load()
            return self._made


class _OnHost:
    """Loads networks for the CPU, to be closed with the others."""

    def __init__(self, folder: ModelFolder, stack: contextlib.ExitStack) -> None:
        self._folder, self._stack = folder, stack

    def __call__(self, name: str) -> Network:
        path = self._folder.network(name)
        # The lanes are idle while it runs. The number of threads is the machine's and not that of the
        # lanes, so that lanes change no bit; a small network is not worth more than one.
        size = sum(entry.size_bytes for entry in self._folder.files_of(name).values())
        session = OnnxSession(path, auto_lanes() if size > _SMALL_BYTES else 1)
        return self._stack.enter_context(session)


def _on_gpus(
    folder: ModelFolder, devices: Devices, options: GpuOptions, stack: contextlib.ExitStack
) -> tuple[Load, Any]:
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

    lanes = CudaLanes(
        [engines[gpu] for gpu in devices.gpus],
        latents=folder.spec.denoiser_inputs[0],
        graphs=options.cuda_graphs,
        peer_copies=options.peer_copies,
        deadline_s=options.deadline_s,
    )
    stack.enter_context(lanes)

    def network(name: str, gpu: Gpu) -> GpuNetwork:
        session = load_session(folder, name, gpu, there[gpu])
        return GpuNetwork(there[gpu], session, deadline_s=options.deadline_s)

    def load(name: str) -> Network:
        choices = [(device, partial(network, name, gpu)) for gpu, device in there.items()]
        first = stack.enter_context(FirstOf(choices))
        first.make_room = lanes.make_room
        return first

    return load, lanes


def _profile(folder: ModelFolder, network: str, gpu: Gpu) -> Profile | None:
    plan, _ = choose_plan(folder, network, gpu)
    return None if plan.key is None else plan.key.profile
