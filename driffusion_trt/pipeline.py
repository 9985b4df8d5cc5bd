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

from ._call import LaneWarning, PrecisionWarning, PromptWarning, Request, Result, Timings
from ._errors import DriffusionError, InputError, LaneError, ModelError, NonFiniteError
from ._stages import Made, Stages, single_precision
from .engines.manifest import ModelFolder
from .models import ModelSpec
from .runtime.devices import Asked, Devices, choose_devices
from .runtime.networks import GpuOptions
from .sampling.plan import Plan, default_lanes, make_plan
from .sampling.sample import RoundDone
from .sampling.schedule import Schedule

__all__ = ["LaneWarning", "Pipeline", "PrecisionWarning", "PromptWarning", "Result", "Timings"]

_HASHED_BYTES = 64 << 20  # up to here hashing a whole model takes a moment, so it is always done
_PLANS_KEPT = 64


class Pipeline:
    """A loaded model on its lanes; make one with `Pipeline.load`. Safe from several threads."""

    def __init__(
        self, folder: ModelFolder, devices: Devices, options: GpuOptions, single: ModelFolder | None = None
    ) -> None:
        self.folder, self._devices, self._options = folder, devices, options
        self._single, self._again = single, contextlib.ExitStack()
        self._in_single: Stages | None = None
        self._config = folder.scheduler_config()
        self._plans: dict[str, Plan] = {}
        self._lock = threading.Lock()
        self._closed = False
        self._stages = Stages(folder, devices, options)
        self._lanes = self._stages.lanes

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
        nan_policy: str = "error",
        fp32_model: str | os.PathLike[str] | None = None,
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
            nan_policy: "error", or "retry-fp32": where the networks leave the range of fp16, make the
                pictures again with `fp32_model`, which is loaded then and kept.
            fp32_model: the folder of the same model in fp32; by default `model` with "-fp32" after it.

        Raises:
            InputError: `devices` cannot be had.
            ModelError: the model is missing, incomplete or altered, or has no plans for these GPUs.
            MissingExtraError: a package for GPUs is not installed.
            EngineError, DeviceError: TensorRT or the driver refused.
        """
        folder = ModelFolder.open(model)
        chosen = choose_devices(devices, folder)
        if not chosen.gpus and folder.manifest.precision.startswith("bf16"):
            raise ModelError(
                f"{folder.path} is in bf16, which ONNX Runtime cannot multiply in on a CPU; run it on a GPU "
                "that it has plans for, or build it with --precision fp32 or fp16"
            )
        options = GpuOptions(split_guidance, cuda_graphs, peer_copies, deadline_s)
        single = single_precision(folder, nan_policy, fp32_model)
        if sum(entry.size_bytes for entry in folder.manifest.files.values()) <= _HASHED_BYTES:
            folder.verify()
        return cls(folder, chosen, options, single)

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
        return self._stages.prompts.complaints(prompt)

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
        self._stages.warm_up(batch)
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
            NonFiniteError: the networks gave numbers that are not finite.
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
            made = self._made(request, plan, on_round)
        except DriffusionError as error:
            if self._closed and not isinstance(error, LaneError):
                raise LaneError("the pipeline was closed while it worked on this; load it again") from error
            raise
        settings = request.settings(made.plan, scheduler or plan.schedule.solver, self._model())
        return Result(made.images, made.latents, made.timings, made.plan, settings)

    def _check_open(self) -> None:
        if self._closed:
            raise LaneError("the pipeline is closed; load it again")

    def _made(self, request: Request, plan: Plan, on_round: Callable[[RoundDone], None] | None) -> Made:
        try:
            return self._stages.run(request, plan, on_round)
        except NonFiniteError as error:
            if self._single is None:
                raise
            text = f"{error}; the pictures are made again with {self._single.path}"
            warnings.warn(text, PrecisionWarning, stacklevel=3)
        with self._lock:
            self._check_open()
            if self._in_single is None:
                self._in_single = Stages(self._single, self._devices, self._options)
                self._again.callback(self._in_single.close)
        return self._in_single.run(request, plan, on_round)

    @property
    def model_hash(self) -> str:
        """The first digits of the denoiser's SHA-256: which weights these are."""
        return self.folder.manifest.files["onnx/denoiser.onnx"].sha256[:10]

    def _model(self) -> dict[str, Any]:
        return {"model": self.folder.manifest.family, "model_hash": self.model_hash}

    def close(self) -> None:
        """Stop the lanes after what they are doing; a second call does nothing."""
        self._closed = True
        with self._lock:
            self._again.close()
        self._stages.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
