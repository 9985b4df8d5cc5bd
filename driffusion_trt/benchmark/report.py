"""A run as JSON, whose form docs/benchmarking.md describes, and as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .. import __version__
from .._machine import circumstances
from .drift import summary
from .figures import percentiles, with_interval
from .measuring import Job, Measured, Run
from .stages import STAGES

__all__ = ["FORMAT", "KIND", "as_csv", "at", "document"]

KIND, FORMAT = "driffusion-trt bench", 1
_RESIDENT = "process_peak_resident_bytes"
_PLANNED = ("mode", "lanes", "split_guidance", "rounds", "blocks", "tolerance", "order", "carry")
_PACKAGES = ("numpy", "onnxruntime", "tensorrt", "tensorrt-rtx", "cuda-bindings", "scikit-image", "torch")


def document(job: Job, run: Run, notes: Sequence[str]) -> dict[str, Any]:
    """Everything that was measured, and what makes it comparable. Needs one repetition at least."""
    sequential = run.cells[0]
    manifest = job.folder.manifest
    _, height, width = job.folder.shape("picture")
    plan = sequential.plan
    assert plan is not None
    own = {
        "steps": plan.steps,
        "scheduler": plan.schedule.solver,
        "guidance_scale": job.folder.spec.guidance_scale,
        "height": height,
        "width": width,
    }
    return {
        "kind": KIND,
        "format": FORMAT,
        "version": __version__,
        **circumstances(Path(__file__).parent, _PACKAGES),
        "model": {
            "family": manifest.family,
            "model_hash": job.folder.model_hash,
            "precision": manifest.precision,
        },
        "settings": {
            **own,
            **{name: value for name, value in job.settings.items() if value is not None},
            "seed": job.seed,
            "batch_size": job.batch,
            "prompts": list(job.prompts),
            "devices": run.where,
        },
        "iterations": job.iterations,
        "repetitions": run.repetitions,
        "complete": run.complete,
        "notes": [*notes, *run.notes],
        "cells": [_cell(one, sequential) for one in run.cells],
    }


def _cell(one: Measured, sequential: Measured) -> dict[str, Any]:
    assert one.plan is not None
    ratios = [slow / fast for slow, fast in zip(sequential.latency_ms, one.latency_ms, strict=True)]
    denoise = [item.denoise_ms for item in one.splits]
    loops = [
        slow.denoise_ms / fast.denoise_ms for slow, fast in zip(sequential.splits, one.splits, strict=True)
    ]
    return {
        "name": one.cell.name,
        "mode": one.cell.spelt,
        "lanes": one.cell.lanes,
        "threads": one.cell.threads,
        "plan": {
            **{name: one.settings[name] for name in _PLANNED if name in one.settings},
            "ideal_speedup": one.plan.ideal_speedup,
        },
        "rounds": _range(one.rounds),
        "predictions": _range(one.predictions),
        "latency_ms": percentiles(one.latency_ms),
        "denoise_ms": percentiles(denoise),
        "stages_ms": {name: percentiles([item.stages[name] for item in one.splits]) for name in STAGES},
        "round_network_ms": percentiles([ms for item in one.splits for ms in item.rounds_ms]),
        "speedup": with_interval(ratios),
        "denoise_speedup": with_interval(loops),
        "drift": summary(one.drift),
        "memory": _memory(one, sequential),
        "raw": {
            "latency_ms": one.latency_ms,
            "denoise_ms": denoise,
            "speedup": ratios,
            "relative_l2": [item["relative_l2"] for item in one.drift],
        },
    }


def _range(values: Sequence[int]) -> dict[str, float]:
    return {"mean": float(np.mean(values)), "least": min(values), "most": max(values)}


def _memory(one: Measured, sequential: Measured) -> dict[str, Any] | None:
    """Bytes, and how many more they are than sequential's."""
    if one.memory is None:
        return None
    base = sequential.memory
    before = None if base is None else base["gpus"]
    gpus = {
        title: _over(found, None if before is None else before.get(title, dict.fromkeys(found, 0)))
        for title, found in one.memory["gpus"].items()  # a GPU that sequential does not use counts from 0
    }
    return {**_over({_RESIDENT: one.memory[_RESIDENT]}, base), "gpus": gpus}


def _over(found: Mapping[str, int | None], base: Mapping[str, Any] | None) -> dict[str, int | None]:
    """The figures, and what they are above those of `base`; None where either is not known."""
    more = {}
    for name, value in found.items():
        least = None if base is None else base[name]
        more[f"{name}_over_sequential"] = None if value is None or least is None else value - least
    return {**found, **more}


_FLAT = {  # of a cell, by the column of the CSV
    "rounds": ("rounds", "mean"),
    "predictions": ("predictions", "mean"),
    **{f"latency_{p}_ms": ("latency_ms", p) for p in ("p50", "p90", "p99")},
    "denoise_p50_ms": ("denoise_ms", "p50"),
    **{f"{name}_p50_ms": ("stages_ms", name, "p50") for name in STAGES},
    "round_network_p50_ms": ("round_network_ms", "p50"),
    **{
        name if part == "median" else f"{name}_{part}": (name, part)
        for name in ("speedup", "denoise_speedup")
        for part in ("median", "low", "high")
    },
    **{
        f"{name}_{part}": ("drift", name, part)
        for name in ("relative_l2", "psnr_db", "ssim", "lpips")
        for part in ("mean", "worst")
    },
    "process_peak_resident_bytes": ("memory", "process_peak_resident_bytes"),
    "process_peak_resident_bytes_over_sequential": (
        "memory",
        "process_peak_resident_bytes_over_sequential",
    ),
}


def as_csv(found: Mapping[str, Any]) -> str:
    """One row a cell, one column a figure; what is not there is empty. Of GPUs the sums over all of them."""
    out = io.StringIO()
    head = ("name", "mode", "lanes", "threads", *_FLAT, "gpu_buffers_peak_bytes", "gpu_in_use_bytes")
    writer = csv.DictWriter(out, head, lineterminator="\n")
    writer.writeheader()
    for cell in found["cells"]:
        row = {name: cell[name] for name in ("name", "mode", "lanes", "threads")}
        row |= {name: at(cell, path) for name, path in _FLAT.items()}
        gpus = (at(cell, ("memory", "gpus")) or {}).values()
        for name in ("buffers_peak_bytes", "in_use_bytes"):
            row[f"gpu_{name}"] = sum(one[name] for one in gpus) if gpus else None
        writer.writerow(row)
    return out.getvalue()


def at(value: Any, path: Iterable[str]) -> Any:
    """What is found along the names; None where one of them is not there."""
    for name in path:
        value = None if value is None else value.get(name)
    return value
