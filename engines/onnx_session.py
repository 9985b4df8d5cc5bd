"""ONNX Runtime sessions on the CPU: run by name, or bound to buffers that stay."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import numpy as np
import onnxruntime as ort  # type: ignore[import-untyped]
from numpy.typing import NDArray
from onnxruntime.capi import onnxruntime_pybind11_state as _state  # type: ignore[import-untyped]

from .._errors import InputError, ModelError, did_you_mean

__all__ = ["ORT_ERRORS", "BoundRun", "OnnxSession", "TensorInfo"]

Array = NDArray[Any]

# ONNX Runtime's errors share no base but Exception.
_LOAD_ERRORS = (
    _state.Fail,
    _state.InvalidArgument,
    _state.InvalidGraph,
    _state.InvalidProtobuf,
    _state.NoModel,
    _state.NoSuchFile,
    _state.NotImplemented,
    _state.RuntimeException,
)
# A bound run raises a plain RuntimeError where `run` raises one of the others.
_RUN_ERRORS = (
    _state.EPFail,
    _state.Fail,
    _state.InvalidArgument,
    _state.NotImplemented,
    _state.RuntimeException,
    RuntimeError,
)
ORT_ERRORS = (*_LOAD_ERRORS, *_RUN_ERRORS)
_DTYPES = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
    "tensor(int32)": np.int32,
    "tensor(int64)": np.int64,
    "tensor(bool)": np.bool_,
}


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One input or output of a network; a side that may vary has a name, or None."""

    dtype: np.dtype[Any]
    shape: tuple[int | str | None, ...]


