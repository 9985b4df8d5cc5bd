"""What a pipeline's devices take: measured where it is needed first, kept, and measured anew where doubted.

Costs of CPU lanes are doubted where they were measured beside other work, or where pictures take clearly
less: others' work only adds.
"""

from __future__ import annotations

import contextlib
import logging
import math
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

from ._errors import LaneError
from ._kept_costs import KeptCosts
from ._planner import Planner
from ._request import Request
from ._stages import Stages
from .engines.manifest import ModelFolder
from .planning.costs import Costs
from .planning.measuring import measured
from .runtime.devices import Devices
from .runtime.host import auto_lanes
from .runtime.networks import GpuOptions
from .sampling.plan import WINDOW_LANES

__all__ = ["MeasuredCosts", "Told", "untold"]

Told = Callable[[int, int], None]
Going = Callable[[], None]
Size = tuple[int, int]

_log = logging.getLogger("driffusion_trt.costs")
_PAUSES_S = (10.0, 600.0)  # before costs are measured anew: at first, doubled each time, and at most
_IN_PASSING_S = 10.0  # at most, and twice what it took before, for a call that is after a picture
_REST = 20.0  # times as long as it took before no such call does it
_CLEARLY_LESS = 0.7  # the pace of requests that goes back to 1 without them


def untold(done: int, of: int) -> None:
    """Nobody wants to know."""


class _GivenUp(Exception):
    """There is other work, or it takes too long."""


