"""GPU lanes with one thing wrong: each step of a picture left out in turn, and buffers that are swapped.

A *step* is one call that a picture makes of the driver: an event recorded or waited for, a copy, a launch.
`Steps` gives each a name ("round 2: worker 1 waits for the lead") and can leave one out.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

from driffusion_trt.runtime._resources import Event, GraphExec, Stream
from driffusion_trt.runtime.cuda import CudaLanes
from driffusion_trt.runtime.gpu_links import LaneLink, WorkerLink
from driffusion_trt.runtime.gpu_picture import Picture
from driffusion_trt.runtime.gpu_request import Request
from driffusion_trt.runtime.gpu_rounds import Compiled, Compiler
from driffusion_trt.runtime.gpu_slots import Slots
from driffusion_trt.runtime.gpu_worker import Worker
from driffusion_trt.runtime.kernels import Kernels, Launch, Target

COPIES = ("copy_to_device", "copy_to_host", "copy", "copy_peer", "fill")


def kind_of(step: str) -> str:
    """What is the same in every round, for every worker and for every draft."""
    return re.sub(r"worker \d", "worker", re.sub(r"^round \d+: | #\d+$", "", step))


@dataclass
class Steps:
    """The steps of one picture at a time, by name; `omit` is left out."""

    lanes: CudaLanes
    omit: str = ""
    seen: list[str] = field(default_factory=list)
    _names: dict[int, str] = field(default_factory=dict)  # of events and launches, by identity
    _during: list[str] = field(default_factory=list)  # what the copies below are for
    _round: int = 0
    _count: Counter[str] = field(default_factory=Counter)

    def begin(self, omit: str = "") -> None:
        """For the next picture."""
        self.omit, self._round = omit, 0
        self.seen.clear()
        self._count.clear()

    def _left_out(self, name: str) -> bool:
        name = f"round {self._round}: {name}" if self._round else name
        self._count[name] += 1
        if self._count[name] > 1:
            name = f"{name} #{self._count[name]}"
        self.seen.append(name)
        return name == self.omit

    def _worker(self, worker: Worker) -> str:
        return f"worker {self.lanes._team.workers.index(worker)}"

    def _enter_round(self, picture: Picture, number: int, item: Compiled) -> None:
        self._round = number + 1
        names = {picture._ready[number]: "the lead's messages", picture.final: "the picture"}
        names |= {
            event: f"{self._worker(worker)}'s predictions" for worker, event in picture._done[number].items()
        }
        names |= {event: f"{self._worker(worker)}'s report" for worker, event in picture.last.items()}
        self._names |= {id(event): name for event, name in names.items()}
        computed = {
            what: getattr(item, what) for what in ("draft", "messages", "combine", "refine", "observe")
        }
        if picture._kept is not None:
            computed["what is kept"] = [
                launch for places in (item.drafted, item.refined) for launch in picture._kept.launches(places)
            ]
        for what, launches in computed.items():
            self._names |= {id(launch): f"the lead computes: {what}" for launch in launches}

    @contextmanager
    def watched(self) -> Iterator[Steps]:
        """Every step of the lanes' pictures goes through here."""
        with ExitStack() as stack:

            def wrap(owner: type, name: str, wrapper: Callable[..., Any]) -> None:
                original = getattr(owner, name)
                stack.enter_context(
                    mock.patch.object(owner, name, lambda *given, **named: wrapper(original, *given, **named))
                )

            self._wrap_events(wrap)
            self._wrap_work(wrap)
            yield self

    def _wrap_events(self, wrap: Callable[..., None]) -> None:
        names = self._names

        def events(original: Any, picture: Picture, number: int, item: Any) -> Any:
            result = original(picture, number, item)
            self._enter_round(picture, number, item)
            return result

        def record(original: Any, event: Event, stream: Stream) -> None:
            if not (id(event) in names and self._left_out(f"the event of {names[id(event)]} is recorded")):
                original(event, stream)

        def wait(original: Any, stream: Stream, event: Event) -> None:
            on = [self._worker(worker) for worker in self.lanes._team.workers if worker.stream is stream]
            if not self._left_out(f"{on[0] if on else 'the lead'} waits for {names[id(event)]}"):
                original(stream, event)

        def host(original: Any, event: Event, timeout_s: float | None = None) -> bool:
            if id(event) in names and self._left_out(f"the host waits for {names[id(event)]}"):
                return True
            return bool(original(event, timeout_s))

        wrap(Picture, "events", events)
        wrap(Event, "record", record)
        wrap(Stream, "wait", wait)
        wrap(Event, "wait", host)

    def _wrap_work(self, wrap: Callable[..., None]) -> None:
        def during(name: str) -> Callable[..., None]:
            def wrapper(original: Any, owner: WorkerLink | Request, *given: Any) -> None:
                worker = owner.worker if isinstance(owner, WorkerLink) else owner._worker
                self._during.append(f"{self._worker(worker)}: {name.replace('_', ' ')}")
                original(owner, *given)
                self._during.pop()

            return wrapper

        for name in ("post", "fetch", "send_back", "receive", "report"):
            wrap(WorkerLink, name, during(name))
        for name in ("set_conditioning", "clear_flags"):
            wrap(Request, name, during(name))

        def copying(name: str) -> Callable[..., None]:
            def wrapper(original: Any, stream: Stream, *given: Any) -> None:
                own = "the lead: the picture to the host" if name == "copy_to_host" else "the lead: noise"
                if not self._left_out(self._during[-1] if self._during else own):
                    original(stream, *given)

            return wrapper

        for name in COPIES:
            wrap(Stream, name, copying(name))

        def launch(original: Any, launch: Launch, stream: Stream) -> None:
            if not (id(launch) in self._names and self._left_out(self._names[id(launch)])):
                original(launch, stream)

        def graph(original: Any, graph: GraphExec, stream: Stream) -> None:
            on = [self._worker(worker) for worker in self.lanes._team.workers if worker.stream is stream]
            if not self._left_out(f"{on[0]}: predict"):
                original(graph, stream)

        wrap(Launch, "__call__", launch)
        wrap(GraphExec, "launch", graph)


