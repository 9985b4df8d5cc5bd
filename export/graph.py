"""What is done to a graph between torch's exporter and the file."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

__all__ = ["name_dims", "store_half", "strip"]

_HALF_FROM = 16  # elements; below, a Cast costs more bytes than it saves


def name_dims(model: onnx.ModelProto, dims: Mapping[str, Mapping[int, str]]) -> None:
    """Plain names for the sides that vary: the exporter writes '4*height_' and the like."""
    for value in (*model.graph.input, *model.graph.output):
        for i, dim in dims[value.name].items():
            value.type.tensor_type.shape.dim[i].dim_param = dim


def strip(model: onnx.ModelProto) -> None:
    """Take out what nobody reads: inner shapes, and stack traces with the paths of this machine."""
    del model.graph.value_info[:]
    del model.graph.metadata_props[:]
    for item in (*model.graph.node, *model.graph.input, *model.graph.output, *model.graph.initializer):
        del item.metadata_props[:]
        item.doc_string = ""


def store_half(model: onnx.ModelProto) -> None:
    """Store as float16 every float32 weight that float16 can hold exactly, with a Cast back.

    ONNX Runtime folds the Casts when it loads, so arithmetic stays float32 and not a bit changes.
    """
    casts = []
    for tensor in model.graph.initializer:
        if tensor.data_type != TensorProto.FLOAT:
            continue
        value = numpy_helper.to_array(tensor)
        with np.errstate(over="ignore"):
            half = value.astype(np.float16)
        if value.size < _HALF_FROM or not np.array_equal(half.astype(np.float32), value):
            continue
        name = tensor.name
        tensor.CopyFrom(numpy_helper.from_array(half, f"{name}_half"))
        casts.append(helper.make_node("Cast", [f"{name}_half"], [name], to=TensorProto.FLOAT))
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
