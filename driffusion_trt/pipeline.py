"""From a prompt to pictures: text encoder, starting noise, a plan on the lanes, decoder."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Self, Unpack

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ._auto import Auto, check_auto, leaves_open
from ._call import LaneWarning, PrecisionWarning, PromptWarning, Result, Timings, Watch
from ._errors import DriffusionError, InputError, LaneError, ModelError
from ._measured_costs import Told, untold
from ._planner import Planner, planned
from ._precision import Precisions, single_precision
from ._request import Request
from ._settings import Settings, check_names, python_numbers
from ._source import resolved
from ._stages import Stages, heard
from .engines.manifest import ModelFolder
from .models import ModelSpec
from .planning.candidates import Choice
from .planning.costs import Costs
from .previews import preview
from .runtime.devices import Asked, Devices, choose_devices
from .runtime.networks import GpuOptions
from .sampling.plan import Plan

__all__ = ["LaneWarning", "Pipeline", "PrecisionWarning", "PromptWarning", "Result", "Timings"]

_HASHED_BYTES = 64 << 20  # up to here hashing a whole model takes a moment, so it is always done


class Pipeline:
    """A loaded model on its lanes; make one with `Pipeline.load`.

    Every method may be called from any number of threads at once, with any settings: each call gets the
    bits that its plan gives alone. CPU lanes take turns with the rounds of all calls, GPUs with whole calls.
    """

    def __init__(
        self, folder: ModelFolder, devices: Devices, options: GpuOptions, single: ModelFolder | None = None
    ) -> None:
        self.folder, self._devices, self._options = folder, devices, options
        self._planner, self._closed = Planner(folder), False
        self._stages = Stages(folder, devices, options)
        self._lanes = self._stages.lanes
        self._precisions = Precisions(self._stages, single, devices, options)
        self._auto = Auto(folder, devices, options, self._planner, self._stages)

    @classmethod
    def load(
        cls,
        model: str | os.PathLike[str] = "demo",
        *,
        devices: Asked = "auto",
        cuda_graphs: bool = True,
        peer_copies: bool = True,
        deadline_s: float = 120.0,
        nan_policy: str = "error",
        fp32_model: str | os.PathLike[str] | None = None,
    ) -> Self:
        """Load a model and start its lanes.

        Args:
            model: "demo", "demo-xl" or "demo-sd3", which are bundled, or the path of a model folder.
            devices: what predicts in parallel: a number, "auto", "cuda" for all GPUs, or a list such as
                ["cuda:0", "cuda:1"] or ["cpu", "cpu"]. A number and "auto" take the GPUs for which the
                model has plans, else CPU lanes, one for each core that there is.
            cuda_graphs: launch each GPU's work as one graph.
            peer_copies: copy latents from GPU to GPU where that was seen to work, else through the host.
            deadline_s: above 0; a call that takes longer has a GPU that hangs, and goes on without it.
            nan_policy: "error", or "retry-fp32": where the networks leave the range of fp16, make the
                pictures again with `fp32_model`, which is loaded then and kept.
            fp32_model: the folder of the same model in fp32; by default `model` with "-fp32" after it.

        Raises:
            InputError: `devices` cannot be had, or `deadline_s` is no time to wait.
            ModelError: the model is missing, incomplete or altered, or has no plans for these GPUs.
            MissingExtraError: a package for GPUs is not installed.
            EngineError, DeviceError: TensorRT or the driver refused.
        """
        options = GpuOptions(cuda_graphs, peer_copies, deadline_s)
        folder = ModelFolder.open(model)
        chosen = choose_devices(devices, folder)
        if not chosen.gpus and folder.manifest.precision.startswith("bf16"):
            raise ModelError(
                f"{folder.path} is in bf16, which ONNX Runtime cannot multiply in on a CPU; run it on a GPU "
                "that it has plans for, or build it with --precision fp32 or fp16"
            )
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
        """Network calls that run at once: predictions, or halves of them where guidance is split."""
        return len(self._lanes)

    @property
    def where(self) -> str:
        """The devices in words: "2 CPU threads", "GPU 0 (NVIDIA L4), GPU 1 (NVIDIA L4)"."""
        return str(self._devices)

    def complaints(self, prompt: str) -> list[str]:
        """What of a prompt the model cannot read, in words; empty where it reads all."""
        return self._stages.conditioner.complaints((prompt,) * len(self.spec.text_encoders))

    def plan(self, prompt: str | Sequence[str] = "", **settings: Unpack[Settings]) -> Plan:
        """The plan that a call with these settings runs. Measures, and raises, as a call does."""
        return self._planned(*self._checked(prompt, settings))[1]

    def choice(
        self, prompt: str | Sequence[str] = "", *, told: Told = untold, **settings: Unpack[Settings]
    ) -> Choice:
        """What mode "auto" chooses for a call: `str` of it is one line, `explained()` the reasons.

        told: see `measure`. Raises as a call does, and InputError for a mode that leaves no choice."""
        request, checked = self._checked(prompt, settings)
        if not leaves_open(checked):
            raise InputError(f"mode {checked['mode']!r} leaves no choice; leave it out, or use plan()")
        return self._auto.choice(request, planned(checked), told)

    def measure(
        self,
        height: int | None = None,
        width: int | None = None,
        told: Told = untold,
        *,
        again: bool = False,
    ) -> Costs:
        """What network calls take here, for mode "auto"; measured once for a size, and kept on this machine.

        The first call that needs it does the same; services do so before they serve, with nothing else at
        work. told: called after each of so many runs. again: though it was done. Raises as `warm_up` does.
        """
        self._check_open()
        request = Request.check(self.spec, self._planner.own_size, "", {"height": height, "width": width})
        return self._auto.costs.measure((request.height, request.width), told, again=again)

    def warm_up(
        self,
        batch: int = 1,
        height: int | None = None,
        width: int | None = None,
        split_guidance: bool = False,
    ) -> float:
        """One prediction on every lane at once, of `batch` pictures with guidance; returns milliseconds.

        The first prediction after loading is slower than later ones; this is for who
        measures, or serves. height, width: of the pictures; by default the model's.
        split_guidance: as the calls to come will have it.

        Raises:
            InputError: `batch` is not a positive whole number, or there are no pictures of this size.
            LaneError: a lane failed, or the pipeline is closed.
        """
        self._check_open()
        settings = {"num_images": batch, "height": height, "width": width, "guidance_scale": 2.0}
        settings["split_guidance"] = split_guidance
        request = Request.check(self.spec, self._planner.own_size, "", settings)
        start = time.perf_counter()
        self._stages.warm_up(request)
        return 1e3 * (time.perf_counter() - start)

    def __call__(self, prompt: str | Sequence[str], **settings: Unpack[Settings]) -> Result:
        """Make pictures, all prompts and images in one batch.

        Args:
            prompt: one prompt or several.
            prompt_2, prompt_3: for a second and third text encoder; by default `prompt`.
            negative_prompt: what guidance leads away from: one text, or one for each prompt. None
                is what the model was trained with for none, which for SDXL is not an empty text.
            negative_prompt_2, negative_prompt_3: as `prompt_2` and `prompt_3`.
            image, mask_image, strength: start from a picture instead of noise; see `Settings`.
            height, width: of the pictures in pixels; by default those of `image`, or the model's.
            steps: solver steps; by default what the model's authors recommend.
            guidance_scale: of classifier-free guidance (2207.12598); 1 or less is none.
            seed: an int is one random stream for the whole batch, as in diffusers; a
                sequence has one seed for each picture.
            num_images: pictures of each prompt.
            mode: "auto", the default, or one of `make_plan`'s; quality, deadline_ms: see `Settings`.
            lanes: noises predicted at once; of mode "auto" the most. Of others by default the number of
                devices, but at most one for every 10 steps, which is taken as not below 2 nor above 4. With a
                mode by name the picture depends on the lanes and not on the devices.
            split_guidance: predict with and without the prompt on two devices; see `Settings`.
            rounds: for modes "skip", "window" and "paradigms"; for "tolerance" the most.
            blocks: for modes "window" and "aggressive": see `make_plan`.
            order, carry: of modes "window" and "tolerance"; the defaults are good.
            tolerance: for modes "tolerance" and "paradigms"; the pictures of a batch take the rounds that
                the hardest needs.
            scheduler: another solver than the model's own, by its name in `Schedule.from_config`.
            eta: share of fresh noise in a step of DDIM.
            clip_skip: layers of CLIP to stop before the usual one, for the prompt.
            original_size, crops_coords_top_left, target_size: what SDXL is told of sizes, (height,
                width) or (top, left) in pixels; by default the picture's own size, and no crop.
            negative_original_size, negative_crops_coords_top_left, negative_target_size: the same
                for the negative prompt; by default as for the prompt.
            vae_tiling: decode in tiles, which takes less memory; see `Settings`.
            callback_on_round_end: called after every round with a `RoundDone`, in the thread of the
                call; what it raises ends the call.
            cancel: once it is set, the call ends after the round under way, with CancelledError.

        Raises:
            InputError: a setting that cannot be; nothing has run by then.
            ModelError: `image` was given, and the model has no encoder.
            LaneError: a lane failed, or the pipeline is closed.
            NonFiniteError: the networks gave numbers that are not finite.
            CancelledError: `cancel` was set.
        """
        request, checked = self._checked(prompt, settings)
        watch = Watch.check(settings)
        self._complain(request)
        return self._made(request, checked, watch)

    def _made(self, request: Request, checked: Mapping[str, Any], watch: Watch) -> Result:
        """Of a call that was checked; it warns of no prompt."""
        try:
            with heard(watch):
                request, plan = self._planned(request, checked, watch)
                made, folder = self._precisions.run(request, plan, watch)
        except DriffusionError as error:
            if self._closed and not isinstance(error, LaneError):
                raise LaneError("the pipeline was closed while it worked on this; load it again") from error
            raise
        model = {"model": self.folder.manifest.family, "model_hash": folder.model_hash}
        solver = checked.get("scheduler") or plan.schedule.solver
        facts = request.settings(made.plan, made.stats, solver, model)
        return Result(made.images, made.latents, made.timings, made.plan, facts, made.stats)

    async def generate(self, prompt: str | Sequence[str], **settings: Unpack[Settings]) -> Result:
        """The same for asyncio: `result = await pipe.generate(...)`, with the loop free meanwhile.

        The work is done in a thread, where `callback_on_round_end` is called too. A task that is
        cancelled sets `cancel` and is over when the round under way is, with the lanes free.

        Raises as a call does; asyncio's own CancelledError where the task is cancelled.
        """
        from ._awaiting import awaited  # asyncio takes as long to load as numpy

        return await awaited(self, prompt, **settings)

    def preview(self, latents: NDArray[np.float32]) -> tuple[Image.Image, ...]:
        """Small pictures of this family's latents (B, C, h, w), by one linear map; else raises InputError."""
        return preview(self.spec, latents)

    def _checked(
        self, prompt: str | Sequence[str], settings: Mapping[str, Any]
    ) -> tuple[Request, Mapping[str, Any]]:
        check_names(settings)
        self._check_open()
        checked = resolved(self.spec, python_numbers(settings))
        check_auto(checked)
        request = Request.check(self.spec, self._planner.own_size, prompt, checked)
        self._stages.check(request)
        return request, checked

    def _planned(
        self, request: Request, checked: Mapping[str, Any], watch: Watch | None = None
    ) -> tuple[Request, Plan]:
        asked = planned(checked)
        if leaves_open(checked):
            request, asked = self._auto.named(request, asked, (watch or Watch()).before)
        return request, self._planner.plan(self.devices, **asked)

    def _complain(self, request: Request) -> None:
        for row in dict.fromkeys((*request.prompts, *(request.negative or ()))):
            for complaint in self._stages.conditioner.complaints(row):
                warnings.warn(f"{row[0]!r}: {complaint}", PromptWarning, stacklevel=3)

    def _check_open(self) -> None:
        if self._closed:
            raise LaneError("the pipeline is closed; load it again")

    @property
    def model_hash(self) -> str:
        """The first digits of the denoiser's SHA-256: which weights these are."""
        return self.folder.model_hash

    def close(self) -> None:
        """Stop the lanes after what they are doing; a second call does nothing."""
        self._closed = True
        self._precisions.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
