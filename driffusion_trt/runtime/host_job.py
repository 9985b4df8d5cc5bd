"""One batch of pictures on the CPU lanes: what stays the same over its steps, and its buffers."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .._errors import InputError
from ..engines.onnx_session import BoundRun
from ..sampling.known import Known
from ..sampling.noise import NoiseStreams
from ..sampling.plan import Plan
from ..sampling.recording import Recorder, lane_track, span
from ..sampling.sample import RoundDone, Sampled, run_plan
from ._waiting import Waiting

if TYPE_CHECKING:
    from .host import HostLanes

__all__ = ["TIMESTEP", "Conditioning", "HostJob"]

Latents = NDArray[np.float32]
Conditioning = Mapping[str, NDArray[np.float32]]
TIMESTEP = "timestep"


class HostJob:
    """One batch of pictures on the lanes: its embeddings, guidance and buffers."""

    def __init__(
        self,
        lanes: HostLanes,
        conditioning: NDArray[np.float32] | Conditioning,
        guidance_scale: float,
        unconditional: NDArray[np.float32] | Conditioning | None,
        *,
        split_guidance: bool = False,
    ) -> None:
        if not math.isfinite(guidance_scale):
            raise InputError(f"guidance_scale must be finite, not {guidance_scale}")
        given = _named("conditioning", conditioning, lanes._told)
        self.batch = _batch(given)
        self.guidance_scale = guidance_scale
        self._lanes = lanes
        # What the network is told in each of the calls that a prediction takes.
        self._told: tuple[dict[str, Latents], ...]
        if guidance_scale == 1:
            self._told = (_copied(given),)
        else:
            if unconditional is None:
                raise InputError(f"guidance_scale {guidance_scale} needs the unconditional embeddings")
            other = _named("unconditional", unconditional, lanes._told)
            _check_alike(other, given)
            self._told = (_copied(other), _copied(given)) if split_guidance else (_copied(other, given),)
        # By lane, then by which of the calls and the latents' shape.
        self._runs: list[dict[tuple[int, tuple[int, ...]], BoundRun]] = [{} for _ in range(len(lanes))]
        self._checked: set[tuple[int, ...]] = set()

    def predict(
        self, requests: Sequence[tuple[Latents, float]], recorder: Recorder | None = None
    ) -> list[Latents]:
        """Predict several noises at once, one a lane, or each on two lanes where guidance is split.

        Args:
            requests: pairs of latents (B, C, H, W) float32, already scaled for the network,
                and their timestep. More requests than lanes wait for their turn.
            recorder: takes down when each lane was at work, and when in its network.

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
        # Both calls of a prediction next to each other: lanes take calls in turn, so that with an even
        # number of them a lane has those of one branch only, and buffers for no other.
        calls = range(len(self._told))
        made = self._lanes._threads.run(
            [
                partial(self._call, latents, timestep, call, recorder)
                for latents, timestep in requests
                for call in calls
            ]
        )
        if len(calls) == 1:
            return made
        pairs = zip(made[::2], made[1::2], strict=True)
        return [self._guided(unconditional, conditional) for unconditional, conditional in pairs]

    def sample(
        self,
        plan: Plan,
        noise: Latents,
        streams: NoiseStreams,
        on_round: Callable[[RoundDone], None] | None = None,
        known: Known | None = None,
        waiting: Waiting = None,
        recorder: Recorder | None = None,
    ) -> Sampled:
        """Run a plan from unit-normal noise (B, C, H, W), as `run_plan` does.

        known: the part of the picture that stays.

        waiting: for lanes that make one picture after another; these take the rounds of all in turn.

        recorder: takes down what happens when.

        Raises:
            LaneError: as `predict` does.
        """
        predict = self.predict if recorder is None else partial(self.predict, recorder=recorder)
        return run_plan(plan, predict, noise, streams, on_round, known, recorder)

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
        """Of the network's inputs, in every call the same."""
        told = self._told[0]
        batch = _batch(told)
        first = {self._lanes._latents: (batch, *latents[1:]), TIMESTEP: (batch,)}
        return first | {name: value.shape for name, value in told.items()}

    def _bound(self, lane: int, call: int, shape: tuple[int, ...]) -> BoundRun:
        """The lane's buffers for latents of this shape, made at first use by whoever works the lane."""
        runs, key = self._runs[lane], (call, shape)
        if key not in runs:
            runs[key] = self._lanes._sessions[lane].bind({**self._shapes(shape), **self._told[call]})
        return runs[key]

    def _call(
        self, latents: Latents, timestep: float, call: int, recorder: Recorder | None, lane: int
    ) -> Latents:
        """One call of the network on a lane: guided where it has both branches in its batch."""
        track = lane_track(lane)
        with span(recorder, "predict", track, timestep=timestep):
            run = self._bound(lane, call, latents.shape)
            sample = run.inputs[self._lanes._latents]
            for first in range(0, len(sample), self.batch):
                sample[first : first + self.batch] = latents
            run.inputs[TIMESTEP].fill(timestep)
            with span(recorder, "network", track):
                run()
            (out,) = run.outputs.values()
            if len(sample) == self.batch:
                return out.copy()
            return self._guided(out[: self.batch], out[self.batch :])

    def _guided(self, unconditional: Latents, conditional: Latents) -> Latents:
        """g (c - u) + u, in an array of its own."""
        guided: Latents = conditional - unconditional
        guided *= np.float32(self.guidance_scale)
        guided += unconditional
        return guided


def _copied(*branches: Conditioning) -> dict[str, Latents]:
    """The branches in one batch: one array for all lanes, read in place, since they share memory."""
    told = {
        name: np.ascontiguousarray(np.concatenate([branch[name] for branch in branches]))
        for name in branches[0]
    }
    for value in told.values():
        value.flags.writeable = False
    return told


def _check_alike(unconditional: Conditioning, conditional: Conditioning) -> None:
    for name, value in conditional.items():
        if unconditional[name].shape != value.shape:
            raise InputError(
                f"{name} of unconditional has shape {unconditional[name].shape}, of conditioning "
                f"{value.shape}; they must be equal"
            )


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
