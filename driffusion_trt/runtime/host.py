"""CPU lanes: worker threads that each predict one noise at a time with ONNX Runtime."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from .._errors import InputError, ModelError
from ..engines.onnx_session import BoundRun, OnnxSession
from ..sampling.known import Known
from ..sampling.noise import NoiseStreams
from ..sampling.plan import Plan
from ..sampling.sample import RoundDone, Sampled, run_plan
from ._threads import LaneThreads
from ._waiting import Waiting

__all__ = ["HostJob", "HostLanes", "auto_lanes"]

Latents = NDArray[np.float32]
Conditioning = Mapping[str, NDArray[np.float32]]
_TIMESTEP = "timestep"


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
            ModelError: the network cannot be loaded, or is no denoiser.
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
            self._latents, self._told = _inputs_of(sessions[0])
            self._sessions = [sessions[k % count] for k in range(lanes)]
            resources = stack.pop_all()
        self._threads = LaneThreads(lanes, resources.close)

    def __len__(self) -> int:
        return len(self._threads)

    def job(
        self,
        conditioning: NDArray[np.float32] | Conditioning,
        guidance_scale: float,
        unconditional: NDArray[np.float32] | Conditioning | None = None,
    ) -> HostJob:
        """What stays the same over the steps of one batch of pictures.

        Args:
            conditioning: the prompts' embeddings (B, L, C) float32, or all inputs of the network but
                latents and timestep by name, each with the batch first; copied.
            guidance_scale: g of u + g·(c − u), classifier-free guidance (2207.12598, in the
                form that diffusers uses); 1 predicts c alone, at half the cost.
            unconditional: the same for the negative prompts, for g ≠ 1; copied.

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
        conditioning: NDArray[np.float32] | Conditioning,
        guidance_scale: float,
        unconditional: NDArray[np.float32] | Conditioning | None,
    ) -> None:
        if not math.isfinite(guidance_scale):
            raise InputError(f"guidance_scale must be finite, not {guidance_scale}")
        given = _named("conditioning", conditioning, lanes._told)
        self.batch = _batch(given)
        self.guidance_scale = guidance_scale
        self._lanes = lanes
        if guidance_scale == 1:
            self._told = {name: value.copy(order="C") for name, value in given.items()}
        else:
            if unconditional is None:
                raise InputError(f"guidance_scale {guidance_scale} needs the unconditional embeddings")
            other = _named("unconditional", unconditional, lanes._told)
            for name, value in given.items():
                if other[name].shape != value.shape:
                    raise InputError(
                        f"{name} of unconditional has shape {other[name].shape}, of conditioning "
                        f"{value.shape}; they must be equal"
                    )
            self._told = {
                name: np.ascontiguousarray(np.concatenate([other[name], value]))
                for name, value in given.items()
            }
        # One array for all lanes, read in place: they share memory.
        for value in self._told.values():
            value.flags.writeable = False
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
        known: Known | None = None,
        waiting: Waiting = None,
    ) -> Sampled:
        """Run a plan from unit-normal noise (B, C, H, W), as `run_plan` does.

        known: the part of the picture that stays.

        waiting: for lanes that make one picture after another; these take the rounds of all in turn.

        Raises:
            LaneError: as `predict` does.
        """
        return run_plan(plan, self.predict, noise, streams, on_round, known)

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
        batch = _batch(self._told)
        first = {self._lanes._latents: (batch, *latents[1:]), _TIMESTEP: (batch,)}
        return first | {name: value.shape for name, value in self._told.items()}

    def _bound(self, lane: int, shape: tuple[int, ...]) -> BoundRun:
        """The lane's buffers for latents of this shape, made at first use; on the lane's thread only."""
        runs = self._runs[lane]
        if shape not in runs:
            runs[shape] = self._lanes._sessions[lane].bind({**self._shapes(shape), **self._told})
        return runs[shape]

    def _predict_one(self, latents: Latents, timestep: float, lane: int) -> Latents:
        run = self._bound(lane, latents.shape)
        sample, batch = run.inputs[self._lanes._latents], self.batch
        sample[:batch] = latents
        run.inputs[_TIMESTEP].fill(timestep)
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


def _inputs_of(session: OnnxSession) -> tuple[str, dict[str, int]]:
    """The name of a denoiser's latents; and what it is told beside them and the timestep, with its axes."""
    names = list(session.inputs)
    latents = names[0] if names else ""
    told = {name: len(session.inputs[name].shape) for name in names[1:] if name != _TIMESTEP}
    if len(told) != len(names) - 2 or not told or len(session.outputs) != 1:
        raise ModelError(
            f"{session.path} has the inputs {', '.join(names)} and {len(session.outputs)} outputs; CPU lanes "
            f"run denoisers of latents, {_TIMESTEP}, encoder_hidden_states and the like with one output"
        )
    return latents, told


def _named(
    title: str, value: NDArray[np.float32] | Conditioning, axes: Mapping[str, int]
) -> dict[str, NDArray[np.float32]]:
    given = dict(value) if isinstance(value, Mapping) else {"encoder_hidden_states": value}
    if set(given) != set(axes):
        raise InputError(f"{title} has {', '.join(given)}; this network is told {', '.join(axes)}")
    for name, one in given.items():
        if one.ndim != axes[name] or one.dtype != np.float32 or not one.size:
            raise InputError(
                f"{title}: {name} is {one.dtype} of shape {one.shape}, expected float32 with "
                f"{axes[name]} axes, the batch first"
            )
    if len({len(one) for one in given.values()}) > 1:
        raise InputError(
            f"{title} has batches of {sorted({len(v) for v in given.values()})}; they are one batch"
        )
    return given


def _batch(told: Mapping[str, NDArray[np.float32]]) -> int:
    return len(next(iter(told.values())))
