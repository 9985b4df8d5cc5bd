"""A stand-in for TensorRT's Python module where there is no GPU: its plans name an ONNX file for the CPU.

Only what `trt_session` calls is here, with the names and the order of arguments of the real bindings, which
`test_trt_session` compares where they are installed. Addresses are those of memory on the host. It fails as
TensorRT does: None or False, and a word to the logger.

It runs at once, or with `on_stream` as work of a simulated device (`Simulator.enqueue`).
"""

from __future__ import annotations

import ctypes
import enum
import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from driffusion_trt.engines.onnx_session import OnnxSession

__version__ = "1.7.1.116"
on_stream: Callable[..., int] | None = None


class ILogger:
    class Severity(enum.Enum):
        ERROR = 1
        WARNING = 2

    def __init__(self) -> None: ...

    def log(self, severity: Any, msg: str) -> None: ...


class TensorIOMode(enum.Enum):
    NONE = 0
    INPUT = 1
    OUTPUT = 2


class CudaGraphStrategy(enum.Enum):
    DISABLED = 0


class DynamicShapesKernelSpecializationStrategy(enum.Enum):
    LAZY = 0
    EAGER = 1


class ExecutionContextAllocationStrategy(enum.Enum):
    STATIC = 0
    USER_MANAGED = 2


class DataType(enum.Enum):
    FLOAT = 0
    HALF = 1
    INT64 = 8
    BF16 = 7


_DTYPES = {np.dtype(np.float32): DataType.FLOAT, np.dtype(np.int64): DataType.INT64}


class Dims(list[int]):
    """A list is enough: length and items."""


class IRuntimeCache:
    def __init__(self) -> None:
        self.kernels = b""

    def deserialize(self, blob: Any) -> bool:
        self.kernels = bytes(blob)
        return self.kernels.startswith(b"kernels")

    def serialize(self) -> Any:
        return self.kernels or b"kernels"


class IRuntimeConfig:
    cuda_graph_strategy: Any = None
    dynamic_shapes_kernel_specialization_strategy: Any = DynamicShapesKernelSpecializationStrategy.LAZY

    def __init__(self) -> None:
        self.cache: IRuntimeCache | None = None
        self.strategy = ExecutionContextAllocationStrategy.STATIC

    def set_execution_context_allocation_strategy(
        self, strategy: ExecutionContextAllocationStrategy = ExecutionContextAllocationStrategy.STATIC
    ) -> None:
        self.strategy = strategy

    def create_runtime_cache(self) -> IRuntimeCache:
        return IRuntimeCache()

    def set_runtime_cache(self, cache: IRuntimeCache) -> bool:
        self.cache = cache
        return True


def plan(onnx: str, profile: dict[str, list[list[int]]], **odd: Any) -> bytes:
    """A plan for the stand-in; `odd` names a step that is to fail, or the dtype of a tensor."""
    return json.dumps({"onnx": onnx, "profile": profile, "odd": odd}).encode()


class Runtime:
    def __init__(self, logger: Any) -> None:
        self.logger = logger

    def deserialize_cuda_engine(self, serialized_engine: Any) -> ICudaEngine | None:
        try:
            data = json.loads(bytes(serialized_engine))
        except ValueError:
            self.logger.log(ILogger.Severity.ERROR, "Serialized engine does not conform to expected format")
            return None
        return ICudaEngine(self.logger, data)


class ICudaEngine:
    def __init__(self, logger: Any, data: dict[str, Any]) -> None:
        self.logger, self.profile, self.odd = logger, data["profile"], data["odd"]
        self.session = OnnxSession(data["onnx"])
        self.configs: list[IRuntimeConfig | None] = []
        self._infos = {**self.session.inputs, **self.session.outputs}

    @property
    def num_io_tensors(self) -> int:
        return len(self._infos)

    def get_tensor_name(self, index: int) -> str:
        return list(self._infos)[index]

    def get_tensor_dtype(self, name: str) -> DataType:
        if name in self.odd:
            return DataType[self.odd[name]]
        return _DTYPES[self._infos[name].dtype]

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return TensorIOMode.INPUT if name in self.session.inputs else TensorIOMode.OUTPUT

    def get_tensor_shape(self, name: str) -> Dims:
        return Dims(side if isinstance(side, int) else -1 for side in self._infos[name].shape)

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[Dims]:
        assert profile_index == 0
        return [Dims(shape) for shape in self.profile[name]]

    def create_runtime_config(self) -> IRuntimeConfig:
        return IRuntimeConfig()

    def create_execution_context(self, runtime_config: IRuntimeConfig | None = None) -> Any:
        self.configs.append(runtime_config)
        if "context" in self.odd:
            self.logger.log(ILogger.Severity.ERROR, "Out of memory")
            return None
        managed = ExecutionContextAllocationStrategy.USER_MANAGED
        return IExecutionContext(self, runtime_config is not None and runtime_config.strategy == managed)


