"""An ONNX network cut into components of about equal work, as AsyncDiff (2406.06911) needs them."""

from __future__ import annotations

import itertools
import json
import math
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime as ort  # type: ignore[import-untyped]
from numpy.typing import NDArray

from .._errors import InputError, MissingExtraError, ModelError
from ..engines.onnx_session import ORT_ERRORS, OnnxSession

if TYPE_CHECKING:
    import onnx

__all__ = ["Component", "Split", "split_network"]

# Work is counted in floating-point operations; a number that is read or written counts as so many of them.
# Found on the demo's denoiser with ONNX Runtime: with it 2, 3 or 4 components take the same time within 5 %.
PER_ELEMENT = 96
SLACK = 0.02  # of the whole work: within it the cut is made where the fewest tensors cross
_VIEWS = {"Constant", "Flatten", "Identity", "Reshape", "Shape", "Squeeze", "Unsqueeze"}


@dataclass(frozen=True, slots=True)
class Component:
    """A part of a network, and an ONNX file of its own.

    inputs: those of the network that it reads, and `crossing`, which earlier components make.
    outputs: what later components read; of the last one the network's output.
    share: of the network's work.
    """

    path: Path
    inputs: tuple[str, ...]
    crossing: tuple[str, ...]
    outputs: tuple[str, ...]
    share: float


@dataclass(frozen=True, slots=True)
class Split:
    """Components in the order in which they are run."""

    components: tuple[Component, ...]

    @property
    def slowest(self) -> float:
        """Share of the one with the most work."""
        return max(component.share for component in self.components)

    @property
    def balance(self) -> float:
        """Work of the largest component over that of an equal share; 1 is even."""
        return self.slowest * len(self.components)


@dataclass(frozen=True, slots=True)
class _Value:
    """A tensor as ONNX Runtime saw it: its type's name, as ONNX spells it, and shape."""

    kind: str
    shape: tuple[int, ...]


def split_network(
    path: str | os.PathLike[str],
    components: int,
    folder: str | os.PathLike[str],
    shapes: Mapping[str, tuple[int, ...]],
) -> Split:
    """Cut a denoiser's ONNX file into components of about equal work, one file each.

    What is cut are the nodes that depend on the latents, the network's first input, in the order of the
    file. Those that do not (embeddings of the timestep, keys and values of the text) are in every component
    that reads them, so that each computes them from the timestep that it is given. All tensors that are
    made before a cut and read after it cross it, those of a UNet's skip connections too.

    Args:
        path: the network; external data is read with it.
        components: how many; at least 2.
        folder: where `component-<k>.onnx` are written.
        shapes: of every input, for which the work is to be even.

    Raises:
        InputError: fewer than 2 components, or more than there are nodes to cut; or the shapes do not fit.
        MissingExtraError: `onnx` is not installed.
        ModelError: the file is no network, or cannot be run.
    """
    try:
        import onnx
    except ImportError as error:
        raise MissingExtraError("onnx", "export") from error
    if isinstance(components, bool) or not isinstance(components, int) or components < 2:
        raise InputError(f"components must be a whole number, 2 or more, not {components!r}")
    with OnnxSession(path) as session:
        session.check(shapes)
        feeds = {name: np.zeros(shapes[name], info.dtype) for name, info in session.inputs.items()}
    model = onnx.load(os.fspath(path))
    for number, node in enumerate(model.graph.node):
        node.name = f"n{number}"
    values, work = _profiled(model, feeds)
    graph = _Graph(model.graph)
    if len(graph.path) < components:
        raise InputError(f"{components} components were asked of {len(graph.path)} nodes; ask for fewer")
    ends = _ends(graph, work, components)
    made = []
    for number, (first, last) in enumerate(itertools.pairwise([0, *ends])):
        target = Path(folder) / f"component-{number}.onnx"
        made.append(_written(model, graph, range(first, last), values, work, target))
    return Split(tuple(made))


