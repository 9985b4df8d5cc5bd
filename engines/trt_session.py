"""Plans on a GPU. Both flavours of TensorRT; the caller has made the GPU current and owns its memory."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from .._cache import keep
from .._errors import EngineError, InputError, did_you_mean
from ._trt import Messages, check, make_logger, sizes
from .flavours import Flavour, load_tensorrt
from .onnx_session import TensorInfo
from .session import DeviceBuffer

if TYPE_CHECKING:
    import tensorrt as trt
    import tensorrt_rtx as rtx

__all__ = ["BoundEngine", "TensorRTSession"]

Shape = tuple[int, ...]

_DTYPES = {
    "FLOAT": np.float32,
    "HALF": np.float16,
    "INT32": np.int32,
    "INT64": np.int64,
    "BOOL": np.bool_,
    "INT8": np.int8,
    "UINT8": np.uint8,
}


class TensorRTSession:
    """A plan that has been loaded onto the current GPU.

    TensorRT-RTX finishes its kernels here; `jit_cache` keeps them for the next time.
    """

    def __init__(
        self,
        plan: bytes | memoryview | Any,
        flavour: Flavour,
        *,
        name: str,
        jit_cache: Path | None = None,
    ) -> None:
        """Load a plan.

        Args:
            plan: its bytes, as `PlanStore.open` gives them; not needed any more afterwards.
            flavour: the TensorRT that built it.
            name: what messages call it.
            jit_cache: a file for TensorRT-RTX's finished kernels, one for each kind of GPU.

        Raises:
            EngineError: TensorRT refused it; the message has its words.
            MissingExtraError: the flavour is not installed.
        """
        self.name = name
        self._module = load_tensorrt(flavour)
        self._messages = Messages()
        self._logger = make_logger(self._module, self._messages)
        runtime: trt.Runtime = self._module.Runtime(self._logger)
        self._runtime: trt.Runtime | None = runtime
        engine = runtime.deserialize_cuda_engine(plan)
        self._engine: trt.ICudaEngine | None = check(
            engine, f"loading the plan of {name} with {flavour.title}", self._messages
        )
        self.inputs: dict[str, TensorInfo] = {}
        self.outputs: dict[str, TensorInfo] = {}
        self._ranges: dict[str, tuple[Shape, Shape]] = {}
        self._describe(engine)
        self._jit_cache = jit_cache
        self._config: trt.IRuntimeConfig | rtx.IRuntimeConfig | None = engine.create_runtime_config()
        self._making = threading.Lock()  # of contexts, from a config that is changed for each
        self._spare: list[trt.IExecutionContext] = []  # whose memory comes from us
        self._kernels: rtx.IRuntimeCache | None = None
        self._kept = b""  # of the kernels, in their file
        if flavour.targets:
            self._prepare_rtx(self._config)

    def _describe(self, engine: trt.ICudaEngine) -> None:
        mode = self._module.TensorIOMode
        for index in range(engine.num_io_tensors):
            tensor = engine.get_tensor_name(index)
            kind = engine.get_tensor_dtype(tensor).name
            if kind not in _DTYPES:
                raise EngineError(f"{self.name}: {tensor!r} is {kind}, which callers here cannot fill")
            shape = sizes(engine.get_tensor_shape(tensor))
            sides = tuple(None if size < 0 else size for size in shape)
            info = TensorInfo(np.dtype(_DTYPES[kind]), sides)
            if engine.get_tensor_mode(tensor) == mode.INPUT:
                self.inputs[tensor] = info
                least, _, most = engine.get_tensor_profile_shape(tensor, 0)
                self._ranges[tensor] = (sizes(least), sizes(most))
            else:
                self.outputs[tensor] = info

    def _prepare_rtx(self, config: Any) -> None:
        """Kernels for the shapes in use, made at the first call and kept; graphs are captured by us."""
        config.cuda_graph_strategy = self._module.CudaGraphStrategy.DISABLED
        # Lazy ones would be swapped in while pictures are made: other bits, and not inside a graph.
        strategies = self._module.DynamicShapesKernelSpecializationStrategy
        config.dynamic_shapes_kernel_specialization_strategy = strategies.EAGER
        kernels: rtx.IRuntimeCache = config.create_runtime_cache()
        if self._jit_cache is not None and self._jit_cache.exists():
            # One of another version or GPU is refused, and only costs its gain.
            self._kept = self._jit_cache.read_bytes()
            kernels.deserialize(self._kept)
        check(config.set_runtime_cache(kernels), "setting the kernel cache", self._messages)
        self._kernels = kernels

    def _open(self) -> Any:
        if self._engine is None:
            raise InputError(f"the session of {self.name} is closed; make a new one")
        return self._engine

    def check(self, shapes: Mapping[str, Shape]) -> None:
        """Check names and shapes of a call's inputs against the plan's profile.

        Raises:
            InputError: an input is missing, unknown or outside of the profile.
        """
        _check_names(self.name, "input", shapes, self.inputs)
        for name, given in shapes.items():
            least, most = self._ranges[name]
            fits = len(given) == len(least) and all(
                low <= size <= high for low, size, high in zip(least, given, most, strict=True)
            )
            if not fits:
                raise InputError(
                    f"input {name!r} of {self.name} has shape {given}, and its plan was built for "
                    f"{least} to {most}; build one for it: driffusion-trt build"
                )

    def bind(
        self,
        inputs: Mapping[str, DeviceBuffer],
        outputs: Mapping[str, DeviceBuffer],
        scratch: Callable[[int], int] | None = None,
    ) -> BoundEngine:
        """Tie every input and output to memory on the current GPU.

        Each binding has a context of its own, so that a CUDA graph captured from one stays
        valid whatever else runs.

        Args:
            scratch: gives the address of so many bytes, a multiple of 256, for what lies between the layers:
                bindings that run one after another may share them. None leaves that to TensorRT, which
                then takes what the largest shapes of the profile need, for every binding.

        Raises:
            InputError: a buffer is missing, unknown, of the wrong dtype or outside of the profile.
            EngineError: TensorRT refused it, for want of memory perhaps.
            Whatever `scratch` raises.
        """
        self._open()
        self.check({name: buffer.shape for name, buffer in inputs.items()})
        _check_names(self.name, "output", outputs, self.outputs)
        for infos, buffers in ((self.inputs, inputs), (self.outputs, outputs)):
            for name, buffer in buffers.items():
                if buffer.dtype != infos[name].dtype:
                    raise InputError(
                        f"{name!r} of {self.name} is {infos[name].dtype}, and its buffer {buffer.dtype}"
                    )
        shapes = {name: buffer.shape for name, buffer in inputs.items()}
        context = self._shaped(shapes, managed=scratch is not None)
        for name, buffer in outputs.items():
            shape = sizes(context.get_tensor_shape(name))
            if shape != buffer.shape:
                raise InputError(f"output {name!r} of {self.name} has shape {shape}, not {buffer.shape}")
        for name, buffer in {**inputs, **outputs}.items():
            self._do(context.set_tensor_address(name, buffer.address), f"setting the address of {name!r}")
        if scratch is not None:
            size_bytes = context.update_device_memory_size_for_shapes()
            context.set_device_memory(scratch(size_bytes), size_bytes)
        return BoundEngine(self, context)

    def output_shapes(self, shapes: Mapping[str, Shape]) -> dict[str, Shape]:
        """Shapes of all outputs where the inputs have these.

        Raises:
            InputError: an input is missing, unknown or outside of the profile.
            EngineError: TensorRT refused, for want of memory perhaps.
        """
        self._open()
        self.check(shapes)
        context = self._shaped(shapes, managed=True)
        found = {name: sizes(context.get_tensor_shape(name)) for name in self.outputs}
        with self._making:  # for the binding that comes next
            self._spare.append(context)
        return found

    def _shaped(self, shapes: Mapping[str, Shape], *, managed: bool) -> trt.IExecutionContext:
        """A context that knows the shapes of its inputs. managed: its scratch memory comes from us."""
        config: Any = self._config
        strategy = self._module.ExecutionContextAllocationStrategy
        with self._making:
            config.set_execution_context_allocation_strategy(
                strategy.USER_MANAGED if managed else strategy.STATIC
            )
            spare = managed and self._spare
            made = self._spare.pop() if spare else self._open().create_execution_context(config)
        context: trt.IExecutionContext = check(made, f"a context for {self.name}", self._messages)
        for name, shape in shapes.items():
            self._do(context.set_input_shape(name, shape), f"setting the shape of {name!r}")
        missing = context.infer_shapes()
        if missing:
            raise EngineError(f"{self.name}: the shapes of {', '.join(missing)} are still open")
        return context

    def _do(self, value: bool, what: str) -> None:
        check(value, f"{what} of {self.name}", self._messages)

    def save_kernels(self) -> None:
        """Write TensorRT-RTX's finished kernels to the `jit_cache` where there are others than it has.

        Call it after the first use of a shape. Kernels that cannot be kept only cost the gain.
        """
        if self._kernels is None or self._jit_cache is None:
            return
        serialized: Any = self._kernels.serialize()
        data = b"" if serialized is None else bytes(memoryview(serialized))
        if data and data != self._kept:
            keep(self._jit_cache, data)
            self._kept = data

    def close(self) -> None:
        """Give the weights back once no binding is used any more; a second call does nothing."""
        self._kernels = None
        self._config = None
        self._spare.clear()
        self._engine = None
        self._runtime = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class BoundEngine:
    """A plan tied to its buffers, with a context of its own; for one thread at a time."""

    __slots__ = ("_context", "_session")

    def __init__(self, session: TensorRTSession, context: trt.IExecutionContext) -> None:
        self._session = session  # keeps alive what the context needs
        self._context = context

    def enqueue(self, stream: int = 0) -> None:
        """Put one run on a CUDA stream (its handle); it may be one that is being captured.

        Raises:
            EngineError: TensorRT could not; the message has its words.
        """
        self._session._do(self._context.execute_async_v3(stream), "running")

    def hand_on(self) -> None:
        """Give the context to the session's next binding with `scratch`; this one had it too and is done."""
        with self._session._making:
            self._session._spare.append(self._context)


def _check_names(name: str, what: str, given: Mapping[str, object], known: Mapping[str, object]) -> None:
    for key in given:
        if key not in known:
            raise InputError(f"{name} has no {what} {key!r}{did_you_mean(key, known)}")
    for key in known:
        if key not in given:
            raise InputError(f"{name} needs the {what} {key!r}")
