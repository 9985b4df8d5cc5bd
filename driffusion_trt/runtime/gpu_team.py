"""The devices that make pictures together: the lead, the workers, and what was compiled for them."""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from .._errors import DeviceError
from ..engines.trt_session import TensorRTSession
from ..sampling.plan import Plan
from ._driver import Device
from ._resources import Stream
from .gpu_aside import Aside
from .gpu_links import Lane
from .gpu_picture import Lead, Picture, blame
from .gpu_request import Form
from .gpu_worker import Worker
from .kernels import Kernels

__all__ = ["Engine", "Team", "TeamOptions"]


@dataclass(frozen=True, slots=True)
class Engine:
    """A denoiser loaded onto a device."""

    device: Device
    session: TensorRTSession


@dataclass(frozen=True, slots=True)
class TeamOptions:
    """latents, graphs, deadline_s: see `CudaLanes`. staged: whether copies between two go by the host."""

    latents: str
    graphs: bool
    deadline_s: float
    staged: Callable[[Device, Device], bool]


class Team:
    """Streams over some engines, the first of them on the lead; not for several threads at once."""

    def __init__(
        self,
        engines: Sequence[Engine],
        kernels: Mapping[Device, Kernels],
        options: TeamOptions,
    ) -> None:
        """Raises WorkerFailed."""
        self.engines, self._options = tuple(engines), options
        self._pictures: OrderedDict[object, Picture] = OrderedDict()
        self.workers: list[Worker] = []
        lead = engines[0].device
        with blame(lead):
            self.lead = Lead(lead, Stream(lead), kernels[lead])
        try:
            for engine in engines:
                with blame(engine.device):
                    self.workers.append(self._worker(engine, kernels[engine.device]))
        except BaseException:
            for worker in self.workers:
                worker.close()
            with contextlib.suppress(DeviceError):
                self.lead.stream.close()
            raise

    def _worker(self, engine: Engine, kernels: Kernels) -> Worker:
        options = self._options
        return Worker(
            engine.device,
            engine.session,
            kernels,
            options.latents,
            graphs=options.graphs,
            deadline_s=options.deadline_s,
        )

    def lanes(self, *, split: bool) -> list[Lane]:
        """The workers of each lane: one, or two where guidance is split.

        Of an odd number the last one idles then; a single one predicts both branches in one batch.
        """
        if not split or len(self.workers) == 1:
            return [(worker,) for worker in self.workers]
        return list(zip(self.workers[::2], self.workers[1::2], strict=False))

    def is_staged(self, device: Device) -> bool:
        """Whether copies between the lead and this device go through the host."""
        return self._options.staged(self.lead.device, device)

    @property
    def kept(self) -> int:
        """How many pictures are kept compiled."""
        return len(self._pictures)

    def find(self, plan: Plan, form: Form) -> Picture | None:
        """The plan compiled for this form, if it is kept."""
        key = id(plan), form
        if key in self._pictures:
            self._pictures.move_to_end(key)
        return self._pictures.get(key)

    def compile(self, plan: Plan, form: Form) -> Picture:
        """Compile and keep it.

        Raises InputError or WorkerFailed; what there was of it has to be removed then.
        """
        made = Picture(self.lead, self.lanes(split=form.split), plan, form, self.is_staged)
        self._pictures[id(plan), form] = made  # the plan stays with it, and so does its id
        made.make()
        return made

    def remove(self, plan: Plan, form: Form) -> Picture:
        """Take it out; the caller closes it."""
        return self._pictures.pop((id(plan), form))

    def trim(self, pictures: int, forms: int) -> None:
        """Keep so many pictures, and so many forms of requests, those used last; nothing may be running."""
        while len(self._pictures) > pictures:
            self._pictures.popitem(last=False)[1].close()
        used = {request for picture in self._pictures.values() for request in picture.requests()}
        for worker in self.workers:
            worker.trim(used, forms)

    def set_aside(self) -> Aside:
        """All of it, once it is not to be used again."""
        pictures = list(self._pictures.values())
        return Aside(self.workers, pictures, [self.lead.stream], self._options.deadline_s)
