"""What a calibration of a tiny model may hold."""

from __future__ import annotations

from driffusion_trt.calibration import Entry, Growth, Spent

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
