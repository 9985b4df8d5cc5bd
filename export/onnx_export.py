"""One network to one ONNX file: traced without weights, which come last, so that memory holds them once."""

from __future__ import annotations

import contextlib
import os
import shutil
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import onnx
import onnx_ir as ir
import torch
from torch._subclasses.fake_tensor import FakeTensor

from .._errors import ModelError
from .load import load_module, outline
from .lora_files import Lora
from .network import Network

__all__ = ["OPSET", "check", "export_network"]

# Attention, GroupNormalization and RMSNormalization whole; 22 takes attention apart, 24 RMSNormalization.
OPSET = 23


def export_network(network: Network, dtype: torch.dtype, loras: Sequence[Lora], folder: Path) -> Path:
    """Write <folder>/<name>.onnx and <name>.onnx.data.

    They appear when they are complete, the weights before the graph that points into them.

    Args:
        dtype: of weights and arithmetic; inputs and outputs are float32 (and int64) in any.

    Returns:
        The path of the ONNX file.

    Raises:
        ModelError: the weights are not those of the config, or the graph is not valid ONNX.
        InputError: a LoRA does not fit.
    """
    program = _trace(network, dtype)
    weights = load_module(network.component, dtype, loras).state_dict()
    _put_in(program, {f"model.{name}": tensor for name, tensor in weights.items()}, network.name)
    del weights
    with _known_warnings():
        program.optimize()
    _tidy(program.model, network)
    partial = folder / f".{network.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    path = partial / f"{network.name}.onnx"
    program.save(path, external_data=True)
    check(path, network.name)
    for name in (f"{network.name}.onnx.data", f"{network.name}.onnx"):
        if (partial / name).exists():
            _sync(partial / name)
            os.replace(partial / name, folder / name)
    partial.rmdir()
    return folder / path.name


def _trace(network: Network, dtype: torch.dtype) -> torch.onnx.ONNXProgram:
    module, mode = outline(network.component, dtype)
    inputs = network.random_inputs(network.sizes(), seed=0)
    with mode, _known_warnings(), torch.no_grad():
        program = torch.onnx.export(
            network.wrap(module, dtype).eval(),
            args=(),
            kwargs={name: torch.zeros(value.shape, dtype=value.dtype) for name, value in inputs.items()},
            dynamo=True,
            opset_version=OPSET,
            dynamic_shapes=network.dynamic_shapes(),
            input_names=list(network.inputs),
            output_names=list(network.outputs),
            optimize=False,  # constants can be folded once they have values
            verbose=False,
        )
    assert program is not None
    return program


def _put_in(program: torch.onnx.ONNXProgram, weights: dict[str, torch.Tensor], name: str) -> None:
    constants = program.model.graph.initializers
    program.apply_weights({key: tensor for key, tensor in weights.items() if key in constants})
    empty = [
        key
        for key, value in constants.items()
        if isinstance(getattr(value.const_value, "raw", None), FakeTensor)
    ]
    assert not empty, f"{name}: {empty} are no weights of the module, so they have no values"


def _tidy(model: ir.Model, network: Network) -> None:
    """Plain names for the sides that vary, and out with what nobody reads: the paths of this machine, say."""
    values = {value.name: value for value in (*model.graph.inputs, *model.graph.outputs)}
    for name, shape in (*network.inputs.items(), *network.outputs.items()):
        found = tuple(values[name].shape or ())
        if len(found) != len(shape) or any(
            isinstance(b, int) and a != b for a, b in zip(found, shape, strict=True)
        ):
            raise ModelError(
                f"{network.name} of this checkpoint has {name} of shape {found}, expected {shape}: "
                "a checkpoint of another kind, which is not supported"
            )
        values[name].shape = ir.Shape(shape)
    for node in model.graph.all_nodes():
        node.metadata_props.clear()
        node.doc_string = None
        for output in node.outputs:
            output.metadata_props.clear()
            if output.name not in values:
                output.shape = output.type = None  # written in terms of the exporter's own names for sides
    for value in (*values.values(), *model.graph.initializers.values()):
        value.metadata_props.clear()
    model.graph.metadata_props.clear()
    model.metadata_props.clear()


def check(path: Path, name: str) -> None:
    """Raise ModelError where a file is not valid ONNX, types and shapes of every node included."""
    try:
        onnx.checker.check_model(path, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ModelError(
            f"the exported {name} is not valid ONNX ({error}); "
            "these versions of torch and onnx cannot be used together: try the pinned ones"
        ) from error


def _sync(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())


@contextlib.contextmanager
def _known_warnings() -> Iterator[None]:
    """Silence what torch's exporter says of its own inner calls, and of sides that share a name."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)` is deprecated", FutureWarning)
        warnings.filterwarnings("ignore", r"# The axis name: \w+ will not be used", UserWarning)
        yield
