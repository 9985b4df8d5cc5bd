"""One batch of pictures on the CPU lanes: what stays the same over its steps, and its buffers."""

from __future__ import annotations

import math
import threading
import time
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
from ..sampling.recording import Recorder, lane_track
from ..sampling.sample import RoundDone, Sampled, run_plan
from ._waiting import Waiting

if TYPE_CHECKING:
    from .host import HostLanes

__all__ = ["TIMESTEP", "Conditioning", "HostJob"]

Latents = NDArray[np.float32]
Conditioning = Mapping[str, NDArray[np.float32]]
TIMESTEP = "timestep"
_FLOAT32 = np.dtype(np.float32)


class _Call:
    """Buffers for one call of the network at a time, on one lane, and how they are filled and emptied."""

    def __init__(self, run: BoundRun, latents: str, batch: int, guidance_scale: Latents) -> None:
        """guidance_scale: () float32; used where the buffers are of both branches."""
        seen, (out,) = run.inputs[latents], run.outputs.values()
        self._run, self._scale, self._timesteps = run, guidance_scale, run.inputs[TIMESTEP]
        self._made: Latents | None = None
        self._recorder: Recorder | None = None
        parts = range(0, len(seen), batch)
        self._seen = [seen[first : first + batch] for first in parts]
        self._branches = [out[first : first + batch] for first in parts]

    def fill(self, latents: Latents, timestep: float, recorder: Recorder | None) -> None:
        for seen in self._seen:
            seen[:] = latents
        self._timesteps.fill(timestep)
        self._timestep, self._recorder, self._asker = timestep, recorder, threading.get_ident()

    def work(self, lane: int) -> None:
        """The network. Whoever asked takes what came out at once, while other lanes are at work."""
        start_s = time.perf_counter()
        try:
            self._run()
        finally:
            if self._recorder is not None:
                self._record(self._recorder, lane, start_s, time.perf_counter())
        if threading.get_ident() == self._asker:
            self._made = _guided(self._branches, self._scale)

    def _record(self, recorder: Recorder, lane: int, start_s: float, end_s: float) -> None:
        """Of a prediction a lane does nothing but the network."""
        track, round = lane_track(lane), recorder.round
        recorder.add("network", track, start_s, end_s, round)
        recorder.add("predict", track, start_s, end_s, round, timestep=self._timestep)

    def take(self) -> Latents:
        """What came out, in an array of its own: guided where it is of both branches.

        Of this call nothing is kept but its buffers.
        """
        made, self._made, self._recorder = self._made, None, None
        return _guided(self._branches, self._scale) if made is None else made


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
        self._scale = np.array(guidance_scale, np.float32)
        # Those that are not in use: by lane, then by which of a prediction's calls and the latents' shape.
        self._calls: list[dict[tuple[int, tuple[int, ...]], list[_Call]]] = [{} for _ in range(len(lanes))]
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
        # number of them a lane has those of one branch only, and buffers for no other. This thread fills and
        # empties those of all lanes: after a network a core's caches hold nothing of Python's, and what one
        # thread does twice in a row is in them the second time.
        parts = len(self._told)
        used: list[tuple[list[_Call], _Call]] = []

        def make(k: int, lane: int) -> Callable[[int], None]:
            latents, timestep = requests[k // parts]
            free = self._calls[lane].setdefault((k % parts, latents.shape), [])
            try:
                call = free.pop()
            except IndexError:  # other threads may use this job too
                call = self._new_call(lane, k % parts, latents.shape)
            call.fill(latents, timestep, recorder)
            used.append((free, call))
            return call.work

        self._lanes._threads.run_made(parts * len(requests), make)
        made = []
        for free, call in used:
            made.append(call.take())
            free.append(call)
        if parts == 1:
            return made
        return [_guided(pair, self._scale) for pair in zip(made[::2], made[1::2], strict=True)]

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
        if latents.dtype != _FLOAT32:
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

    def _bound(self, lane: int, part: int, shape: tuple[int, ...]) -> BoundRun:
        """New buffers of the lane for latents of this shape."""
        return self._lanes._sessions[lane].bind({**self._shapes(shape), **self._told[part]})

    def _new_call(self, lane: int, part: int, shape: tuple[int, ...]) -> _Call:
        return _Call(self._bound(lane, part, shape), self._lanes._latents, self.batch, self._scale)


def _guided(branches: Sequence[Latents], scale: Latents) -> Latents:
    """g (c - u) + u of both branches (u, c), or one branch as it is, in an array of its own."""
    if len(branches) == 1:
        return branches[0].copy()
    unconditional, conditional = branches
    guided: Latents = conditional - unconditional
    guided *= scale
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