class MeasuredCosts:
    """Of a pipeline's devices, by the size of pictures in pixels, height first; safe from several threads."""

    def __init__(
        self, folder: ModelFolder, devices: Devices, options: GpuOptions, planner: Planner, stages: Stages
    ) -> None:
        self._folder, self._devices = folder, devices
        self._kept = KeptCosts(folder, devices, options)
        self._planner, self._stages = planner, stages
        self._measuring = threading.RLock()  # held while devices are measured; a callback may ask for a plan
        self._costs: dict[Size, Costs] = {}
        self._pause_s, self._took_s = _PAUSES_S[0], math.inf
        self._ended_s = self._due_s = 0.0  # of the clock `time.monotonic`: the last one, and the next

    def of(self, size: Size, told: Told = untold) -> Costs:
        """Of pictures of this size, from what was measured in this process or before it, or is now.

        What was measured is of the model's own size; others are in proportion to the latents' area, until
        `measure` is asked for them.
        """
        own = self._planner.own_size
        found = self._known(size)
        if found is not None:
            return found
        if size == own:
            return self.measure(size, told)
        return _scaled(self._known(own) or self.measure(own, told), size[0] * size[1] / (own[0] * own[1]))

    def times_larger(self, size: Size) -> float:
        """How many times as large pictures of this size are as those whose costs are taken for theirs.

        1 where it was measured. What attention takes grows with the square of this, and the costs do not.
        """
        height, width = self._planner.own_size
        return 1.0 if self._known(size) is not None else size[0] * size[1] / (height * width)

    def _known(self, size: Size) -> Costs | None:
        if size not in self._costs and (found := self._kept.read(size)) is not None:
            self._costs[size] = replace(found, rows=self._rows())
        return self._costs.get(size)

    def measure(self, size: Size, told: Told = untold, *, again: bool = False) -> Costs:
        """Measure pictures of this size, where it was not done before or is to be done again, and keep it.

        It is kept for later processes unless other work took the cores meanwhile.

        told: called after each of so many runs; what it raises ends it, and nothing is kept.
        """
        with self._measuring:
            found = None if again else self._known(size)
            if found is not None:  # another thread may have measured meanwhile
                return found
            with self._at_work():
                made = self._made(size, told)
                self._use(size, made)
        if made.disturbed:
            _log.info("costs were measured while other work took the cores; they are to be measured anew")
        return made

    def renewal_in_s(self, pace: float = 1.0) -> float | None:
        """Seconds until what is doubted is to be measured anew; None where nothing is.

        pace: how many times as long as expected pictures of the model's own size take.
        """
        return max(0.0, self._due_s - time.monotonic()) if self._doubted(pace) else None

    def renew(self, pace: float = 1.0, going: Going | None = None, told: Told = untold) -> bool:
        """Measure anew what is doubted; whether there are other costs now. For when nothing else is at work.

        pace: see `renewal_in_s`. going: called after every round, and after encoding and decoding; what it
            raises ends it, and what was not measured by then stays as it was. told: see `measure`.
        """
        if not self._measuring.acquire(blocking=False):
            return False
        try:
            with self._at_work():
                renewed = [self._renewed(size, going, told) for size in self._doubted(pace)]
                self._pause_s = min(2 * self._pause_s, _PAUSES_S[1])
            return any(renewed)
        finally:
            self._measuring.release()

    def renew_in_passing(self, told: Told = untold) -> None:
        """The same by a call that has the time, where it is due and no other call is under way.

        It ends where another call begins, or where it takes long.
        """
        calls, begun = self._stages.calls, time.monotonic()
        before, took_s = calls.began, self._took_s
        due_s = max(self._due_s, self._ended_s + _REST * took_s)
        if begun < due_s or took_s > _IN_PASSING_S or calls.under_way or not self._doubted():
            return

        def going() -> None:
            if calls.began != before or time.monotonic() - begun > min(2 * took_s, _IN_PASSING_S):
                raise _GivenUp

        with contextlib.suppress(_GivenUp):
            self.renew(going=going, told=told)

    def _doubted(self, pace: float = 1.0) -> list[Size]:
        """A request of one lane is expected to share the machine: where it is alone it takes less anyway."""
        own = self._planner.own_size
        return [
            size
            for size, costs in list(self._costs.items())
            if costs.disturbed
            or (size == own and not self._devices.gpus and pace * costs.crowded < _CLEARLY_LESS)
        ]

    def _renewed(self, size: Size, going: Going | None, told: Told) -> bool:
        before, made = self._costs[size], self._made(size, told, going)
        both = [f"{one.round_ms(one.devices, guided=True, split=False):.2f}" for one in (made, before)]
        words = f"a round on all devices takes {both[0]} ms; it was {both[1]} before"
        if made is not _nearer(before, made):
            _log.info("costs were measured anew beside other work, and stay as they were: %s", words)
            return False
        self._use(size, made)
        state = ", while other work took the cores" if made.disturbed else ""
        _log.info("costs were measured anew%s: %s", state, words)
        return True

    def _use(self, size: Size, made: Costs) -> None:
        self._costs[size] = made
        if len(self._stages.lanes) == self._devices.count and not made.disturbed:
            self._kept.write(size, made)

    @contextlib.contextmanager
    def _at_work(self) -> Iterator[None]:
        """For a measurement in its block; afterwards there is none for a while."""
        self._due_s = math.inf  # callbacks ask for plans meanwhile
        try:
            yield
        finally:
            self._ended_s = time.monotonic()
            self._due_s = self._ended_s + self._pause_s

    def _made(self, size: Size, told: Told, going: Going | None = None) -> Costs:
        begun = time.monotonic()
        before, made = 0, None
        while made is None or before != len(self._stages.lanes):  # a device failed: those left are others
            before = len(self._stages.lanes)
            try:
                made = self._measured(size, told, going)
            except LaneError as error:
                if not error.lanes_left:
                    raise
        self._took_s = time.monotonic() - begun
        return made

    def _measured(self, size: Size, told: Told, going: Going | None = None) -> Costs:
        height, width = size
        settings = {"height": height, "width": width, "guidance_scale": 2.0}
        request = Request.check(self._folder.spec, self._planner.own_size, "", settings)
        calls = self._stages.calls
        began, beside = calls.began, calls.under_way > 0
        trial, beside_ms = self._stages.trial(
            request, lambda steps: self._planner.schedule(steps=steps, height=height, width=width), going
        )
        lanes = min(len(self._stages.lanes), WINDOW_LANES)
        costs = measured(trial.timed, lanes, picture_ms=beside_ms, rows=self._rows(), told=told)
        beside = beside or calls.began != began
        disturbed = beside or trial.disturbed(min(auto_lanes(), lanes))
        return replace(costs, disturbed=not self._devices.gpus and disturbed)

    def _rows(self) -> tuple[int, int]:
        rows = self._stages.rows
        return (1, 0) if rows is None else (rows.min, rows.max)


def _nearer(before: Costs, made: Costs) -> Costs:
    """What is nearer to an idle machine; others' work only adds, so of two that it disturbed the shorter."""
    if made.disturbed != before.disturbed:
        return before if made.disturbed else made
    if not made.disturbed:
        return made
    return min(made, before, key=lambda one: one.round_ms(one.devices, guided=True, split=False))


def _scaled(costs: Costs, times: float) -> Costs:
    """For pictures so many times as large."""
    return replace(
        costs,
        call_ms=tuple(times * ms for ms in costs.call_ms),
        exchange_ms=(times * costs.exchange_ms[0], times * costs.exchange_ms[1]),
        picture_ms=times * costs.picture_ms,
    )
