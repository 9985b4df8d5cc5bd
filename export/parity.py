"""Does ONNX Runtime compute what torch does? Random inputs at two shapes through both, network by network."""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort  # type: ignore[import-untyped]
import torch
from numpy.typing import NDArray
from onnxruntime.capi import onnxruntime_pybind11_state as _state  # type: ignore[import-untyped]

from .._errors import ModelError
from .._widen import widen
from .load import load_module, settle
from .lora_files import Lora
from .network import Network

__all__ = ["LIMITS", "check_parity", "relative_l2", "worst_of"]

Trial = Mapping[str, torch.Tensor]
Outputs = list[NDArray[np.float32]]

# Largest relative L2 against torch in float32. Seen on networks of two to 2,500 million parameters:
# 1e-6 to 3e-6 in float32, 6e-4 to 1.5e-3 in float16.
LIMITS = {"fp32": 1e-5, "fp16": 5e-3, "bf16": 5e-3}
_WHOLE_BYTES = (
    1 << 30
)  # up to here ONNX Runtime may rewrite the graph, which costs a second copy of the weights
_RUN_ERRORS = (
    _state.Fail,
    _state.InvalidArgument,
    _state.InvalidGraph,
    _state.NotImplemented,
    _state.RuntimeException,
)


def relative_l2(got: NDArray[Any], wanted: NDArray[Any]) -> float:
    """|got − wanted| / |wanted|, in float64; NaN where either has numbers that are not finite."""
    if got.shape != wanted.shape:
        raise ValueError(f"{got.shape} is compared with {wanted.shape}")
    if not (np.isfinite(got).all() and np.isfinite(wanted).all()):
        return float("nan")
    difference = got.astype(np.float64) - wanted
    return float(np.linalg.norm(difference) / np.linalg.norm(wanted.astype(np.float64)))


def worst_of(figures: Sequence[float]) -> float:
    """The largest; NaN if there is one among them, which Python's `max` may pass over."""
    return float(np.max(figures))


def check_parity(network: Network, path: Path, precision: str, loras: Sequence[Lora]) -> float:
    """The largest relative L2 of a network's outputs, ONNX Runtime against torch in float32.

    A batch of two squares and one flat picture are tried. ONNX Runtime computes bfloat16 on no
    CPU: there the graph is tried in float32, and both sides have the weights that bfloat16 leaves.

    Raises:
        ModelError: it is above the limit of `precision`, or ONNX Runtime cannot run the file.
    """
    trials = [network.random_inputs(network.sizes(small), seed) for seed, small in enumerate((False, True))]
    wanted = _reference(network, trials, loras, torch.bfloat16 if precision == "bf16" else torch.float32)
    gc.collect()
    with tempfile.TemporaryDirectory(
        prefix=f".{network.name}.", suffix=".partial", dir=path.parent
    ) as folder:
        got = _run(widen(path, Path(folder)) if precision == "bf16" else path, trials)
    figures = [
        worst_of([relative_l2(a, b) for a, b in zip(ours, theirs, strict=True)])
        for ours, theirs in zip(got, wanted, strict=True)
    ]
    limit = LIMITS[precision]
    if not all(figure <= limit for figure in figures):
        remedy = (
            "build it in bf16 or fp32" if precision == "fp16" else "try the pinned versions of torch and onnx"
        )
        raise ModelError(
            f"{network.name} in {precision} differs from torch by {figures[0]:.1e} and {figures[1]:.1e} "
            f"(relative L2 at two shapes), above the limit of {limit:.0e}; {remedy}"
        )
    return max(figures)


def _reference(
    network: Network, trials: Sequence[Trial], loras: Sequence[Lora], weights: torch.dtype
) -> list[Outputs]:
    module = settle(load_module(network.component, weights, loras), torch.float32)
    module = network.wrap(module, torch.float32).eval()
    outputs = []
    with torch.no_grad():
        for inputs in trials:
            out = module(**inputs)
            outputs.append([value.numpy() for value in (out if isinstance(out, tuple) else (out,))])
    return outputs


def _run(path: Path, trials: Sequence[Trial]) -> list[Outputs]:
    options = ort.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 4  # what fails is raised
    if sum(file.stat().st_size for file in path.parent.glob(f"{path.name}*")) > _WHOLE_BYTES:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.add_session_config_entry("session.disable_prepacking", "1")
    try:
        session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        return [session.run(None, {k: v.numpy() for k, v in inputs.items()}) for inputs in trials]
    except _RUN_ERRORS as error:
        raise ModelError(f"{path} cannot be run by ONNX Runtime {ort.__version__} ({error})") from error
