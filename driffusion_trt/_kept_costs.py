"""Costs that were measured before on this machine, in its cache folder."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from ._cache import cache_folder, keep
from ._errors import InputError
from .engines.key import onnx_hash
from .engines.manifest import ModelFolder
from .planning.costs import Costs
from .runtime.devices import Devices
from .runtime.networks import GpuOptions

__all__ = ["KeptCosts"]

_FORMAT = 1
Size = tuple[int, int]


class KeptCosts:
    """Of one model on some devices, by the size of pictures in pixels, height first."""

    def __init__(self, folder: ModelFolder, devices: Devices, options: GpuOptions) -> None:
        self._what = {
            "format": _FORMAT,
            "denoiser": onnx_hash(folder, "denoiser"),
            "devices": str(devices),
            "graphs": options.cuda_graphs,
            "peer_copies": options.peer_copies,
        }

    def read(self, size: Size) -> Costs | None:
        """None where they were not measured, or what is kept is damaged."""
        try:
            stored: Any = json.loads(self.path(size).read_text("utf-8"))
            return Costs.from_json(stored["costs"])
        except (OSError, ValueError, KeyError, TypeError, InputError):
            return None

    def write(self, size: Size, costs: Costs) -> None:
        """Nothing is kept where the folder cannot be written to."""
        stored = {**self._what, "picture": list(size), "costs": costs.to_json()}
        keep(self.path(size), json.dumps(stored, indent=1).encode())

    def path(self, size: Size) -> Path:
        """Another model, other devices or another size have another file."""
        words = json.dumps([self._what, list(size)], sort_keys=True)
        return cache_folder("costs") / f"{hashlib.sha256(words.encode()).hexdigest()[:32]}.json"
