"""Pictures of every mode on so many devices: what they are expected to take, and what they take.

For `bench.performance` on CPU lanes and `bench.gpu` on GPUs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

import driffusion_trt as dt
from driffusion_trt._expected import Expectations
from driffusion_trt._request import Request
from driffusion_trt.planning.latency import Work, latency_ms, terms_ms
from driffusion_trt.planning.machine import Machine
from driffusion_trt.sampling.noise import noise_streams

from . import report

MODES = ("aggressive", "conservative", "window", "tolerance")
PROMPT = "a red fox left of a blue star on a yellow background"


@dataclass(frozen=True, slots=True)
class Cell:
    """A mode on so many devices: one a lane, or two where guidance is split."""

    mode: str
    devices: int
    split: bool = False

    @property
    def lanes(self) -> int:
        if self.mode == "sequential":
            return 1
        return self.devices // 2 if self.split else self.devices

    @property
    def name(self) -> str:
        words = f"{self.mode}, {self.devices} device{'s' if self.devices > 1 else ''}"
        return f"{words}, split guidance" if self.split else words

    def settings(self) -> dict[str, Any]:
        """The arguments of `Pipeline.__call__` that make it."""
        return {"mode": self.mode, "lanes": self.lanes, "split_guidance": self.split}


def cells(devices: Sequence[int], *, guided: bool, modes: Sequence[str] = MODES) -> list[Cell]:
    """Sequential on one device, and all that can be on so many."""
    found = [Cell("sequential", 1)]
    for count in devices:
        if count > 1:
            found += [Cell(mode, count) for mode in modes]
            found += [Cell("sequential", count, True)] if guided and count == 2 else []
            found += [Cell(mode, count, True) for mode in modes if guided and count % 2 == 0 and count > 2]
    return found


@dataclass(frozen=True, slots=True)
class Took:
    """One picture: milliseconds of all and of the denoising loop alone, rounds, and latents (1, C, h, w)."""

    total_ms: float
    loop_ms: float
    rounds: int
    latents: NDArray[np.float32] = field(repr=False)


def request_of(pipe: dt.Pipeline, call: Mapping[str, Any]) -> Request:
    """The checked request of a call of a picture of the model's own size."""
    settings = {name: value for name, value in call.items() if name not in ("prompt", "steps", "seed")}
    _, height, width = pipe.folder.shape("picture")
    return Request.check(pipe.spec, (height, width), call["prompt"], settings)


def beside_ms(pipe: dt.Pipeline, request: Request) -> tuple[float, float]:
    """Prompt, noise and job; and the decoder with the conversion to a picture."""
    stages = pipe._stages
    shape = stages._shape(request)
    marks = [perf_counter()]
    noise_streams(0, 1).draw(shape)
    stages._job(request)
    marks.append(perf_counter())
    stages._decode(np.zeros((1, *shape), np.float32), stages._tile(request))
    marks.append(perf_counter())
    encode, decode = np.diff(marks)
    return 1e3 * float(encode), 1e3 * float(decode)


def host_pair(one_us: float, two_us: float) -> tuple[float, float]:
    """a, b of a + b·devices from the host's work for one and for two: least squares, both at least 0."""
    a, b = 2 * one_us - two_us, two_us - one_us
    if b < 0:
        return (one_us + two_us) / 2, 0.0
    return (a, b) if a >= 0 else (0.0, (one_us + 2 * two_us) / 5)


def make(pipe: dt.Pipeline, cell: Cell, call: Mapping[str, Any]) -> Took:
    """call: the other arguments of `Pipeline.__call__`, its prompt included."""
    result = pipe(**{**call, **cell.settings()})
    return Took(result.timings.total_ms, result.timings.denoise_ms, result.stats.rounds, result.latents)


@dataclass(frozen=True, slots=True)
class Foreseen:
    """What a picture is expected to take, from figures that it had no part in."""

    total_ms: float
    loop_ms: float
    rounds: float
    terms_ms: dict[str, float]


def foresee(machine: Machine, pipe: dt.Pipeline, cell: Cell, call: Mapping[str, Any]) -> Foreseen:
    """From the plan that the call runs; the rounds of a tolerance are those of the model's calibration."""
    settings = {**call, **cell.settings()}
    plan = pipe.plan(**settings)
    scale = settings.get("guidance_scale")
    scale = pipe.spec.guidance_scale if scale is None else float(scale)
    rounds = Expectations(pipe.folder).of(plan.schedule, scale).of_plan(plan)
    work, costs = Work.of(plan, rounds), machine.costs(cell.devices)
    total = latency_ms(costs, work, guided=scale > 1, split=cell.split)
    terms = terms_ms(costs, work, guided=scale > 1, split=cell.split)
    return Foreseen(total, total - terms["beside"], work.count, terms)


def compared(
    foreseen: Mapping[Cell, Foreseen], took: Mapping[Cell, Sequence[Took]]
) -> Iterator[dict[str, Any]]:
    """A row a cell: medians and quartiles of what was measured, and of predicted over measured."""
    sequential = next(iter(took))
    for cell, runs in took.items():
        ahead = foreseen[cell]
        yield {
            "cell": cell.name,
            "mode": cell.mode,
            "devices": cell.devices,
            "split_guidance": cell.split,
            "predicted_ms": ahead.total_ms,
            "predicted_loop_ms": ahead.loop_ms,
            "terms_ms": ahead.terms_ms,
            "measured_ms": report.spread([one.total_ms for one in runs]),
            "measured_loop_ms": report.spread([one.loop_ms for one in runs]),
            "rounds": {"expected": ahead.rounds, **report.spread([one.rounds for one in runs])},
            "speedup": report.spread(
                [alone.total_ms / one.total_ms for alone, one in zip(took[sequential], runs, strict=True)]
            ),
            "predicted_speedup": foreseen[sequential].total_ms / ahead.total_ms,
        }


def table(rows: Sequence[Mapping[str, Any]], ratios: Mapping[str, str]) -> str:
    """ratios: titles of columns by the names of spreads in the rows. What was not foreseen is "-"."""
    head = [
        "cell",
        "rounds",
        "predicted, ms",
        "measured, ms",
        "speed-up predicted",
        "measured",
        *ratios.values(),
    ]
    return report.table(
        head,
        [
            [
                row["cell"],
                f"{row['rounds']['median']:.3g}",
                _number(row["predicted_ms"], ".1f"),
                report.words(row["measured_ms"], ".1f"),
                _number(row["predicted_speedup"], ".2f"),
                report.words(row["speedup"], ".2f"),
                *(report.words(row[name], ".3f") for name in ratios),
            ]
            for row in rows
        ],
    )


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else f"{value:{form}}"
