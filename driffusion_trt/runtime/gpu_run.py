"""The loop on the GPU lanes: it enqueues rounds, and waits once for the picture, or in each to decide."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial

import numpy as np
from numpy.typing import NDArray

from .._errors import DeviceError, InputError
from ..sampling.known import Known
from ..sampling.noise import NoiseStreams
from ..sampling.recording import Recorder
from ..sampling.sample import RoundDone, Sampled, Stats
from ..sampling.tables import Column, Float64
from ._driver import Device
from ._resources import Event
from .gpu_deadline import Deadline
from .gpu_kept import Kept, Places
from .gpu_links import check_finite
from .gpu_marks import Marks, marks_for
from .gpu_picture import Picture, WorkerFailed, blame, failure_of
from .gpu_request import Conditioning
from .gpu_rounds import Compiled, Compiler
from .kernels import Launch

__all__ = ["run_picture"]

Float32 = NDArray[np.float32]
OnRound = Callable[[RoundDone], None]


def run_picture(
    picture: Picture,
    noise: Float32,
    streams: NoiseStreams,
    branches: tuple[Conditioning, ...],
    guidance_scale: float,
    *,
    deadline_s: float,
    on_round: OnRound | None = None,
    known: Known | None = None,
    recorder: Recorder | None = None,
) -> Sampled:
    """Run a picture's plan from unit-normal noise (B, C, H, W), as `sampling.run_plan`.

    known: for inpainting, the part of the picture that stays.
    branches: what the network reads besides: without and with the prompt, or with it alone.
    recorder: takes down what happens when.

    Raises:
        WorkerFailed: a device failed, or nothing of the picture got done in `deadline_s`: then those that
            hold it up are marked as lost. Nothing of the picture may be used again.
        NonFiniteError: a prediction was not finite; the message says in which round and on which lane.
        Whatever `on_round` raises, once the devices are at rest.
    """
    picture.guide(guidance_scale)
    marks = marks_for(recorder)
    try:
        return _Run(picture, deadline_s, on_round, known, marks).run(noise, streams, branches)
    finally:
        marks.close()


class _Run:
    def __init__(
        self,
        picture: Picture,
        deadline_s: float,
        on_round: OnRound | None,
        known: Known | None,
        marks: Marks,
    ) -> None:
        self._picture, self._on_round = picture, on_round
        self._known, self._marks = known, marks
        self._kept: Kept | None = None
        self._deadline = Deadline(deadline_s, lambda: picture.passed(self._enqueued))
        self._enqueued = self._state = self._predictions = 0
        self._clean_at = self._clean_next = self._telling = 0
        self._clean_places, self._looked = (0, 0), False
        self._thread = threading.get_ident()
        self._drift: Float64 | None = None

    def run(self, noise: Float32, streams: NoiseStreams, branches: tuple[Conditioning, ...]) -> Sampled:
        picture = self._picture
        lead, stream = picture.lead.device, picture.lead.stream
        try:
            with blame(lead):
                compiler = None if picture.rounds else picture.compiler()
                self._kept = None if self._known is None else picture.kept()
                if self._on_round is not None:
                    self._clean_places = picture.clean_places()
            self._marks.begin(picture.streams, self._wait)
            self._begin(noise, streams, branches)
            end = self._walk(compiler)
            for link in picture.lane_links.values():
                for one in link.links:
                    with blame(one.worker.device):
                        one.worker.device.make_current()
                        one.report()
            self._join()
            with blame(lead):
                stream.copy_to_host(picture.latents.address, end, picture.latent_bytes)
                picture.final.record(stream)
            self._wait(picture.final)
        except WorkerFailed:
            raise
        except BaseException:  # of `on_round`, or from the keyboard: the devices finish what they have
            self._join()
            with blame(lead):
                picture.final.record(stream)
            self._wait(picture.final)
            raise
        if broken := picture.broken():
            raise failure_of(broken)
        check_finite(picture.lane_links, self._enqueued)
        self._marks.end()
        if self._on_round is not None:
            self._tell(self._enqueued, picture.plan.schedule.steps)
        latents = np.array(picture.latents.array(np.float32, noise.shape))
        return Sampled(latents, Stats.of(self._enqueued, self._predictions, self._drift, len(noise)))

    def _join(self) -> None:
        """Let the lead's stream, which is current then, wait for all that is on the workers'."""
        picture, lead = self._picture, self._picture.lead
        for worker, event in picture.last.items():
            with blame(worker.device):
                worker.device.make_current()
                event.record(worker.stream)
        with blame(lead.device):
            lead.device.make_current()
            for event in picture.last.values():
                lead.stream.wait(event)

    def _begin(self, noise: Float32, streams: NoiseStreams, branches: tuple[Conditioning, ...]) -> None:
        picture = self._picture
        sigma = picture.plan.schedule.initial_sigma
        picture.latents.array(np.float32, noise.shape)[...] = (
            noise * np.float32(sigma) if sigma != 1 else noise
        )
        for step in picture.noisy_steps:
            picture.noises[step].array(np.float32, noise.shape)[...] = streams.draw(noise.shape[1:])
        picture.conditioning(branches)
        with blame(picture.lead.device):
            picture.lead.device.make_current(again=True)
            picture.lead.stream.copy_to_device(picture.begin, picture.latents.address, picture.latent_bytes)
            if self._kept is not None and self._known is not None:
                self._kept.upload(self._known, picture.lead.stream)

    def _walk(self, compiler: Compiler | None) -> int:
        """Enqueue all rounds; returns where the last state is."""
        picture = self._picture
        if compiler is None:
            for compiled in picture.rounds:
                self._round(compiled)
                if self._on_round is not None:
                    self._follow(compiled)
            return picture.end
        return self._decide(compiler)

    def _decide(self, compiler: Compiler) -> int:
        """The rounds of a plan that decides each from what the last one showed."""
        picture, lead = self._picture, self._picture.lead
        walk = picture.plan.walk()
        item = next(walk)
        while True:
            with blame(lead.device):
                compiled = compiler.compile(item)
            compiled.guide(picture.guidance_scale)
            self._round(compiled)
            if item.observe or self._on_round is not None:
                with blame(lead.device):
                    picture.final.record(lead.stream)
                self._wait(picture.final)
                self._looked = True
            observation = picture.observed([len(table.targets) for table in item.observe])
            if self._known is not None:  # the rest is what it was: nothing can be off there
                observation = tuple(gram / self._known.share for gram in observation)
            try:
                item = walk.send(observation or None)
            except StopIteration as end:
                self._drift = end.value
                self._clean_at = picture.slots[Column("state", picture.plan.schedule.steps)]
                return self._clean_at
            if self._on_round is not None:
                self._clean_at = self._clean_next
                self._tell(self._enqueued, item.starts_from())

    def _round(self, item: Compiled) -> None:
        picture = self._picture
        lead, stream, marks = picture.lead.device, picture.lead.stream, self._marks
        with blame(lead):
            ready, done = picture.events(self._enqueued, item)
        self._enqueued += 1
        number = self._enqueued
        self._predictions += sum(len(places) for _, places in item.lanes)
        with blame(lead):
            lead.make_current()
            marks.lead(stream, "look" if self._looked else "", number - 1)
            self._looked = False
            for address, source, size_bytes in item.uploads:
                stream.copy_to_device(address, source, size_bytes)
            for step, address in item.noises:
                stream.copy_to_device(address, picture.noises[step].address, picture.latent_bytes)
            for launch in (*item.draft, *self._keep(item.drafted), *item.messages):
                launch(stream)
            for link, _ in item.lanes:
                for one in link.links:
                    one.post(stream, link.outbox)
            marks.lead(stream, "draft", number)
            ready.record(stream)
        for lane, (link, places) in enumerate(item.lanes):
            for k, one in enumerate(link.links):
                with blame(one.worker.device):
                    one.worker.device.make_current()
                    one.worker.stream.wait(ready)
                    marks.lane(lane, link, one)
                    one.fetch(link.outbox)
                    marks.lane(lane, link, one, "fetch", number)
                    one.request.enqueue()
                    marks.lane(lane, link, one, "network", number)
                    one.send_back(link.received[k : k + 1] or places)
                    marks.lane(lane, link, one, "send", number)
                    done[one.worker].record(one.worker.stream)
        with blame(lead):
            lead.make_current()
            for link, places in item.lanes:
                for k, one in enumerate(link.links):
                    stream.wait(done[one.worker])
                    one.receive(stream, link.received[k : k + 1] or places)
            marks.lead(stream, "wait", number)
            told = () if self._on_round is None else (self._clean_latents(item),)
            for launch in (*item.combine, *item.refine, *self._keep(item.refined), *item.observe, *told):
                launch(stream)
            marks.lead(stream, "refine", number)

    def _keep(self, places: Places) -> tuple[Launch, ...]:
        return () if self._kept is None else self._kept.launches(places)

    def _clean_latents(self, item: Compiled) -> Launch:
        """To the place that the round before does not use: that one may be read meanwhile."""
        self._clean_next = self._clean_places[self._enqueued % 2]
        item.clean.write_to(self._clean_next)
        return item.clean

    def _follow(self, item: Compiled) -> None:
        """Tell of the round before, which is over once this one is ready; the lanes are at work meanwhile."""
        if self._enqueued > 1:
            self._wait(self._picture.events(self._enqueued - 1, item)[0])
            self._tell(self._enqueued - 1, self._state)
        self._state = item.state if item.state is not None else self._state
        self._clean_at = self._clean_next

    def _tell(self, number: int, state: int) -> None:
        assert self._on_round is not None
        plan = self._picture.plan
        self._telling = number
        rounds, look = plan.expected_rounds(number, state), partial(self._look, number)
        try:
            with self._deadline.paused():
                self._on_round(RoundDone(number, rounds, state, plan.schedule.steps, look))
        finally:
            self._telling = 0
            lead = self._picture.lead.device
            with blame(lead):
                lead.make_current(again=True)  # code of others may have left another context current

    def _look(self, number: int) -> Float32:
        """The clean latents of the round that is told of; what is enqueued on the lead comes first."""
        if number != self._telling or threading.get_ident() != self._thread:
            raise InputError(
                f"the latents of round {number} are no longer on the GPU; ask for them within the callback"
            )
        picture, lead = self._picture, self._picture.lead
        with self._deadline.going():
            with blame(lead.device):
                lead.device.make_current(again=True)
                lead.stream.copy_to_host(picture.latents.address, self._clean_at, picture.latent_bytes)
                picture.final.record(lead.stream)
            self._wait(picture.final)
        form = picture.form
        return np.array(picture.latents.array(np.float32, (form.pictures, *form.shape)))

    def _wait(self, event: Event) -> None:
        found: dict[Device, DeviceError] = {}
        try:
            if self._deadline.wait(event):
                return
        except DeviceError as error:
            found[event.device] = error
        if broken := self._picture.broken() or found:
            raise failure_of(broken)
        late = self._picture.late(self._enqueued)
        for device in late:
            device.lost = True
        names = " and ".join(device.title for device in late)
        raise WorkerFailed(f"{names} did not answer within {self._deadline.seconds:g} s", late)
