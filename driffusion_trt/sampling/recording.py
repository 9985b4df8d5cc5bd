"""What happened when while pictures were made: spans of time on the host, on every lane and on the lead."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import NamedTuple

__all__ = ["HOST", "LEAD", "Recorder", "Span", "lane_track", "span"]

HOST = "host"  # the thread of the call
LEAD = "lead"  # the stream of the first GPU, which drafts and refines; on CPU lanes the host does
_NOTHING = contextlib.nullcontext()


def lane_track(lane: int, part: int | None = None) -> str:
    """The track of a lane; `part`: of one of its two devices, where guidance is split over two GPUs."""
    return f"lane {lane}" if part is None else f"lane {lane}.{part}"


class Span(NamedTuple):
    """Something that took time.

    track: where: `HOST`, `LEAD`, or a lane. start_s, end_s: of `time.perf_counter`; what a GPU's own clock
    says is moved there, see `runtime.gpu_marks`. round: counted from 1, 0 outside of rounds. facts: of what
    was done, such as the timestep of a prediction.
    """

    track: str
    name: str
    start_s: float
    end_s: float
    round: int
    facts: Mapping[str, float]

    @property
    def ms(self) -> float:
        return 1e3 * (self.end_s - self.start_s)


class Recorder:
    """Takes down what one call of a pipeline does; give it as `recorder=`, a fresh one each call.

    spans: in the order in which they ended. On the host: `tokenize`, `encode`, `denoise`, `decode`. In every
    round `draft`, `wait` (for the lanes) and `refine`, on the host or the lead; on the lead also `look`, in
    which it waits until the host has seen a round and decided the next one. On every lane `predict`, and in
    it `network`; what is copied to and from a CPU lane is part of the host's `wait`. round: the one that is
    under way.
    """

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.round = 0

    def add(self, name: str, track: str, start_s: float, end_s: float, round: int, **facts: float) -> None:
        """Safe from several threads: lanes end their predictions as they like."""
        self.spans.append(Span(track, name, start_s, end_s, round, facts))

    def span(self, name: str, track: str = HOST, **facts: float) -> AbstractContextManager[None]:
        """The block's time; also where it raises."""
        return _Block(self, name, track, facts)


class _Block(AbstractContextManager[None]):
    """A class, since a generator's way in and out of a `with` is long where caches are cold."""

    __slots__ = ("_facts", "_name", "_recorder", "_round", "_start_s", "_track")

    def __init__(self, recorder: Recorder, name: str, track: str, facts: Mapping[str, float]) -> None:
        self._recorder, self._name, self._track, self._facts = recorder, name, track, facts

    def __enter__(self) -> None:
        self._round, self._start_s = self._recorder.round, time.perf_counter()

    def __exit__(self, *error: object) -> None:
        end_s = time.perf_counter()
        self._recorder.add(self._name, self._track, self._start_s, end_s, self._round, **self._facts)


def span(
    recorder: Recorder | None, name: str, track: str = HOST, **facts: float
) -> AbstractContextManager[None]:
    """`Recorder.span`, and without a recorder nothing."""
    return _NOTHING if recorder is None else recorder.span(name, track, **facts)
