"""One device of a lane: its engine, its stream, and for each form of request buffers and a CUDA graph."""

from __future__ import annotations

import contextlib
import time
from collections import OrderedDict
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .._errors import DeviceError, EngineError, InputError
from ..engines.session import DeviceBuffer
from ..engines.trt_session import BoundEngine, TensorRTSession
from ._driver import Device
from ._owner import Owner
from ._resources import DeviceMemory, GraphExec, PinnedMemory, Stream
from .kernels import (
    MESSAGE_HEADER_BYTES,
    MESSAGE_ROUND_OFFSET,
    Dtype,
    Kernels,
    Launch,
    Source,
    Target,
    message_bytes,
)

__all__ = ["Form", "Request", "Worker"]

Array = NDArray[np.float32]
Conditioning = Mapping[str, Array]

_DTYPES: dict[str, Dtype] = {"float32": "float32", "float16": "float16"}
_never_freed: list[BoundEngine] = []  # of devices that hang, where TensorRT would wait for ever


@dataclass(frozen=True, slots=True)
class Form:
    """What is fixed by a graph: `drafts` states of `pictures` latents of `shape` (C, H, W) at once.

    branches: 2 where the device predicts with and without the prompt, in one batch, and combines
        both with `guidance_scale`; 1 where it predicts one of them.
    inputs: shapes, without the batch, of the network's other inputs, by name.
    """

    drafts: int
    pictures: int
    shape: tuple[int, ...]
    branches: int
    guidance_scale: float
    inputs: tuple[tuple[str, tuple[int, ...]], ...]

    @property
    def elements(self) -> int:
        """Of one latent."""
        return int(np.prod(self.shape))

    @property
    def batch(self) -> int:
        """Of the network: branch by branch, draft by draft, picture by picture."""
        return self.branches * self.drafts * self.pictures


class Worker:
    """A device, its engine and its stream. Not for several threads at once."""

    def __init__(
        self,
        device: Device,
        session: TensorRTSession,
        kernels: Kernels,
        latents: str,
        *,
        graphs: bool = True,
        deadline_s: float = 120.0,
    ) -> None:
        """latents: the network's name for its input of latents. graphs: launch captured graphs.

        deadline_s: a first run that takes longer shows that the device hangs.
        """
        self.device, self.session, self.kernels, self.latents = device, session, kernels, latents
        self.graphs, self.deadline_s = graphs, deadline_s
        self.without_graphs: str = ""  # why graphs are not used, where they were asked for
        self.stream = Stream(device)
        self._requests: OrderedDict[Form, Request] = OrderedDict()

    def request(self, form: Form) -> Request:
        """Buffers and graph for a form; those used last are kept.

        Raises:
            InputError: the engine's profile does not cover it.
            DeviceError, EngineError: there is no memory for it, TensorRT refused, or the device hangs.
        """
        if form not in self._requests:
            self._requests[form] = Request(self, form)
        self._requests.move_to_end(form)
        return self._requests[form]

    def trim(self, used: Collection[Request], keep: int) -> None:
        """Let go of forms but for those used last, and those in use; nothing may be running."""
        for form, request in list(self._requests.items()):
            if len(self._requests) <= keep:
                break
            if request not in used:
                self._requests.pop(form).close()

    def settle(self) -> None:
        """Wait for what was enqueued. Raises DeviceError where it failed, or the device does not end it."""
        end = time.monotonic() + self.deadline_s
        self.device.make_current()
        while not self.stream.done():
            if time.monotonic() >= end:
                self.device.lost = True
                raise DeviceError(f"the first run of {self.session.name} took over {self.deadline_s:g} s")
            time.sleep(1e-4)

    def close(self) -> None:
        """Give the buffers, graphs and the stream back; a second call does nothing."""
        while self._requests:
            self._requests.popitem()[1].close()
        with contextlib.suppress(DeviceError):  # a broken device takes nothing back
            self.stream.close()


class Request:
    """One form of request on a worker: fill the inbox, `enqueue`, read `result`; nothing is allocated then.

    inbox: the message, drafts and timesteps. result: float32 (drafts, pictures, elements), guided where
    both branches are predicted here. flags: int32 for each draft and picture, the round in which its
    prediction was not finite, 0 for none.
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
        self._bound = session.bind(self._inputs, {output: self._output})
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
                    out, conditional, target, form.guidance_scale, elements=elements * self.count, dtype=dtype
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
        if self._bound is not None and self._worker.device.lost:
            _never_freed.append(self._bound)
        self._bound = self._graph = None
        while self._owners:
            with contextlib.suppress(DeviceError):  # a broken device takes nothing back
                self._owners.pop(0).close()
