"""GPU lanes: engines on their own streams, CUDA graphs, and latents that travel by peer copies.

The lead, the first device of a picture, keeps its latents. In every round one kernel on it drafts, another
writes a message for each lane, the lanes copy theirs, predict, and send back, and a kernel refines. All of
that is enqueued ahead: the host waits once for the whole picture, or once a round where a plan looks at each
to decide the next.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from .._errors import DeviceError, DriffusionError, InputError, LaneError
from ..sampling.plan import Plan
from ._driver import Device
from ._lead import led_by, now_led_by
from ._resources import Module
from ._waiting import Waiting
from .gpu_crew import Crew
from .gpu_job import CudaJob
from .gpu_lease import Leases
from .gpu_links import Lane
from .gpu_picture import Picture, WorkerFailed
from .gpu_request import Conditioning, Form
from .gpu_team import Engine, Group, Team, TeamOptions
from .gpu_worker import Worker
from .kernels import Kernels, find_kernels
from .peers import direct_pairs

__all__ = ["CudaLanes", "Engine"]

Float32 = NDArray[np.float32]


class CudaLanes:
    """Lanes over loaded engines: each request has one device a lane, or two where its guidance is split.

    A picture (or batch) has all devices, or so many as its job asks for: then other threads have the others
    at the same time. Calls get their devices in the order in which they come. The caller owns devices and
    sessions, and closes them after the lanes.
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
        self._leases: Leases[Worker] = Leases()
        self._closed = False
        find = image or (lambda device: find_kernels(device.compute_capability))
        devices = list(dict.fromkeys(engine.device for engine in engines))
        with contextlib.ExitStack() as stack:
            self._modules = {device: stack.enter_context(Module(device, find(device))) for device in devices}
            self._kernels = {device: Kernels(module) for device, module in self._modules.items()}
            self._direct = direct_pairs(devices) if peer_copies else set()
            options = TeamOptions(latents, graphs, deadline_s, self._through_host)
            self._team = Team(self._kernels, options, self._leases.lock)
            self._crew = Crew(engines, self._team, self._leases)
            stack.callback(self._give_back)
            try:
                self._crew.start()
            except WorkerFailed as error:
                raise DeviceError(str(error)) from error
            stack.pop_all()

    @property
    def workers(self) -> list[Worker]:
        """Devices with their streams that can be used: each a lane of its own where nothing is split."""
        return self._team.workers

    def __len__(self) -> int:
        return len(self.workers)

    def lanes_for(self, form: Form, devices: int | None = None) -> list[Lane]:
        """The devices of each lane for this form of request, where it has so many devices, or all."""
        return self._crew.lanes_for(form, devices)

    @property
    def without_graphs(self) -> dict[str, str]:
        """Devices that go without graphs though they were asked for, and why."""
        return {
            worker.device.title: worker.without_graphs for worker in self.workers if worker.without_graphs
        }

    def is_staged(self, device: Device) -> bool:
        """Whether copies between the first device and this one go through the host."""
        return bool(self.workers) and self._through_host(self.workers[0].device, device)

    def _through_host(self, lead: Device, device: Device) -> bool:
        return device is not lead and (lead.ordinal, device.ordinal) not in self._direct

    def job(
        self,
        conditioning: Float32 | Conditioning,
        guidance_scale: float,
        unconditional: Float32 | Conditioning | None = None,
        *,
        split_guidance: bool = False,
        devices: int | None = None,
    ) -> CudaJob:
        """What stays the same over the steps of one batch of pictures; see `HostLanes.job`.

        Args:
            conditioning: embeddings (B, L, C), or all inputs of the network but latents and timestep
                by name, each with the batch first.
            guidance_scale: g of u + g·(c − u); 1 predicts c alone, at half the cost.
            unconditional: the same for the negative prompt, for g ≠ 1.
            split_guidance: predict with and without the prompt on two devices, not in one batch: half as
                many lanes, an odd device idles, and a single one has both in a batch all the same.
            devices: so many are enough, and others may have the rest meanwhile; None for all. Which ones
                they are does not show in the picture where all are of one kind.

        Raises:
            InputError: shapes or names do not fit, or `unconditional` is missing.
            LaneError: the lanes are closed, or none is left.
        """
        self.check_open()
        return CudaJob(
            self, conditioning, guidance_scale, unconditional, split_guidance=split_guidance, devices=devices
        )

    def check_open(self) -> None:
        """Raises LaneError after `close`, or where every device has failed."""
        if self._closed:
            raise LaneError("the lanes are closed; make new ones")
        if not self._crew.engines:
            raise LaneError("every device has failed; load the pipeline again, or see driffusion-trt doctor")

    @contextlib.contextmanager
    def turn(
        self, form: Form | None = None, waiting: Waiting = None, devices: int | None = None
    ) -> Iterator[Group]:
        """So many workers, or all of them, after those that asked before.

        Raises LaneError inside of `on_round`, and after `close`.

        form: of the request that it is for, whose lanes are then counted in `lanes_left`.
        """
        with self._leased(partial(self._choose, form, devices), waiting) as group:
            now_led_by(group[0].device)
            yield group

    @contextlib.contextmanager
    def led(self, devices: int) -> Iterator[None]:
        """In the block, networks beside the lanes run on the lead of a call that asks for so many devices.

        Before its turn that is the lead of the group that it is going to have, as far as can be told, and
        from then on its own. Raises LaneError as `job` does.
        """
        self.check_open()
        with self._leases.expect(lambda: self.workers, devices) as group:
            lead = group[0].device if group else None
            with led_by(lead):
                yield

    @property
    def leads(self) -> list[Device]:
        """The devices that may lead a call that has some of them."""
        return list(dict.fromkeys(worker.device for worker in self.workers))

    @contextlib.contextmanager
    def _leased(self, choose: Callable[[], Group | None], waiting: Waiting) -> Iterator[Group]:
        if self._leases.mine:
            raise LaneError("on_round asked for another picture; ask for it when the one under way is there")
        try:
            with self._leases.lease(choose, waiting) as group:
                yield group
        finally:
            if self._closed:
                self.close()

    def _choose(self, form: Form | None, devices: int | None) -> Group | None:
        """So many workers that nobody uses, or None; with the lock held. Raises LaneError."""
        self.check_open()
        if form is not None:
            self._crew.bring_back(form)
        # Networks beside the lanes, on the same devices, may have seen one fail.
        if failed := self._crew.without_broken():
            names = " and ".join(dict.fromkeys(device.title for device in failed))
            left = len(self.lanes_for(form, devices)) if form else 0
            raise LaneError(f"{names} failed", lanes_left=left)
        workers = self.workers
        if devices is None or devices >= len(workers):
            return None if self._leases.taken else tuple(workers)
        return self._leases.free(workers, devices)

    def _choose_on(self, device: Device) -> Group | None:
        """All workers of a device, or None while one is in use; with the lock held. Raises LaneError."""
        self.check_open()
        group = tuple(worker for worker in self.workers if worker.device is device)
        return group if self._leases.taken.isdisjoint(group) else None

    def picture(self, plan: Plan, form: Form, group: Group) -> Picture:
        """The plan compiled for this form and group; those used last are kept. Raises WorkerFailed."""
        return self._crew.picture(plan, form, group)

    def make_room(self, device: Device, waiting: Waiting = None) -> None:
        """Give back all memory that is kept on a device for further pictures, for others there.

        It waits for the picture under way on this device only. Raises LaneError as `turn` does.
        """
        with self._leased(partial(self._choose_on, device), waiting) as group:
            self._crew.make_room(group)

    def failed(
        self, error: WorkerFailed, plan: Plan, form: Form, group: Group, devices: int | None
    ) -> DriffusionError:
        """Go on after a failure of this group's picture, without the devices if need be; what to raise."""
        return self._crew.failed(error, plan, form, group, devices)

    def close(self) -> None:
        """Let pictures under way end, then give everything back; a second call does nothing.

        Called in an `on_round`, it returns at once, and everything is given back after the picture.
        What a device that hangs holds up stays with the process: its memory cannot be given back.
        """
        self._closed = True
        if not self._leases.mine:
            with self._leases.all_back():
                self._give_back()

    def _give_back(self) -> None:
        self._crew.end()
        for module in self._modules.values():
            with contextlib.suppress(DeviceError):
                module.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