# What is swapped. Each is a context in which pictures are compiled and made.

Swap = Callable[[], Any]


@contextmanager
def replaced(owner: type, name: str, wrapper: Callable[..., Any]) -> Iterator[None]:
    """wrapper(original, self, ...) in the place of a method."""
    original = getattr(owner, name)
    with mock.patch.object(owner, name, lambda *given, **named: wrapper(original, *given, **named)):
        yield


def _fetch(original: Any, link: WorkerLink, outbox: int) -> None:
    stream, inbox, size_bytes = link.worker.stream, link.request.inbox.address, link.request.message_bytes
    if link.how == "staged":
        stream.copy_to_host(link._out.address, inbox, size_bytes)
    elif inbox != outbox:
        stream.copy_peer(outbox, link.lead, inbox, link.worker.device, size_bytes)


def _send_back(original: Any, link: WorkerLink, targets: Sequence[int]) -> None:
    original(link, targets[::-1])


def _receive(original: Any, link: WorkerLink, stream: Stream, targets: Sequence[int]) -> None:
    original(link, stream, targets[::-1])


def _requests(original: Any, compiler: Compiler, predict: Sequence[int]) -> Any:
    made = list(original(compiler, predict))
    places = [place for _, places in made for place in places]
    if len(made) > 1:  # the first of each of two lanes
        other = len(made[0][1])
        places[0], places[other] = places[other], places[0]
    mixed = iter(places)
    return tuple((link, tuple(next(mixed) for _ in own)) for link, own in made)


def _messages(original: Any, compiler: Compiler, predict: Sequence[int], links: Sequence[LaneLink]) -> Any:
    return original(compiler, predict, links[::-1] if len({one.form for one in links}) == 1 else links)


def _timesteps(
    original: Any, kernels: Kernels, sources: Any, targets: Sequence[Target], *given: Any, **named: Any
) -> Any:
    slots = [target.slot for target in targets]
    targets = [t._replace(slot=slot ^ 1) if max(slots) else t for t, slot in zip(targets, slots, strict=True)]
    return original(kernels, sources, targets, *given, **named)


def _conditioning(original: Any, request: Request, branches: Any) -> None:
    original(request, branches[::-1])


def _branches(original: Any, picture: Picture, branches: Any) -> None:
    original(picture, branches[::-1])


def _guide(original: Any, kernels: Kernels, one: int, other: int, *given: Any, **named: Any) -> Any:
    return original(kernels, other, one, *given, **named)


def _combine(original: Any, compiler: Compiler, lanes: Any) -> Any:
    for link, _ in lanes:
        link.received = link.received[::-1]
    made = original(compiler, lanes)
    for link, _ in lanes:
        link.received = link.received[::-1]
    return made


def _noises(original: Any, compiler: Compiler, columns: Any) -> Any:
    made = original(compiler, columns)
    addresses = [address for _, address in made][::-1]
    return tuple((step, address) for (step, _), address in zip(made, addresses, strict=True))


def _drop(original: Any, slots: Slots, column: Any) -> None:
    if column in slots._of:
        slots._users[slots._of[column]] = 1
    original(slots, column)


def _staging(original: Any, link: WorkerLink, outbox: int) -> None:
    if link.how == "staged":
        link.worker.stream.copy_to_device(
            link.request.inbox.address, link._back.address, link.request.result_bytes
        )


SWAPS: Mapping[str, tuple[type, str, Callable[..., Any]]] = {
    "inbox and outbox": (WorkerLink, "fetch", _fetch),
    "places of a lane's predictions, sent": (WorkerLink, "send_back", _send_back),
    "places of a lane's predictions, received": (WorkerLink, "receive", _receive),
    "places of two lanes' predictions": (Compiler, "_requests", _requests),
    "outboxes of two lanes": (Compiler, "_messages", _messages),
    "timesteps of two drafts": (Kernels, "linear", _timesteps),
    "prompt and no prompt, on one device": (Request, "set_conditioning", _conditioning),
    "prompt and no prompt, on two devices": (Picture, "conditioning", _branches),
    "results with and without the prompt, on one device": (Kernels, "guide", _guide),
    "results with and without the prompt, on two devices": (Compiler, "_combine", _combine),
    "noises of two steps": (Compiler, "_noises", _noises),
    "pinned memory of messages and of predictions": (WorkerLink, "fetch", _staging),
    "a place that is shared and one that is free": (Slots, "_drop", _drop),
}


@dataclass
class OtherSlot:
    """The k-th look-up of a column's place gives that of another column."""

    number: int
    seen: int = 0

    def __call__(self, original: Any, slots: Slots, column: Any) -> int:
        place = int(original(slots, column))
        self.seen += 1
        if self.seen - 1 != self.number:
            return place
        others = [other for other in slots._of.values() if other != place]
        return others[0] if others else slots.fresh()
