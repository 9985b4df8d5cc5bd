"""A round of a plan as launches on the lead: tables become packed kernels, columns become addresses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..sampling.plan import Plan
from ..sampling.rounds import Round
from ..sampling.sample import clean_form, last_columns
from ..sampling.tables import Column, Float64, Table
from ._arguments import MAX_COLUMNS, MAX_ROWS
from .gpu_kept import Places
from .gpu_links import LaneLink
from .gpu_slots import Slots
from .kernels import MESSAGE_HEADER_BYTES, Kernels, Launch, Source, Target

__all__ = ["Compiled", "Compiler", "shares"]


@dataclass(frozen=True, slots=True)
class Compiled:
    """One round, ready to be enqueued.

    noises: step noises to upload first: (step, address). uploads: coefficients of each picture's own,
    to upload before that: (address, pinned address, bytes). draft, messages: launches that draft, and that
    write the messages. lanes: for each lane in use its link and where its predictions go. combine:
    guidance that was split. refine, observe: launches afterwards. state: the state that is reached, or
    None. drafted, refined: where the drafts and states are that were made, for inpainting. clean:
    writes the clean latents as far as they are known, for who listens, to a place that it is told then.
    """

    noises: tuple[tuple[int, int], ...]
    uploads: tuple[tuple[int, int, int], ...]
    draft: tuple[Launch, ...]
    drafted: Places
    messages: tuple[Launch, ...]
    lanes: tuple[tuple[LaneLink, tuple[int, ...]], ...]
    combine: tuple[Launch, ...]
    refine: tuple[Launch, ...]
    refined: Places
    observe: tuple[Launch, ...]
    state: int | None
    clean: Launch

    def guide(self, guidance_scale: float) -> None:
        """Another guidance scale, for the messages and for what is combined on the lead."""
        for launch in (*self.messages, *self.combine):
            launch.guide(guidance_scale)


def shares(predictions: int, lanes: int) -> list[int]:
    """How many of a round's predictions each lane gets; the first ones get what does not come out even."""
    base, more = divmod(predictions, lanes)
    return [base + (lane < more) for lane in range(lanes)]


