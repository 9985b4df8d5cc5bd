"""The loop on the GPU lanes: it enqueues rounds one after another and waits once, for the picture."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial

import numpy as np
from numpy.typing import NDArray

from .._errors import DeviceError, InputError, NonFiniteError
from ..sampling.noise import NoiseStreams
from ..sampling.sample import RoundDone
from ..sampling.tables import Column, Float64
from ._driver import Device
from ._resources import Event
from .gpu_picture import Picture, WorkerFailed, blame
from .gpu_rounds import Compiled, Compiler
from .gpu_worker import Conditioning

__all__ = ["run_picture"]

Float32 = NDArray[np.float32]
OnRound = Callable[[RoundDone], None]


def run_picture(
    picture: Picture,
    noise: Float32,
    streams: NoiseStreams,
    branches: tuple[Conditioning, ...],
    *,
    deadline_s: float,
    on_round: OnRound | None = None,
) -> Float32:
    """Run a picture's plan from unit-normal noise (B, C, H, W); returns the latents, as `sampling.run_plan`.

    branches: what the network reads besides: without and with the prompt, or with it alone.

    Raises:
        WorkerFailed: a device failed, or the picture was not there after `deadline_s`: then those that
            held it up are marked as lost. Nothing of the picture may be used again.
        NonFiniteError: a prediction was not finite; the message says in which round and on which lane.
        Whatever `on_round` raises, once the devices are at rest.
    """
    return _Run(picture, deadline_s, on_round).run(noise, streams, branches)


class _Run:
    def __init__(self, picture: Picture, deadline_s: float, on_round: OnRound | None) -> None:
        self._picture, self._on_round = picture, on_round
        self._deadline_s, self._end = deadline_s, time.monotonic() + deadline_s
        self._enqueued = self._state = self._clean_at = self._telling = 0
        self._begun = 0.0

    def run(self, noise: Float32, streams: NoiseStreams, branches: tuple[Conditioning, ...]) -> Float32:
        picture = self._picture
        lead, stream = picture.lead.device, picture.lead.stream
        try:
            with blame(lead):
                compiler = None if picture.rounds else picture.compiler()
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
            raise _failed(broken)
        self._check_finite()
        if self._on_round is not None:
            self._tell(self._enqueued)
        return np.array(picture.latents.array(np.float32, noise.shape))

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

    def _walk(self, compiler: Compiler | None) -> int:
        """Enqueue all rounds; returns where the last state is."""
        picture = self._picture
        if compiler is None:
            for compiled in picture.rounds:
                self._round(compiled)
            return picture.end
        walk = picture.plan.walk()
        observation: Float64 | None = None
        while True:  # a plan that decides its next round from what the last one showed
            try:
                item = next(walk) if self._enqueued == 0 else walk.send(observation)
            except StopIteration:
                return picture.slots[Column("state", picture.plan.schedule.steps)]
            with blame(picture.lead.device):
                compiled = compiler.compile(item)
            self._round(compiled)
            observation = None
            if item.observe is not None:
                with blame(picture.lead.device):
                    picture.final.record(picture.lead.stream)
                self._wait(picture.final)
                observation = picture.observed(len(item.observe.targets))

    def _round(self, item: Compiled) -> None:
        picture = self._picture
        lead, stream = picture.lead.device, picture.lead.stream
        with blame(lead):
            ready, done = picture.events(self._enqueued, item)
        self._enqueued += 1
        with blame(lead):
            lead.make_current()
            for step, address in item.noises:
                stream.copy_to_device(address, picture.noises[step].address, picture.latent_bytes)
            for launch in item.before:
                launch(stream)
            for link, _ in item.lanes:
                for one in link.links:
                    one.post(stream, link.outbox)
            ready.record(stream)
        for link, places in item.lanes:
            for k, one in enumerate(link.links):
                with blame(one.worker.device):
                    one.worker.device.make_current()
                    one.worker.stream.wait(ready)
                    one.fetch(link.outbox)
                    one.request.enqueue()
                    one.send_back(link.received[k : k + 1] or places)
                    done[one.worker].record(one.worker.stream)
        with blame(lead):
            lead.make_current()
            for link, places in item.lanes:
                for k, one in enumerate(link.links):
                    stream.wait(done[one.worker])
                    one.receive(stream, link.received[k : k + 1] or places)
            told = () if self._on_round is None else item.clean
            for launch in (*item.combine, *item.refine, *item.observe, *told):
                launch(stream)
        if self._on_round is not None:
            self._follow(ready, item)

    def _follow(self, ready: Event, item: Compiled) -> None:
        """Tell of the round before, which is over once this one is ready; the lanes are at work meanwhile."""
        if self._enqueued > 1:
            self._wait(ready)
            self._tell(self._enqueued - 1)
        self._state = item.state if item.state is not None else self._state
        self._clean_at = item.clean_at

    def _tell(self, number: int) -> None:
        assert self._on_round is not None
        plan = self._picture.plan
        self._telling, self._begun = number, time.monotonic()
        look = partial(self._look, number)
        try:
            self._on_round(RoundDone(number, plan.sequential_calls, self._state, plan.schedule.steps, look))
        finally:
            self._telling = 0
            self._end += time.monotonic() - self._begun  # the devices are not to blame for that
            lead = self._picture.lead.device
            with blame(lead):
                lead.make_current(again=True)  # code of others may have left another context current

    def _look(self, number: int) -> Float32:
        """The clean latents of the round that is told of; what is enqueued on the lead comes first."""
        if number != self._telling:
            raise InputError(
                f"the latents of round {number} are no longer on the GPU; ask for them within the callback"
            )
        picture, lead, now = self._picture, self._picture.lead, time.monotonic()
        self._end, self._begun = self._end + now - self._begun, now
        with blame(lead.device):
            lead.device.make_current(again=True)
            lead.stream.copy_to_host(picture.latents.address, self._clean_at, picture.latent_bytes)
            picture.final.record(lead.stream)
        self._wait(picture.final)
        self._begun = time.monotonic()
        form = picture.form
        return np.array(picture.latents.array(np.float32, (form.pictures, *form.shape)))

    def _wait(self, event: Event) -> None:
        found: dict[Device, DeviceError] = {}
        try:
            if event.wait(max(0.0, self._end - time.monotonic())):
                return
        except DeviceError as error:
            found[event.device] = error
        if broken := self._picture.broken() or found:
            raise _failed(broken)
        late = self._picture.late(self._enqueued)
        for device in late:
            device.lost = True
        names = " and ".join(device.title for device in late)
        raise WorkerFailed(f"{names} did not answer within {self._deadline_s:g} s", late)

    def _check_finite(self) -> None:
        picture = self._picture
        found = [
            (number, lane, one.worker.device.title)
            for (lane, _), link in picture.lane_links.items()
            for one in link.links
            if (number := one.not_finite()) != 0
        ]
        if found:
            number, lane, title = min(found)
            raise NonFiniteError(
                f"the network gave numbers that are not finite in round {number} of {self._enqueued}, on "
                f"lane {lane} ({title}); lower the guidance scale, take more steps, or build the model in "
                "bf16 or fp32"
            )


def _failed(broken: Mapping[Device, DeviceError]) -> WorkerFailed:
    why = "; ".join(f"{device.title} failed: {error}" for device, error in broken.items())
    failure = WorkerFailed(why, list(broken))
    failure.__cause__ = next(iter(broken.values()))
    return failure
