"""What a pipeline does with a request that was checked: encode, sample on the lanes, decode."""

from __future__ import annotations

import contextlib
import threading
import time
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ._call import LaneWarning, Timings, Watch
from ._errors import LaneError, NonFiniteError
from ._request import Request
from ._starting import start
from ._tiles import Tile
from ._trial import Trial
from .autoencoder import Autoencoder
from .conditioning import Conditioner
from .engines.manifest import ModelFolder
from .pictures import to_images
from .runtime._lead import led_by
from .runtime._waiting import with_waiting
from .runtime.devices import Devices
from .runtime.networks import GpuOptions, Networks, load_networks
from .sampling.known import Known
from .sampling.noise import NoiseStreams, noise_streams
from .sampling.plan import Plan
from .sampling.recording import Recorder, span
from .sampling.sample import RoundDone, Stats
from .sampling.schedule import Schedule


@dataclass(frozen=True, slots=True)
class Made:
    """The outcome; `plan` is the one that was run in the end."""

    plan: Plan
    latents: NDArray[np.float32]
    images: tuple[Image.Image, ...]
    timings: Timings
    stats: Stats


def heard(watch: Watch) -> AbstractContextManager[None]:
    """In its block, whatever waits for memory of a GPU gives up once the call is cancelled."""
    return with_waiting(partial(watch.check_going, "while it waited for memory of a GPU"))


class Calls:
    """Those that are made: how many `began`, and are `under_way`."""

    def __init__(self) -> None:
        self.began = self.under_way = 0
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        with self._lock:
            self.began += 1
            self.under_way += 1

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self.under_way -= 1