class Compiler:
    """Compiles the rounds of one picture in their order."""

    def __init__(
        self,
        kernels: Kernels,
        slots: Slots,
        link: Callable[[int, int], LaneLink],
        lanes: int,
        *,
        pictures: int,
        elements: int,
        plan: Plan,
        noisy_steps: Sequence[int],
        gram: Callable[[int], tuple[int, int]],
        upload: Callable[[int, NDArray[np.float32]], tuple[int, int, int]],
    ) -> None:
        """link: gives the link of a lane for a number of drafts. noisy_steps: those that draw, in order.

        gram: gives the addresses of
        scratch memory and of the result for each table of a round that is observed. upload: puts
        coefficients, of which a picture has a number, where they can be copied from, and says where they go.
        """
        self._kernels, self._slots, self._link, self._lanes = kernels, slots, link, lanes
        self._pictures, self._elements = pictures, elements
        self._plan = plan
        self._timesteps = [float(timestep) for timestep in plan.schedule.timesteps]
        self._scales = [float(scale) for scale in plan.schedule.input_scale]
        self._noisy, self._gram, self._upload = list(noisy_steps), gram, upload
        self._drawn = self._done = self._state = self._uploaded = 0
        self._uploads: list[tuple[int, int, int]] = []

    def compile(self, item: Round) -> Compiled:
        """The next round."""
        slots = self._slots
        self._done += 1
        self._uploads = []
        slots.keep(item.keep)
        noises = self._noises((*item.draft.columns, *item.refine.columns))
        draft, drafted = self._table(item.draft)
        for i in item.predict:
            if Column("input", i) not in item.draft.targets:  # an older draft of it may still be kept
                slots.put(Column("input", i), slots[Column("state", i)])
        lanes = self._requests(item.predict)
        messages = self._messages(item.predict, [link for link, _ in lanes])
        combine = self._combine(lanes)
        refine, refined = self._table(item.refine)
        observe = tuple(launch for k, table in enumerate(item.observe) for launch in self._observe(k, table))
        state = max((state for state, _ in refined), default=None)
        if not item.observe:  # else the plan decides later which of the states is taken
            self._state = self._state if state is None else state
        return Compiled(
            noises,
            tuple(self._uploads),
            tuple(draft),
            drafted,
            tuple(messages),
            lanes,
            combine,
            tuple(refine),
            refined,
            observe,
            state,
            self._clean_latents(),
        )

    def _clean_latents(self) -> Launch:
        form = clean_form(self._plan.schedule, last_columns(self._slots, self._state, self._plan))
        sources = [Source(self._slots[column]) for column in form]
        return self._launch(sources, [Target(0)], np.array([list(form.values())]))

    def _noises(self, columns: Sequence[Column]) -> tuple[tuple[int, int], ...]:
        """Step noises up to the last one that is needed now, as `sampling.sample` draws them."""
        last = max((column.number for column in columns if column.kind == "noise"), default=-1)
        made = []
        while self._drawn < len(self._noisy) and self._noisy[self._drawn] <= last:
            step = self._noisy[self._drawn]
            self._slots.put(Column("noise", step), self._slots.fresh())
            made.append((step, self._slots[Column("noise", step)]))
            self._drawn += 1
        return tuple(made)

    def _table(self, table: Table) -> tuple[list[Launch], Places]:
        """Launches of a table, whose rows then are where their columns say, and the states among them."""
        coefficients = table.coefficients
        if coefficients.ndim == 3 and len(coefficients) == 1:
            coefficients = coefficients[0]
        sources = [Source(self._slots[column]) for column in table.columns]
        places = [self._slots.fresh() for _ in table.targets]
        launches = []
        for first in range(0, len(places), MAX_ROWS):
            targets = [Target(place) for place in places[first : first + MAX_ROWS]]
            launches += self._linear(sources, targets, coefficients[..., first : first + MAX_ROWS, :])
        # All at once and last: a row may read what another replaces.
        for column, place in zip(table.targets, places, strict=True):
            self._slots.put(column, place)
        made = zip(table.targets, places, strict=True)
        return launches, tuple((column.number, place) for column, place in made if column.kind != "x0")

    def _linear(
        self, sources: Sequence[Source], targets: Sequence[Target], coefficients: Float64
    ) -> list[Launch]:
        """The rows in one launch, or in several where they have more columns than one takes."""
        columns = [k for k in range(len(sources)) if coefficients[..., k].any()]
        if len(columns) > MAX_COLUMNS and len(targets) > 1:
            half = len(targets) // 2
            return [
                *self._linear(sources, targets[:half], coefficients[..., :half, :]),
                *self._linear(sources, targets[half:], coefficients[..., half:, :]),
            ]
        sources, coefficients = [sources[k] for k in columns], coefficients[..., columns]
        launches = [self._launch(sources[:MAX_COLUMNS], targets, coefficients[..., :MAX_COLUMNS])]
        if len(columns) > MAX_COLUMNS:  # one long sum goes on from its own float32, to the same bits
            sources = [Source(targets[0].address), *sources[MAX_COLUMNS:]]
            ones = np.ones((*coefficients.shape[:-1], 1))
            more = np.concatenate([ones, coefficients[..., MAX_COLUMNS:]], -1)
            launches += self._linear(sources, targets, more)
        return launches

    def _launch(self, sources: Sequence[Source], targets: Sequence[Target], coefficients: Float64) -> Launch:
        coefficients, address = np.ascontiguousarray(coefficients), 0
        if coefficients.ndim == 3:
            self._uploads.append(self._upload(self._uploaded, coefficients.astype(np.float32)))
            self._uploaded += 1
            address = self._uploads[-1][0]
        return self._kernels.linear(
            sources,
            targets,
            coefficients,
            elements=self._elements,
            batch=self._pictures,
            coefficients_address=address,
            round=self._done,
        )

    def _requests(self, predict: Sequence[int]) -> tuple[tuple[LaneLink, tuple[int, ...]], ...]:
        """Links of the lanes in use, and a place on the lead for each prediction."""
        made = []
        first = 0
        for lane, count in enumerate(shares(len(predict), self._lanes)):
            if not count:
                continue
            states = predict[first : first + count]
            first += count
            for i in states:
                self._slots.put(Column("output", i), self._slots.fresh())
            places = tuple(self._slots[Column("output", i)] for i in states)
            made.append((self._link(lane, count), places))
        return tuple(made)

    def _messages(self, predict: Sequence[int], links: Sequence[LaneLink]) -> list[Launch]:
        """What the networks see, scaled after the draft was rounded, as on the CPU lanes."""
        size_bytes = 4 * self._pictures * self._elements
        targets = []
        at = iter(predict)
        for link in links:
            for draft in range(link.form.drafts):
                i = next(at)
                place = link.outbox + MESSAGE_HEADER_BYTES + draft * size_bytes
                targets.append(Target(place, "float32", link.outbox, draft, self._timesteps[i]))
        sources = [Source(self._slots[Column("input", i)]) for i in predict]
        scales = np.diag([float(np.float32(self._scales[i])) for i in predict])
        return [
            launch
            for first in range(0, len(targets), MAX_ROWS)
            for launch in self._linear(
                sources, targets[first : first + MAX_ROWS], scales[first : first + MAX_ROWS]
            )
        ]

    def _combine(self, lanes: Sequence[tuple[LaneLink, tuple[int, ...]]]) -> tuple[Launch, ...]:
        """Guidance of predictions whose branches came from two devices: (c - u) g + u."""
        size_bytes = 4 * self._pictures * self._elements
        pairs: list[tuple[Source, Target]] = []
        for link, places in lanes:
            if link.received:
                unconditional, conditional = link.received
                pairs += [
                    (
                        Source(unconditional + k * size_bytes, "float32", conditional + k * size_bytes),
                        Target(place),
                    )
                    for k, place in enumerate(places)
                ]
        launches = []
        for first in range(0, len(pairs), MAX_ROWS):
            some = pairs[first : first + MAX_ROWS]
            launches.append(
                self._kernels.linear(
                    [source for source, _ in some],
                    [target for _, target in some],
                    np.eye(len(some)),
                    elements=self._elements,
                    batch=self._pictures,
                )
            )
        return tuple(launches)

    def _observe(self, number: int, table: Table) -> tuple[Launch, ...]:
        partials, target = self._gram(number)
        return self._kernels.gram(
            [Source(self._slots[column]) for column in table.columns],
            table.coefficients,
            partials=partials,
            target=target,
            elements=self._elements,
            batch=self._pictures,
        )
