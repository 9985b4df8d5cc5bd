"""Nothing in the GPU lanes' synchronisation is there for nothing, and nothing wrong in it goes unseen.

Every event that is recorded or waited for, every copy and every launch of a picture is left out, one at a
time, and buffers are swapped. Each must be caught: by the race detector, by a violation of the driver's
rules, by the picture, or by an error. Run as `python -m bench.gpu_mutations` it writes the whole table.
"""

from __future__ import annotations

import re
import threading
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import cudasim
import gpulanes
import numpy as np
import pytest
import tiny
from gpucalls import Asked, Deciding, normal
from gpumutants import SWAPS, OtherSlot, Steps, kind_of, replaced

from driffusion_trt import DriffusionError, ModelError
from driffusion_trt.engines.manifest import ModelFolder
from driffusion_trt.runtime import _peer_trial
from driffusion_trt.runtime.cuda import CudaLanes
from driffusion_trt.runtime.gpu_links import WorkerLink
from driffusion_trt.runtime.gpu_slots import Slots
from driffusion_trt.runtime.host import HostLanes
from driffusion_trt.sampling.noise import noise_streams


@dataclass(frozen=True)
class Setup:
    """A machine, and the call that is made on it; two full rounds in a row, so that buffers are used again."""

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
TWO = Asked("aggressive", 2, "ddpm", steps=5, pictures=2)  # on one lane
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
    "split guidance": Setup({"split_guidance": True}, TWO, (*SHARED, *TWO_DEVICES)),
    "split guidance, staged": Setup(
        {"split_guidance": True, "peer_copies": False}, TWO, (*SHARED, *TWO_DEVICES)
    ),
    "one device twice": Setup({"devices": [0, 0]}, FOUR, (*SHARED[1:], *ONE_DEVICE, *LANES, PLACES)),
    "a plan that adapts": Setup({}, Asked("", 2, steps=7)),
}

# How each kind of mutation is caught, whatever the round, worker or draft; where setups differ, by all of these.
VERDICTS: dict[str, str] = {}


@contextmanager
def late_report(simulator: cudasim.Simulator, lanes: CudaLanes, omit: str) -> Iterator[None]:
    """Where nothing waits for a worker's report: the copy comes after the host has read where it goes.

    In the end the host asks every stream for errors, and what is done by then is in order by luck.
    """
    found = re.search(r"worker (\d)'s report", omit)
    gate, report, not_finite = threading.Event(), WorkerLink.report, WorkerLink.not_finite

    def wait() -> None:
        assert gate.wait(10)

    def late(link: WorkerLink) -> None:
        if found and link.worker is lanes._workers[int(found[1])]:
            simulator.enqueue(link.worker.stream.handle, wait)
        report(link)

    def read(link: WorkerLink) -> int:
        flags = not_finite(link)
        gate.set()
        return flags

    with mock.patch.object(WorkerLink, "report", late), mock.patch.object(WorkerLink, "not_finite", read):
        yield


class Trial:
    """Lanes on which one mutation after another is tried.

    Before each, another picture leaves its traces in all buffers: NaN.
    """

    def __init__(self, setup: Setup, folder: ModelFolder, kernels: Path, host: HostLanes) -> None:
        self._setup, self._folder, self._kernels = setup, folder, kernels
        asked = setup.asked
        if not asked.mode:
            plan = replace(asked, mode="sequential").planned()
            asked = replace(asked, plan=Deciding(plan.schedule, "deciding", asked.lanes, plan.steps, ()))
        self._asked, self._right = asked.again(), asked.again().latents(host)
        self._stack = ExitStack()
        self._lanes: CudaLanes | None = None

    def _start(self) -> CudaLanes:
        options = dict(self._setup.options)
        devices = options.pop("devices", 2)
        self.close()
        self._stack.enter_context(suppress(DriffusionError))  # of a device that is broken by now
        self._simulator = self._stack.enter_context(gpulanes.machine(2))
        lanes = self._stack.enter_context(gpulanes.gpu_lanes(self._folder, self._kernels, devices, **options))
        self._steps = self._stack.enter_context(Steps(lanes).watched())
        return lanes

    def close(self) -> None:
        self._lanes = None
        self._stack.close()

    def steps(self) -> list[str]:
        """Names of all steps of a picture."""
        assert self.verdict() == "survived"
        return list(self._steps.seen)

    def swapped(self, *what: Any) -> str:
        """How lanes are found out that have always worked in this wrong way."""
        self.close()
        with replaced(*what):
            found = self.verdict()
            self.close()
        return found

    def verdict(self, omit: str = "") -> str:
        """How a picture without one step is found out."""
        self._lanes = lanes = self._lanes or self._start()
        self._make(lanes, replace(self._asked, seed=50), np.float32("nan"))
        self._steps.begin(omit)
        before = self._found()
        with late_report(self._simulator, lanes, omit):
            made = self._make(lanes, self._asked)
        grown = [kind for kind, count in self._found().items() if count > before[kind]]
        if "violation" in grown or made == "error":
            self._lanes = None  # a device may be lost
        else:
            for stream in (lanes._lead.stream, *(worker.stream for worker in lanes._workers)):
                stream.device.make_current()
                stream.synchronize()
        return grown[0] if grown else made

    def _make(self, lanes: CudaLanes, asked: Asked, factor: Any = 1) -> str:
        text, empty = (normal(asked.seed + k, asked.pictures, tiny.LENGTH, tiny.WIDTH) for k in (1, 2))
        noise = normal(asked.seed + 3, asked.pictures, tiny.CHANNELS, tiny.SIDE, tiny.SIDE)
        try:
            job = lanes.job(text, asked.guidance_scale, empty)
            streams = noise_streams(asked.seed, asked.pictures)
            made = job.sample(asked.planned(), noise * factor, streams)
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
    for step in trial.steps():
        yield step, trial.verdict(step)
    for name in setup.swaps:
        yield f"swapped: {name}", trial.swapped(*SWAPS[name])
    if setup.asked.mode:
        number, count = 0, 1
        while number < count:
            wrong = OtherSlot(number)
            yield f"swapped: two places of latents #{number + 1}", trial.swapped(Slots, "__getitem__", wrong)
            number, count = number + 1, wrong.seen


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    return ModelFolder.open(tiny.make_model_folder(tmp_path_factory.mktemp("tiny") / "model"))


@pytest.mark.parametrize("name", SETUPS)
def test_scratch(folder, kernels_library, name):
    with HostLanes(folder.network("denoiser"), 1) as host:
        trial = Trial(SETUPS[name], folder, kernels_library, host)
        import time

        t = time.time()
        rows = list(mutations(trial, SETUPS[name]))
        trial.close()
        got = defaultdict(Counter)
        for n, v in rows:
            got[kind_of(n)][v] += 1
        print()
        print(name, len(rows), time.time() - t)
        for k, v in got.items():
            print("   ", k, dict(v))
        print([n for n, v in rows if v == "survived"])