class IExecutionContext:
    def __init__(self, engine: ICudaEngine, needs_memory: bool) -> None:
        self.engine, self.needs_memory = engine, needs_memory
        self.memory: tuple[int, int] | None = None  # address and bytes
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.streams: list[int] = []

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shapes[name] = shape
        return True

    def infer_shapes(self) -> list[str]:
        missing = [name for name in self.engine.session.inputs if name not in self.shapes]
        if not missing:
            session = self.engine.session
            self.sizes = session.check(self.shapes)
            # Sides that no input names TensorRT computes; one run shows them.
            zeros = {name: np.zeros(self.shapes[name], info.dtype) for name, info in session.inputs.items()}
            named = {
                side for info in session.outputs.values() for side in info.shape if isinstance(side, str)
            }
            for name, value in session.run(zeros).items() if named - self.sizes.keys() else ():
                sides = zip(session.outputs[name].shape, value.shape, strict=True)
                self.sizes |= {side: size for side, size in sides if isinstance(side, str)}
        return missing

    def get_tensor_shape(self, name: str) -> Dims:
        sides = self.engine.session.outputs[name].shape
        return Dims(self.sizes[side] if isinstance(side, str) else int(side or 0) for side in sides)

    def set_tensor_address(self, name: str, memory: int) -> bool:
        self.addresses[name] = memory
        return True

    def update_device_memory_size_for_shapes(self) -> int:
        """As much as all inputs of float32 take, or what `odd` says."""
        inputs = sum(4 * int(np.prod(shape)) for shape in self.shapes.values())
        return int(self.engine.odd.get("scratch", inputs))

    def set_device_memory(self, memory: int, size: int) -> None:
        assert memory % 256 == 0 and size >= self.update_device_memory_size_for_shapes()
        self.memory = memory, size

    def execute_async_v3(self, stream_handle: int) -> bool:
        self.streams.append(stream_handle)
        if "run" in self.engine.odd:
            self.engine.logger.log(ILogger.Severity.ERROR, "an illegal memory access was encountered")
            return False
        if self.needs_memory and self.memory is None:
            self.engine.logger.log(ILogger.Severity.ERROR, "no device memory was set")
            return False
        if on_stream is None:
            self._run()
            return True
        inputs = [self._range(name, shape) for name, shape in self.shapes.items()]
        outputs = [self._range(name, self.get_tensor_shape(name)) for name in self.engine.session.outputs]
        outputs += [self.memory] if self.memory else []
        status = on_stream(stream_handle, self._run, reads=inputs, writes=outputs, label="engine")
        if status:
            self.engine.logger.log(ILogger.Severity.ERROR, f"CUDA error {status}")
        return status == 0

    def _run(self) -> None:
        session = self.engine.session
        inputs = {
            name: self._array(name, shape, session.inputs[name].dtype) for name, shape in self.shapes.items()
        }
        for name, value in session.run(inputs).items():
            self._array(name, value.shape, value.dtype)[...] = value * self.engine.odd.get("factor", 1)
        if self.memory:
            ctypes.memset(self.memory[0], 0xA5, self.memory[1])  # what lies there in the end is of no use

    def _range(self, name: str, shape: Sequence[int]) -> tuple[int, int]:
        """Address and bytes of a tensor."""
        return self.addresses[name], int(np.prod(shape)) * self.engine._infos[name].dtype.itemsize

    def _array(self, name: str, shape: tuple[int, ...], dtype: Any) -> Any:
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        memory: Callable[[int], Any] = (ctypes.c_char * size).from_address
        return np.frombuffer(memory(self.addresses[name]), dtype).reshape(shape)
