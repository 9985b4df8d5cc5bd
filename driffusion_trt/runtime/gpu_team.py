"""The workers that make pictures, in groups that may change, and what was compiled for each group."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

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

__all__ = ["Engine", "Group", "Team", "TeamOptions", "lanes_of"]

Group = tuple[Worker, ...]  # in the order of the engines; the first one's device is the lead
_Key = tuple[int, Form, Group]  # of a picture: its plan's identity, and what it was compiled for


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


def lanes_of(group: Sequence[Worker], *, split: bool) -> list[Lane]:
    """The workers of each lane: one, or two where guidance is split.

    Of an odd number the last one idles then; a single one predicts both branches in one batch.
    """
    if not split or len(group) == 1:
        return [(worker,) for worker in group]
    return list(zip(group[::2], group[1::2], strict=False))


class Team:
    """A worker for each engine that can be used. A group of them makes a picture, other groups others.

    Groups that have a worker in common share what is its own: engine, stream, buffers and graphs. What a
    group has beside that are its pictures, on its lead. Who leases the workers of a group may use these, and
    everything that was compiled for groups with one of them; `lock` is for the books alone.
    """

    def __init__(
        self, kernels: Mapping[Device, Kernels], options: TeamOptions, lock: threading.RLock
    ) -> None:
        self._kernels, self._options, self._lock = kernels, options, lock
        self._workers: dict[int, Worker] = {}  # by the place of their engine
        self._leads: dict[Worker, Lead] = {}
        self._pictures: OrderedDict[_Key, Picture] = OrderedDict()  # the one used last comes last

    @property
    def workers(self) -> list[Worker]:
        with self._lock:
            return [worker for _, worker in sorted(self._workers.items())]

    @property
    def lead(self) -> Lead:
        """That of all workers together."""
        return self._lead_of(self.workers[0])

    def place_of(self, worker: Worker) -> int | None:
        """The place of its engine; None where it was set aside."""
        return next((place for place, one in self._workers.items() if one is worker), None)

    def fill(self, place: int, engine: Engine) -> None:
        """Have a worker for this engine, if there is none. Raises WorkerFailed."""
        if place in self._workers:
            return
        options = self._options
        with blame(engine.device):
            self._workers[place] = Worker(
                engine.device,
                engine.session,
                self._kernels[engine.device],
                options.latents,
                graphs=options.graphs,
                deadline_s=options.deadline_s,
            )

    def _lead_of(self, worker: Worker) -> Lead:
        """Its device with a stream beside the worker's own."""
        with self._lock:
            if worker not in self._leads:
                device = worker.device
                with blame(device):
                    self._leads[worker] = Lead(device, Stream(device), self._kernels[device])
            return self._leads[worker]

    def find(self, plan: Plan, form: Form, group: Group) -> Picture | None:
        """The plan compiled for this form and group, if it is kept."""
        key = id(plan), form, group
        with self._lock:
            if key in self._pictures:
                self._pictures.move_to_end(key)
            return self._pictures.get(key)

    def compile(self, plan: Plan, form: Form, group: Group) -> Picture:
        """Compile and keep it.

        Raises InputError or WorkerFailed; what there was of it has to be removed then.
        """
        lead = self._lead_of(group[0])
        staged = partial(self._options.staged, lead.device)
        made = Picture(lead, lanes_of(group, split=form.split), plan, form, staged)
        with self._lock:  # the plan stays with it, and so does its id
            self._pictures[id(plan), form, group] = made
        made.make()
        return made

    def remove(self, plan: Plan, form: Form, group: Group) -> Picture | None:
        """Take it out, if it is there; the caller closes it."""
        with self._lock:
            return self._pictures.pop((id(plan), form, group), None)

    def kept_with(self, group: Group) -> int:
        """How many pictures are kept compiled that use one of these workers."""
        with self._lock:
            return len(self._keys(group))

    def _keys(self, group: Collection[Worker]) -> list[_Key]:
        return [key for key in self._pictures if not set(group).isdisjoint(key[2])]

    def trim(self, group: Group, pictures: int, forms: int) -> None:
        """Keep so many pictures that this group's lead leads, and so many forms of requests on each worker.

        Those used last are kept; nothing of the group may be running.
        """
        with self._lock:
            led = [key for key in self._pictures if key[2][0] is group[0]]
            gone = [self._pictures.pop(key) for key in led[: max(0, len(led) - pictures)]]
        self._close(gone, group, forms)

    def clear(self, group: Group) -> None:
        """Give back all memory of these workers, and of what was compiled with them; as for `trim`."""
        with self._lock:
            gone = [self._pictures.pop(key) for key in self._keys(group)]
        self._close(gone, group, 0)

    def _close(self, gone: Sequence[Picture], group: Group, forms: int) -> None:
        for picture in gone:
            picture.close()
        with self._lock:
            used = {request for picture in self._pictures.values() for request in picture.requests()}
        for worker in group:
            worker.trim(used, forms)

    def set_aside(self, gone: Collection[Worker]) -> Aside:
        """Take these workers out with all that was compiled for them; it is not used again."""
        with self._lock:
            pictures = [self._pictures.pop(key) for key in self._keys(gone)]
            streams = [self._leads.pop(worker).stream for worker in gone if worker in self._leads]
            self._workers = {place: one for place, one in self._workers.items() if one not in gone}
        return Aside(list(gone), pictures, streams, self._options.deadline_s)
