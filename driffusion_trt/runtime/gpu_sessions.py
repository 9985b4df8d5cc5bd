"""Plans loaded onto GPUs, and how they are given back: where a device hangs, TensorRT would wait for ever."""

from __future__ import annotations

import contextlib

from .._errors import DeviceError
from ..engines.gpus import Gpu
from ..engines.manifest import ModelFolder
from ..engines.store import PlanStore
from ..engines.trt_session import TensorRTSession
from ._driver import Device
from .devices import choose_plan

__all__ = ["close_session", "keep_for_ever", "load_session"]

_never_freed: list[object] = []


def load_session(folder: ModelFolder, network: str, gpu: Gpu, device: Device) -> TensorRTSession:
    """A network of a model folder on a device; close it with `close_session`.

    Raises:
        ModelError: the folder has no plan for this GPU, or it is altered.
        EngineError: TensorRT refused it.
        MissingExtraError: no TensorRT is installed.
    """
    plan, flavour = choose_plan(folder, network, gpu)
    # TensorRT-RTX's finished kernels, one file for each kind of GPU.
    cache = plan.path.with_name(f"{plan.path.stem}.{gpu.target}.jit")
    device.make_current(again=True)
    with PlanStore(folder.path).open(plan) as data:
        return TensorRTSession(data, flavour, name=network, jit_cache=cache)


def close_session(device: Device, session: TensorRTSession) -> None:
    """Give a session back, but where the device hangs: there it stays for as long as the process does."""
    if device.lost:
        keep_for_ever(session)
        return
    with contextlib.suppress(DeviceError):  # a broken device takes nothing back, and does not wait
        device.make_current(again=True)
    session.close()


def keep_for_ever(thing: object) -> None:
    """Keep what belongs to TensorRT on a device that hangs: taking it down would wait for the device."""
    _never_freed.append(thing)
