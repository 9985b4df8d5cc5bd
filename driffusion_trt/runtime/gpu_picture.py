"""One plan on the GPU lanes: all that sampling needs, made once and run as often as wanted."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .._errors import DeviceError, EngineError, LaneError
from ..sampling.plan import Plan
from ..sampling.rounds import Observation
from ..sampling.skip import draws_noise
from ..sampling.tables import Column
from ._arguments import GRAM_ROWS, MAX_COLUMNS, MAX_ROWS
from ._device_errors import short_of_memory
from ._driver import Device
from ._owner import Owners
from ._resources import DeviceMemory, Event, PinnedMemory, Stream
from .gpu_kept import Kept
from .gpu_links import Lane, LaneLink, requested
from .gpu_request import Conditioning, Form, Request
from .gpu_rounds import Compiled, Compiler
from .gpu_slots import Slots
from .gpu_worker import Worker
from .kernels import Kernels, gram_partials_bytes

__all__ = ["Lead", "Picture", "WorkerFailed", "failure_of"]


class WorkerFailed(LaneError):
    """Devices failed, or did not answer in time (then they are `lost`): what was enqueued may never end."""

    def __init__(self, message: str, devices: Sequence[Device]) -> None:
        super().__init__(message)
        self.devices = tuple(devices)

    @property
    def short_of_memory(self) -> bool:
        """Whether there was no room on the device, and nothing else was wrong."""
        return short_of_memory(self.__cause__)


def failure_of(broken: Mapping[Device, DeviceError]) -> WorkerFailed:
    why = "; ".join(f"{device.title} failed: {error}" for device, error in broken.items())
    failure = WorkerFailed(why, list(broken))
    failure.__cause__ = next(iter(broken.values()))
    return failure


@dataclass(frozen=True, slots=True)
class Lead:
    """The device that keeps the latents: its stream and its kernels."""

    device: Device
    stream: Stream
    kernels: Kernels


@contextlib.contextmanager
def blame(device: Device) -> Iterator[None]:
    """An error of the block is one of this device."""
    try:
        yield
    except (DeviceError, EngineError) as error:
        raise WorkerFailed(f"{device.title} failed: {error}", [device]) from error


class Picture:
    """A plan compiled for lanes and a form of request; not for several threads at once.

    Args:
        form: that of a request of one draft.
        staged: whether copies between the lead and a device go through the host.
    """

    def __init__(
        self, lead: Lead, lanes: Sequence[Lane], plan: Plan, form: Form, staged: Callable[[Device], bool]
    ) -> None:
        self.lead, self.plan, self.form = lead, plan, form
        self._lanes, self._staged = lanes, staged
        self._owners = Owners()
        self._own = self._owners.own
        self.lane_links: dict[tuple[int, int], LaneLink] = {}  # by lane and number of drafts
        self._branches: tuple[Conditioning, ...] = ()
        self.guidance_scale = 1.0
        self._kept: Kept | None = None
        self._clean: list[DeviceMemory] = []
        self.last: dict[Worker, Event] = {}  # after a worker's last request
        self._ready: list[Event] = []
        self._done: list[dict[Worker, Event]] = []
        self.latent_bytes = 4 * form.pictures * form.elements
        self.slots = Slots(lead.device, self.latent_bytes)

    def make(self) -> None:
        """Get all memory and graphs; where that fails, `close` gives back what there is.

        Raises:
            InputError: the engines' plans were not built for this size.
            WorkerFailed: a device failed.
        """
        with blame(self.lead.device):
            self._make()

    def _make(self) -> None:
        lead, schedule = self.lead.device, self.plan.schedule
        lead.make_current(again=True)  # code of others may have made another context current
        self.noisy_steps = [i for i in range(schedule.steps) if draws_noise(schedule, i)]
        self.latents = self._own(PinnedMemory(lead, self.latent_bytes))
        self.noises = {step: self._own(PinnedMemory(lead, self.latent_bytes)) for step in self.noisy_steps}
        self.final = self._own(Event(lead, blocking=True))
        self._partials: DeviceMemory | None = None
        self._grams: list[PinnedMemory] = []
        self._uploads: list[tuple[DeviceMemory, PinnedMemory]] = []
        self.rounds: list[Compiled] = []
        compiler = self.compiler()
        for item in self.plan.rounds:  # those known beforehand: nothing is made while a picture is
            self.rounds.append(compiler.compile(item))
            self.events(len(self.rounds) - 1, self.rounds[-1])
        self.end = self.slots[Column("state", schedule.steps)] if self.rounds else 0

    def compiler(self) -> Compiler:
        """For a walk from the start; the starting state then has its place, `begin`."""
        pictures = self.form.pictures
        self.slots.clear()
        self.begin = self.slots.fresh()
        self.slots.put(Column("state", 0), self.begin)
        return Compiler(
            self.lead.kernels,
            self.slots,
            self.link,
            len(self._lanes),
            pictures=pictures,
            elements=self.form.elements,
            plan=self.plan,
            noisy_steps=self.noisy_steps,
            gram=self._gram_places,
            upload=self._upload,
        )

    def _gram_places(self, number: int) -> tuple[int, int]:
        """Scratch memory, and the result of one table of an observation; most plans make none."""
        lead, pictures = self.lead.device, self.form.pictures
        if self._partials is None:
            self._partials = self._own(DeviceMemory(lead, gram_partials_bytes(pictures, GRAM_ROWS)))
        while len(self._grams) <= number:
            self._grams.append(self._own(PinnedMemory(lead, 8 * pictures * GRAM_ROWS**2)))
        return self._partials.address, self._grams[number].address

    def clean_places(self) -> tuple[int, int]:
        """Two places for clean latents, which rounds use in turn; made where somebody listens."""
        while len(self._clean) < 2:
            self._clean.append(self._own(DeviceMemory(self.lead.device, self.latent_bytes)))
        return self._clean[0].address, self._clean[1].address

    def kept(self) -> Kept:
        """For inpainting; made at the first call, since most pictures keep nothing."""
        if self._kept is None:
            lead = self.lead
            self._kept = Kept(
                lead.device, lead.kernels, self.plan.schedule, self.latent_bytes, self._owners.own
            )
        return self._kept

    def observed(self, rows: Sequence[int]) -> Observation:
        """The last observation, once it is there: means over the elements, (B, rows, rows) of each table."""
        shapes = [(self.form.pictures, count, count) for count in rows]
        sums = zip(self._grams, shapes, strict=False)
        return tuple(one.array(np.float64, shape) / self.form.elements for one, shape in sums)

    def _upload(self, number: int, coefficients: NDArray[np.float32]) -> tuple[int, int, int]:
        """Address on the lead, address in pinned memory, and bytes, of coefficients that are there now.

        The same number is the same memory in every picture: what was in it has been read by then.
        """
        lead, most = self.lead.device, 4 * self.form.pictures * MAX_ROWS * MAX_COLUMNS
        while len(self._uploads) <= number:
            self._uploads.append((self._own(DeviceMemory(lead, most)), self._own(PinnedMemory(lead, most))))
        target, source = self._uploads[number]
        source.array(np.float32, coefficients.shape)[...] = coefficients
        return target.address, source.address, coefficients.nbytes

    def link(self, lane: int, drafts: int) -> LaneLink:
        """The way to a lane for requests of so many drafts."""
        key = lane, drafts
        if key not in self.lane_links:
            workers = self._lanes[lane]
            form = requested(workers, self.form, drafts)
            staged = [self._staged(worker.device) for worker in workers]
            for worker in workers:
                with blame(worker.device):
                    worker.request(form)
                    if worker not in self.last:
                        self.last[worker] = self._own(Event(worker.device))
            self.lane_links[key] = LaneLink(self.lead.device, workers, form, staged)
            if self._branches:  # a plan that adapts asks for another number of drafts on the way
                self._prepare(self.lane_links[key])
        return self.lane_links[key]

    @property
    def streams(self) -> list[Stream]:
        """All that its work is on."""
        return [self.lead.stream, *(worker.stream for lane in self._lanes for worker in lane)]

    def requests(self) -> Iterator[Request]:
        """What it uses of its workers."""
        return (one.request for link in list(self.lane_links.values()) for one in link.links)

    def events(self, number: int, item: Compiled) -> tuple[Event, dict[Worker, Event]]:
        """Those of a round: the lead is ready, and each of its workers is done.

        Every round has its own, so that afterwards one can tell where the work came to a stop.
        """
        if number == len(self._ready):
            self._ready.append(self._own(Event(self.lead.device)))
            self._done.append({})
        done = self._done[number]
        for link, _ in item.lanes:
            for one in link.links:
                if one.worker not in done:
                    with blame(one.worker.device):
                        done[one.worker] = self._own(Event(one.worker.device))
        return self._ready[number], done

    def broken(self) -> dict[Device, DeviceError]:
        """Devices on which something failed, and what the driver says of it.

        Others need not notice: what waits for a broken device may go on, with whatever is in its buffers.
        """
        found: dict[Device, DeviceError] = {}
        for stream in (self.lead.stream, *(worker.stream for worker in self.last)):
            try:
                stream.device.make_current()
                stream.done()
            except DeviceError as error:
                found.setdefault(stream.device, error)
        return found

    def passed(self, rounds: int) -> int:
        """How much of the rounds that were enqueued is done: marks that were passed."""
        marks = [*self._ready[:rounds], *(event for done in self._done[:rounds] for event in done.values())]
        return sum(_passed(event) for event in marks)

    def late(self, rounds: int) -> list[Device]:
        """Devices that hold up what was enqueued: those of the first round that is not done."""
        for ready, done in zip(self._ready[:rounds], self._done[:rounds], strict=True):
            if not _passed(ready):
                return [self.lead.device]
            if late := [worker.device for worker, event in done.items() if not _passed(event)]:
                return list(dict.fromkeys(late))
        late = [worker.device for worker, event in self.last.items() if not _passed(event)]
        return list(dict.fromkeys(late)) or [self.lead.device]

    def conditioning(self, branches: tuple[Conditioning, ...]) -> None:
        """Enqueue on all workers what they need for a new picture: embeddings and cleared flags."""
        self._branches = branches
        for link in self.lane_links.values():
            self._prepare(link)

    def guide(self, guidance_scale: float) -> None:
        """The guidance scale of the next picture, in all launches there are."""
        if guidance_scale != self.guidance_scale:
            self.guidance_scale = guidance_scale
            for item in self.rounds:
                item.guide(guidance_scale)

    def _prepare(self, link: LaneLink) -> None:
        branches = self._branches
        for k, one in enumerate(link.links):
            with blame(one.worker.device):
                one.worker.device.make_current(again=True)
                one.request.clear_flags()
                one.request.set_conditioning(branches if len(link.links) == 1 else branches[k : k + 1])

    def close(self) -> None:
        """Give everything back that is not the workers'; a second call does nothing."""
        while self.lane_links:
            self.lane_links.popitem()[1].close()
        self.slots.close()
        self._owners.close()


def _passed(event: Event) -> bool:
    try:
        event.device.make_current()
        return event.done()
    except DeviceError:
        return False
