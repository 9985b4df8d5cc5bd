"""A form of request on a device: its buffers, its binding of the engine, its CUDA graph."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .._errors import DeviceError, EngineError, InputError
from ..engines.session import DeviceBuffer
from ..engines.trt_session import BoundEngine
from ._owner import Owner
from ._resources import DeviceMemory, GraphExec, PinnedMemory
from .gpu_sessions import let_go
from .kernels import (
    MESSAGE_HEADER_BYTES,
    MESSAGE_ROUND_OFFSET,
    Dtype,
    Launch,
    Source,
    Target,
    message_bytes,
)

if TYPE_CHECKING:
    from .gpu_worker import Worker

__all__ = ["Conditioning", "Form", "Request"]

Conditioning = Mapping[str, NDArray[np.float32]]

_DTYPES: dict[str, Dtype] = {"float32": "float32", "float16": "float16"}


@dataclass(frozen=True, slots=True)
class Form:
    """What is fixed by a graph: `drafts` states of `pictures` latents of `shape` (C, H, W) at once.

    branches: 2 with and without the prompt, in one batch, and both combined with the guidance scale of
        the message; 1 for one of them.
    inputs: shapes, without the batch, of the network's other inputs, by name.
    split: what is asked of a lane is to predict its two branches on two devices, where it has two.
    """

    drafts: int
    pictures: int
    shape: tuple[int, ...]
    branches: int
    inputs: tuple[tuple[str, tuple[int, ...]], ...]
    split: bool = False

    @property
    def elements(self) -> int:
        """Of one latent."""
        return int(np.prod(self.shape))

    @property
    def batch(self) -> int:
        """Of the network: branch by branch, draft by draft, picture by picture."""
        return self.branches * self.drafts * self.pictures


class Request:
    """One form of request on a worker: fill the inbox, `enqueue`, read `result`; nothing is allocated then.

    inbox: the message with drafts, timesteps and guidance scale. result: float32 (drafts, pictures,
    elements), guided where both branches are predicted here. flags: int32 for each draft and picture, the
    round in which its prediction was not finite, 0 for none.
    """

    def __init__(self, worker: Worker, form: Form) -> None:
        self.form, self._worker = form, worker
        self._owners: list[Owner] = []
        self._graph: GraphExec | None = None
        self._bound: BoundEngine | None = None
        try:
            self._make(worker, form)
        except BaseException:
            with contextlib.suppress(DeviceError):
                worker.settle()
            self.close()
            raise

    def _make(self, worker: Worker, form: Form) -> None:
        worker.device.make_current(again=True)  # TensorRT may have left another one current
        self._sizes = self._check(worker, form)
        self.message_bytes = message_bytes(form.drafts, form.pictures, form.elements)
        self.count = form.drafts * form.pictures
        self.result_bytes = 4 * self.count * form.elements
        self.inbox = self._memory(self.message_bytes)
        self.flags = self._memory(4 * self.count)
        session = worker.session
        self._inputs = {
            name: self._buffer(shape, session.inputs[name].dtype) for name, shape in self._sizes.items()
        }
        (output,) = session.outputs
        latents = (form.batch, *form.shape)
        self._output = self._buffer(latents, session.outputs[output].dtype)
        self.result = self._output.address
        if form.branches == 2 or self._output.dtype != np.float32:
            self.result = self._memory(self.result_bytes).address
        lend = worker.scratch.lender(self._owners)
        self._bound = session.bind(self._inputs, {output: self._output}, lend)
        self._launches = self._pack()
        self._staging = self._pinned_for_conditioning()
        self._capture()

    def _check(self, worker: Worker, form: Form) -> dict[str, tuple[int, ...]]:
        """Shapes of the engine's inputs. Raises InputError where they are not what its plan was built for."""
        others = dict(form.inputs)
        shapes = {worker.latents: (form.batch, *form.shape), "timestep": (form.batch,)}
        shapes |= {name: (form.batch, *shape) for name, shape in others.items()}
        worker.session.check(shapes)
        dtype = worker.session.inputs["timestep"].dtype
        if dtype != np.float32:
            raise InputError(f"'timestep' of {worker.session.name} is {dtype}, and lanes give float32")
        if len(worker.session.outputs) != 1:
            raise InputError(f"{worker.session.name} has {len(worker.session.outputs)} outputs, expected one")
        return shapes

    def _memory(self, size_bytes: int) -> DeviceMemory:
        memory = DeviceMemory(self._worker.device, size_bytes)
        self._owners.append(memory)
        return memory

    def _buffer(self, shape: tuple[int, ...], dtype: np.dtype[np.float32]) -> DeviceBuffer:
        return DeviceBuffer(self._memory(int(np.prod(shape)) * dtype.itemsize).address, shape, dtype)

    def _pack(self) -> tuple[list[Launch], list[Launch]]:
        """What comes before and after the engine."""
        form, kernels = self.form, self._worker.kernels
        sample, timestep = self._inputs[self._worker.latents], self._inputs["timestep"]
        drafts, pictures = form.drafts, form.pictures
        elements, half = form.elements, self.result_bytes // 4
        inputs = [
            Target(sample.address + branch * half * sample.dtype.itemsize, _DTYPES[sample.dtype.name])
            for branch in range(form.branches)
        ]
        before = [
            kernels.fill_timestep(
                self.inbox.address,
                timestep.address,
                drafts=drafts,
                pictures=pictures,
                branches=form.branches,
            ),
            kernels.scale(
                Source(self.inbox.address + MESSAGE_HEADER_BYTES), inputs, 1.0, elements=elements * self.count
            ),
        ]
        after = []
        out, dtype = self._output.address, _DTYPES[self._output.dtype.name]
        if form.branches == 2:
            conditional = out + half * self._output.dtype.itemsize
            target = Target(self.result)
            after.append(
                kernels.guide(
                    out, conditional, target, self.inbox.address, elements=elements * self.count, dtype=dtype
                )
            )
        elif self.result != out:
            after.append(
                kernels.scale(Source(out, dtype), [Target(self.result)], 1.0, elements=elements * self.count)
            )
        mark = self.inbox.address + MESSAGE_ROUND_OFFSET
        after.append(
            kernels.nonfinite(self.result, self.flags.address, elements=elements, batch=self.count, mark=mark)
        )
        return before, after

    def _pinned_for_conditioning(self) -> dict[str, PinnedMemory]:
        staging = {}
        for name, _ in self.form.inputs:
            buffer = self._inputs[name]
            staging[name] = PinnedMemory(self._worker.device, buffer.size_bytes)
            self._owners.append(staging[name])
        return staging

    def _capture(self) -> None:
        """One run outside of a graph, since engines prepare themselves at their first; then the graph."""
        worker = self._worker
        for buffer in self._inputs.values():
            worker.stream.fill(buffer.address, 0, buffer.size_bytes)
        worker.stream.fill(self.inbox.address, 0, self.message_bytes)
        self._run()
        worker.settle()
        if not worker.graphs or worker.without_graphs:
            return
        try:
            self._graph = GraphExec.capture(worker.stream, self._run, *self._owners)
        except (DeviceError, EngineError) as error:
            # Some engines or drivers do what no graph can hold: slower, and the same picture.
            worker.without_graphs = str(error)
            return
        self._owners.insert(0, self._graph)

    def _run(self) -> None:
        before, after = self._launches
        stream = self._worker.stream
        for launch in before:
            launch(stream)
        assert self._bound is not None
        self._bound.enqueue(stream.pointer)
        for launch in after:
            launch(stream)

    def set_conditioning(self, branches: tuple[Conditioning, ...]) -> None:
        """Enqueue the copy of the embeddings, branch by branch; nothing of an earlier one may be running."""
        for name, _ in self.form.inputs:
            buffer = self._inputs[name]
            rows = [np.tile(one[name], (self.form.drafts, *[1] * (one[name].ndim - 1))) for one in branches]
            pinned = self._staging[name]
            pinned.array(buffer.dtype, buffer.shape)[...] = np.concatenate(rows)
            self._worker.stream.copy_to_device(buffer.address, pinned.address, pinned.size_bytes)

    def clear_flags(self) -> None:
        """Enqueue it, for a new picture."""
        self._worker.stream.fill(self.flags.address, 0, self.flags.size_bytes)

    def enqueue(self) -> None:
        """Predict what the inbox says; one driver call with a graph."""
        if self._graph is not None:
            self._graph.launch(self._worker.stream)
        else:
            self._run()

    def close(self) -> None:
        """Give everything back; a second call does nothing."""
        let_go(self._worker.device, self._bound)
        self._bound = self._graph = None
        while self._owners:
            with contextlib.suppress(DeviceError):  # a broken device takes nothing back
                self._owners.pop(0).close()
