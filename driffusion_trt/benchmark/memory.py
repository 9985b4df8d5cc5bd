"""Peak memory of a cell in a process of its own, where no other cell has left anything.

`python -m driffusion_trt.benchmark.memory` is that process: it reads what to make from stdin, makes one call
and prints what it took, both as JSON.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .._child import module_process
from .._errors import DriffusionError
from ..engines.manifest import ModelFolder
from ..pipeline import Pipeline
from ..runtime.devices import choose_devices
from ..runtime.networks import GpuOptions

__all__ = ["Peaks", "in_own_process", "peaks"]

Peaks = dict[str, Any]
_STATUS = Path("/proc/self/status")


def in_own_process(asked: Mapping[str, Any]) -> Peaks:
    """`peaks` of `asked`, its arguments by name, in a fresh interpreter.

    Raises DriffusionError with the last line that it said where it failed.
    """
    command, path = module_process(f"{__package__}.memory")
    env = {**os.environ, **path}
    done = subprocess.run(command, input=json.dumps(asked), capture_output=True, text=True, env=env)
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise DriffusionError(f"a process of its own could not make the picture: {said[-1]}")
    found: Peaks = json.loads(done.stdout.splitlines()[-1])
    return found


def peaks(
    model: str, devices: list[str], options: Mapping[str, Any], prompt: str, settings: Mapping[str, Any]
) -> Peaks:
    """Load the model on these devices, make one call, and see what was held at most.

    options: of `GpuOptions`.

    Returns:
        process_peak_resident_bytes: of all this process did, weights, Python and libraries included; None
            where the system does not tell.
        gpus: by title, {} on CPU lanes. buffers_peak_bytes is the most that our own buffers took in the call,
            without weights and without what TensorRT and the driver allocate themselves; in_use_bytes is all
            that is not free after the call (cuMemGetInfo), whoever has it.

    Raises as loading and calls do.
    """
    folder = ModelFolder.open(model)
    with Pipeline(folder, choose_devices(devices, folder), GpuOptions(**options)) as pipe:
        # What was needed to try copies between the devices has been given back by now.
        devices_used = dict.fromkeys(one.device for one in getattr(pipe._stages.lanes, "workers", ()))
        for device in devices_used:
            device.reset_peak()
        pipe(prompt, **settings)
        gpus = {}
        for device in devices_used:
            free, total = device.memory_bytes()
            gpus[device.title] = {"buffers_peak_bytes": device.peak_bytes, "in_use_bytes": total - free}
        return {"process_peak_resident_bytes": _peak_resident_bytes(), "gpus": gpus}


def _peak_resident_bytes() -> int | None:
    """Since this program began. What getrusage says on Linux includes the process that started this one."""
    if _STATUS.exists():
        lines = _STATUS.read_text("ascii", "replace").splitlines()
        found = [int(line.split()[1]) for line in lines if line.startswith("VmHWM:")]
        return 1024 * found[0] if found else None
    if sys.platform == "darwin":
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes there
    return None


if __name__ == "__main__":
    warnings.simplefilter("ignore")  # the command that asks says them
    print(json.dumps(peaks(**json.load(sys.stdin))))
