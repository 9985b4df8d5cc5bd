"""From a prompt to pictures: text encoder, starting noise, a plan on the lanes, decoder."""

from __future__ import annotations

import contextlib
import math
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from . import __version__
from ._errors import InputError
from .engines.manifest import ModelFolder
from .engines.onnx_session import OnnxSession
from .models import ModelSpec
from .pictures import to_images
from .prompts import PromptEncoder
from .runtime.host import HostLanes, auto_lanes
from .sampling.noise import noise_streams
from .sampling.plan import Plan, make_plan
from .sampling.sample import RoundDone, run_plan
from .sampling.schedule import Schedule

Devices = int | str | Sequence[str]


class PromptWarning(UserWarning):
    """A prompt has words that the model cannot read."""


@dataclass(frozen=True, slots=True)
class Timings:
    """Wall-clock times of one call in milliseconds; `rounds_ms` has one entry a round."""

    encode_ms: float
    denoise_ms: float
    decode_ms: float
    rounds_ms: tuple[float, ...]

    @property
    def total_ms(self) -> float:
        return self.encode_ms + self.denoise_ms + self.decode_ms


@dataclass(frozen=True, slots=True)
class Result:
    """Pictures, and how they came about.

    images: PIL images, prompt by prompt, `num_images` of each.
    latents: what the decoder got, float32 (B, C, h, w), in the sampler's scale.
    settings: for each picture everything needed to make it again, as plain JSON values.
    """

    images: tuple[Image.Image, ...]
    latents: NDArray[np.float32]
    timings: Timings
    plan: Plan
    settings: tuple[dict[str, Any], ...]


@dataclass(frozen=True, slots=True)
class _Request:
    """A checked call: one prompt a picture, and everything the rounds need."""

    prompts: tuple[str, ...]
    negative: str
    guidance_scale: float
    seed: int | tuple[int, ...]
    scheduler: str | None
    plan: Plan


