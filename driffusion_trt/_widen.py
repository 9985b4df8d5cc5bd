"""bfloat16 networks for ONNX Runtime, whose CPU kernels have none.

It is here because both the export and the check of finished plans need it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["widen"]


def widen(path: Path, folder: Path) -> Path:
    """A copy in `folder` of an ONNX file, with float32 wherever it has bfloat16; the values are the same.

    Raises ImportError where onnx_ir is not installed.
    """
    import onnx_ir as ir

    model = ir.load(path)
    for value in model.graph.initializers.values():
        if value.const_value is not None and value.dtype == ir.DataType.BFLOAT16:
            value.const_value = _wide(value.const_value)
            value.dtype = ir.DataType.FLOAT
    for node in model.graph.all_nodes():
        for name, attribute in node.attributes.items():
            if attribute.type == ir.AttributeType.TENSOR and attribute.value.dtype == ir.DataType.BFLOAT16:
                node.attributes[name] = ir.AttrTensor(name, _wide(attribute.value))
            elif node.op_type == "Cast" and name == "to" and attribute.value == ir.DataType.BFLOAT16:
                node.attributes[name] = ir.AttrInt64(name, ir.DataType.FLOAT)
    ir.save(model, folder / path.name, external_data=f"{path.name}.data")
    return folder / path.name


def _wide(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    import onnx_ir as ir

    return ir.tensor(tensor.numpy().astype(np.float32), name=tensor.name)
