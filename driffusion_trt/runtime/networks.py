"""The networks of a model folder, loaded on the devices that were chosen."""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Self

from .._errors import InputError
from ..engines.gpus import Gpu
from ..engines.manifest import ModelFolder
from ..engines.onnx_session import OnnxSession
from ..engines.profiles import Profile, Range
from ..engines.session import Network
from ..models import ON_HOST
from .devices import Devices, choose_plan
from .host import HostLanes, auto_lanes

if TYPE_CHECKING:
    from .cuda import CudaLanes
    from .gpu_beside import Beside

__all__ = ["GpuOptions", "Networks", "load_networks"]

_SMALL_BYTES = 64 << 20
_DECODER, _ENCODER = "vae_decoder", "vae_encoder"


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
    encoder: gives the VAE's encoder, which is loaded when it is first needed, since few pictures are made
        from others; None where the model has none.
    rows: that one call of the denoiser takes, two for each picture with guidance; None where it takes any
        number, and several drafts on one device are calls of their own.
    vae_profile: the sizes that the VAE's plans take; None where its networks take any.
    lanes: HostLanes, or CudaLanes, which is loaded only where there is a GPU.
    beside: those of these networks that are on GPUs, each on the lead of whoever calls; see `Beside`.
    """

    text: Mapping[str, Network]
    decoder: Network
    encoder: Callable[[], Network] | None
    rows: Range | None
    vae_profile: Profile | None
    lanes: Any
    beside: tuple[Any, ...]
    _resources: contextlib.ExitStack = field(repr=False)

    def close(self) -> None:
        """A second call does nothing."""
        self._resources.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def load_networks(folder: ModelFolder, devices: Devices, options: GpuOptions) -> Networks:
    """Load everything, or nothing; on GPUs what runs beside the lanes on the first one only.

    Raises:
        ModelError: a network or plan is missing, altered or cannot be loaded.
        EngineError, DeviceError: TensorRT or the driver refused.
        MissingExtraError: a package for GPUs is not installed.
    """
    stack = contextlib.ExitStack()  # it also takes what is loaded later
    try:
        return (_on_gpus if devices.gpus else _on_cpu)(folder, devices, options, stack)
    except BaseException:
        stack.close()
        raise


def _names(folder: ModelFolder) -> list[str]:
    """Of the text encoders that there are."""
    return [name for name in folder.networks if name.startswith("text_encoder")]


def _on_cpu(
    folder: ModelFolder, devices: Devices, options: GpuOptions, stack: contextlib.ExitStack
) -> Networks:
    load = _OnHost(folder, stack)
    lanes = HostLanes(folder.network("denoiser"), devices.count, options.threads_per_lane)
    stack.enter_context(lanes)
    text = {name: load(name) for name in _names(folder)}
    encoder = _Once(partial(load, _ENCODER)) if _ENCODER in folder.networks else None
    return Networks(text, load(_DECODER), encoder, None, None, lanes, (), stack)


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
) -> Networks:
    on_host, names = _OnHost(folder, stack), _names(folder)
    lanes, beside = _lanes(folder, devices, options, stack)
    made = {name: beside(name) for name in (*names, _DECODER) if name not in ON_HOST}
    for network in made.values():
        network.load()
    text = {name: on_host(name) if name in ON_HOST else made[name] for name in names}
    encoder = None
    if _ENCODER in folder.networks:
        made[_ENCODER] = beside(_ENCODER)
        encoder = partial(made.__getitem__, _ENCODER)
    denoiser, profile = (_profile(folder, name, devices.gpus[0]) for name in ("denoiser", _DECODER))
    rows = None if denoiser is None else denoiser.batch
    return Networks(text, made[_DECODER], encoder, rows, profile, lanes, tuple(made.values()), stack)


def _lanes(
    folder: ModelFolder, devices: Devices, options: GpuOptions, stack: contextlib.ExitStack
) -> tuple[CudaLanes, Callable[[str], Beside]]:
    """The lanes; and what places a network beside them, which is loaded where it is needed."""
    from ._driver import Device
    from .cuda import CudaLanes, Engine
    from .gpu_beside import Beside
    from .gpu_network import GpuNetwork
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

    def beside(name: str) -> Beside:
        choices = [(device, partial(network, name, gpu)) for gpu, device in there.items()]
        made = stack.enter_context(Beside(name, choices))
        made.make_room = lanes.make_room
        return made

    return lanes, beside


def _profile(folder: ModelFolder, network: str, gpu: Gpu) -> Profile | None:
    plan, _ = choose_plan(folder, network, gpu)
    return None if plan.key is None else plan.key.profile
