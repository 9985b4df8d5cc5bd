"""Mutations of the GPU lanes tried one after another, each with how it is found out."""

from __future__ import annotations

import ctypes
import re
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import cudasim
import gpulanes
import numpy as np
import tiny
from gpucalls import Asked, Deciding, Floats, OnRound, normal
from gpumutants import SWAPS, OtherSlot, Steps, kind_of, replaced

from driffusion_trt import DriffusionError, ModelError
from driffusion_trt.engines.manifest import ModelFolder
from driffusion_trt.runtime._owner import Owner
from driffusion_trt.runtime._resources import DeviceMemory, PinnedMemory, Stream
from driffusion_trt.runtime.cuda import CudaLanes
from driffusion_trt.runtime.gpu_links import WorkerLink
from driffusion_trt.runtime.gpu_slots import Slots
from driffusion_trt.runtime.host import HostLanes
from driffusion_trt.sampling.noise import noise_streams


@dataclass(frozen=True)
class Setup:
    """A machine, and the call that is made on it, with two full rounds in a row."""

    options: Mapping[str, Any]
    asked: Asked
    swaps: tuple[str, ...] = ()


PLACES = "places of a lane's predictions, sent"
SHARED = (
    "inbox and outbox",
    "timesteps of two drafts",
    "noises of two steps",
    "a place that is shared and one that is free",
)
ONE_DEVICE = ("prompt and no prompt, on one device", "results with and without the prompt, on one device")
TWO_DEVICES = ("prompt and no prompt, on two devices", "results with and without the prompt, on two devices")
LANES = ("places of two lanes' predictions", "outboxes of two lanes")
FOUR = Asked("aggressive", 4, "ddpm", steps=9, pictures=2)  # two drafts on each of two lanes
TWO = Asked("aggressive", 2, "ddpm", steps=5, pictures=2, split=True)  # on one lane
SETUPS = {
    "peers": Setup({}, FOUR, (*SHARED, *ONE_DEVICE, *LANES, PLACES)),
    "staged": Setup(
        {"peer_copies": False},
        FOUR,
        (
            *SHARED,
            *ONE_DEVICE,
            *LANES,
            "places of a lane's predictions, received",
            "pinned memory of messages and of predictions",
        ),
    ),
    "split guidance": Setup({}, TWO, (*SHARED, *TWO_DEVICES)),
    "split guidance, staged": Setup({"peer_copies": False}, TWO, (*SHARED, *TWO_DEVICES)),
    "one device twice": Setup({"devices": [0, 0]}, FOUR, (*SHARED[1:], *ONE_DEVICE, *LANES, PLACES)),
    # In this mode networks see every refined state; in the other, only what is drafted and the end matter.
    "inpainting": Setup({}, Asked("conservative", 2, "ddpm", steps=7, seed=10, first=1, inpaint=True)),
    "two of four devices": Setup(
        {"devices": 4}, replace(FOUR, devices=2), (*SHARED, *ONE_DEVICE, *LANES, PLACES)
    ),
    "a plan that adapts": Setup({}, Asked("", 2, "ddpm", steps=12, seed=10)),
}


@contextmanager
def late_copies(simulator: cudasim.Simulator, stream: Stream | None) -> Iterator[None]:
    """Let the last copies to the host on this stream come after the host has read where they go.

    In the end the host asks every stream for errors, and what is done by then would be in order by luck.
    """
    gate, report, not_finite = threading.Event(), WorkerLink.report, WorkerLink.not_finite

    def late(link: WorkerLink) -> None:
        nonlocal stream
        if stream is not None:
            assert simulator.enqueue(stream.handle, lambda: gate.wait(10)) == 0
            stream = None
        report(link)

    def read(link: WorkerLink) -> int:
        flags = not_finite(link)
        gate.set()
        return flags

    with mock.patch.object(WorkerLink, "report", late), mock.patch.object(WorkerLink, "not_finite", read):
        try:
            yield
        finally:
            gate.set()


def spoil(lanes: CudaLanes) -> None:
    """No buffer of the lanes holds anything that is right, nor finite: nothing stale can pass for new."""
    owners: list[Owner] = []
    for picture in lanes._team._pictures.values():
        owners += [*picture._owners, *picture.slots._memory]
        for link in picture.lane_links.values():
            owners += link._owners
            for one in link.links:
                owners += [*one._owners, *one.request._owners]
    for owner in owners:
        if isinstance(owner, DeviceMemory | PinnedMemory):
            ctypes.memset(owner.address, 0xFF, owner.size_bytes)