class OnnxSession:
    """A network on the CPU.

    `run` and bound runs may be called from several threads at once: with one thread
    each call does its work on the caller's thread, so callers run side by side over
    one copy of the weights.
    """

    def __init__(self, path: str | os.PathLike[str], threads: int = 1) -> None:
        """Load an ONNX file.

        Args:
            path: the ONNX file.
            threads: threads that one call is spread over.

        Raises:
            InputError: `threads` is less than 1.
            ModelError: the file is missing, is no ONNX file, or cannot be run here.
        """
        if threads < 1:
            raise InputError(f"threads must be at least 1, not {threads}")
        self.path = os.fspath(path)
        try:
            session = ort.InferenceSession(self.path, _options(threads), providers=["CPUExecutionProvider"])
        except _LOAD_ERRORS as error:
            what = "cannot be loaded" if os.path.exists(self.path) else "does not exist"
            raise ModelError(
                f"{self.path} {what} (ONNX Runtime: {error}); check the model folder, or build it again"
            ) from error
        self._session: ort.InferenceSession | None = session
        self.inputs: dict[str, TensorInfo] = {arg.name: _info(self.path, arg) for arg in session.get_inputs()}
        self.outputs: dict[str, TensorInfo] = {
            arg.name: _info(self.path, arg) for arg in session.get_outputs()
        }

    def _open(self) -> ort.InferenceSession:
        if self._session is None:
            raise InputError(f"the session of {self.path} is closed; make a new one")
        return self._session

    def check(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
        """Check names and shapes of a call's inputs; returns the size of every named side.

        Raises:
            InputError: an input is missing, unknown or of the wrong shape.
        """
        for name in shapes:
            if name not in self.inputs:
                raise InputError(f"{self.path} has no input {name!r}{did_you_mean(name, self.inputs)}")
        sizes: dict[str, int] = {}
        for name, info in self.inputs.items():
            if name not in shapes:
                raise InputError(f"{self.path} needs the input {name!r} of shape {_text(info.shape)}")
            given = shapes[name]
            fits = len(given) == len(info.shape)
            for side, size in zip(info.shape, given, strict=False):
                expected = sizes.setdefault(side, size) if isinstance(side, str) else side
                fits = fits and expected in (size, None)
            if not fits:
                named = ", ".join(f"{side} {size}" for side, size in sizes.items())
                raise InputError(
                    f"input {name!r} of {self.path} has shape {_text(given)}, expected {_text(info.shape)}"
                    + (f" with {named}" if named else "")
                )
        return sizes

    def _check_dtype(self, name: str, value: Array) -> None:
        if value.dtype != self.inputs[name].dtype:
            raise InputError(
                f"input {name!r} of {self.path} is {value.dtype}, expected {self.inputs[name].dtype}"
            )

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """One call: arrays by input name to fresh arrays by output name.

        Raises:
            InputError: an input is missing, unknown, or of the wrong shape or dtype.
            ModelError: the network failed.
        """
        session = self._open()
        self.check({name: value.shape for name, value in inputs.items()})
        for name, value in inputs.items():
            self._check_dtype(name, value)
        names = list(self.outputs)
        try:
            return dict(zip(names, session.run(names, dict(inputs)), strict=True))
        except _RUN_ERRORS as error:
            raise ModelError(f"{self.path} failed while it ran ({error})") from error

    def bind(
        self,
        inputs: Mapping[str, tuple[int, ...] | Array],
        outputs: Mapping[str, Array] | None = None,
    ) -> BoundRun:
        """Tie inputs and outputs to buffers that stay, so that a call copies nothing.

        Args:
            inputs: for each input a shape (a zeroed buffer is made), or an array that is
                read in place at every call and may be shared by several bound runs.
            outputs: arrays that are written in place; made where they are not given.

        Raises:
            InputError: an input or output is missing, unknown, or of the wrong shape or
                dtype, or an array is not C-contiguous.
        """
        self._open()
        shapes = {name: v.shape if isinstance(v, np.ndarray) else v for name, v in inputs.items()}
        sizes = self.check(shapes)
        buffers: dict[str, Array] = {}
        for name, value in inputs.items():
            if not isinstance(value, np.ndarray):
                value = np.zeros(value, self.inputs[name].dtype)
            self._check_dtype(name, value)
            if not value.flags.c_contiguous:
                raise InputError(f"input {name!r} of {self.path} must be C-contiguous to be read in place")
            buffers[name] = value
        made = self._make_outputs(sizes, buffers)
        return BoundRun(self, buffers, made if outputs is None else self._given(outputs, made))

    def _given(self, outputs: Mapping[str, Array], made: dict[str, Array]) -> dict[str, Array]:
        """The caller's output arrays, once they are seen to be like those that would be made."""
        for name in {**outputs, **made}:
            if name not in made:
                raise InputError(f"{self.path} has no output {name!r}{did_you_mean(name, made)}")
            wanted = f"{made[name].dtype} {_text(made[name].shape)}, C-contiguous"
            if name not in outputs:
                raise InputError(f"{self.path} needs an array for the output {name!r}: {wanted}")
            given = outputs[name]
            alike = given.dtype == made[name].dtype and given.shape == made[name].shape
            if not (alike and given.flags.c_contiguous and given.flags.writeable):
                raise InputError(
                    f"output {name!r} of {self.path} has an array of {given.dtype} {_text(given.shape)}; "
                    f"expected {wanted} and writeable"
                )
        return dict(outputs)

    def _make_outputs(self, sizes: dict[str, int], buffers: dict[str, Array]) -> dict[str, Array]:
        shapes: dict[str, tuple[int, ...]] = {}
        for name, info in self.outputs.items():
            sides = [sizes.get(side) if isinstance(side, str) else side for side in info.shape]
            known = tuple(side for side in sides if side is not None)
            if len(known) < len(sides):  # sides that no input names: one call shows them
                return self.run(buffers)
            shapes[name] = known
        return {name: np.zeros(shape, self.outputs[name].dtype) for name, shape in shapes.items()}

    def close(self) -> None:
        """Give the weights back, once no call runs any more; a second call does nothing."""
        self._session = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class BoundRun:
    """A network tied to its `inputs` and `outputs` (arrays by name); for one thread at a time.

    Fill the inputs in place, call, read the outputs: the next call overwrites them.
    """

    __slots__ = ("_binding", "_session", "inputs", "outputs")

    def __init__(self, session: OnnxSession, inputs: dict[str, Array], outputs: dict[str, Array]) -> None:
        self._session = session
        self.inputs = inputs
        self.outputs = outputs
        binding = session._open().io_binding()
        # ONNX Runtime keeps the addresses only: the arrays live as long as this object does.
        for name, value in inputs.items():
            binding.bind_input(name, "cpu", 0, value.dtype, value.shape, value.ctypes.data)
        for name, value in outputs.items():
            binding.bind_output(name, "cpu", 0, value.dtype, value.shape, value.ctypes.data)
        self._binding: ort.IOBinding = binding

    def __call__(self) -> None:
        """Compute `outputs` from `inputs`.

        Raises:
            InputError: the session is closed.
            ModelError: the network failed.
        """
        try:
            self._session._open().run_with_iobinding(self._binding)
        except _RUN_ERRORS as error:
            raise ModelError(f"{self._session.path} failed while it ran ({error})") from error

    def enqueue(self, stream: int = 0) -> None:
        """The same as a call: on the CPU there is no stream to put it on."""
        self()


def _options(threads: int) -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 4  # what fails is raised; printing it too would say it twice
    # Within a call threads spin for their next share of work, as is ONNX Runtime's default: calls of several
    # threads take 14 to 30 % less time. After it they must not take the cores of other lanes.
    options.add_session_config_entry("session.intra_op.allow_spinning", "1")
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return options


def _info(path: str, arg: Any) -> TensorInfo:
    if arg.type not in _DTYPES:
        raise ModelError(f"{path}: {arg.name!r} is {arg.type}, which is not supported; build the model again")
    return TensorInfo(np.dtype(_DTYPES[arg.type]), tuple(arg.shape))


def _text(shape: tuple[int | str | None, ...]) -> str:
    return f"({', '.join('?' if side is None else str(side) for side in shape)})"