class _Graph:
    """Which nodes depend on the latents, the `path`, and what each of them needs besides."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.nodes = list(graph.node)
        self.inputs = [one.name for one in graph.input]
        self.outputs = [one.name for one in graph.output]
        self.maker = {name: k for k, node in enumerate(self.nodes) for name in node.output if name}
        changing = {self.inputs[0]}
        self.path: list[int] = []
        for k, node in enumerate(self.nodes):
            of_shape = node.op_type == "Shape" and node.input[0] in self.inputs  # the same in every step
            if not of_shape and any(name in changing for name in node.input):
                self.path.append(k)
                changing.update(node.output)
        self.place = {k: place for place, k in enumerate(self.path)}

    def aside(self, k: int) -> set[int]:
        """Nodes off the path that a node needs, directly or not."""
        found: set[int] = set()
        todo = [k]
        while todo:
            makers = {self.maker[name] for name in self.nodes[todo.pop()].input if name in self.maker}
            new = makers - found - self.place.keys()
            found |= new
            todo += new
        return found

    def read(self, nodes: Sequence[int]) -> list[str]:
        """What these read and do not make, in order."""
        own = {name for k in nodes for name in self.nodes[k].output}
        names = (name for k in nodes for name in self.nodes[k].input if name)
        return list(dict.fromkeys(name for name in names if name not in own))

    def crossing(self) -> list[int]:
        """For each place on the path, how many tensors cross a cut before it."""
        last: dict[str, int] = {}
        for place, k in enumerate(self.path):
            last |= dict.fromkeys(self.nodes[k].input, place)
        change = [0] * (len(self.path) + 1)
        for place, k in enumerate(self.path):
            for name in self.nodes[k].output:
                if last.get(name, place) > place:
                    change[place + 1] += 1
                    change[last[name] + 1] -= 1
        return list(itertools.accumulate(change))


def _ends(graph: _Graph, work: Sequence[float], components: int) -> list[int]:
    """Places on the path before which each component ends."""
    seen: set[int] = set()
    own = []
    for k in graph.path:  # what stands aside counts where it is read first
        new = graph.aside(k) - seen
        seen |= new
        own.append(work[k] + sum(work[j] for j in new))
    done = [0.0, *itertools.accumulate(own)]
    crossing = graph.crossing()
    ends = [0]
    for number in range(1, components):
        wanted, slack = done[-1] * number / components, done[-1] * SLACK
        allowed = range(ends[-1] + 1, len(own) - (components - number) + 1)
        near = [p for p in allowed if abs(done[p] - wanted) <= slack]
        if near:
            ends.append(min(near, key=lambda p: (crossing[p], abs(done[p] - wanted))))
        else:
            ends.append(min(allowed, key=lambda p: abs(done[p] - wanted)))
    return [*ends[1:], len(own)]


def _written(
    model: onnx.ModelProto,
    graph: _Graph,
    places: range,
    values: Mapping[str, _Value],
    work: Sequence[float],
    target: Path,
) -> Component:
    """One component as a file."""
    import onnx

    on_path = [graph.path[place] for place in places]
    nodes = sorted({*on_path, *(j for k in on_path for j in graph.aside(k))})
    read = graph.read(nodes)
    later = [k for k in graph.path[places.stop :]]
    wanted = {*graph.read(later), *graph.outputs}
    outputs = [name for k in on_path for name in graph.nodes[k].output if name in wanted]
    crossing = [name for name in read if graph.maker.get(name) in graph.place]
    inputs = [name for name in graph.inputs if name in read]
    given = {one.name: one for one in (*model.graph.input, *model.graph.output)}
    weights = [one for one in model.graph.initializer if one.name in read]
    sparse = [one for one in model.graph.sparse_initializer if one.values.name in read]
    part = onnx.helper.make_graph(
        [graph.nodes[k] for k in nodes],
        target.stem,
        [given.get(name) or _info(name, values[name]) for name in (*inputs, *crossing)],
        [given.get(name) or _info(name, values[name]) for name in outputs],
        weights,
        sparse_initializer=sparse,
    )
    made = onnx.helper.make_model(part, functions=model.functions, opset_imports=model.opset_import)
    made.ir_version = model.ir_version
    onnx.save(made, target, save_as_external_data=True, location=f"{target.name}.data")
    share = sum(work[k] for k in nodes) / math.fsum(work)
    return Component(target, tuple(inputs), tuple(crossing), tuple(outputs), share)


def _info(name: str, value: _Value) -> onnx.ValueInfoProto:
    """Of a tensor that crosses; all its sides may vary."""
    import onnx

    kind = onnx.TensorProto.DataType.Value(value.kind.upper())
    return onnx.helper.make_tensor_value_info(name, kind, [None] * len(value.shape))


def _profiled(
    model: onnx.ModelProto, feeds: Mapping[str, NDArray[Any]]
) -> tuple[dict[str, _Value], list[float]]:
    """Type and shape of every tensor, and the work of every node, as ONNX Runtime tells of one run."""
    import onnx

    options = ort.SessionOptions()
    options.enable_profiling = True
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    with tempfile.TemporaryDirectory() as folder:
        options.profile_file_prefix = os.path.join(folder, "profile")
        whole, saved = os.path.join(folder, "whole.onnx"), onnx.ModelProto()
        saved.CopyFrom(model)  # to save a model with its weights beside it empties it
        onnx.save(saved, whole, save_as_external_data=True, location="whole.data")
        try:
            session = ort.InferenceSession(whole, options, providers=["CPUExecutionProvider"])
            session.run(None, dict(feeds))
            events = json.loads(Path(session.end_profiling()).read_text("utf-8"))
        except ORT_ERRORS as error:
            raise ModelError(f"the network cannot be run to be measured (ONNX Runtime: {error})") from error
    values: dict[str, _Value] = {}
    work = [0.0] * len(model.graph.node)
    for event in events:
        name = event["name"].removesuffix("_kernel_time")
        if event.get("cat") != "Node" or name == event["name"]:
            continue
        number, told = int(name.removeprefix("n")), event["args"]
        node = model.graph.node[number]
        read, made = _tensors(told["input_type_shape"]), _tensors(told["output_type_shape"])
        values |= dict(zip((name for name in node.output if name), made, strict=False))
        work[number] = _work(node.op_type, read, made)
    return values, work


def _tensors(told: Sequence[Mapping[str, list[int]]]) -> list[_Value]:
    return [_Value(kind, tuple(shape)) for one in told for kind, shape in one.items()]


def _work(kind: str, read: Sequence[_Value], made: Sequence[_Value]) -> float:
    """Floating-point operations of a node, and what its numbers count that are read and written."""
    if kind in _VIEWS or not made:
        return 0.0
    out = math.prod(made[0].shape)
    moved = PER_ELEMENT * sum(math.prod(one.shape) for one in made)
    if kind == "Conv":
        return moved + 2.0 * out * math.prod(read[1].shape[1:])
    if kind in ("Gemm", "MatMul"):
        return moved + 2.0 * out * read[0].shape[-1]
    if kind == "Attention":  # queries by keys, and their weights by values
        return moved + 4.0 * math.prod(read[0].shape) * read[1].shape[-2]
    return float(moved)
