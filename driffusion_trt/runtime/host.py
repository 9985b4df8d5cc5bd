"""CPU lanes: worker threads that each run one network call at a time with ONNX Runtime."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from .._errors import InputError, ModelError
from ..engines.onnx_session import OnnxSession
from ._threads import LaneThreads
from .host_job import TIMESTEP, Conditioning, HostJob

__all__ = ["HostJob", "HostLanes", "auto_lanes"]


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

    Requests go to the lanes in turn, where guidance is split each to two of them; a lane works
    through what it is given in order, and one that is idle is worked by the thread that asks. Any
    number of jobs may be alive, and any number of threads may call them: their requests queue up,
    and every job has buffers of its own. A request gives the same bits on every lane.
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
        *,
        split_guidance: bool = False,
    ) -> HostJob:
        """What stays the same over the steps of one batch of pictures.

        Args:
            conditioning: the prompts' embeddings (B, L, C) float32, or all inputs of the network but
                latents and timestep by name, each with the batch first; copied.
            guidance_scale: g of u + g·(c − u), classifier-free guidance (2207.12598, in the
                form that diffusers uses); 1 predicts c alone, at half the cost.
            unconditional: the same for the negative prompts, for g ≠ 1; copied.
            split_guidance: predict u and c in two calls of the network on two lanes, and not in one
                batch; without effect for g = 1. ONNX Runtime may block its sums in another way in a
                batch of another size, so that this is the picture of the batch within float32 rounding
                and not to the bit. It is the same to the bit on any number of lanes, one included.

        Raises:
            InputError: shapes or dtypes do not fit, or `unconditional` is missing.
            LaneError: the lanes are closed.
        """
        self._threads.check_open()
        return HostJob(self, conditioning, guidance_scale, unconditional, split_guidance=split_guidance)

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


def _inputs_of(session: OnnxSession) -> tuple[str, dict[str, int]]:
    """The name of a denoiser's latents; and what it is told beside them and the timestep, with its axes."""
    names = list(session.inputs)
    latents = names[0] if names else ""
    told = {name: len(session.inputs[name].shape) for name in names[1:] if name != TIMESTEP}
    if len(told) != len(names) - 2 or not told or len(session.outputs) != 1:
        raise ModelError(
            f"{session.path} has the inputs {', '.join(names)} and {len(session.outputs)} outputs; CPU lanes "
            f"run denoisers of latents, {TIMESTEP}, encoder_hidden_states and the like with one output"
        )
    return latents, told