class Trial:
    """Lanes on which one mutation after another is tried.

    Before each, all buffers are spoiled.
    """

    def __init__(self, setup: Setup, folder: ModelFolder, kernels: Path, host: HostLanes) -> None:
        self._setup, self._folder, self._kernels = setup, folder, kernels
        asked = setup.asked
        if not asked.mode:
            plan = replace(asked, mode="sequential").planned()
            asked = replace(asked, plan=Deciding(plan.schedule, "deciding", asked.lanes, plan.steps, ()))
        self._shown: list[Floats] = []
        self._asked = asked.again()
        self._right = self._asked.latents(host, lambda done: self._shown.append(done.latents()))
        self._stack = ExitStack()
        self._lanes: CudaLanes | None = None

    def _start(self) -> CudaLanes:
        options = dict(self._setup.options)
        devices = options.pop("devices", 2)
        self.close()
        self._stack.enter_context(suppress(DriffusionError))  # of a device that is broken by now
        count = devices if isinstance(devices, int) else 2
        self._simulator = self._stack.enter_context(gpulanes.machine(count))
        lanes = self._stack.enter_context(gpulanes.gpu_lanes(self._folder, self._kernels, devices, **options))
        self._steps = self._stack.enter_context(Steps(lanes).watched())
        return lanes

    def close(self) -> None:
        self._lanes = None
        self._stack.close()

    def steps(self) -> list[str]:
        """Names of all steps of a picture."""
        for _ in range(2):  # a plan that adapts compiles on its way, the first time
            assert self.verdict() == "survived"
        return list(self._steps.seen)

    def swapped(self, *what: Any) -> str:
        """How lanes are found out that have always worked in this wrong way."""
        self.close()
        with replaced(*what):
            found = self.verdict()
            if found == "survived":  # who listens may see what the picture does not show
                found = self._shows()
            self.close()
        return found

    def _shows(self) -> str:
        """The same, by the clean latents that rounds show."""
        assert self._lanes is not None
        shown: list[Floats] = []
        made = self._make(self._lanes, self._asked, lambda done: shown.append(done.latents()))
        right = len(shown) == len(self._shown) and all(map(np.array_equal, shown, self._shown))
        return "picture" if made == "survived" and not right else made

    def verdict(self, omit: str = "", *, last: bool = False) -> str:
        """How a picture without one step is found out. last: it is one of those at the end of a picture."""
        made = ""
        if self._lanes is None:
            self._lanes = self._start()
            made = self._make(self._lanes, self._asked)
        lanes, before = self._lanes, Counter[str]() if made else self._found()
        if made != "error" and not self._found() - before:
            spoil(lanes)
            self._steps.begin(omit)
            with late_copies(self._simulator, self._held(lanes, omit) if last else None):
                made = self._make(lanes, self._asked)
            assert not omit or omit in self._steps.seen
        grown = self._found() - before
        if grown["violation"] or made == "error":
            self._lanes = None  # a device is lost
        else:
            leads = [lead.stream for lead in lanes._team._leads.values()]
            for stream in (*leads, *(worker.stream for worker in lanes._team.workers)):
                stream.device.make_current()
                stream.synchronize()
        return next(iter(grown), made)

    @staticmethod
    def _held(lanes: CudaLanes, omit: str) -> Stream:
        worker = re.search(r"worker (\d)'s report", omit)
        (lead,) = lanes._team._leads.values()  # of the one group that makes pictures here
        return lanes._team.workers[int(worker[1])].stream if worker else lead.stream

    def _make(self, lanes: CudaLanes, asked: Asked, on_round: OnRound | None = None) -> str:
        text, empty = (normal(asked.seed + k, asked.pictures, tiny.LENGTH, tiny.WIDTH) for k in (1, 2))
        noise = normal(asked.seed + 3, asked.pictures, tiny.CHANNELS, tiny.SIDE, tiny.SIDE)
        try:
            how = {"split_guidance": asked.split, "devices": asked.devices}
            job = lanes.job(text, asked.guidance_scale, empty, **how)
            streams = noise_streams(asked.seed, asked.pictures)
            known = asked.known(noise) if asked.inpaint else None
            made = job.sample(asked.planned(), noise, streams, on_round, known).latents
        except ModelError:
            return "picture"  # numbers that are not finite
        except Exception:
            return "error"
        return "survived" if np.array_equal(made, self._right) else "picture"

    def _found(self) -> Counter[str]:
        """How often the simulator has found something."""
        lines = {"race": self._simulator.races(), "violation": self._simulator.violations()}
        times = re.compile(r" \((\d+) times\)$")
        return Counter(
            {
                kind: sum(int(found[1]) if (found := times.search(line)) else 1 for line in some)
                for kind, some in lines.items()
            }
        )


def mutations(trial: Trial, setup: Setup) -> Iterator[tuple[str, str]]:
    """Name and verdict of every mutation of a setup."""
    steps = trial.steps()
    for step in steps:
        yield step, trial.verdict(step, last="'s report" in step or step in steps[-2:])
    for name in setup.swaps:
        yield f"swapped: {name}", trial.swapped(*SWAPS[name])
    if setup.asked.mode:
        number, count = 0, 1
        while number < count:
            wrong = OtherSlot(number)
            yield f"swapped: two places of latents #{number + 1}", trial.swapped(Slots, "__getitem__", wrong)
            number, count = number + 1, wrong.seen


def verdicts(name: str, folder: ModelFolder, kernels: Path) -> dict[str, str]:
    """All mutations of a setup by name, with how each is found out: or that it "survived".

    "race": by the race detector. "violation": by another rule of the driver, an access out of bounds for
    instance, or work that failed. "picture": it is another one, or not finite. "error": an exception.
    """
    with HostLanes(folder.network("denoiser"), 1) as host:
        trial = Trial(SETUPS[name], folder, kernels, host)
        try:
            return dict(mutations(trial, SETUPS[name]))
        finally:
            trial.close()


def by_kind(found: Mapping[str, str]) -> dict[str, Counter[str]]:
    """Verdicts counted for each kind of mutation."""
    kinds: dict[str, Counter[str]] = {}
    for name, verdict in found.items():
        kinds.setdefault(kind_of(name), Counter())[verdict] += 1
    return kinds
