"""Requests that were checked: what they are expected to take on how many lanes, and the calls for them."""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, cast

from PIL import Image

from .._auto import leaves_open
from .._call import Result, Watch
from .._errors import InputError
from .._planner import PlanSettings, planned
from .._request import Request
from .._source import fitted
from ..pipeline import Pipeline
from ..planning.candidates import Candidate
from ..sampling.plan import WINDOW_LANES, Plan
from ..sampling.sample import RoundDone
from .policy import Profile

__all__ = ["Order", "PipelineShop", "Shop"]

Prompt = str | Sequence[str]
_Expected = tuple[Profile, float, int]  # least_ms, and the lanes of a plan by name
_KNOWN = 64
# What the engine itself gives to a call, and where its users have the same.
_TAKEN = {
    "cancel": "use Ticket.cancel",
    "callback_on_round_end": "read Ticket.rounds",
}


@dataclass(frozen=True, slots=True)
class Order:
    """A checked request.

    settings: of the call; for an `open` one without a plan, which is chosen when it is started.
    profile: what it is expected to take. least_ms: what it takes at least, with all lanes, and where nothing
        was said of the quality with a plan that only is in time.
    times_larger: than pictures of the size that was measured, where theirs was not; else 1.
    """

    prompt: Prompt
    settings: Mapping[str, Any] = field(repr=False)
    profile: Profile
    least_ms: float
    open: bool
    request: Any = field(default=None, repr=False)
    times_larger: float = 1.0

    @property
    def work_ms(self) -> float:
        """In milliseconds of one lane."""
        return self.profile.ms_on(1)

    @property
    def longer(self) -> float:
        """How many times as long as expected it may take: attention grows with the square of the area."""
        return max(1.0, self.times_larger)


class Shop(Protocol):
    """What an engine needs of whatever makes its pictures: a pipeline, or something of known costs."""

    @property
    def lanes(self) -> int:
        """Those that can be used now."""

    @property
    def patience_s(self) -> float:
        """Within which it finds out itself that a device hangs, and goes on without; 0 where it does not."""

    def open(self) -> None:
        """Get ready: measure, warm up. Takes long; any thread."""

    def renewal_in_s(self, pace: float) -> float | None:
        """Seconds until what requests are expected to take is to be measured anew; None where it is not.

        pace: how many times as long as expected they take.
        """

    def renew(self, pace: float, going: Callable[[], None]) -> None:
        """Measure it anew, with nothing else at work. Takes long.

        going: called after every round; what it raises ends it.
        """

    def order(self, prompt: Prompt, settings: Mapping[str, Any]) -> Order:
        """Check a request; nothing runs. Raises as a call of the pipeline does before any work."""

    def call(self, order: Order, lanes: int, within_ms: float | None) -> tuple[dict[str, Any], float]:
        """What `make` needs for a call on so many lanes, with its plan named; and the milliseconds to expect.

        within_ms: in which it has to be there. Raises InputError where it cannot.
        """

    def make(self, order: Order, settings: dict[str, Any], on_round: Callable[[RoundDone], None]) -> Result:
        """Make the pictures. Takes long; in a thread of its own."""

    def preview(self, done: RoundDone) -> Image.Image | None:
        """A small picture of a round, the first of its batch; in that thread, while it is told of."""

    def close(self) -> None:
        """Give everything back. Takes long."""


