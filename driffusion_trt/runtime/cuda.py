"""GPU lanes: engines on their own streams, CUDA graphs, and latents that travel by peer copies.

The lead, the first device, keeps the latents of a picture. In every round one kernel on it drafts, another
writes a message for each lane, the lanes copy theirs, predict, and send back, and a kernel refines. All of
that is enqueued ahead: the host waits once for the whole picture.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from .._errors import DeviceError, DriffusionError, InputError, LaneError
from ..sampling.plan import Plan
from ._driver import Device
from ._resources import Module
from ._waiting import Waiting, held
from .gpu_aside import Asides
from .gpu_job import CudaJob
from .gpu_links import Lane
from .gpu_picture import Picture, WorkerFailed
from .gpu_request import Conditioning, Form
from .gpu_team import Engine, Team, TeamOptions
from .gpu_worker import Worker
from .kernels import Kernels, find_kernels
from .peers import direct_pairs

__all__ = ["CudaLanes", "Engine"]

Float32 = NDArray[np.float32]
_PICTURES_KEPT = _FORMS_KEPT = 8
_LEFT_OUT_S = 60.0  # for which a device without enough memory is not asked for the same again


class CudaLanes:
    """Lanes over loaded engines: each request has one device a lane, or two where its guidance is split.

    One picture (or batch) is made at a time; calls from several threads wait for one another. The
    caller owns devices and sessions, and closes them after the lanes.
    """

    def __init__(
        self,
        engines: Sequence[Engine],
        *,
        latents: str = "sample",
        graphs: bool = True,
        peer_copies: bool = True,
        deadline_s: float = 120.0,
        image: Callable[[Device], bytes] | None = None,
    ) -> None:
        """Load the kernels, and try the copies between all devices.

        Args:
            engines: the first one's device is the lead.
            latents: the network's name for its input of latents.
            graphs: launch captured CUDA graphs; an engine that cannot be captured goes without.
            peer_copies: copy from device to device where that works; else through the host.
            deadline_s: a device hangs where nothing of a picture gets done for so long.
            image: gives the kernels' machine code, by default that of the package.

        Raises:
            InputError: no engine.
            DeviceError: a device cannot be used.
        """
        if not engines:
            raise InputError("no engine was given; lanes need one at least")
        self.deadline_s = deadline_s
        self._options = TeamOptions(latents, graphs, deadline_s, self._through_host)
        self._engines = list(engines)
        self._lock = threading.Lock()
        self._user = 0  # the thread whose turn it is
        self._closed = False
        self._asides = Asides()
        self._team: Team | None = None
        self._left_out: tuple[Form, float] | None = None  # of what request, and until when
        find = image or (lambda device: find_kernels(device.compute_capability))
        devices = list(dict.fromkeys(engine.device for engine in engines))
        with contextlib.ExitStack() as stack:
            self._modules = {device: stack.enter_context(Module(device, find(device))) for device in devices}
            self._kernels = {device: Kernels(module) for device, module in self._modules.items()}
            self._direct = direct_pairs(devices) if peer_copies else set()
            stack.callback(self._give_back)
            try:
                self._start(self._engines)
            except WorkerFailed as error:
                raise DeviceError(str(error)) from error
            stack.pop_all()

    def _start(self, engines: Sequence[Engine]) -> None:
        """Set aside what there is, and begin anew with these. Raises WorkerFailed."""
        self._set_aside()
        if engines:
            self._team = Team(engines, self._kernels, self._options)

    @property
    def workers(self) -> list[Worker]:
        """Devices with their streams that can be used: each a lane of its own where nothing is split."""
        return self._team.workers if self._team is not None else []

    def __len__(self) -> int:
        return len(self.workers)

    def lanes_for(self, form: Form) -> list[Lane]:
        """The devices of each lane for this form of request."""
        return self._team.lanes(split=form.split) if self._team is not None else []

    @property
    def without_graphs(self) -> dict[str, str]:
        """Devices that go without graphs though they were asked for, and why."""
        return {
            worker.device.title: worker.without_graphs for worker in self.workers if worker.without_graphs
        }

    def is_staged(self, device: Device) -> bool:
        """Whether copies between the lead and this device go through the host."""
        return self._team is not None and self._team.is_staged(device)

    def _through_host(self, lead: Device, device: Device) -> bool:
        return device is not lead and (lead.ordinal, device.ordinal) not in self._direct

    def job(
        self,
        conditioning: Float32 | Conditioning,
        guidance_scale: float,
        unconditional: Float32 | Conditioning | None = None,
        *,
        split_guidance: bool = False,
    ) -> CudaJob:
        """What stays the same over the steps of one batch of pictures; see `HostLanes.job`.

        Args:
            conditioning: embeddings (B, L, C), or all inputs of the network but latents and timestep
                by name, each with the batch first.
            guidance_scale: g of u + g·(c − u); 1 predicts c alone, at half the cost.
            unconditional: the same for the negative prompt, for g ≠ 1.
            split_guidance: predict with and without the prompt on two devices, not in one batch: half as
                many lanes, an odd device idles, and a single one has both in a batch all the same.

        Raises:
            InputError: shapes or names do not fit, or `unconditional` is missing.
            LaneError: the lanes are closed, or none is left.
        """
        self.check_open()
        return CudaJob(self, conditioning, guidance_scale, unconditional, split_guidance=split_guidance)

    def check_open(self) -> None:
        """Raises LaneError after `close`, or where every device has failed."""
        if self._closed:
            raise LaneError("the lanes are closed; make new ones")
        if not self._engines:
            raise LaneError("every device has failed; load the pipeline again, or see driffusion-trt doctor")

    @contextlib.contextmanager
    def turn(self, form: Form | None = None, waiting: Waiting = None) -> Iterator[None]:
        """Use of the lanes, after other threads. Raises LaneError inside of `on_round`, and after `close`.

        form: of the request that it is for, whose lanes are then counted in `lanes_left`.
        """
        if self._user == threading.get_ident():
            raise LaneError("on_round asked for another picture; ask for it when the one under way is there")
        with held(self._lock, waiting):
            self.check_open()
            # Networks beside the lanes, on the same devices, may have seen one fail.
            failed = [engine.device for engine in self._engines if not engine.device.usable]
            if failed:
                self._lose(failed)
                names = " and ".join(dict.fromkeys(device.title for device in failed))
                raise LaneError(f"{names} failed", lanes_left=len(self.lanes_for(form)) if form else 0)
            self._user = threading.get_ident()
            try:
                yield
            finally:
                self._user = 0
                if self._closed:
                    self._give_back()

    def picture(self, plan: Plan, form: Form) -> Picture:
        """The plan compiled for this form; those used last are kept. Raises WorkerFailed."""
        self._bring_back(form)
        self.check_open()
        assert self._team is not None
        found = self._team.find(plan, form)
        if found is not None:
            return found
        self._clear_up(_PICTURES_KEPT - 1, _FORMS_KEPT)
        try:
            return self._compile(plan, form)
        except WorkerFailed as error:
            if any(device.lost for device in error.devices):
                raise
            # It may be the memory that the others hold which is wanting.
            self._clear_up(0, 0)
            return self._compile(plan, form)

    def _compile(self, plan: Plan, form: Form) -> Picture:
        assert self._team is not None
        try:
            return self._team.compile(plan, form)
        except BaseException:
            self._asides.discard(self._team.remove(plan, form))
            raise

    def make_room(self) -> None:
        """Give back all memory that is kept for further pictures, for others on the same devices.

        Raises LaneError as `turn` does.
        """
        with self.turn():
            self._clear_up(0, 0)

    def _clear_up(self, pictures: int, forms: int) -> None:
        """Make room for a new picture: keep so many, and so many forms of requests."""
        if self._asides.clear() and self._team is not None:
            self._team.trim(pictures, forms)

    def failed(self, error: WorkerFailed, plan: Plan, form: Form) -> DriffusionError:
        """Go on after a failure of this plan, without the devices if need be; returns what to raise."""
        if not error.short_of_memory:
            self._lose(error.devices)
            text = str(error) if len(self) else f"{error}; no lane is left"
            return LaneError(text, lanes_left=len(self.lanes_for(form)))
        text, go_on = str(error), list(self._team.engines) if self._team is not None else []
        if self._team is not None and self._team.kept > 1:  # what is kept for others may be wanting
            text += "; what was kept for other requests is let go"
        elif plan.lanes <= len(self.lanes_for(form)):  # no more drafts than lanes; else fewer of them may fit
            go_on = [engine for engine in go_on if engine.device not in error.devices]
            self._left_out = (form, time.monotonic() + _LEFT_OUT_S) if go_on else None
        self._start_or_lose(go_on or self._engines)
        self._asides.wait()  # until then nothing of it is given back, and the next attempt wants its memory
        if not go_on:
            return DeviceError(f"no GPU has room for this request: {error}", "CUDA_ERROR_OUT_OF_MEMORY")
        return LaneError(text, lanes_left=len(self.lanes_for(form)))

    def _bring_back(self, form: Form) -> None:
        """Use the devices again that had no room for another form of request, or had none long ago."""
        if self._left_out is None:
            return
        other, until = self._left_out
        if form != other or time.monotonic() >= until:
            self._left_out = None
            self._start_or_lose(self._engines)

    def _lose(self, failed: Sequence[Device]) -> None:
        """Go on without some devices. What they were to do is given up with all that waits for it."""
        for device in failed:
            device.broken = True
        self._start_or_lose(self._engines)

    def _start_or_lose(self, engines: Sequence[Engine]) -> None:
        """Begin anew with those of the engines that can be used."""
        while True:
            self._engines = [engine for engine in self._engines if engine.device.usable]
            try:
                return self._start([engine for engine in engines if engine.device.usable])
            except WorkerFailed as error:
                for device in error.devices:
                    device.broken = True

    def _set_aside(self) -> None:
        if self._team is not None:
            self._asides.add(self._team.set_aside())
        self._team = None

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
        self._asides.end()
        for module in self._modules.values():
            with contextlib.suppress(DeviceError):
                module.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
