"""CPU lanes: worker threads that each predict one noise at a time with ONNX Runtime."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from .._errors import InputError, ModelError
from ..engines.onnx_session import BoundRun, OnnxSession
from ..sampling.noise import NoiseStreams
from ..sampling.plan import Plan
from ..sampling.sample import RoundDone, Sampled, run_plan
from ._threads import LaneThreads

__all__ = ["HostJob", "HostLanes", "auto_lanes"]

Latents = NDArray[np.float32]
_INPUTS = ("sample", "timestep", "encoder_hidden_states")


def auto_lanes() -> int:
    """Number of cores that this process may use: its affinity, cut by a container's CPU quota."""
    # macOS and Windows have no affinity call.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cores, _cpu_quota(Path("/sys/fs/cgroup/cpu.max"))))


def _cpu_quota(cpu_max: Path) -> int:
    """Whole cores of a cgroup v2 limit ("<quota> <period>" in microseconds, or "max <period>")."""
    try:
        quota, period = cpu_max.read_text("ascii").split()
        return math.ceil(int(quota) / int(period))
    except (OSError, ValueError, ZeroDivisionError):  # no cgroup v2, or no limit
        return 1 << 16


class HostLanes:
    """`lanes` persistent worker threads over one denoiser network.

    Request k of a call goes to lane k mod lanes; a lane works through what it is given in
    order. Any number of jobs may be alive, and any number of threads may call them: their
    requests queue up, and every job has buffers of its own. A request gives the same bits
    on every lane.
    """

    def __init__(
        self,
        network: str | os.PathLike[str] | Callable[[], OnnxSession],
        lanes: int,
        threads_per_lane: int = 1,
    ) -> None:
        """Load the network and start the threads.

        Args:
            network: path of the denoiser's ONNX file, or a function that makes a session;
                the sessions are closed with the lanes.
            lanes: noises predicted at once.
            threads_per_lane: threads that one prediction is spread over.

        Raises:
            InputError: `lanes` or `threads_per_lane` is not a positive integer.
            ModelError: the network cannot be loaded, or is no denoiser of the SD2.1 kind.
        """
        for name, value in (("lanes", lanes), ("threads_per_lane", threads_per_lane)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise InputError(f"{name} must be a positive integer, not {value!r}")
        make = network if callable(network) else partial(OnnxSession, network, threads_per_lane)
        with contextlib.ExitStack() as stack:
            # One-thread sessions work on the caller's thread, so that all lanes can share one.
            # Measured interleaved on the demo's denoiser, 2 lanes: no slower than a session
            # each (2 % less CPU time: one copy of the weights in the cache), and loading
            # takes 0.1 s and 28 MB less per lane.
            count = 1 if threads_per_lane == 1 else lanes
            sessions = [stack.enter_context(make()) for _ in range(count)]
            _check_inputs(sessions[0])
            self._sessions = [sessions[k % count] for k in range(lanes)]
            resources = stack.pop_all()
        self._threads = LaneThreads(lanes, resources.close)

    def __len__(self) -> int:
        return len(self._threads)

    def job(
        self,
        conditioning: NDArray[np.float32],
        guidance_scale: float,
        unconditional: NDArray[np.float32] | None = None,
    ) -> HostJob:
        """What stays the same over the steps of one batch of pictures.

        Args:
            conditioning: the prompts' embeddings (B, L, C) float32; copied.
            guidance_scale: g of u + g·(c − u), classifier-free guidance (2207.12598, in the
                form that diffusers uses); 1 predicts c alone, at half the cost.
            unconditional: the negative prompts' embeddings (B, L, C) float32, for g ≠ 1; copied.

        Raises:
            InputError: shapes or dtypes do not fit, or `unconditional` is missing.
            LaneError: the lanes are closed.
        """
        self._threads.check_open()
        return HostJob(self, conditioning, guidance_scale, unconditional)

    def close(self) -> None:
        """Finish what was asked for, then stop the threads; later calls do nothing.

        Safe from any thread: predictions under way are completed, later ones get a LaneError.
        """
        self._threads.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class HostJob:
    """One batch of pictures on the lanes: its embeddings, guidance and buffers."""

    def __init__(
        self,
        lanes: HostLanes,
        conditioning: NDArray[np.float32],
        guidance_scale: float,
        unconditional: NDArray[np.float32] | None,
    ) -> None:
        if not math.isfinite(guidance_scale):
            raise InputError(f"guidance_scale must be finite, not {guidance_scale}")
        _check_embeddings("conditioning", conditioning)
        self.batch = conditioning.shape[0]
        self.guidance_scale = guidance_scale
        self._lanes = lanes
        if guidance_scale == 1:
            self._embeddings = conditioning.copy(order="C")
        else:
            if unconditional is None:
                raise InputError(f"guidance_scale {guidance_scale} needs the unconditional embeddings")
            _check_embeddings("unconditional", unconditional)
            if unconditional.shape != conditioning.shape:
                raise InputError(
                    f"unconditional has shape {unconditional.shape}, conditioning {conditioning.shape}; "
                    "they must be equal"
                )
            self._embeddings = np.ascontiguousarray(np.concatenate([unconditional, conditioning]))
        # One array for all lanes, read in place: they share memory.
        self._embeddings.flags.writeable = False
        self._runs: list[dict[tuple[int, ...], BoundRun]] = [{} for _ in range(len(lanes))]
        self._checked: set[tuple[int, ...]] = set()

    def predict(self, requests: Sequence[tuple[Latents, float]]) -> list[Latents]:
        """Predict several noises at once, one a lane.

        Args:
            requests: pairs of latents (B, C, H, W) float32, already scaled for the network,
                and their timestep. More requests than lanes wait for their turn.

        Returns:
            What the network returns, guided: (B, C, H, W) float32 for each request, in arrays
            of their own, which later calls leave alone.

        Raises:
            InputError: latents have the wrong dtype or shape; nothing was predicted.
            LaneError: a lane failed (the lowest, if several did) and its error is the cause,
                or the lanes are closed. The other lanes have finished; all can be used on.
        """
        for latents, _ in requests:
            self._check_latents(latents)
        return self._lanes._threads.run(
            [partial(self._predict_one, latents, timestep) for latents, timestep in requests]
        )

    def sample(
        self,
        plan: Plan,
        noise: Latents,
        streams: NoiseStreams,
        on_round: Callable[[RoundDone], None] | None = None,
    ) -> Sampled:
        """Run a plan from unit-normal noise (B, C, H, W), as `run_plan` does.

        Raises:
            LaneError: as `predict` does.
        """
        return run_plan(plan, self.predict, noise, streams, on_round)

    def warm_up(self, shape: tuple[int, ...]) -> None:
        """One prediction on every lane at once, of latents of this shape (C, H, W)."""
        self.predict([(np.zeros((self.batch, *shape), np.float32), 1.0)] * len(self._lanes))

    def _check_latents(self, latents: Latents) -> None:
        if latents.dtype != np.float32:
            raise InputError(f"latents are {latents.dtype}, expected float32")
        if latents.shape in self._checked:
            return
        if latents.ndim != 4 or latents.shape[0] != self.batch:
            raise InputError(
                f"latents have shape {latents.shape}, expected (B, C, H, W) with the job's batch {self.batch}"
            )
        self._lanes._sessions[0].check(self._shapes(latents.shape))
        self._checked.add(latents.shape)

    def _shapes(self, latents: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
        batch = self._embeddings.shape[0]
        return dict(zip(_INPUTS, ((batch, *latents[1:]), (batch,), self._embeddings.shape), strict=True))

    def _bound(self, lane: int, shape: tuple[int, ...]) -> BoundRun:
        """The lane's buffers for latents of this shape, made at first use; on the lane's thread only."""
        runs = self._runs[lane]
        if shape not in runs:
            shapes = self._shapes(shape)
            inputs = {name: shapes[name] for name in _INPUTS[:2]} | {_INPUTS[2]: self._embeddings}
            runs[shape] = self._lanes._sessions[lane].bind(inputs)
        return runs[shape]

    def _predict_one(self, latents: Latents, timestep: float, lane: int) -> Latents:
        run = self._bound(lane, latents.shape)
        sample, batch = run.inputs["sample"], self.batch
        sample[:batch] = latents
        run.inputs["timestep"].fill(timestep)
        if self.guidance_scale == 1:
            run()
            (out,) = run.outputs.values()
            return out.copy()
        sample[batch:] = latents
        run()
        (out,) = run.outputs.values()
        unconditional = out[:batch]
        guided: Latents = out[batch:] - unconditional
        guided *= np.float32(self.guidance_scale)
        guided += unconditional
        return guided


def _check_inputs(session: OnnxSession) -> None:
    if set(session.inputs) != set(_INPUTS) or len(session.outputs) != 1:
        raise ModelError(
            f"{session.path} has the inputs {', '.join(session.inputs)} and {len(session.outputs)} outputs; "
            f"CPU lanes run denoisers with {', '.join(_INPUTS)} and one output"
        )


def _check_embeddings(name: str, value: NDArray[np.float32]) -> None:
    if value.ndim != 3 or value.dtype != np.float32 or not value.size:
        raise InputError(f"{name} is {value.dtype} of shape {value.shape}, expected float32 (B, L, C)")