class PipelineShop:
    """Orders for a pipeline. CPU lanes take turns with rounds; of GPUs each request has some to itself."""

    def __init__(self, pipe: Pipeline, most_area: float | None = None) -> None:
        """most_area: of all pictures of a request, in pictures of the model's own size; None for any."""
        self._pipe, self._most_area = pipe, most_area
        self._gpus = bool(pipe._devices.gpus)
        # By settings; those asked for last.
        self._known: OrderedDict[str, tuple[_Expected, float]] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def lanes(self) -> int:
        return self._pipe.devices

    @property
    def patience_s(self) -> float:
        devices = self._pipe._devices
        return self._pipe._options.deadline_s * devices.count if devices.gpus else 0.0

    def open(self) -> None:
        self._pipe.warm_up()
        self._pipe._stages.warm_up_leads(self._pipe._checked("", {})[0])
        self._pipe.measure()

    def renewal_in_s(self, pace: float) -> float | None:
        return self._pipe._auto.costs.renewal_in_s(pace)

    def renew(self, pace: float, going: Callable[[], None]) -> None:
        try:
            self._pipe._auto.costs.renew(pace, going)
        finally:  # one size may have been measured, and another one not
            with self._lock:  # what is worked out at the moment may be of the old costs
                self._known.clear()

    def order(self, prompt: Prompt, settings: Mapping[str, Any]) -> Order:
        for name, instead in _TAKEN.items():
            if settings.get(name) is not None:
                raise InputError(f"{name} was given, which an engine gives itself; {instead}")
        if isinstance(settings.get("seed"), Iterator):  # it can be read once, and is checked twice
            settings = {**settings, "seed": tuple(settings["seed"])}
        count = settings.get("num_images", 1)
        if isinstance(count, int):
            self._check_area(count)  # of a pixel each: before so many are listed
        request, checked = self._pipe._checked(prompt, settings)
        self._check_area(len(request.prompts) * request.height * request.width)
        Watch.check(settings)
        asked, open_ = planned(checked), leaves_open(checked)
        widest = min(max(self.lanes, 1), WINDOW_LANES)
        size = request.height, request.width, request.guidance_scale, len(request.prompts)
        key = repr((open_, widest, size, request.split_guidance, sorted(asked.items())))
        with self._lock:
            if key not in self._known:
                expected = (self._open if open_ else self._named)(request, asked, widest)
                larger = self._pipe._auto.costs.times_larger((request.height, request.width))
                self._known[key] = expected, larger
                while len(self._known) > _KNOWN:
                    self._known.popitem(last=False)
            self._known.move_to_end(key)
            (profile, least_ms, lanes), larger = self._known[key]
        # The picture is that of the lanes there are now, though fewer may be there when it is started.
        settings = dict(settings) if open_ else {**settings, "lanes": lanes}
        # A picture to start from is kept in 8 bits and at the size that it is needed in, while it waits.
        kept = fitted(settings, (request.height, request.width))
        return Order(prompt, kept, profile, least_ms, open_, (replace(request, source=None), asked), larger)

    def _check_area(self, pixels: int) -> None:
        height, width = self._pipe._planner.own_size
        if self._most_area is not None and pixels > self._most_area * height * width:
            raise InputError(
                f"pictures of {pixels} pixels in all were asked; the most here is {self._most_area:g} of "
                f"{width} x {height} (most_area); ask for fewer or smaller ones at a time"
            )

    def _open(self, request: Request, asked: PlanSettings, widest: int) -> _Expected:
        """Of a call that leaves its plan open: the best plan for any number of lanes."""
        auto = self._pipe._auto
        chosen = [auto.choice(request, asked, devices=count).chosen for count in range(1, widest + 1)]
        profile = Profile(
            tuple(one.ms for one in chosen), tuple(_devices(one, request.guided) for one in chosen)
        )
        least_ms = auto.least_ms(request, asked, widest) if _hurries(asked) else profile.least_ms
        return profile, least_ms, 0

    def _named(self, request: Request, asked: PlanSettings, widest: int) -> _Expected:
        """Of a call that names its plan: it runs as it is, on however many lanes."""
        plan = self._pipe._planner.plan(self._pipe.devices, **asked)
        times, width = self._pipe._auto.expected_ms(request, plan, widest)
        if self._gpus:
            each = self._pipe._planner.devices_per_lane(**asked)
            needed = max(1, min(self.lanes, _at_once(plan) * each))
            return _on_so_many(times, needed), times[min(needed, widest) - 1], plan.lanes
        # Where one idles for half of its time another request may have it.
        busy = max(1, math.ceil(width - 0.5))
        keeps = tuple(min(count, busy) for count in range(1, widest + 1))
        return Profile(times, keeps), min(times), plan.lanes

    def call(self, order: Order, lanes: int, within_ms: float | None) -> tuple[dict[str, Any], float]:
        request, asked = order.request
        if not order.open:
            # As calls do that lose a GPU on their way; a plan on CPU threads runs on any number of them.
            each = self._pipe._planner.devices_per_lane(**asked)
            most = max(1, self.lanes // each) if self._gpus else order.settings["lanes"]
            settings = {**order.settings, "lanes": min(order.settings["lanes"], most)}
            return self._on_devices(settings, order.profile.kept_of(lanes)), order.profile.ms_on(lanes)
        auto = self._pipe._auto
        chosen = auto.choice(request, asked, devices=lanes).chosen
        if within_ms is not None and _hurries(asked) and chosen.ms > within_ms:
            in_time = cast(PlanSettings, {**asked, "deadline_ms": within_ms})
            chosen = auto.choice(request, in_time, devices=lanes).chosen
        needed = _devices(chosen, request.guided)
        return self._on_devices(chosen.named(order.settings), min(lanes, needed)), chosen.ms

    def _on_devices(self, settings: dict[str, Any], devices: int) -> dict[str, Any]:
        """For `make`: so many GPUs are to work on it."""
        return {**settings, "devices": devices} if self._gpus else settings

    def make(self, order: Order, settings: dict[str, Any], on_round: Callable[[RoundDone], None]) -> Result:
        # Not the call itself, which warns of words that the model cannot read: Python keeps every warning,
        # and prompts of clients are nothing for a log.
        settings = dict(settings)
        devices = settings.pop("devices", None)
        request, checked = self._pipe._checked(order.prompt, settings)
        watch = Watch.check({**settings, "callback_on_round_end": on_round})
        return self._pipe._made(replace(request, devices=devices), checked, watch)

    def preview(self, done: RoundDone) -> Image.Image | None:
        return self._pipe.preview(done.latents())[0]

    def close(self) -> None:
        self._pipe.close()


def _devices(chosen: Candidate, guided: bool) -> int:
    return chosen.lanes * (2 if chosen.split and guided else 1)


def _at_once(plan: Plan) -> int:
    """The most noises that a round predicts; of a plan that decides on its way, what it may."""
    return max((len(item.predict) for item in plan.rounds), default=plan.lanes)


def _on_so_many(times: Sequence[float], needed: int) -> Profile:
    """Of a plan that has so many GPUs or waits: the larger batches of fewer would round in another way."""
    ms = [times[min(count, needed, len(times)) - 1] for count in range(1, max(needed, len(times)) + 1)]
    return Profile(tuple(ms), (needed,) * len(ms), needed)


def _hurries(asked: PlanSettings) -> bool:
    """Whether it may get a plan that only is in time: where nothing was said of its quality."""
    return asked.get("quality") is None and asked.get("tolerance") is None
