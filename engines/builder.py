"""One ONNX file to one plan: the calls of TensorRT, the same for both flavours but for the targets.

It runs in a process of its own (`driffusion_trt._child`), which is why it takes and gives plain values.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .._child import peak_memory_bytes
from .._errors import EngineError
from ._trt import Messages, check, make_logger, sizes
from .flavours import Flavour, get_flavour, load_tensorrt
from .profiles import Range, fill_shapes

if TYPE_CHECKING:
    import tensorrt as trt
    import tensorrt_rtx as rtx

__all__ = ["build_plan"]

Report = Callable[..., None]


def build_plan(
    *,
    onnx: str,
    plan: str,
    flavour: str,
    targets: Sequence[str],
    sides: Mapping[str, Sequence[int]],
    optimization_level: int | None = None,
    tf32: bool = True,
    timing_cache: str | None = None,
    report: Report,
) -> dict[str, Any]:
    """Compile `onnx` and write the plan to `plan`, which the caller then takes into its store.

    Args:
        targets: architectures, for a flavour that has them; none for the GPU in use.
        sides: [min, opt, max] by the name of the side, for every side that varies.
        tf32: let float32 be multiplied with 10 bits of mantissa, which is TensorRT's default.
        timing_cache: a file of kernel timings, read if it is there and written anew.
        report: called with `phase` as TensorRT goes along, and `severity` and `message` for its words.

    Returns:
        `seconds`, `peak_memory_bytes`, `warnings`, and `inputs` and `outputs` of the network:
        [dtype, side, side, ...] by name.

    Raises:
        EngineError: TensorRT refused the network or failed; the message has its words.
        InputError: a side of the network that varies is not in `sides`.
        MissingExtraError: the flavour is not installed.
    """
    start = time.perf_counter()
    kind = get_flavour(flavour)
    module = load_tensorrt(kind)
    messages = Messages(lambda severity, text: _tell(report, severity, text))
    logger = make_logger(module, messages)
    builder = _make_builder(module, kind, logger, messages)
    network = check(builder.create_network(0), f"{kind.title}'s create_network", messages)
    _parse(module, kind, network, logger, Path(onnx), messages)
    _let_attention_decompose(module, network)
    config = check(builder.create_builder_config(), f"{kind.title}'s create_builder_config", messages)
    # Held here, since the config does not keep it alive.
    monitor = config.progress_monitor = _make_monitor(module, report)
    _set_options(module, config, optimization_level, tf32, targets, messages)
    cache = _load_timings(config, timing_cache)
    _set_shapes(module, builder, network, config, sides, messages)
    data = check(
        builder.build_serialized_network(network, config),
        f"{kind.title}'s build of {Path(onnx).name} for {', '.join(targets) or 'this GPU'}",
        messages,
    )
    _write(plan, data)
    if timing_cache is not None and cache is not None:
        _write(timing_cache, check(cache.serialize(), "saving the kernel timings", messages))
    del monitor
    return {
        "seconds": time.perf_counter() - start,
        "peak_memory_bytes": peak_memory_bytes(),
        "warnings": list(dict.fromkeys(messages.warnings)),
        **_surface(network),
    }


def _tell(report: Report, severity: str, text: str) -> None:
    if severity in ("internal_error", "error", "warning"):
        report(severity=severity, message=text)


def _make_builder(module: Any, kind: Flavour, logger: Any, messages: Messages) -> trt.Builder:
    try:
        builder: trt.Builder = module.Builder(logger)
    except (RuntimeError, TypeError) as error:  # a factory that gave nothing is a TypeError to pybind11
        raise EngineError(f"{kind.title} cannot be used here: {messages.words()}") from error
    return builder


def _parse(
    module: Any, kind: Flavour, network: trt.INetworkDefinition, logger: Any, path: Path, messages: Messages
) -> None:
    parser: trt.OnnxParser = module.OnnxParser(network, logger)
    if parser.parse_from_file(str(path)):
        if not network.num_outputs:  # an empty file is read without complaint, and so is a page of text
            raise EngineError(f"{kind.title} cannot read {path}: there is no network in it")
        return
    words = []
    for i in range(parser.num_errors):
        error = parser.get_error(i)
        where = f"node {error.node()} {error.node_name()!r} ({error.node_operator()}): "
        words.append((where if error.node() >= 0 else "") + f"{error.desc()} [{error.code().name}]")
    raise EngineError(
        f"{kind.title} {module.__version__} cannot read {path}: {'; '.join(words) or messages.words()}"
    )


def _let_attention_decompose(module: Any, network: trt.INetworkDefinition) -> None:
    """Heads for which TensorRT has no fused kernel, such as the VAE's one of 512 channels, are taken apart.

    Where it has one it is still used. Without this the whole build would fail.
    """
    for index in range(network.num_layers):
        layer: Any = network.get_layer(index)
        if layer.type == module.LayerType.ATTENTION_INPUT:
            layer.__class__ = module.IAttentionInputLayer  # layers come as their base class
            layer.attention.decomposable = True


def _make_monitor(module: Any, report: Report) -> Any:
    """What TensorRT is at; only the phases that are worth a line, which are the outer ones."""
    depth: dict[str, int] = {}

    class Monitor(module.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            module.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            depth[phase_name] = depth.get(parent_phase or "", 0) + 1
            if depth[phase_name] <= 3:
                report(phase=phase_name)

        def step_complete(self, phase_name: str, step: int) -> bool:
            return True

        def phase_finish(self, phase_name: str) -> None:
            pass

    return Monitor()


def _set_options(
    module: Any,
    config: trt.IBuilderConfig,
    optimization_level: int | None,
    tf32: bool,
    targets: Sequence[str],
    messages: Messages,
) -> None:
    if optimization_level is not None:
        config.builder_optimization_level = optimization_level
    if not tf32:
        config.clear_flag(module.BuilderFlag.TF32)
    if targets:
        _set_targets(module, config, targets, messages)


def _set_targets(module: Any, any_config: Any, targets: Sequence[str], messages: Messages) -> None:
    config: rtx.IBuilderConfig = any_config
    config.num_compute_capabilities = len(targets)
    for index, target in enumerate(targets):
        capability = getattr(module.ComputeCapability, target.upper(), None)
        if capability is None:
            raise EngineError(
                f"TensorRT-RTX {module.__version__} has no target {target}; install a newer one"
            )
        check(config.set_compute_capability(capability, index), f"setting the target {target}", messages)


def _set_shapes(
    module: Any,
    builder: trt.Builder,
    network: trt.INetworkDefinition,
    config: trt.IBuilderConfig,
    sides: Mapping[str, Sequence[int]],
    messages: Messages,
) -> None:
    """One profile, with shapes for every input that has a side that varies."""
    inputs = {
        tensor.name: [
            tensor.get_dimension_name(at) or None if size < 0 else size
            for at, size in enumerate(sizes(tensor.shape))
        ]
        for tensor in (network.get_input(i) for i in range(network.num_inputs))
    }
    profile = check(builder.create_optimization_profile(), "making a profile", messages)
    shapes = fill_shapes(inputs, {name: Range(*sizes) for name, sizes in sides.items()})
    for name, (least, best, greatest) in shapes.items():
        profile.set_shape(name, *(module.Dims(list(shape)) for shape in (least, best, greatest)))
    if config.add_optimization_profile(profile) < 0:
        raise EngineError(f"the profile {shapes} was refused: {messages.words()}")


def _load_timings(config: trt.IBuilderConfig, path: str | None) -> trt.ITimingCache | None:
    """Timings of earlier builds; a file that does not suit this GPU or version only costs its gain."""
    if path is None:
        return None
    known = Path(path).read_bytes() if os.path.exists(path) else b""
    cache = config.create_timing_cache(known)
    if cache is None or not config.set_timing_cache(cache, False):
        cache = config.create_timing_cache(b"")
        config.set_timing_cache(cache, False)
    return cache


def _write(path: str, data: Any) -> None:
    """Write through to the disk, so that a rename afterwards cannot come first."""
    temporary = f"{path}.partial" if not path.endswith(".partial") else path
    with open(temporary, "wb") as file:
        file.write(memoryview(data))
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def _surface(network: trt.INetworkDefinition) -> dict[str, dict[str, list[str | int]]]:
    return {
        "inputs": _tensors([network.get_input(i) for i in range(network.num_inputs)]),
        "outputs": _tensors([network.get_output(i) for i in range(network.num_outputs)]),
    }


def _tensors(tensors: Sequence[trt.ITensor]) -> dict[str, list[str | int]]:
    return {
        tensor.name: [
            tensor.dtype.name.lower(),
            *(
                tensor.get_dimension_name(at) or "?" if size < 0 else size
                for at, size in enumerate(sizes(tensor.shape))
            ),
        ]
        for tensor in tensors
    }