class Pipeline:
    """A loaded model on its lanes; make one with `Pipeline.load`. Safe from several threads."""

    def __init__(self, folder: ModelFolder, devices: int) -> None:
        self.folder = folder
        self._config = folder.scheduler_config()
        self._plans: dict[tuple[object, ...], Plan] = {}
        self._lock = threading.Lock()
        with contextlib.ExitStack() as stack:
            text = stack.enter_context(OnnxSession(folder.network("text_encoder")))
            self._prompts = PromptEncoder(folder.tokenizer(), text)
            # One thread: the same bits whatever the number of lanes.
            self._decoder = stack.enter_context(OnnxSession(folder.network("vae_decoder")))
            self._lanes = stack.enter_context(HostLanes(folder.network("denoiser"), devices))
            self._resources = stack.pop_all()

    @classmethod
    def load(cls, model: str = "demo", *, devices: Devices = "auto") -> Pipeline:
        """Load a model and start its lanes.

        Args:
            model: "demo", the bundled model, or the path of a model folder.
            devices: what predicts in parallel: a number of CPU lanes, a list such as
                ["cpu", "cpu"], or "auto" for one lane for each core that there is.

        Raises:
            InputError: `devices` cannot be had.
            ModelError: the model is missing, incomplete or altered.
        """
        return cls(ModelFolder.open(model), _count(devices))

    @property
    def spec(self) -> ModelSpec:
        """Facts of the model's family: sizes, default steps and guidance scale."""
        return self.folder.spec

    @property
    def devices(self) -> int:
        """Predictions that run at once."""
        return len(self._lanes)

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
        key = (steps, mode, lanes, rounds, scheduler)
        with self._lock:
            if key not in self._plans:
                schedule = Schedule.from_config(self._config, steps or self.spec.steps, scheduler=scheduler)
                width = self.devices if lanes is None else lanes
                self._plans[key] = make_plan(schedule, mode=mode, lanes=width, rounds=rounds)
            return self._plans[key]

    def __call__(
        self,
        prompt: str | Sequence[str],
        *,
        negative_prompt: str = "",
        steps: int | None = None,
        guidance_scale: float | None = None,
        seed: int | Sequence[int] = 0,
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
            lanes: noises predicted at once, by default the number of devices. More lanes
                than devices give the same picture, in more time.
            rounds: for mode "skip".
            scheduler: another solver than the model's own, by its name in `Schedule.from_config`.
            on_round: called after every round, for progress; what it raises ends the call.

        Raises:
            InputError: a setting that cannot be; nothing has run by then.
            LaneError: a lane failed, or the pipeline is closed.
        """
        if steps is not None and (isinstance(steps, bool) or not isinstance(steps, int) or steps < 1):
            raise InputError(f"steps must be a whole number of at least 1, not {steps!r}")
        prompts = _prompts(prompt, num_images)
        scale = self.spec.guidance_scale if guidance_scale is None else _scale(guidance_scale)
        if not isinstance(negative_prompt, str):
            raise InputError(f"negative_prompt must be a text, not {negative_prompt!r}")
        plan = self.plan(steps=steps, mode=mode, lanes=lanes, rounds=rounds, scheduler=scheduler)
        seeds = seed if isinstance(seed, int) else tuple(seed)
        request = _Request(prompts, negative_prompt, scale, seeds, scheduler, plan)
        for text in dict.fromkeys((*prompts, negative_prompt)):
            for complaint in self.complaints(text):
                warnings.warn(f"{text!r}: {complaint}", PromptWarning, stacklevel=2)
        return self._run(request, on_round)

    def _run(self, request: _Request, on_round: Callable[[RoundDone], None] | None) -> Result:
        streams = noise_streams(request.seed, len(request.prompts))
        marks = [time.perf_counter()]
        conditioning = self._embed(request.prompts)
        guided = request.guidance_scale > 1
        unconditional = self._embed((request.negative,) * len(request.prompts)) if guided else None
        job = self._lanes.job(conditioning, request.guidance_scale if guided else 1.0, unconditional)
        noise = streams.draw(self.spec.latent_shape)
        marks.append(time.perf_counter())
        ticks = [marks[-1]]

        def tick(done: RoundDone) -> None:
            ticks.append(time.perf_counter())
            if on_round is not None:
                on_round(done)

        latents = run_plan(request.plan, job.predict, noise, streams, tick)
        marks.append(time.perf_counter())
        images = self._decode(latents)
        marks.append(time.perf_counter())
        encode, denoise, decode = (1e3 * float(ms) for ms in np.diff(marks))
        rounds_ms = tuple(1e3 * float(ms) for ms in np.diff(ticks))
        timings = Timings(encode, denoise, decode, rounds_ms)
        return Result(images, latents, timings, request.plan, self._settings(request))

    def _embed(self, prompts: Sequence[str]) -> NDArray[np.float32]:
        known = {prompt: self._prompts.encode(prompt) for prompt in dict.fromkeys(prompts)}
        return np.concatenate([known[prompt] for prompt in prompts])

    def _decode(self, latents: NDArray[np.float32]) -> tuple[Image.Image, ...]:
        manifest = self.folder.manifest
        scaled = latents / np.float32(manifest.scaling_factor) + np.float32(manifest.shift_factor)
        images: list[Image.Image] = []
        for one in scaled:  # one by one: the bits of a picture do not depend on its batch
            (decoded,) = self._decoder.run({"latents": one[None]}).values()
            images += to_images(decoded)
        return tuple(images)

    def _settings(self, request: _Request) -> tuple[dict[str, Any], ...]:
        plan, count = request.plan, len(request.prompts)
        shared = {
            "negative_prompt": request.negative,
            "model": self.folder.manifest.family,
            "scheduler": request.scheduler or plan.schedule.solver,
            "steps": plan.steps,
            "guidance_scale": request.guidance_scale,
            "mode": plan.mode,
            "lanes": plan.lanes,
            "rounds": plan.sequential_calls,
            "version": __version__,
        }
        if isinstance(request.seed, int):
            batch = {"batch": count} if count > 1 else {}
            places = [{"seed": request.seed, **batch, **({"picture": k} if batch else {})} for k in range(count)]
        else:
            places = [{"seed": seed} for seed in request.seed]
        return tuple({"prompt": p, **place, **shared} for p, place in zip(request.prompts, places, strict=True))

    def close(self) -> None:
        """Stop the lanes after what they are doing; a second call does nothing."""
        self._resources.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _count(devices: Devices) -> int:
    if devices == "auto":
        return auto_lanes()
    if isinstance(devices, int) and not isinstance(devices, bool) and devices >= 1:
        return devices
    if isinstance(devices, Sequence) and not isinstance(devices, str) and devices:
        if all(device == "cpu" for device in devices):
            return len(devices)
        raise InputError(f"devices={list(devices)!r} was asked; this version has CPU lanes only: ['cpu', 'cpu']")
    raise InputError(f"devices={devices!r} was asked; give a number of at least 1, a list of 'cpu', or 'auto'")


def _prompts(prompt: str | Sequence[str], num_images: int) -> tuple[str, ...]:
    prompts = (prompt,) if isinstance(prompt, str) else tuple(prompt)
    if not prompts or not all(isinstance(one, str) for one in prompts):
        raise InputError(f"prompt must be a text or a sequence of texts with at least one, not {prompt!r}")
    if isinstance(num_images, bool) or not isinstance(num_images, int) or num_images < 1:
        raise InputError(f"num_images must be a whole number of at least 1, not {num_images!r}")
    return tuple(one for one in prompts for _ in range(num_images))


def _scale(guidance_scale: float) -> float:
    if isinstance(guidance_scale, bool) or not isinstance(guidance_scale, int | float):
        raise InputError(f"guidance_scale must be a number, not {guidance_scale!r}")
    if not math.isfinite(guidance_scale) or guidance_scale < 0:
        raise InputError(f"guidance_scale={guidance_scale} was asked; it must be finite and at least 0")
    return float(guidance_scale)
