"""One batch of pictures on the GPU lanes: what stays the same over its steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .._errors import InputError
from ..sampling.known import Known
from ..sampling.noise import NoiseStreams
from ..sampling.plan import Plan
from ..sampling.recording import Recorder
from ..sampling.sample import RoundDone, Sampled
from ._waiting import Waiting
from .gpu_links import requested
from .gpu_picture import WorkerFailed
from .gpu_request import Conditioning, Form
from .gpu_run import run_picture

if TYPE_CHECKING:
    from .cuda import CudaLanes

__all__ = ["CudaJob"]

Float32 = NDArray[np.float32]


class CudaJob:
    """One batch of pictures on the GPU lanes: its embeddings and guidance."""

    def __init__(
        self,
        lanes: CudaLanes,
        conditioning: Float32 | Conditioning,
        guidance_scale: float,
        unconditional: Float32 | Conditioning | None,
        *,
        split_guidance: bool = False,
        devices: int | None = None,
    ) -> None:
        if devices is not None and devices < 1:
            raise InputError(f"devices must be at least 1, not {devices}")
        if not np.isfinite(guidance_scale):
            raise InputError(f"guidance_scale must be finite, not {guidance_scale}")
        self._lanes, self._devices, self.guidance_scale = lanes, devices, float(guidance_scale)
        given = _named(conditioning)
        self._branches: tuple[Conditioning, ...] = (given,)
        if guidance_scale != 1:
            if unconditional is None:
                raise InputError(f"guidance_scale {guidance_scale} needs the unconditional embeddings")
            other = _named(unconditional)
            if {k: v.shape for k, v in other.items()} != {k: v.shape for k, v in given.items()}:
                raise InputError("the unconditional embeddings must have the names and shapes of the others")
            self._branches = (other, given)
        self._split = split_guidance and len(self._branches) == 2
        batches = {len(value) for value in given.values()}
        if len(batches) != 1:
            raise InputError(f"the embeddings have batches of {sorted(batches)}; they are one batch")
        (self.batch,) = batches

    def warm_up(self, shape: tuple[int, ...]) -> None:
        """Make ready what requests of one draft of latents (C, H, W) need: buffers, graphs, a first run.

        Raises:
            InputError: the engines' plans were not built for this size.
            DeviceError, EngineError: a device or TensorRT failed.
        """
        form = self._form(shape)
        with self._lanes.turn(form):
            for lane in self._lanes.lanes_for(form):
                for worker in lane:
                    worker.request(requested(lane, form, 1))

    def _form(self, shape: tuple[int, ...]) -> Form:
        inputs = tuple(sorted((name, value.shape[1:]) for name, value in self._branches[0].items()))
        return Form(1, self.batch, shape, len(self._branches), inputs, self._split)

    def sample(
        self,
        plan: Plan,
        noise: Float32,
        streams: NoiseStreams,
        on_round: Callable[[RoundDone], None] | None = None,
        known: Known | None = None,
        waiting: Waiting = None,
        recorder: Recorder | None = None,
    ) -> Sampled:
        """Run a plan from unit-normal noise (B, C, H, W), as `sampling.run_plan`.

        on_round: called after every round; the host then waits for each of them.
        known: for inpainting, the part of the picture that stays.
        waiting: called now and then while other pictures are made first; what it raises ends that.
        recorder: takes down what happens when, by events on the streams.

        Raises:
            InputError: the engines' plans were not built for this size.
            LaneError: a device failed or did not answer, and is not used again, or has no room for this
                request; `lanes_left` says with how many lanes of this kind the call can be made again.
            DeviceError: no device has room for this request; all can be used on.
            NonFiniteError: a prediction was not finite.
        """
        lanes = self._lanes
        if noise.dtype != np.float32 or noise.ndim != 4 or len(noise) != self.batch:
            raise InputError(
                f"noise is {noise.dtype} of shape {noise.shape}, expected float32 (B, C, H, W) with the "
                f"job's batch {self.batch}"
            )
        form = self._form(noise.shape[1:])
        with lanes.turn(form, waiting, self._devices) as group:
            try:
                picture = lanes.picture(plan, form, group)
                return run_picture(
                    picture,
                    noise,
                    streams,
                    self._branches,
                    self.guidance_scale,
                    deadline_s=lanes.deadline_s,
                    on_round=on_round,
                    known=known,
                    recorder=recorder,
                )
            except WorkerFailed as error:
                raise lanes.failed(error, plan, form, group, self._devices) from error


def _named(conditioning: Float32 | Mapping[str, Float32]) -> Conditioning:
    given = conditioning if isinstance(conditioning, Mapping) else {"encoder_hidden_states": conditioning}
    for name, value in given.items():
        if value.dtype != np.float32 or value.ndim < 2 or not value.size:
            raise InputError(f"{name} is {value.dtype} of shape {value.shape}, expected float32 (B, ...)")
    return {name: np.array(value, order="C") for name, value in given.items()}  # the caller's may change
