"""The latents of one run: drafted, refined and looked at, round by round."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from .known import Known
from .noise import NoiseStreams
from .rounds import Observation, Round
from .schedule import Schedule
from .skip import draws_noise
from .tables import Column, Float32, Float64, Table

__all__ = ["Latents"]


class _Names(NamedTuple):
    """Columns of one state."""

    state: Column
    input: Column
    output: Column


@lru_cache(maxsize=16)
def _names(steps: int) -> tuple[_Names, ...]:
    return tuple(_Names(Column("state", i), Column("input", i), Column("output", i)) for i in range(steps))


class Latents:
    """All latents of one run by their columns."""

    def __init__(
        self, schedule: Schedule, streams: NoiseStreams, noise: Float32, known: Known | None
    ) -> None:
        """noise: unit normal, (B, *shape); `streams` stands right after it."""
        self._schedule, self._known = schedule, known
        self._streams, self._shape = streams, noise.shape[1:]
        self._names = _names(schedule.steps)
        self._scales, self._timesteps = schedule.input_scale.tolist(), schedule.timesteps.tolist()
        self._noisy_steps = [i for i in range(schedule.steps) if draws_noise(schedule, i)]
        self._drawn = 0
        self._rows: dict[int, Float64] = {}  # to compute inner products of so many in
        start = noise * np.float32(schedule.initial_sigma) if schedule.initial_sigma != 1 else noise
        self.held: dict[Column, Float32] = {Column("state", 0): start}

    def draft(self, item: Round) -> list[tuple[Float32, float]]:
        """What is to be predicted in a round."""
        held, drafted = self.held, item.draft.targets
        for column in held.keys() - item.keep:
            del held[column]
        if self._drawn < len(self._noisy_steps):
            self._draw_for((*item.draft.columns, *item.refine.columns))
        self._hold(item.draft)
        requests = []
        for i in item.predict:
            state, seen, _ = self._names[i]
            if seen not in drafted:  # an older draft of it may still be kept
                held[seen] = held[state]
            scale = self._scales[i]
            requests.append((held[seen] * scale if scale != 1 else held[seen], self._timesteps[i]))
        return requests

    def refine(self, item: Round, outputs: Sequence[Float32]) -> Observation | None:
        """Take the predictions, and the steps with them; returns what the round observes."""
        for i, output in zip(item.predict, outputs, strict=True):
            self.held[self._names[i].output] = output
        self._hold(item.refine)
        return tuple([self._gram(table) for table in item.observe]) or None

    def _hold(self, table: Table) -> None:
        """Compute all rows. States and drafts are of what is known where that stays; memories need not be."""
        known = self._known
        for target, latents in zip(table.targets, table.apply(self.held), strict=True):
            if known is not None and target.kind != "x0":
                latents = known.into(self._schedule, target.number, latents)
            self.held[target] = latents

    def _gram(self, table: Table) -> Float64:
        made = table.apply(self.held)
        if len(made) not in self._rows:
            batch, *shape = made[0].shape
            self._rows[len(made)] = np.empty((batch, len(made), *shape))
        rows = self._rows[len(made)]
        for k, row in enumerate(made):
            rows[:, k] = row
        rows = rows.reshape(*rows.shape[:2], -1)
        gram: Float64 = np.einsum("brd,bsd->brs", rows, rows)
        gram /= float(rows.shape[-1])
        return gram if self._known is None else gram / self._known.share

    def held_of(self, columns: Sequence[Column]) -> dict[Column, Float32]:
        return {column: self.held[column] for column in columns}

    def _draw_for(self, columns: Sequence[Column]) -> None:
        """Draw step noises in the order of the steps up to the last one that is needed now."""
        last = max((column.number for column in columns if column.kind == "noise"), default=-1)
        while self._drawn < len(self._noisy_steps) and self._noisy_steps[self._drawn] <= last:
            step = self._noisy_steps[self._drawn]
            self.held[Column("noise", step)] = self._streams.draw(self._shape)
            self._drawn += 1
