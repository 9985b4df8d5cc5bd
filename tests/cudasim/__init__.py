"""A simulated CUDA driver for tests: device memory, streams, events, graphs, peers, faults and races.

`cuda.bindings.driver` loads "libcuda.so.1" at its first call, so the simulator has to be in the process
before that: `load()` puts it there. It can not be taken out again, and `find_gpus()` and others that load
"libcuda.so.1" then find it too. Therefore it has no devices unless a test gives it some: `cuInit` then says
that there is no CUDA-capable device, as the real driver does on a machine without one, and no other test of
the process sees a GPU. Processes that a test starts do not see it at all.

    with cudasim.Simulator(devices=2) as simulator:
        ...  # anything on cuda.bindings.driver
        assert simulator.races() == [] and simulator.violations() == []

README.md says what is simulated and what a green test here cannot show.
"""

from __future__ import annotations

from ._build import BuildError, MissingToolError, build, kernel_image, load
from ._simulator import Device, Simulator

__all__ = ["BuildError", "Device", "MissingToolError", "Simulator", "build", "kernel_image", "load"]
