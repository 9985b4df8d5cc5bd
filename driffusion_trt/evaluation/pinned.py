"""What pictures are made with, apart from settings: the model's files, the devices' kind and plans."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from .._errors import DriffusionError
from .._manifest import CALIBRATION, sha256
from ..engines.gpus import Gpu
from ..engines.manifest import ModelFolder
from ..runtime.devices import Devices, choose_plan

__all__ = ["devices_facts", "model_facts"]


def model_facts(folder: ModelFolder) -> dict[str, Any]:
    """The family, and hashes of all that its pictures depend on: text encoders, VAE and scheduler too."""
    manifest = folder.manifest
    facts = {
        "files": {name: entry.sha256 for name, entry in manifest.files.items()},
        "shapes": manifest.shapes,
        "factors": [manifest.scaling_factor, manifest.shift_factor],
        "options": manifest.options,
    }
    found: dict[str, Any] = {
        "model": manifest.family,
        "model_hash": folder.model_hash,
        "model_sha256": hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest(),
    }
    calibration = folder.path / CALIBRATION  # plans are made by it, and the manifest does not list it
    return {**found, "calibration_sha256": sha256(calibration)} if calibration.is_file() else found


def devices_facts(folder: ModelFolder, devices: Devices) -> dict[str, Any]:
    """The kind of the devices, and the keys of the plans that they run; how many there are is left open.

    A network without a plan has no key: whether it is needed is said when it is loaded.
    """
    if not devices.gpus:
        return {"device": "CPU"}
    kinds = {str(gpu): gpu for gpu in devices.gpus}
    keys = {
        kind: {name: key for name in folder.networks if (key := _key(folder, name, gpu))}
        for kind, gpu in sorted(kinds.items())
    }
    return {"device": ", ".join(keys), "plans": keys}


def _key(folder: ModelFolder, network: str, gpu: Gpu) -> str:
    try:
        plan, _ = choose_plan(folder, network, gpu)
    except DriffusionError:
        return ""
    return "" if plan.key is None else plan.key.digest
