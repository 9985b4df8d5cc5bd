"""What a calibration of a tiny model may hold."""

from __future__ import annotations

from pathlib import Path

import tiny

from driffusion_trt.calibration import Entry, Growth, Spent, add_entries
from driffusion_trt.engines.manifest import ModelFolder
from driffusion_trt.planning.costs import Costs

# 20 steps of DDIM at guidance 3 on 4 lanes.
ENTRY = Entry(
    "ddim",
    20,
    3.0,
    4,
    32,
    "G",
    1,
    {6: (3, 4, 4, 4, 4)},
    {6: 0.02},
    {6: 0.03},
    {0.003: Spent(9.0, 9.0), 0.01: Spent(7.5, 8.0), 0.05: Spent(6.0, 6.0)},
    Growth(1.2, 0.5),
)


COSTS = Costs(4, (10.0, 19.0), 1.05, (0.1, 0.2), 0.1, 5.0)  # of four devices


def make_model_folder(path: Path) -> Path:
    """A tiny model folder whose calibration has `ENTRY`."""
    made = tiny.make_model_folder(path)
    add_entries(ModelFolder.open(made), [ENTRY])
    return made
