"""AsyncDiff, a baseline (2406.06911): components of one network at work at the same time, on stale inputs.

After a warm-up of exact steps every component works on what the others gave in the batch before, so
that what comes out of the last one goes back to latents of several steps ago. docs/method.md section 8.
"""

from __future__ import annotations

import contextlib
import math
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from .._errors import InputError, ModelError
from ..engines.onnx_session import OnnxSession
from ..runtime._threads import LaneThreads
from ..sampling.known import Known
from ..sampling.noise import NoiseStreams
from ..sampling.plan import Plan, make_plan
from ..sampling.sample import RoundDone, Sampled, run_plan
from ..sampling.schedule import Schedule
from .split import Split, split_network

__all__ = ["AsyncDiffJob", "AsyncDiffLanes"]

Float32 = NDArray[np.float32]
Conditioning = Mapping[str, Float32]
_TIMESTEP = "timestep"
_TEXT = "encoder_hidden_states"


class AsyncDiffLanes:
    """The components of one denoiser, each on a CPU lane of its own.

    A batch of predictions is for `stride` steps: the last component is run once for each of them, with its
    timestep, the others once. So there are components + stride − 1 lanes. `split` says how even the
    components are.
    """

    def __init__(
        self,
        network: str | os.PathLike[str],
        components: int = 2,
        *,
        shapes: Mapping[str, tuple[int, ...]],
        stride: int = 1,
        warm_up: int = 1,
        time_shift: bool = False,
    ) -> None:
        """Cut the network, load its components and start the threads.

        Args:
            network: path of the denoiser's ONNX file.
            components: how many it is cut into, the authors' `model_n`.
            shapes: of the network's inputs, for which the components are to be even.
            stride: steps that one batch predicts for; the authors' code has 1 and 2.
            warm_up: exact steps at the start, at least 1. Batches begin right after them; with stride 2 those
                of the authors' code begin at odd steps, which is the same for an odd warm-up.
            time_shift: give the network the timestep of the step before, which the authors advise where
                pictures keep noise.

        Raises:
            InputError: a number that cannot be, or shapes that do not fit.
            MissingExtraError: `onnx` is not installed.
            ModelError: the network cannot be loaded, or is no denoiser.
        """
        for name, value in (("stride", stride), ("warm_up", warm_up)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise InputError(f"{name} must be a whole number, 1 or more, not {value!r}")
        with OnnxSession(network) as whole:
            self.inputs = whole.inputs
            if len(whole.outputs) != 1 or _TIMESTEP not in whole.inputs or len(whole.inputs) < 2:
                raise ModelError(
                    f"{network} has the inputs {', '.join(whole.inputs)} and {len(whole.outputs)} outputs; "
                    f"AsyncDiff runs denoisers of latents and {_TIMESTEP} with one output"
                )
            (self.output,) = whole.outputs
        with contextlib.ExitStack() as stack:
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            self.split: Split = split_network(network, components, folder, shapes)
            sessions = [stack.enter_context(OnnxSession(one.path)) for one in self.split.components]
            resources = stack.pop_all()
        self._sessions = sessions
        self.stride, self.warm_up, self.time_shift = stride, warm_up, bool(time_shift)
        self._threads = LaneThreads(components + stride - 1, resources.close)

    def __len__(self) -> int:
        return len(self._threads)

    def job(
        self,
        conditioning: Float32 | Conditioning,
        guidance_scale: float,
        unconditional: Float32 | Conditioning | None = None,
    ) -> AsyncDiffJob:
        """What stays the same over the steps of one batch of pictures, as `HostLanes.job`.

        Raises:
            InputError: the embeddings do not fit, or `unconditional` is missing.
            LaneError: the lanes are closed.
        """
        self._threads.check_open()
        return AsyncDiffJob(self, conditioning, guidance_scale, unconditional)

    def sequential_calls(self, steps: int, share: float | None = None) -> float:
        """Network calls that wait for one another, in units of a whole one.

        share: of the slowest component, which a batch waits for; by default the share of its work.
        """
        warm = min(self.warm_up, steps)
        batches = math.ceil((steps - warm) / self.stride)
        return warm + batches * (self.split.slowest if share is None else share)

    def run_component(self, number: int, given: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """The outputs of one component by name; `given` may hold more than it reads."""
        session = self._sessions[number]
        return session.run({name: given[name] for name in session.inputs})

    def close(self) -> None:
        """Finish what was asked for, then stop the threads; later calls do nothing."""
        self._threads.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class AsyncDiffJob:
    """One batch of pictures: its embeddings and guidance."""

    def __init__(
        self,
        lanes: AsyncDiffLanes,
        conditioning: Float32 | Conditioning,
        guidance_scale: float,
        unconditional: Float32 | Conditioning | None,
    ) -> None:
        if not math.isfinite(guidance_scale):
            raise InputError(f"guidance_scale must be finite, not {guidance_scale}")
        self._lanes, self.guidance_scale = lanes, guidance_scale
        given = [_named(lanes, "conditioning", conditioning)]
        if guidance_scale != 1:
            if unconditional is None:
                raise InputError(f"guidance_scale {guidance_scale} needs the unconditional embeddings")
            given.insert(0, _named(lanes, "unconditional", unconditional))
        shapes = [{name: value.shape for name, value in one.items()} for one in given]
        if shapes[0] != shapes[-1]:
            raise InputError(
                f"the embeddings have the shapes {shapes[0]} and {shapes[-1]}; they must be equal"
            )
        self.batch = len(next(iter(given[0].values())))
        self._told = {name: np.concatenate([one[name] for one in given]) for name in given[0]}
        self._branches = len(given)

    def sample(
        self,
        plan: Plan | Schedule,
        noise: Float32,
        streams: NoiseStreams,
        on_round: Callable[[RoundDone], None] | None = None,
        known: Known | None = None,
    ) -> Sampled:
        """Walk a schedule from unit-normal noise (B, C, H, W), as `HostJob.sample` does.

        plan: of mode `sequential`, or the schedule itself: AsyncDiff changes the predictions, not the steps.

        Raises:
            InputError: a plan of another mode, or inputs that do not fit the network.
            LaneError: a component failed; its error is the cause.
        """
        made = plan if isinstance(plan, Plan) else make_plan(plan)
        if made.mode != "sequential":
            raise InputError(
                f"a plan of mode {made.mode!r} was given; AsyncDiff walks the steps of 'sequential'"
            )
        if noise.dtype != np.float32 or noise.ndim != 4 or len(noise) != self.batch:
            raise InputError(
                f"noise is {noise.dtype} of shape {noise.shape}, expected float32 (B, C, H, W) with the "
                f"job's batch {self.batch}"
            )
        steps = self.predictions([float(t) for t in made.schedule.timesteps])

        def predict(requests: Sequence[tuple[Float32, float]]) -> list[Float32]:
            return [steps(latents) for latents, _ in requests]

        return run_plan(made, predict, noise, streams, on_round, known)

    def predictions(self, timesteps: Sequence[float]) -> Callable[[Float32], Float32]:
        """To be called with the latents of one step after another, scaled for the network; it predicts."""
        return _Steps(self._lanes, self._told, timesteps, self._branches, self.guidance_scale)


class _Steps:
    """The predictions of one picture, step by step; it holds what the components gave last."""

    def __init__(
        self,
        lanes: AsyncDiffLanes,
        told: Mapping[str, Float32],
        timesteps: Sequence[float],
        branches: int,
        guidance_scale: float,
    ) -> None:
        self._lanes, self._told, self._timesteps = lanes, told, timesteps
        self._branches, self._scale = branches, guidance_scale
        self._latents_name = next(iter(lanes.inputs))
        self._step = 0
        self._held: dict[str, NDArray[Any]] = {}
        self._ready: list[Float32] = []

    def __call__(self, latents: Float32) -> Float32:
        if not self._ready:
            exact = self._step < self._lanes.warm_up
            self._ready = [self._exact(latents)] if exact else self._batch(latents)
        self._step += 1
        return self._guided(self._ready.pop(0))

    def _given(self, latents: Float32, timestep: float) -> dict[str, NDArray[Any]]:
        sample = np.concatenate([latents] * self._branches)
        timesteps = np.full(len(sample), timestep, np.float32)
        return {**self._told, self._latents_name: sample, _TIMESTEP: timesteps}

    def _exact(self, latents: Float32) -> Float32:
        """All components in their order, each on what the one before has just given."""
        given = self._given(latents, self._timesteps[self._step])
        for number in range(len(self._lanes.split.components)):
            (made,) = self._run([partial(self._lanes.run_component, number, given)])
            self._held |= made
            given |= made
        return self._held[self._lanes.output]

    def _batch(self, latents: Float32) -> list[Float32]:
        """All components at once, on what they gave in the batch before; predictions of `stride` steps."""
        lanes = self._lanes
        first = self._step - lanes.time_shift
        steps = range(first, first + min(lanes.stride, len(self._timesteps) - self._step))
        given = [{**self._held, **self._given(latents, self._timesteps[i])} for i in steps]
        last = len(lanes.split.components) - 1
        calls = [partial(lanes.run_component, number, given[-1]) for number in range(last)]
        calls += [partial(lanes.run_component, last, one) for one in given]
        made = self._run(calls)
        for outputs in made:
            self._held |= outputs
        return [outputs[lanes.output] for outputs in made[last:]]

    def _run(self, calls: Sequence[Callable[[], dict[str, NDArray[Any]]]]) -> list[dict[str, NDArray[Any]]]:
        return self._lanes._threads.run([partial(_on_lane, call) for call in calls])

    def _guided(self, output: Float32) -> Float32:
        if self._branches == 1:
            return output
        unconditional, conditional = np.split(output, 2)
        guided: Float32 = (conditional - unconditional) * np.float32(self._scale) + unconditional
        return guided


def _on_lane(call: Callable[[], dict[str, NDArray[Any]]], lane: int) -> dict[str, NDArray[Any]]:
    """Any lane may run any component: they share memory."""
    return call()


def _named(lanes: AsyncDiffLanes, title: str, value: Float32 | Conditioning) -> dict[str, Float32]:
    given = dict(value) if isinstance(value, Mapping) else {_TEXT: value}
    told = [name for name in list(lanes.inputs)[1:] if name != _TIMESTEP]
    if set(given) != set(told):
        raise InputError(f"{title} has {', '.join(given)}; this network is told {', '.join(told)}")
    for name, one in given.items():
        if one.dtype != np.float32 or one.ndim != len(lanes.inputs[name].shape) or not one.size:
            raise InputError(
                f"{title}: {name} is {one.dtype} of shape {one.shape}, expected float32 with "
                f"{len(lanes.inputs[name].shape)} axes, the batch first"
            )
    return given
