"""GPU lanes: engines on their own streams, CUDA graphs, and latents that travel by peer copies.

The lead, the first device, keeps the latents of a picture. In every round one kernel on it drafts, another
writes a message for each lane, the lanes copy theirs, predict, and send back, and a kernel refines. All of
that is enqueued ahead: the host waits once for the whole picture.
"""

from __future__ import annotations

import contextlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from .._errors import DeviceError, InputError, LaneError
from ..engines.trt_session import TensorRTSession
from ..sampling.plan import Plan
from ._driver import Device
from ._resources import Module, Stream
from .gpu_job import CudaJob
from .gpu_links import Lane
from .gpu_picture import Lead, Picture
from .gpu_worker import Conditioning, Form, Worker
from .kernels import Kernels, find_kernels
from .peers import check_peers

__all__ = ["CudaLanes", "Engine"]

Float32 = NDArray[np.float32]
_PICTURES_KEPT = 8


@dataclass(frozen=True, slots=True)
class Engine:
    """A denoiser loaded onto a device."""

    device: Device
    session: TensorRTSession


class CudaLanes:
    """Lanes over loaded engines, one device a lane, or two where guidance is split.

    One picture (or batch) is made at a time; calls from several threads wait for one another. The
    caller owns devices and sessions, and closes them after the lanes.
    """

    def __init__(
        self,
        engines: Sequence[Engine],
        *,
        latents: str = "sample",
        split_guidance: bool = False,
        graphs: bool = True,
        peer_copies: bool = True,
        deadline_s: float = 120.0,
        image: Callable[[Device], bytes] | None = None,
    ) -> None:
        """Load the kernels, and try the copies between all devices.

        Args:
            engines: the first one's device is the lead.
            latents: the network's name for its input of latents.
            split_guidance: predict with and without the prompt on two devices, not in one batch.
            graphs: launch captured CUDA graphs; an engine that cannot be captured goes without.
            peer_copies: copy from device to device where that works; else through the host.
            deadline_s: a picture that takes longer has a device that hangs.
            image: gives the kernels' machine code, by default that of the package.

        Raises:
            InputError: no engine, or an odd number of them for split guidance.
            DeviceError: a device cannot be used.
        """
        if not engines or (split_guidance and len(engines) % 2):
            raise InputError(
                f"{len(engines)} engines were given; "
                + ("split guidance needs two for each lane" if engines else "lanes need one at least")
            )
        self.graphs, self.deadline_s = graphs, deadline_s
        self._split, self._latents = split_guidance, latents
        self._engines = list(engines)
        self.lock = threading.Lock()
        self._closed = False
        self._abandoned: list[tuple[list[Worker], list[Picture], Stream]] = []
        self._pictures: OrderedDict[object, Picture] = OrderedDict()
        find = image or (lambda device: find_kernels(device.compute_capability))
        devices = list(dict.fromkeys(engine.device for engine in engines))
        with contextlib.ExitStack() as stack:
            self._modules = {device: stack.enter_context(Module(device, find(device))) for device in devices}
            self._kernels = {device: Kernels(module) for device, module in self._modules.items()}
            self._direct = self._tried(devices) if peer_copies else set()
            self._workers: list[Worker] = []
            self._start()
            stack.pop_all()

    def _tried(self, devices: Sequence[Device]) -> set[tuple[int, int]]:
        """Pairs of devices whose copies brought every byte, in both directions."""
        links = check_peers(devices) if len(devices) > 1 else {}
        good = {pair for pair, link in links.items() if link.access and link.verified}
        return {(one, other) for one, other in good if (other, one) in good}

    def _start(self) -> None:
        """New streams for all engines there are, and for the lead."""
        self._workers = [
            Worker(
                engine.device,
                engine.session,
                self._kernels[engine.device],
                self._latents,
                graphs=self.graphs,
            )
            for engine in self._engines
        ]
        lead = self._engines[0].device
        self._lead = Lead(lead, Stream(lead), self._kernels[lead])

    @property
    def lanes(self) -> list[Lane]:
        """The devices of each lane that can be used; two where guidance is split."""
        if not self._split:
            return [(worker,) for worker in self._workers]
        return list(zip(self._workers[::2], self._workers[1::2], strict=False))

    def __len__(self) -> int:
        return len(self.lanes)

    @property
    def without_graphs(self) -> dict[str, str]:
        """Devices that go without graphs though they were asked for, and why."""
        return {
            worker.device.title: worker.without_graphs for worker in self._workers if worker.without_graphs
        }

    def is_staged(self, device: Device) -> bool:
        """Whether copies between the lead and this device go through the host."""
        lead = self._lead.device
        return device is not lead and (lead.ordinal, device.ordinal) not in self._direct

    def job(
        self,
        conditioning: Float32 | Conditioning,
        guidance_scale: float,
        unconditional: Float32 | Conditioning | None = None,
    ) -> CudaJob:
        """What stays the same over the steps of one batch of pictures; see `HostLanes.job`.

        Args:
            conditioning: embeddings (B, L, C), or all inputs of the network but latents and timestep
                by name, each with the batch first.
            guidance_scale: g of u + g·(c − u); 1 predicts c alone, at half the cost.
            unconditional: the same for the negative prompt, for g ≠ 1.

        Raises:
            InputError: shapes or names do not fit, or `unconditional` is missing.
            LaneError: the lanes are closed, or none is left.
        """
        self.check_open()
        return CudaJob(self, conditioning, guidance_scale, unconditional)

    def check_open(self) -> None:
        """Raises LaneError after `close`, or where every device has failed."""
        if self._closed:
            raise LaneError("the lanes are closed; make new ones")
        if not self._engines:
            raise LaneError("every device has failed; load the pipeline again, or see driffusion-trt doctor")

    def picture(self, plan: Plan, form: Form) -> Picture:
        """The plan compiled for this form; those used last are kept."""
        key = id(plan), form
        if key not in self._pictures:
            while len(self._pictures) >= _PICTURES_KEPT:
                self._pictures.popitem(last=False)[1].close()
            for worker in self._workers:
                worker.trim()
            self._pictures[key] = Picture(self._lead, self.lanes, plan, form, self.is_staged)
        self._pictures.move_to_end(key)
        return self._pictures[key]

    def lose(self, failed: Sequence[Device]) -> None:
        """Go on without some devices. What they were to do is given up with all that waits for it."""
        self._abandoned.append((self._workers, list(self._pictures.values()), self._lead.stream))
        self._pictures.clear()
        for device in failed:
            device.lost = True
        left = [engine for engine in self._engines if engine.device not in failed]
        self._engines = left[: len(left) // 2 * 2] if self._split and len(left) > 1 else left
        self._split = self._split and len(left) > 1
        self._workers = []
        if self._engines:
            self._start()

    def close(self) -> None:
        """Let a picture under way end, then give everything back; a second call does nothing."""
        self._closed = True
        with self.lock:
            for picture in self._pictures.values():
                picture.close()
            self._pictures.clear()
            for worker in self._workers:
                worker.close()
            if self._workers:
                self._lead.stream.close()
            self._workers = []
            self._clear_up()
            for module in self._modules.values():
                with contextlib.suppress(DeviceError):
                    module.close()

    def _clear_up(self) -> None:
        """Give back what was abandoned where its work has ended since; the rest is the process's."""
        for workers, pictures, stream in self._abandoned:
            streams = [stream, *(worker.stream for worker in workers)]
            if not all(_at_rest(one) for one in streams):
                continue  # giving back its memory would wait for ever
            for picture in pictures:
                picture.close()
            for worker in workers:
                worker.close()
            with contextlib.suppress(DeviceError):
                stream.close()
        self._abandoned = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _at_rest(stream: Stream) -> bool:
    try:
        return stream.device.lost or stream.done()
    except DeviceError:
        return True
