"""The executor of plans: it keeps the latents, asks for predictions and applies the tables."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, NamedTuple, Self, overload

import numpy as np
from numpy.typing import NDArray

from .._errors import InputError, NonFiniteError
from .known import Known
from .latents import Latents
from .noise import NoiseStreams, noise_streams
from .plan import Plan
from .recording import Recorder, span
from .rounds import Observation, Round, Walk
from .schedule import Schedule
from .skip import draws_noise, predicted
from .tables import Column, Float32, Float64, Form

Denoiser = Callable[[Float32, Float32], NDArray[Any]]
Predict = Callable[[Sequence[tuple[Float32, float]]], Sequence[Float32]]


@dataclass(frozen=True, slots=True)
class RoundDone:
    """What `on_round` is told: `round` of `rounds` has ended and `state` of `steps` is reached.

    With a tolerance `rounds` is the fewest that there may still be.
    """

    round: int
    rounds: int
    state: int
    steps: int
    look: Callable[[], Float32] | None = field(default=None, repr=False, compare=False)

    def latents(self) -> Float32:
        """The clean latents as far as they are known, float32 (B, *shape): x̂0, and at last the result.

        They are computed when this is called. On GPU lanes they are copied to the host then, and the call
        waits until the round that is under way is over.

        Raises:
            InputError: on GPU lanes, where the callback has returned: its round's are no longer there.
        """
        if self.look is None:
            raise InputError("no latents were kept of this round; ask for them while it is told of")
        return self.look()


@dataclass(frozen=True, slots=True)
class Stats:
    """What a run took: rounds, predictions over all lanes, and how far off its drafts were.

    drift: for each picture (B,) the furthest that an accepted draft was from the refined state, as
        `tolerance` counts it; None for plans that do not look.
    """

    rounds: int
    predictions: int
    drift: Float64 | None = None

    @classmethod
    def of(cls, rounds: int, predictions: int, drift: Float64 | None, batch: int) -> Self:
        """drift: (B,), or (1,) of a plan that never had anything to compare."""
        return cls(rounds, predictions, None if drift is None else np.broadcast_to(drift, (batch,)).copy())


class Sampled(NamedTuple):
    """Final latents, float32 (B, *shape), and what they took."""

    latents: Float32
    stats: Stats


@overload
def sample(
    plan: Plan,
    denoiser: Denoiser,
    noise: NDArray[Any],
    *,
    seed: int | Sequence[int] = 0,
    on_round: Callable[[RoundDone], None] | None = None,
    known: Known | None = None,
    return_stats: Literal[False] = False,
) -> Float32: ...
@overload
def sample(
    plan: Plan,
    denoiser: Denoiser,
    noise: NDArray[Any],
    *,
    seed: int | Sequence[int] = 0,
    on_round: Callable[[RoundDone], None] | None = None,
    known: Known | None = None,
    return_stats: Literal[True],
) -> Sampled: ...
def sample(
    plan: Plan,
    denoiser: Denoiser,
    noise: NDArray[Any],
    *,
    seed: int | Sequence[int] = 0,
    on_round: Callable[[RoundDone], None] | None = None,
    known: Known | None = None,
    return_stats: bool = False,
) -> Float32 | Sampled:
    """Run a plan on any denoiser; returns the final latents, float32 (B, *shape).

    plan: from `make_plan`.
    denoiser: `denoiser(latents, timestep)` with latents float32 (B, *shape), scaled as the
        scheduler demands, and timestep float32 (B,); returns what the network returns
        (ε, v or flow velocity, as the config's `prediction_type` says), same shape. It is
        called once for each prediction, in the order of the states. Both arrays are its own to
        write to, and what it returns is copied, so it may be a buffer that it uses again.
    noise: unit normal starting noise (B, *shape); it is scaled by the schedule's sigma. For a
        schedule that starts later (`Schedule.starting_at`) it is state 0 as it is.
    seed: of the step noises of a stochastic schedule, which continue torch's random
        stream after a starting noise of this shape: an int is one generator for the whole
        batch, a sequence is one for each picture. Deterministic schedules do not use it.
    on_round: called after every round.
    known: for inpainting, the part of the picture that stays.
    return_stats: return (latents, stats), a `Sampled`.

    Raises InputError for noise or predictions of a wrong shape or kind, and NonFiniteError for
    a prediction with infinities or NaN. Errors of the denoiser pass through as they are.
    """
    start = np.asarray(noise)
    if start.ndim < 2 or start.dtype.kind != "f" or not np.isfinite(start).all():
        raise InputError(
            f"noise must be finite floats of shape (batch, ...), not {start.dtype} of shape {start.shape}"
        )
    if known is not None and known.latents.shape != start.shape:
        raise InputError(f"noise is of shape {start.shape}, and what is known of {known.latents.shape}")
    start = start.astype(np.float32)
    streams = noise_streams(seed, len(start))
    if any(draws_noise(plan.schedule, i) for i in range(plan.schedule.steps)):
        streams.draw(start.shape[1:])  # the starting noise itself, which the caller has drawn

    def predict(requests: Sequence[tuple[Float32, float]]) -> list[Float32]:
        return [_asked(denoiser, latents, timestep) for latents, timestep in requests]

    made = run_plan(plan, predict, start, streams, on_round, known)
    return made if return_stats else made.latents


def _asked(denoiser: Denoiser, latents: Float32, timestep: float) -> Float32:
    # A copy: held latents are those of later rounds too, and of a read-only view torch would warn.
    out = np.asarray(denoiser(latents.copy(), np.full(len(latents), timestep, np.float32)))
    if out.shape != latents.shape or out.dtype.kind != "f":
        raise InputError(
            f"the denoiser was given latents of shape {latents.shape} and returned {out.dtype} of shape "
            f"{out.shape}; it must return floats of the same shape"
        )
    made = np.array(out, np.float32)
    if not np.isfinite(made).all():
        raise NonFiniteError(f"the denoiser returned numbers that are not finite at timestep {timestep:g}")
    return made


def run_plan(
    plan: Plan,
    predict: Predict,
    noise: Float32,
    streams: NoiseStreams,
    on_round: Callable[[RoundDone], None] | None = None,
    known: Known | None = None,
    recorder: Recorder | None = None,
) -> Sampled:
    """The loop itself. `predict` answers all requests of a round, (latents, timestep) each, in parallel.

    `streams` stands right after the starting noise. Latents are never written to once made. `recorder` takes
    down when each round drafts, waits for its predictions, and refines.
    """
    latents = Latents(plan.schedule, streams, noise, known)
    walk = plan.walk()
    rounds = predictions = 0
    item = next(walk)
    while True:
        rounds, predictions = rounds + 1, predictions + len(item.predict)
        if recorder is not None:
            recorder.round = rounds
        with span(recorder, "draft"):
            requests = latents.draft(item)
        with span(recorder, "wait"):
            outputs = predict(requests)
        with span(recorder, "refine"):
            following, drift = _next(walk, latents.refine(item, outputs))
        if on_round is not None:
            state = plan.schedule.steps if following is None else following.starts_from()
            look = partial(_clean, plan.schedule, latents.held_of(last_columns(latents.held, state, plan)))
            expected = plan.expected_rounds(rounds, state)
            on_round(RoundDone(rounds, expected, state, plan.schedule.steps, look))
        if following is None:
            made = latents.held[Column("state", plan.schedule.steps)]
            return Sampled(made, Stats.of(rounds, predictions, drift, len(noise)))
        item = following


def _next(walk: Walk, observation: Observation | None) -> tuple[Round | None, Float64 | None]:
    """The next round; after the last one none, and how far off accepted drafts were."""
    try:
        return walk.send(observation), None
    except StopIteration as end:
        return None, end.value


def last_columns(held: Iterable[Column], state: int, plan: Plan) -> tuple[Column, ...]:
    """What tells most of the clean latents at `state`: the last prediction, or the last state itself."""
    if state == plan.schedule.steps:
        return (Column("state", state),)
    there = set(held)
    i = max(c.number for c in there if c.kind == "output" and Column("input", c.number) in there)
    return Column("input", i), Column("output", i)


def clean_form(schedule: Schedule, columns: Sequence[Column]) -> Form:
    """The clean latents from `last_columns`: x̂0, or the last state itself."""
    if len(columns) == 1:
        return {columns[0]: 1.0}
    seen, output = columns
    return predicted(schedule, output.number, {seen: 1.0}, {output: 1.0}).x0


def _clean(schedule: Schedule, held: Mapping[Column, Float32]) -> Float32:
    terms = [np.float32(w) * held[column] for column, w in clean_form(schedule, tuple(held)).items()]
    found: Float32 = np.sum(terms, axis=0)
    return found
