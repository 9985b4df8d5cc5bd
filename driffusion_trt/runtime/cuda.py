"""GPU lanes: engines on their own streams, CUDA graphs, and latents that travel by peer copies.

The lead, the first device, keeps the latents of a picture. In every round one kernel on it drafts, another
writes a message for each lane, the lanes copy theirs, predict, and send back, and a kernel refines. All of
that is enqueued ahead: the host waits once for the whole picture.
"""

from __future__ import annotations

import contextlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
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
from ._waiting import Waiting, held
from .gpu_aside import Aside
from .gpu_job import CudaJob
from .gpu_links import Lane
from .gpu_picture import Lead, Picture, WorkerFailed, blame
from .gpu_worker import Conditioning, Form, Worker
from .kernels import Kernels, find_kernels
from .peers import can_use, check_peers

__all__ = ["CudaLanes", "Engine"]

Float32 = NDArray[np.float32]
_PICTURES_KEPT = _FORMS_KEPT = 8


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
        self._lock = threading.Lock()
        self._user = 0  # the thread whose turn it is
        self._closed = False
        self._aside: list[Aside] = []
        self._pictures: OrderedDict[object, Picture] = OrderedDict()
        self._workers: list[Worker] = []
        self._lead: Lead | None = None
        find = image or (lambda device: find_kernels(device.compute_capability))
        devices = list(dict.fromkeys(engine.device for engine in engines))
        with contextlib.ExitStack() as stack:
            self._modules = {device: stack.enter_context(Module(device, find(device))) for device in devices}
            self._kernels = {device: Kernels(module) for device, module in self._modules.items()}
            self._direct = self._tried(devices) if peer_copies else set()
            stack.callback(self._give_back)
            try:
                self._start()
            except WorkerFailed as error:
                raise DeviceError(str(error)) from error
            stack.pop_all()

    def _tried(self, devices: Sequence[Device]) -> set[tuple[int, int]]:
        """Pairs of devices whose copies brought every byte, in both directions."""
        links = check_peers(devices) if len(devices) > 1 else {}
        if any(device.lost for device in devices):
            raise DeviceError(next(link.problem for link in links.values() if link.problem))
        good = {pair for pair, link in links.items() if can_use(link)}
        return {(one, other) for one, other in good if (other, one) in good}

    def _start(self) -> None:
        """New streams for the lead and for all engines there are. Raises WorkerFailed."""
        lead = self._engines[0].device
        with blame(lead):
            self._lead = Lead(lead, Stream(lead), self._kernels[lead])
        for engine in self._engines:
            device = engine.device
            with blame(device):
                self._workers.append(
                    Worker(
                        device,
                        engine.session,
                        self._kernels[device],
                        self._latents,
                        graphs=self.graphs,
                        deadline_s=self.deadline_s,
                    )
                )

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
        lead = self._engines[0].device
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

    @contextlib.contextmanager
    def turn(self, waiting: Waiting = None) -> Iterator[None]:
        """Use of the lanes, after other threads. Raises LaneError inside of `on_round`, and after `close`."""
        if self._user == threading.get_ident():
            raise LaneError("on_round asked for another picture; ask for it when the one under way is there")
        with held(self._lock, waiting):
            self.check_open()
            # Networks beside the lanes, on the same devices, may have seen one fail.
            lost = [engine.device for engine in self._engines if engine.device.lost]
            if lost:
                self.lose(lost)
                names = " and ".join(dict.fromkeys(device.title for device in lost))
                raise LaneError(f"{names} failed", lanes_left=len(self))
            self._user = threading.get_ident()
            try:
                yield
            finally:
                self._user = 0
                if self._closed:
                    self._give_back()

    def picture(self, plan: Plan, form: Form) -> Picture:
        """The plan compiled for this form; those used last are kept. Raises WorkerFailed."""
        key = id(plan), form
        if key not in self._pictures:
            self._clear_up(_PICTURES_KEPT - 1, _FORMS_KEPT)
            try:
                self._pictures[key] = self._make(plan, form)
            except WorkerFailed as error:
                if any(device.lost for device in error.devices):
                    raise
                # It may be the memory that the others hold which is wanting.
                self._clear_up(0, 0)
                self._pictures[key] = self._make(plan, form)
        self._pictures.move_to_end(key)
        return self._pictures[key]

    def _make(self, plan: Plan, form: Form) -> Picture:
        assert self._lead is not None
        made = Picture(self._lead, self.lanes, plan, form, self.is_staged)
        try:
            made.make()
        except BaseException:
            self._discard(made)
            raise
        return made

    def _clear_up(self, pictures: int, forms: int) -> None:
        """Make room for a new picture: keep so many, and so many forms of requests."""
        if any(aside.busy() for aside in self._aside):
            return  # giving memory back waits for all that its device has to do, for ever perhaps
        while self._aside:
            self._aside.pop().close()
        while len(self._pictures) > pictures:
            self._pictures.popitem(last=False)[1].close()
        used = {request for picture in self._pictures.values() for request in picture.requests()}
        for worker in self._workers:
            worker.trim(used, forms)

    def _discard(self, picture: Picture) -> None:
        if self._aside:
            self._aside[-1].pictures.append(picture)
        else:
            picture.close()

    def lose(self, failed: Sequence[Device]) -> None:
        """Go on without some devices. What they were to do is given up with all that waits for it."""
        while failed:
            self._set_aside()
            left = [engine for engine in self._engines if engine.device not in failed]
            self._engines = left[: len(left) // 2 * 2] if self._split and len(left) > 1 else left
            self._split = self._split and len(left) > 1
            failed = ()
            try:
                if self._engines:
                    self._start()
            except WorkerFailed as error:
                failed = error.devices

    def _set_aside(self) -> None:
        streams = [self._lead.stream] if self._lead is not None else []
        self._aside.append(Aside(self._workers, list(self._pictures.values()), streams, self.deadline_s))
        self._workers, self._lead = [], None
        self._pictures.clear()

    def close(self) -> None:
        """Let a picture under way end, then give everything back; a second call does nothing.

        Called in an `on_round`, it returns at once, and everything is given back after the picture.
        What a device that hangs holds up stays with the process: its memory cannot be given back.
        """
        self._closed = True
        if self._user != threading.get_ident():
            with self._lock:
                self._give_back()

    def _give_back(self) -> None:
        self._set_aside()
        busy = {device for aside in self._aside for device in aside.wait()}
        for device in busy:
            device.lost = True
        while self._aside:
            self._aside.pop().close()
        for module in self._modules.values():
            with contextlib.suppress(DeviceError):
                module.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
