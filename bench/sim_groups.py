"""Groups of simulated devices at work at the same time: whether they race, and what a further group takes."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from driffusion_trt.runtime.cuda import CudaLanes
from driffusion_trt.runtime.gpu_beside import Beside

from . import report
from .sim_lanes import SMALL, Bench, Model, picture

__all__ = ["GROUPS_OF", "group_memory", "group_runs", "group_table"]

_DEVICES, _ROUNDS = 4, 3
GROUPS_OF = (1, 2)  # devices
_TURNS = ((2, 2, None), (1, 1, 2), (1, None, 1), (3, 1, 2))  # devices of what three threads make, in turns


def group_runs(bench: Bench, seeds: Sequence[int]) -> int:
    """Pictures in groups, from three threads with random delays; returns how many.

    Each is encoded and decoded on the lead of its group. What one thread has waited for orders nothing that
    another one does; only leases do, and the lock of each network beside the lanes.
    """
    made = 0
    for seed in seeds:
        for options in ({}, {"peer_copies": False}, {"graphs": False}):
            with (
                bench.machine(_DEVICES, delays=seed, delay_us=300, threads_apart=True) as simulator,
                bench.lanes(SMALL, _DEVICES, **options) as lanes,
                bench.beside(SMALL, lanes) as network,
                ThreadPoolExecutor(3) as threads,
            ):
                mode = "conservative" if seed % 2 else "aggressive"
                asked = [(devices, mode) for turn in _TURNS for devices in turn]
                made += len([*threads.map(lambda one: _whole(lanes, network, *one), asked)])
                assert simulator.unknown_calls() == {}
    return made


def _whole(lanes: CudaLanes, network: Beside, devices: int | None, mode: str) -> None:
    """A picture with what comes before and after it, as the pipeline has them."""
    shapes = {SMALL.latents: SMALL.shape, "timestep": (), **SMALL.inputs}
    given = {name: np.ones((1, *shape), np.float32) for name, shape in shapes.items()}
    with contextlib.nullcontext() if devices is None else lanes.led(devices):
        network.run(given)
        picture(SMALL, lanes, _ROUNDS, mode, devices)()
        network.run(given)


def group_memory(bench: Bench, model: Model, devices: int, seed: int = 1) -> dict[str, Any]:
    """Bytes that a group's first picture takes where all devices have made one together before.

    lead_bytes: on its first device. elsewhere_bytes: on all others together.
    """
    with (
        bench.machine(_DEVICES, delays=seed, delay_us=100) as simulator,
        bench.lanes(model, _DEVICES) as lanes,
    ):
        picture(model, lanes, _ROUNDS)()
        before = simulator.memory_bytes()
        picture(model, lanes, _ROUNDS, devices=devices)()
        after = simulator.memory_bytes()
    grown = {name: after[name] - before[name] for name in after}
    lead = f"device {_DEVICES - devices}"  # leases begin with the last devices
    return {
        "model": model.name,
        "devices": devices,
        "lead_bytes": grown[lead],
        "pinned_bytes": grown["pinned"],
        "elsewhere_bytes": sum(grown[f"device {k}"] for k in range(_DEVICES)) - grown[lead],
    }


def group_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The figures of `group_memory` as Markdown."""
    names = ("lead_bytes", "elsewhere_bytes", "pinned_bytes")
    return report.table(
        ["a further group, MB", "devices", "lead", "other devices", "pinned"],
        [[row["model"], str(row["devices"]), *(f"{row[name] / 1e6:.2f}" for name in names)] for row in rows],
    )
