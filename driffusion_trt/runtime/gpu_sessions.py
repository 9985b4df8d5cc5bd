"""Plans loaded onto GPUs, and how they are given back: where a device hangs, TensorRT would wait for ever."""

from __future__ import annotations

import contextlib

from .._cache import cache_folder
from .._errors import DeviceError
from ..engines.gpus import Gpu
from ..engines.manifest import ModelFolder
from ..engines.store import PlanStore
from ..engines.trt_session import BoundEngine, TensorRTSession
from ._driver import Device
from .devices import choose_plan

__all__ = ["close_session", "let_go", "load_session"]

_never_freed: list[object] = []


def load_session(folder: ModelFolder, network: str, gpu: Gpu, device: Device) -> TensorRTSession:
    """A network of a model folder on a device; close it with `close_session`.

    Raises:
        ModelError: the folder has no plan for this GPU, or it is altered.
        EngineError: TensorRT refused it.
        MissingExtraError: no TensorRT is installed.
    """
    plan, flavour = choose_plan(folder, network, gpu)
    # TensorRT-RTX's finished kernels, for each plan and kind of GPU. The model's folder may be read-only.
    kept = cache_folder("kernels")
    cache = None if kept is None else kept / f"{plan.sha256[:32]}.{gpu.target}.jit"
    device.make_current(again=True)
    with PlanStore(folder.path).open(plan) as data:
        return TensorRTSession(data, flavour, name=network, jit_cache=cache)


def close_session(device: Device, session: TensorRTSession) -> None:
    """Give a session back, but where the device hangs: there it stays for as long as the process does.

    So it does where the device waits for one that hangs.
    """
    if device.lost or device.held_up:
        _never_freed.append(session)
        return
    with contextlib.suppress(DeviceError):  # a broken device takes nothing back, and does not wait
        device.make_current(again=True)
    session.save_kernels()
    session.close()


def let_go(device: Device, bound: BoundEngine | None) -> None:
    """Of a binding that is used no more: what is TensorRT's may be taken down once the caller forgets it.

    That would wait for a device that hangs: there it is kept for ever. Where the device waits for another
    one the next binding gets it.
    """
    if device.lost:
        _never_freed.append(bound)
    elif bound is not None and device.held_up:
        bound.hand_on()
