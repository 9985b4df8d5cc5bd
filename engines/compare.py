"""A finished plan on its GPU against ONNX Runtime on the CPU, by polygraphy's comparator; runs in a child."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._errors import EngineError, MissingExtraError, ModelError
from .._widen import widen
from ._trt import Messages, make_logger
from .flavours import get_flavour, load_tensorrt
from .onnx_session import ORT_ERRORS
from .profiles import Range, fill_shapes

__all__ = ["compare_plan", "limit_of", "random_inputs", "worst_difference"]

Array = NDArray[Any]

# Relative L2. Both sides round on their own, each about as far from torch as an export may be (half of this);
# TensorRT's convolutions in float32 also transform, which costs them a digit.
_LIMITS = {"fp32": 1e-4, "fp16": 1e-2, "bf16": 5e-2}
_IDS = 16  # token ids are drawn below this, so that every vocabulary has them
_DTYPES = {"float": np.float32, "half": np.float16, "int32": np.int32, "int64": np.int64}


def limit_of(precision: str) -> float:
    """The largest relative L2 that a plan of this precision (as the manifest has it) may show."""
    return _LIMITS.get(precision.partition(",")[0], _LIMITS["fp16"])


def random_inputs(
    inputs: Mapping[str, Sequence[str | int]], sides: Mapping[str, Range], seed: int, which: int
) -> dict[str, Array]:
    """Inputs such as occur in use, at the least (0), best (1) or greatest (2) sizes of a profile.

    Args:
        inputs: [dtype, side, side, ...] by name, as `build_plan` returns them.
    """
    random = np.random.default_rng(seed)
    made = {}
    shapes = fill_shapes({name: form[1:] for name, form in inputs.items()}, sides)
    for name, form in inputs.items():
        shape, dtype = shapes[name][which], _DTYPES[str(form[0])]
        if np.issubdtype(dtype, np.integer):
            value: Array = random.integers(0, _IDS, shape)
        elif name == "timestep":
            value = random.uniform(1, 999, shape)
        elif name == "time_ids":
            value = random.integers(0, 1024, shape)
        else:
            value = random.standard_normal(shape)
        made[name] = np.ascontiguousarray(value.astype(dtype))
    return made


def worst_difference(got: Mapping[str, Array], wanted: Mapping[str, Array]) -> float:
    """The largest relative L2 over the outputs; infinite where one is missing, odd in shape or not finite.

    That holds for both sides: where the reference overflows too, nothing was compared.
    """
    worst = 0.0
    for name, reference in wanted.items():
        if name not in got or got[name].shape != reference.shape:
            return float("inf")
        if not (np.isfinite(got[name]).all() and np.isfinite(reference).all()):
            return float("inf")
        exact = reference.astype(np.float64)
        difference, size = (float(np.linalg.norm(one)) for one in (got[name] - exact, exact))
        if difference:
            worst = max(worst, difference / size if size else float("inf"))
    return worst


@contextlib.contextmanager
def _for_onnxruntime(onnx: Path, precision: str) -> Iterator[Path]:
    """The file itself, or one of the same values that ONNX Runtime can multiply with on a CPU."""
    if not precision.startswith("bf16"):
        yield onnx
        return
    with tempfile.TemporaryDirectory(dir=onnx.parent, prefix=".widened-") as folder:
        try:
            widened = widen(onnx, Path(folder))
        except ImportError as error:
            raise MissingExtraError("onnx-ir", "tensorrt", command="pip install onnx-ir") from error
        yield widened


def compare_plan(
    *,
    network: str,
    onnx: str,
    plan: str,
    flavour: str,
    precision: str,
    sides: Mapping[str, Sequence[int]],
    inputs: Mapping[str, Sequence[str | int]],
    report: Callable[..., None],
) -> float:
    """The largest relative L2 of the plan's outputs against ONNX Runtime's, at the best and the least sizes.

    Args:
        flavour: of the TensorRT that the plan is of.

    Raises:
        EngineError: ONNX Runtime, polygraphy or TensorRT could not run it; the message has their words.
        MissingExtraError: polygraphy is not installed.
        ModelError: the difference is above the limit of `precision`.
    """
    try:
        from polygraphy.backend.onnxrt import OnnxrtRunner, SessionFromOnnx
        from polygraphy.backend.trt import EngineFromBytes, TrtRunner
        from polygraphy.comparator import Comparator
        from polygraphy.exception import PolygraphyException
    except ImportError as error:
        raise MissingExtraError("polygraphy", "tensorrt", command="pip install polygraphy") from error
    ranges = {name: Range(*sizes) for name, sizes in sides.items()}
    feeds = [random_inputs(inputs, ranges, seed, which) for seed, which in enumerate((1, 0))]
    messages = Messages()
    try:
        with _for_onnxruntime(Path(onnx), precision) as widened:
            trt = load_tensorrt(get_flavour(flavour))
            logger = make_logger(trt, messages)
            runtime = trt.Runtime(logger)
            runners = [
                OnnxrtRunner(SessionFromOnnx(str(widened), providers=["cpu"]), name="onnx"),
                TrtRunner(EngineFromBytes(Path(plan).read_bytes(), runtime=runtime), name="plan"),
            ]
            results = dict(Comparator.run(runners, data_loader=feeds))
    except (PolygraphyException, *ORT_ERRORS) as error:
        said = f"; {flavour}: {messages.words()}" if messages.errors else ""
        raise EngineError(f"the plan of {network} could not be run for its check: {error}{said}") from error
    figures = [
        worst_difference(
            {k: np.asarray(v) for k, v in got.items()}, {k: np.asarray(v) for k, v in ort.items()}
        )
        for got, ort in zip(results["plan"], results["onnx"], strict=True)
    ]
    limit = limit_of(precision)
    if not all(figure <= limit for figure in figures):
        raise ModelError(
            f"the plan of {network} differs from ONNX Runtime by {figures[0]:.1e} and {figures[1]:.1e} "
            f"(relative L2 at its best and least sizes), above the limit of {limit:.0e}"
            f"{_strange(results)}; try --precision bf16 or fp32, or --no-verify to keep it"
        )
    return max(figures)


def _strange(results: Mapping[str, Sequence[Mapping[str, Array]]]) -> str:
    """Whose numbers are not finite, and of which outputs: both are told, since both may be the cause."""
    found = {
        side: sorted({k for run in results[side] for k, v in run.items() if not np.isfinite(v).all()})
        for side in ("plan", "onnx")
    }
    words = [
        f"{who} gave numbers that are not finite in {', '.join(found[side])}"
        for side, who in (("plan", "the plan"), ("onnx", "ONNX Runtime"))
        if found[side]
    ]
    return f" ({' and '.join(words)})" if words else ""