class Stages:
    """The networks of a model on their devices; safe from several threads."""

    def __init__(self, folder: ModelFolder, devices: Devices, options: GpuOptions) -> None:
        self.folder, self._devices, self.calls = folder, devices, Calls()
        with contextlib.ExitStack() as stack:
            networks = stack.enter_context(load_networks(folder, devices, options))
            self.conditioner = Conditioner(folder, networks.text)
            self.lanes, self.rows = networks.lanes, networks.rows
            self._beside = networks.beside
            self._autoencoder = _autoencoder(folder, networks)
            self._resources = stack.pop_all()

    def check(self, request: Request) -> None:
        """Refuse what the networks cannot do; nothing runs.

        Raises:
            InputError: the request does not suit the tokenizers, or the sizes of the plans.
            ModelError: a picture was given to start from, and the model has no encoder.
        """
        self.conditioner.check(request)
        self._tile(request)
        if request.source is not None:
            self._autoencoder.check_encodes()

    def warm_up(self, request: Request) -> None:
        """One prediction on every lane, as the request's would be."""
        self._job(request).warm_up(self._shape(request))

    def trial(
        self, request: Request, schedule: Callable[[int], Schedule], going: Callable[[], None] | None = None
    ) -> tuple[Trial, float]:
        """Runs of plans for a guided request of one picture, to be timed; and milliseconds of what is beside.

        schedule: of so many steps. going: called after every network call; what it raises ends it. On GPUs it
            is not called within a plan: the host would have to wait for its rounds.
        """
        going = going or (lambda: None)
        shape = self._shape(request)
        latents = np.zeros((1, *shape), np.float32)
        for _ in range(2):  # the first time is slower
            begun = time.perf_counter()
            given, without = self.conditioner(request)
            going()
            guided = self.lanes.job(given, request.guidance_scale, without)
            self._decode(latents, self._tile(request))
            beside_ms = 1e3 * (time.perf_counter() - begun)
            going()
        jobs = {True: guided, False: self.lanes.job(given, 1.0)}
        return Trial(jobs, shape, schedule, None if self._devices.gpus else going), beside_ms

    def run(self, request: Request, plan: Plan, watch: Watch) -> Made:
        """Run it, and again without the devices that fail, for as long as there are others.

        Raises:
            LaneError: a lane failed, and none is left.
            NonFiniteError: the networks gave numbers that are not finite.
            CancelledError: the caller ended it.
        """
        with self.calls:
            while True:
                watch.check_going("before its first round")
                try:
                    return self._run(request, plan, watch)
                except LaneError as error:
                    left = error.lanes_left
                    if not left:
                        raise
                    text = f"{error}; the pictures are made with the {left} lanes left"
                    warnings.warn(text, LaneWarning, stacklevel=4)
                    plan = plan.with_lanes(min(plan.lanes, left))

    def _run(self, request: Request, plan: Plan, watch: Watch) -> Made:
        if watch.recorder is not None:
            watch.recorder.spans.clear()  # of an attempt that came to nothing
        with self._led(request):
            return self._made(request, plan, watch)

    def _made(self, request: Request, plan: Plan, watch: Watch) -> Made:
        marks = [time.perf_counter()]
        streams = noise_streams(request.seed, len(request.prompts))
        job = self._job(request, watch.recorder)
        noise, known = self._start(request, plan, streams)
        marks.append(time.perf_counter())
        ticks = [marks[-1]]

        def tick(done: RoundDone) -> None:
            ticks.append(time.perf_counter())
            watch(done)

        # Where the host need not wait for rounds, it does so only to tell somebody.
        told = tick if watch or not self._devices.gpus else None
        with span(watch.recorder, "denoise"):
            latents, stats = job.sample(
                plan, noise, streams, told, known=known, waiting=watch.waiting, recorder=watch.recorder
            )
        if not np.isfinite(latents).all():
            raise NonFiniteError(
                f"sampling in mode {plan.mode!r} with {plan.steps} steps at guidance_scale "
                f"{request.guidance_scale} left the range of numbers; lower the guidance scale, take "
                "more steps, or use mode 'sequential'"
            )
        marks.append(time.perf_counter())
        with span(watch.recorder, "decode"):
            images = self._decode(latents, self._tile(request))
        marks.append(time.perf_counter())
        encode, denoise, decode = (1e3 * float(ms) for ms in np.diff(marks))
        rounds_ms = tuple(1e3 * float(ms) for ms in np.diff(ticks))
        return Made(plan, latents, images, Timings(encode, denoise, decode, rounds_ms), stats)

    def _led(self, request: Request) -> AbstractContextManager[None]:
        """A call with some of the GPUs encodes and decodes on their lead, others on the first of all."""
        if request.devices is None:
            return contextlib.nullcontext()
        led: AbstractContextManager[None] = self.lanes.led(request.devices)
        return led

    def _start(
        self, request: Request, plan: Plan, streams: NoiseStreams
    ) -> tuple[NDArray[np.float32], Known | None]:
        if request.source is None:
            return streams.draw(self._shape(request)), None
        return start(request.source, self._autoencoder, self._tile(request), plan.schedule, streams)

    def _job(self, request: Request, recorder: Recorder | None = None) -> Any:
        given, without = self.conditioner(request, recorder)
        scale = request.guidance_scale if request.guided else 1.0
        share = (
            {} if request.devices is None else {"devices": request.devices}
        )  # CPU lanes have no such thing
        return self.lanes.job(given, scale, without, split_guidance=request.split_guidance, **share)

    def _shape(self, request: Request) -> tuple[int, int, int]:
        spec = self.folder.spec
        return (spec.latent_channels, *spec.latent_size(request.height, request.width))

    def _tile(self, request: Request) -> Tile | None:
        return self._autoencoder.tile_for(request.height, request.width, request.vae_tiling)

    def _decode(self, latents: NDArray[np.float32], tile: Tile | None) -> tuple[Image.Image, ...]:
        # One by one: the bits of a picture do not depend on its batch.
        decoded = (self._autoencoder.decode(one[None], tile) for one in latents)
        return tuple(image for one in decoded for image in to_images(one))

    def warm_up_leads(self, request: Request) -> None:
        """What calls with some of the GPUs need on any that leads them: load it, encode and decode once.

        The VAE's encoder is loaded too, and not run. CPU lanes have no leads.
        """
        for lead in self.lanes.leads if self._devices.gpus else ():
            with led_by(lead):
                for network in self._beside:
                    network.load()
                self.conditioner(request)
                self._decode(np.zeros((1, *self._shape(request)), np.float32), self._tile(request))

    def close(self) -> None:
        """Stop the lanes after what they are doing; a second call does nothing."""
        self._resources.close()


def _autoencoder(folder: ModelFolder, networks: Networks) -> Autoencoder:
    manifest, spec = folder.manifest, folder.spec
    return Autoencoder(
        networks.decoder,
        networks.encoder,
        channels=spec.latent_channels,
        downscale=spec.downscale,
        scaling_factor=manifest.scaling_factor,
        shift_factor=manifest.shift_factor,
        tile=min(manifest.shapes["picture"][1:]),
        profile=networks.vae_profile,
    )
