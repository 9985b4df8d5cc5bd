"""Costs that were measured before on this machine, in its cache folder."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import onnxruntime as ort  # type: ignore[import-untyped]

from ._cache import cache_folder, keep
from ._errors import DriffusionError, InputError
from ._machine import processor
from .engines.key import onnx_hash
from .engines.manifest import ModelFolder
from .planning.costs import Costs
from .runtime.devices import Devices, choose_plan
from .runtime.networks import GpuOptions

__all__ = ["KeptCosts"]

_FORMAT = 4
Size = tuple[int, int]


class KeptCosts:
    """Of one model on some devices, by the size of pictures in pixels, height first.

    What else they depend on is in their key: the engines' plans, or the processor and ONNX Runtime.
    """

    def __init__(self, folder: ModelFolder, devices: Devices, options: GpuOptions) -> None:
        engines = [_plan(folder, gpu) for gpu in devices.gpus] or [processor(), ort.__version__]
        self._what = {
            "format": _FORMAT,
            "denoiser": onnx_hash(folder, "denoiser"),
            "devices": str(devices),
            "engines": engines,
            "graphs": options.cuda_graphs,
            "peer_copies": options.peer_copies,
            "threads_per_lane": options.threads_per_lane,
        }

    def read(self, size: Size) -> Costs | None:
        """None where they were not measured, or what is kept is damaged."""
        path = self.path(size)
        try:
            stored: Any = None if path is None else json.loads(path.read_text("utf-8"))
            return None if stored is None else Costs.from_json(stored["costs"])
        except (OSError, ValueError, KeyError, TypeError, InputError):
            return None

    def write(self, size: Size, costs: Costs) -> None:
        """Nothing is kept where the folder cannot be written to."""
        stored = {**self._what, "picture": list(size), "costs": costs.to_json()}
        keep(self.path(size), json.dumps(stored, indent=1).encode())

    def path(self, size: Size) -> Path | None:
        """Another model, other devices or another size have another file; None without a home folder."""
        words = json.dumps([self._what, list(size)], sort_keys=True)
        folder = cache_folder("costs")
        return None if folder is None else folder / f"{hashlib.sha256(words.encode()).hexdigest()[:32]}.json"


def _plan(folder: ModelFolder, gpu: Any) -> str:
    try:
        plan, flavour = choose_plan(folder, "denoiser", gpu)
    except DriffusionError:  # said when it is loaded
        return ""
    return f"{flavour.name} {plan.key}"
