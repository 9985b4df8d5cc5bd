"""From a prompt to pictures: text encoder, starting noise, a plan on the lanes, decoder."""

from __future__ import annotations

import contextlib
import os
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ._call import LaneWarning, PromptWarning, Request, Result, Timings
from ._errors import DriffusionError, InputError, LaneError, ModelError
from .engines.manifest import ModelFolder
from .models import ModelSpec
from .pictures import to_images
from .prompts import PromptEncoder
from .runtime.devices import Asked, Devices, choose_devices
from .runtime.networks import GpuOptions, load_networks
from .sampling.noise import noise_streams
from .sampling.plan import Plan, default_lanes, make_plan
from .sampling.sample import RoundDone
from .sampling.schedule import Schedule

__all__ = ["LaneWarning", "Pipeline", "PromptWarning", "Result", "Timings"]

_HASHED_BYTES = 64 << 20  # up to here hashing a whole model takes a moment, so it is always done
_PLANS_KEPT = 64


class Pipeline:
    """A loaded model on its lanes; make one with `Pipeline.load`. Safe from several threads."""

    def __init__(self, folder: ModelFolder, devices: Devices, options: GpuOptions) -> None:
        self.folder, self._devices = folder, devices
        self._config = folder.scheduler_config()
        self._plans: dict[str, Plan] = {}
        self._lock = threading.Lock()
        self._closed = False
        with contextlib.ExitStack() as stack:
            networks = stack.enter_context(load_networks(folder, devices, options))
            self._prompts = PromptEncoder(folder.tokenizer(), networks.text)
            self._decoder, self._lanes = networks.decoder, networks.lanes
            self._resources = stack.pop_all()

    @classmethod
    def load(
        cls,
        model: str | os.PathLike[str] = "demo",
        *,
        devices: Asked = "auto",
        split_guidance: bool = False,
        cuda_graphs: bool = True,
        peer_copies: bool = True,
        deadline_s: float = 120.0,
    ) -> Self:
        """Load a model and start its lanes.

        Args:
            model: "demo", the bundled model, or the path of a model folder.
            devices: what predicts in parallel: a number, "auto", "cuda" for all GPUs, or a list such as
                ["cuda:0", "cuda:1"] or ["cpu", "cpu"]. A number and "auto" take the GPUs for which the
                model has plans, else CPU lanes, one for each core that there is.
            split_guidance: predict with and without the prompt on two GPUs a lane.
            cuda_graphs: launch each GPU's work as one graph.
            peer_copies: copy latents from GPU to GPU where that was seen to work, else through the host.
            deadline_s: a call that takes longer has a GPU that hangs, and goes on without it.

        Raises:
            InputError: `devices` cannot be had.
            ModelError: the model is missing, incomplete or altered, or has no plans for these GPUs.
            MissingExtraError: a package for GPUs is not installed.
            EngineError, DeviceError: TensorRT or the driver refused.
        """
        folder = ModelFolder.open(model)
        chosen = choose_devices(devices, folder)
        options = GpuOptions(split_guidance, cuda_graphs, peer_copies, deadline_s)
        if sum(entry.size_bytes for entry in folder.manifest.files.values()) <= _HASHED_BYTES:
            folder.verify()
        return cls(folder, chosen, options)

    @property
    def spec(self) -> ModelSpec:
        """Facts of the model's family: sizes, default steps and guidance scale."""
        return self.folder.spec

    @property
    def devices(self) -> int:
        """Predictions that run at once."""
        return len(self._lanes)

    @property
    def where(self) -> str:
        """The devices in words: "2 CPU threads", "GPU 0 (NVIDIA L4), GPU 1 (NVIDIA L4)"."""
        return str(self._devices)

    def complaints(self, prompt: str) -> list[str]:
        """What of a prompt the model cannot read, in words; empty where it reads all."""
        return self._prompts.complaints(prompt)

    def plan(
        self,
        *,
        steps: int | None = None,
        mode: str = "aggressive",
        lanes: int | None = None,
        rounds: int | None = None,
        scheduler: str | None = None,
    ) -> Plan:
        """The plan that a call with these settings runs; see `Pipeline.__call__`."""
        for name, value in (("mode", mode), ("scheduler", "" if scheduler is None else scheduler)):
            if not isinstance(value, str):
                raise InputError(f"{name} must be a name, not {value!r}")
        if steps is not None and (isinstance(steps, bool) or not isinstance(steps, int) or steps < 1):
            raise InputError(f"steps must be a whole number of at least 1, not {steps!r}")
        key = repr((steps, mode, lanes, rounds, scheduler))  # by equality True would be 1
        with self._lock:
            if key not in self._plans:
                count = self.spec.steps if steps is None else steps
                schedule = Schedule.from_config(self._config, count, scheduler=scheduler)
                width = default_lanes(self.devices, count) if lanes is None else lanes
                if len(self._plans) >= _PLANS_KEPT:
                    del self._plans[next(iter(self._plans))]
                self._plans[key] = make_plan(schedule, mode=mode, lanes=width, rounds=rounds)
            return self._plans[key]

    def warm_up(self, batch: int = 1) -> float:
        """One prediction on every lane at once, of `batch` pictures with guidance; returns milliseconds.

        The first prediction after loading is slower than later ones; this is for who
        measures, or serves.

        Raises:
            InputError: `batch` is not a positive whole number.
            LaneError: a lane failed, or the pipeline is closed.
        """
        self._check_open()
        if isinstance(batch, bool) or not isinstance(batch, int) or batch < 1:
            raise InputError(f"batch must be a whole number of at least 1, not {batch!r}")
        start = time.perf_counter()
        embeddings = self._embed([""] * batch)
        self._lanes.job(embeddings, 2.0, embeddings).warm_up(self.folder.latent_shape)
        return 1e3 * (time.perf_counter() - start)

    def __call__(
        self,
        prompt: str | Sequence[str],
        *,
        negative_prompt: str = "",
        steps: int | None = None,
        guidance_scale: float | None = None,
        seed: int | Iterable[int] = 0,
        num_images: int = 1,
        mode: str = "aggressive",
        lanes: int | None = None,
        rounds: int | None = None,
        scheduler: str | None = None,
        on_round: Callable[[RoundDone], None] | None = None,
    ) -> Result:
        """Make pictures, all prompts and images in one batch.

        Args:
            prompt: one prompt or several.
            negative_prompt: what guidance leads away from.
            steps: solver steps; by default what the model's authors recommend.
            guidance_scale: of classifier-free guidance (2207.12598); 1 or less is none.
            seed: an int is one random stream for the whole batch, as in diffusers; a
                sequence has one seed for each picture.
            num_images: pictures of each prompt.
            mode: "sequential", "aggressive", "conservative" or "skip"; see `make_plan`.
            lanes: noises predicted at once; by default the number of devices, but no more than
                2, or one for every 10 steps, or 4. The picture depends on the lanes and not on the
                devices, so name them where it must be the same on every machine.
            rounds: for mode "skip".
            scheduler: another solver than the model's own, by its name in `Schedule.from_config`.
            on_round: called after every round, for progress; what it raises ends the call.

        Raises:
            InputError: a setting that cannot be; nothing has run by then.
            LaneError: a lane failed, or the pipeline is closed.
            ModelError: the networks gave numbers that are not finite.
        """
        request = Request.check(
            prompt,
            num_images=num_images,
            negative_prompt=negative_prompt,
            guidance_scale=self.spec.guidance_scale if guidance_scale is None else guidance_scale,
            seed=seed,
        )
        plan = self.plan(steps=steps, mode=mode, lanes=lanes, rounds=rounds, scheduler=scheduler)
        if on_round is not None and not callable(on_round):
            raise InputError(f"on_round must be a function of one argument, not {on_round!r}")
        self._check_open()
        for text in dict.fromkeys((*request.prompts, negative_prompt)):
            for complaint in self.complaints(text):
                warnings.warn(f"{text!r}: {complaint}", PromptWarning, stacklevel=2)
        try:
            plan, latents, images, timings = self._run_somewhere(request, plan, on_round)
        except DriffusionError as error:
            if self._closed and not isinstance(error, LaneError):
                raise LaneError("the pipeline was closed while it worked on this; load it again") from error
            raise
        settings = request.settings(plan, scheduler or plan.schedule.solver, self._model())
        return Result(images, latents, timings, plan, settings)

    def _check_open(self) -> None:
        if self._closed:
            raise LaneError("the pipeline is closed; load it again")

    def _run_somewhere(
        self, request: Request, plan: Plan, on_round: Callable[[RoundDone], None] | None
    ) -> tuple[Plan, NDArray[np.float32], tuple[Image.Image, ...], Timings]:
        """Run it, and again without the devices that fail, for as long as there are others."""
        while True:
            try:
                return plan, *self._run(request, plan, on_round)
            except LaneError as error:
                left = error.lanes_left
                if not left or self._closed:
                    raise
                text = f"{error}; the pictures are made with the {left} lanes left"
                warnings.warn(text, LaneWarning, stacklevel=3)
                plan = plan.with_lanes(min(plan.lanes, left))

    def _run(
        self, request: Request, plan: Plan, on_round: Callable[[RoundDone], None] | None
    ) -> tuple[NDArray[np.float32], tuple[Image.Image, ...], Timings]:
        marks = [time.perf_counter()]
        streams = noise_streams(request.seed, len(request.prompts))
        conditioning = self._embed(request.prompts)
        negative = (request.negative_prompt,) * len(request.prompts)
        unconditional = self._embed(negative) if request.guided else None
        job = self._lanes.job(conditioning, request.guidance_scale if request.guided else 1.0, unconditional)
        noise = streams.draw(self.folder.latent_shape)
        marks.append(time.perf_counter())
        ticks = [marks[-1]]

        def tick(done: RoundDone) -> None:
            ticks.append(time.perf_counter())
            if on_round is not None:
                on_round(done)

        # Where the host need not wait for rounds, it does so only to tell somebody.
        told = tick if on_round is not None or not self._devices.gpus else None
        latents = job.sample(plan, noise, streams, told)
        if not np.isfinite(latents).all():
            raise ModelError(
                f"sampling in mode {plan.mode!r} with {plan.steps} steps at guidance_scale "
                f"{request.guidance_scale} left the range of numbers; lower the guidance scale, take "
                "more steps, or use mode 'sequential'"
            )
        marks.append(time.perf_counter())
        images = self._decode(latents)
        marks.append(time.perf_counter())
        encode, denoise, decode = (1e3 * float(ms) for ms in np.diff(marks))
        rounds_ms = tuple(1e3 * float(ms) for ms in np.diff(ticks))
        return latents, images, Timings(encode, denoise, decode, rounds_ms)

    def _embed(self, prompts: Sequence[str]) -> NDArray[np.float32]:
        known = {prompt: self._prompts.encode(prompt) for prompt in dict.fromkeys(prompts)}
        return np.concatenate([known[prompt] for prompt in prompts])

    def _decode(self, latents: NDArray[np.float32]) -> tuple[Image.Image, ...]:
        manifest = self.folder.manifest
        scaled = latents / np.float32(manifest.scaling_factor) + np.float32(manifest.shift_factor)
        images: list[Image.Image] = []
        for one in scaled:  # one by one: the bits of a picture do not depend on its batch
            (decoded,) = self._decoder.run({"latents": one[None]}).values()
            if not np.isfinite(decoded).all():  # it would be a black picture
                raise ModelError("the decoder gave numbers that are not finite; build it in bf16 or fp32")
            images += to_images(decoded)
        return tuple(images)

    @property
    def model_hash(self) -> str:
        """The first digits of the denoiser's SHA-256: which weights these are."""
        return self.folder.manifest.files["onnx/denoiser.onnx"].sha256[:10]

    def _model(self) -> dict[str, Any]:
        return {"model": self.folder.manifest.family, "model_hash": self.model_hash}

    def close(self) -> None:
        """Stop the lanes after what they are doing; a second call does nothing."""
        self._closed = True
        self._resources.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
