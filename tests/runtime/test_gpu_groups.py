"""Groups of simulated devices that make pictures at the same time: each the picture that it is alone.

The detector takes every thread of the host by itself here: only a lease orders what two of them do.
"""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest import mock

import cudasim
import gpulanes
import numpy as np
import pytest
from gpucalls import Asked, Floats

import driffusion_trt as dt
from driffusion_trt._errors import DeviceError, EngineError, LaneError
from driffusion_trt.engines.manifest import ModelFolder
from driffusion_trt.engines.profiles import Profile
from driffusion_trt.engines.trt_session import TensorRTSession
from driffusion_trt.runtime import gpu_crew, gpu_lease
from driffusion_trt.runtime._resources import GraphExec
from driffusion_trt.runtime.cuda import CudaLanes
from driffusion_trt.runtime.gpu_beside import Beside
from driffusion_trt.runtime.gpu_network import GpuNetwork
from driffusion_trt.runtime.host import HostLanes

UNKNOWN, OUT_OF_MEMORY, ILLEGAL_ADDRESS = 999, 2, 700
OPTIONS: dict[str, dict[str, Any]] = {
    "peers": {},
    "staged": {"peer_copies": False},
    "plain": {"graphs": False},
}


@pytest.fixture(scope="module", autouse=True)
def _short_trials() -> Iterator[None]:
    with gpulanes.short_trials():
        yield


@dataclass
class Held:
    """Calls that stop after a round, each in a thread of its own, until they are let go."""

    lanes: CudaLanes
    threads: ThreadPoolExecutor
    go_on: threading.Event = field(default_factory=threading.Event)

    def begin(self, asked: Asked, after: int = 1) -> Future[Floats]:
        """Returns once its round is over: then its group is in use, and work of the next round with it."""
        there = threading.Event()

        def hold(done: Any) -> None:
            if done.round == after:
                there.set()
                assert self.go_on.wait(30), "a test forgot to let a call go on"

        made = self.threads.submit(asked.latents, self.lanes, hold)
        made.add_done_callback(lambda _: there.set())
        assert there.wait(30), "it got no devices"
        return made


class Bench:
    def __init__(self, folder: ModelFolder, kernels: Path, host: HostLanes) -> None:
        self.folder, self.kernels, self.host = folder, kernels, host

    @contextlib.contextmanager
    def lanes(
        self,
        devices: int | Sequence[int] = 4,
        *,
        seed: int = 1,
        lost: bool = False,
        hang_limit_ms: int = 20_000,
        **options: Any,
    ) -> Iterator[tuple[cudasim.Simulator, CudaLanes]]:
        """On a machine of their own, on which nothing is wrong or, unless some are lost, left afterwards."""
        count = devices if isinstance(devices, int) else max(devices) + 1
        limits = {"threads_apart": True, "hang_limit_ms": hang_limit_ms}
        with gpulanes.machine(count, delays=seed, delay_us=100, **limits) as simulator:
            with gpulanes.gpu_lanes(self.folder, self.kernels, devices, **options) as lanes:
                yield simulator, lanes
            if not lost:
                gpulanes.clean(simulator)
            assert simulator.races() == [] and simulator.violations() == []

    @contextlib.contextmanager
    def held(self, lanes: CudaLanes) -> Iterator[Held]:
        with ThreadPoolExecutor(8) as threads:
            made = Held(lanes, threads)
            try:
                yield made
            finally:
                made.go_on.set()

    def right(self, made: Floats, asked: Asked) -> None:
        np.testing.assert_array_equal(made, asked.latents(self.host))


@pytest.fixture
def bench(folder: ModelFolder, kernels_library: Path, host: HostLanes) -> Bench:
    return Bench(folder, kernels_library, host)


def places(lanes: CudaLanes) -> set[int]:
    """Of the devices in use."""
    return {worker.device.ordinal for worker in lanes._leases.taken}


@pytest.mark.parametrize("how", OPTIONS)
@pytest.mark.parametrize("seed", [1, 2])
def test_two_groups_at_once(bench: Bench, how: str, seed: int) -> None:
    one = Asked("aggressive", 2, "ddpm", devices=2, seed=1).again()
    other = Asked("conservative", 2, "ddim", devices=2, seed=2, pictures=2).again()
    with bench.lanes(seed=seed, **OPTIONS[how]) as (_, lanes), bench.held(lanes) as held:
        for _ in range(2):  # what was compiled by then is used again
            held.go_on.clear()
            first = held.begin(one)
            assert places(lanes) == {2, 3}
            second = held.begin(other)
            assert places(lanes) == {0, 1, 2, 3}
            held.go_on.set()
            bench.right(first.result(30), one)
            bench.right(second.result(30), other)
        np.testing.assert_array_equal(one.latents(lanes), replace(one, devices=None).latents(lanes))


def test_one_device_each_and_then_all_of_them(bench: Bench) -> None:
    singles = [Asked("sequential", 1, devices=1, seed=k) for k in range(4)]
    whole = Asked("aggressive", 4, seed=9)
    with bench.lanes() as (_, lanes), bench.held(lanes) as held:
        bench.right(whole.latents(lanes), whole)
        made = [held.begin(asked) for asked in singles]
        assert places(lanes) == {0, 1, 2, 3}
        waits = held.threads.submit(whole.latents, lanes)
        late = held.threads.submit(singles[0].latents, lanes)
        time.sleep(0.05)
        assert not waits.done() and not late.done()
        held.go_on.set()
        for one, asked in zip(made, singles, strict=True):
            bench.right(one.result(30), asked)
        bench.right(waits.result(30), whole)
        bench.right(late.result(30), singles[0])


def mixed(seed: int, devices: int) -> list[Asked]:
    """Calls of every kind, as many devices each as their plan has work for."""
    draw, made = random.Random(seed), []
    for k in range(14):
        asked = Asked(
            draw.choice(["aggressive", "conservative", "sequential"]),
            draw.choice([1, 2, 2, 3]),
            draw.choice(["ddim", "ddpm", "ddim, eta 0.7"]),
            steps=draw.choice([4, 6]),
            guidance_scale=draw.choice([1.0, 3.0]),
            pictures=draw.choice([1, 2]),
            seed=k,
            inpaint=draw.random() < 0.2,
            split=draw.random() < 0.3,
        )
        each = 2 if asked.split and asked.guidance_scale != 1 else 1
        if asked.lanes * each > devices:
            asked, each = replace(asked, split=False), 1
        made.append(replace(asked, devices=draw.choice([asked.lanes * each, None])))
    return made


@pytest.mark.parametrize("how", OPTIONS)
@pytest.mark.parametrize("devices", [4, [0, 1, 1, 2]], ids=["4", "one twice"])
def test_many_calls_of_all_kinds_from_several_threads(bench: Bench, devices: Any, how: str) -> None:
    for seed in (1, 2):
        calls = mixed(seed, 4)
        with bench.lanes(devices, seed=seed, **OPTIONS[how]) as (_, lanes), ThreadPoolExecutor(4) as threads:
            for made, asked in zip(threads.map(lambda one: one.latents(lanes), calls), calls, strict=True):
                bench.right(made, asked)


def test_a_graph_is_captured_while_another_group_runs(bench: Bench) -> None:
    """Memory is got, an engine is tried and captured, and nothing of the others waits for it."""
    captured: list[int] = []
    capture = GraphExec.capture

    def noted(stream: Any, *given: Any) -> Any:
        captured.append(stream.device.ordinal)
        return capture(stream, *given)

    running = Asked("aggressive", 2, devices=2, seed=1)
    new = Asked("aggressive", 2, devices=2, seed=2, pictures=3)
    with bench.lanes() as (_, lanes), bench.held(lanes) as held:
        first = held.begin(running)
        with mock.patch.object(GraphExec, "capture", noted):
            bench.right(held.threads.submit(new.latents, lanes).result(30), new)
        assert not first.done() and set(captured) == {0, 1} and lanes.without_graphs == {}
        held.go_on.set()
        bench.right(first.result(30), running)


def test_groups_share_all_that_is_a_devices_own(bench: Bench) -> None:
    """A picture in another group is slots and messages on its lead: no engine's buffers, and no graph."""
    asked = Asked("sequential", 1).again()
    with bench.lanes() as (simulator, lanes):
        spread = Asked("aggressive", 4)
        bench.right(spread.latents(lanes), spread)
        requests = [len(worker._requests) for worker in lanes.workers]
        graphs = simulator.calls()["cuGraphInstantiate"]
        with bench.held(lanes) as held:
            made = [held.begin(replace(asked, devices=1)) for _ in range(4)]
            held.go_on.set()
            for one in made:
                bench.right(one.result(30), asked)
        assert [len(worker._requests) for worker in lanes.workers] == requests == [1] * 4
        assert simulator.calls()["cuGraphInstantiate"] == graphs
        for worker in lanes.workers:
            lanes.make_room(worker.device)
        assert [simulator.memory_bytes()[f"device {k}"] for k in range(4)] == [0] * 4
        bench.right(asked.latents(lanes), asked)


def test_what_is_kept_is_bounded_for_every_lead(bench: Bench) -> None:
    with bench.lanes() as (simulator, lanes):
        held = []
        for k in range(60):
            asked = Asked("aggressive", 1 + k % 3, steps=3 + k % 5, devices=1 + k % 3)
            bench.right(asked.latents(lanes), asked)
            held.append(max(simulator.memory_bytes()[f"device {k}"] for k in range(4)))
        leads = [group[0] for _, _, group in lanes._team._pictures]
        assert max(leads.count(lead) for lead in leads) == 8
        assert max(held[30:]) <= max(held[:30])


# What goes wrong.


@pytest.mark.parametrize(("error", "late"), [(UNKNOWN, False), (ILLEGAL_ADDRESS, True)])
def test_a_device_that_fails_costs_its_own_group_only(bench: Bench, error: int, late: bool) -> None:
    one = Asked("aggressive", 2, devices=2, seed=1)
    with bench.lanes() as (simulator, lanes), bench.held(lanes) as held:
        running = held.begin(one)  # on GPU 2 and 3
        simulator.fail("cuGraphLaunch", error, device=1, call=2, asynchronous=late)
        with pytest.raises(LaneError, match="GPU 1 ") as caught:
            held.threads.submit(one.latents, lanes).result(30)
        assert caught.value.lanes_left == 2 and len(lanes) == 3 and not running.done()
        single = Asked("sequential", 1, devices=1, seed=5)
        bench.right(held.threads.submit(single.latents, lanes).result(30), single)  # on GPU 0
        held.go_on.set()
        bench.right(running.result(30), one)
        whole = Asked("aggressive", 3)
        for asked in (one, whole, one):
            bench.right(asked.latents(lanes), asked)


def test_a_device_that_hangs_holds_up_its_own_group_only(bench: Bench) -> None:
    one = Asked("aggressive", 2, devices=2, seed=1)
    with bench.lanes(deadline_s=0.4, lost=True) as (simulator, lanes), bench.held(lanes) as held:
        for asked in (one, Asked("aggressive", 4)):
            bench.right(asked.latents(lanes), asked)
        running = held.begin(one)
        bench.right(held.threads.submit(one.latents, lanes).result(30), one)
        simulator.hang(device=1)
        with pytest.raises(LaneError, match=r"GPU 1 .*within 0\.4 s") as caught:
            held.threads.submit(one.latents, lanes).result(30)
        assert caught.value.lanes_left == 2 and len(lanes) == 3
        held.go_on.set()
        bench.right(running.result(30), one)
        for asked in (one, Asked("aggressive", 3, seed=4), Asked("sequential", 1, devices=1)):
            bench.right(asked.latents(lanes), asked)
        simulator.let_go()


def test_a_device_that_a_network_beside_the_lanes_sees_fail(bench: Bench) -> None:
    """Whoever is at work on it goes on; the next call is told, and it is used no more."""
    one = Asked("sequential", 1, devices=1, seed=1)
    with bench.lanes(2) as (_, lanes), bench.held(lanes) as held:
        running = held.begin(one)  # on GPU 1
        (worker,) = lanes._leases.taken
        worker.device.broken = True
        with pytest.raises(LaneError, match=r"GPU 1 .*failed") as caught:
            held.threads.submit(one.latents, lanes).result(30)
        assert caught.value.lanes_left == 1
        bench.right(held.threads.submit(one.latents, lanes).result(30), one)  # on GPU 0
        held.go_on.set()
        bench.right(running.result(30), one)
        bench.right(one.latents(lanes), one)
        assert [left.device.ordinal for left in lanes.workers] == [0]


def test_devices_lost_one_after_another_while_others_work(bench: Bench) -> None:
    one = Asked("sequential", 1, devices=1, seed=1)
    with bench.lanes() as (simulator, lanes), bench.held(lanes) as held:
        running = held.begin(one)  # on GPU 3
        for device, left in ((2, 3), (1, 2), (0, 1)):
            simulator.fail("cuGraphLaunch", UNKNOWN, device=device)
            with pytest.raises(LaneError, match=f"GPU {device} "):
                held.threads.submit(one.latents, lanes).result(30)
            assert len(lanes) == left
        waits = held.threads.submit(one.latents, lanes)
        held.go_on.set()
        bench.right(running.result(30), one)
        bench.right(waits.result(30), one)
        simulator.fail("cuGraphLaunch", UNKNOWN, device=3)
        with pytest.raises(LaneError, match="no lane is left"):
            one.latents(lanes)
        with pytest.raises(LaneError, match="every device has failed"):
            one.latents(lanes)


def many(lanes: CudaLanes, calls: int, seen: Callable[[], object]) -> list[str]:
    """Calls of forms and groups of all kinds; what they ended in, but for pictures."""
    ends = []
    for k in range(calls):
        asked = Asked("aggressive", 1 + k % 2, steps=3 + k % 5, devices=1 + k % 2, pictures=1 + k % 6)
        try:
            asked.latents(lanes)
        except (LaneError, DeviceError) as error:
            ends.append(str(error))
        seen()
    return ends


@pytest.mark.parametrize("let_go", [False, True])
def test_what_is_kept_is_bounded_while_a_device_hangs(
    bench: Bench, let_go: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others wait for it on streams of old, and the driver would wait with who gives memory back."""
    held: list[int] = []
    monkeypatch.setattr(gpu_crew, "_PICTURES_KEPT", 3)
    monkeypatch.setattr(gpu_crew, "_FORMS_KEPT", 2)
    with bench.lanes(3, deadline_s=0.4, lost=True, hang_limit_ms=2000) as (simulator, lanes):
        whole = Asked("aggressive", 3)
        bench.right(whole.latents(lanes), whole)
        simulator.hang(device=1)
        with pytest.raises(LaneError, match="GPU 1 "):
            whole.latents(lanes)

        def look() -> None:
            held.append(sum(simulator.memory_bytes()[f"device {k}"] for k in (0, 2)))
            leads = [group[0] for _, _, group in lanes._team._pictures]
            assert max(leads.count(lead) for lead in leads) <= 3
            assert simulator.violations() == []

        assert many(lanes, 90, look) == []

        def got() -> list[int]:
            """How much memory was asked for by now, and contexts of TensorRT."""
            calls, engines = simulator.calls(), [worker.session._open() for worker in lanes.workers]
            return [calls["cuMemAlloc"], calls["cuMemHostAlloc"], *(len(one.configs) for one in engines)]

        before = got()
        assert many(lanes, 30, look) == [] and held[-1] == held[89]
        assert got() == before
        for worker in lanes.workers:
            lanes.make_room(worker.device)
        bench.right(whole.latents(lanes), whole)
        if let_go:
            simulator.let_go()
            time.sleep(0.2)
            for worker in lanes.workers:
                lanes.make_room(worker.device)
            assert [simulator.memory_bytes()[f"device {k}"] for k in (0, 2)] == [0, 0]
            assert [worker.device.held_bytes for worker in lanes.workers] == [0, 0]
        begun = time.monotonic()
        lanes.close()
        assert time.monotonic() - begun < 2


def test_a_device_without_room_while_another_hangs(bench: Bench) -> None:
    """What was half made goes to the next request there: nobody waits for what never ends."""
    small = [cudasim.Device(memory_bytes=900_000)] * 3
    with (
        gpulanes.machine(small, threads_apart=True, hang_limit_ms=500) as simulator,
        gpulanes.gpu_lanes(bench.folder, bench.kernels, 3, deadline_s=0.4) as lanes,
    ):
        whole = Asked("aggressive", 3)
        bench.right(whole.latents(lanes), whole)
        simulator.hang(device=1)
        with pytest.raises(LaneError, match="GPU 1 "):
            whole.latents(lanes)

        def look() -> None:
            assert simulator.violations() == []

        with ThreadPoolExecutor(1) as thread:
            ends = thread.submit(many, lanes, 60, look).result(60)
            assert all("CUDA_ERROR_OUT_OF_MEMORY" in end for end in ends) and len(ends) < 30
        simulator.fail("cuMemAlloc", OUT_OF_MEMORY, device=2, call=3)
        other = Asked("sequential", 1, devices=1, steps=9, pictures=4)
        with contextlib.suppress(LaneError):
            other.latents(lanes)
        bench.right(other.latents(lanes), other)
        assert simulator.violations() == []
    assert simulator.races() == [] and simulator.violations() == []


def test_room_on_a_device_is_made_while_others_work(bench: Bench) -> None:
    """For a network beside the lanes: it waits for that device alone, and no longer than its call may."""
    one = Asked("sequential", 1, devices=1, seed=1)
    with bench.lanes() as (simulator, lanes), bench.held(lanes) as held:
        whole = Asked("aggressive", 4)
        bench.right(whole.latents(lanes), whole)
        first, *_, last = (worker.device for worker in lanes.workers)
        running = held.begin(one)  # on GPU 3
        held.threads.submit(lanes.make_room, first).result(10)
        assert simulator.memory_bytes()["device 0"] == 0 < simulator.memory_bytes()["device 2"]
        bench.right(held.threads.submit(one.latents, lanes).result(10), one)  # on GPU 2
        cancelled = threading.Event()

        def waiting() -> None:
            if cancelled.is_set():
                raise dt.CancelledError("cancelled")

        waits = held.threads.submit(lanes.make_room, last, waiting)
        time.sleep(0.05)
        assert not waits.done()
        cancelled.set()
        with pytest.raises(dt.CancelledError):
            waits.result(10)
        assert not running.done()
        held.go_on.set()
        bench.right(running.result(30), one)
        bench.right(whole.latents(lanes), whole)


def test_an_engine_that_fails_while_another_group_captures(bench: Bench) -> None:
    """A network beside the lanes, on a device that is at work for them: the device is as good as it was."""
    found: list[bool] = []
    capture = GraphExec.capture
    profile = Profile.pictures(bench.folder.spec, batch_size=8)
    with bench.lanes(2) as (simulator, lanes), ThreadPoolExecutor(1) as thread:
        device = lanes.workers[0].device
        device.make_current()
        plan = gpulanes.stand_in_plan(bench.folder, "vae_decoder", profile, run=True)
        network = GpuNetwork(device, TensorRTSession(plan, gpulanes.RTX, name="vae_decoder"), deadline_s=5.0)
        with Beside("vae_decoder", [(device, lambda: network)]) as decoder:

            def fail() -> None:
                with pytest.raises(EngineError, match="illegal memory access"):
                    decoder.run({"latents": np.zeros((1, 4, 16, 16), np.float32)})
                found.append(device.usable)
                simulator.hand_over()  # a future's result is an order too, which the driver does not see

            def captured(stream: Any, enqueue: Callable[[], None], *needs: Any) -> Any:
                def both() -> None:
                    enqueue()
                    if stream.device is device:
                        thread.submit(fail).result(30)
                        simulator.take_over()

                return capture(stream, both, *needs)

            asked = Asked("aggressive", 2)
            with mock.patch.object(GraphExec, "capture", captured):
                bench.right(asked.latents(lanes), asked)
            assert found == [True] and lanes.without_graphs == {} and len(lanes) == 2


def test_a_group_without_room_gets_what_others_kept_there(bench: Bench) -> None:
    """Of pictures that were led elsewhere, too; and who is at work keeps what it needs."""
    large = Asked("sequential", 1, devices=1, pictures=8)
    with bench.lanes(1) as (simulator, lanes):
        bench.right(large.latents(lanes, lambda done: None), large)
        needed = simulator.memory_bytes()["device 0"]
    whole, one = Asked("aggressive", 2, pictures=3, seed=1), Asked("sequential", 1, devices=1, seed=2)
    machine = [cudasim.Device(), cudasim.Device(memory_bytes=needed + 4096)]
    with (
        gpulanes.machine(machine, threads_apart=True) as simulator,
        gpulanes.gpu_lanes(bench.folder, bench.kernels, 2) as lanes,
        bench.held(lanes) as held,
    ):
        bench.right(whole.latents(lanes), whole)
        assert simulator.memory_bytes()["device 1"] > 4096
        bench.right(large.latents(lanes), large)  # on GPU 1
        assert len(lanes) == 2
        running = held.begin(large)
        bench.right(held.threads.submit(one.latents, lanes).result(30), one)
        held.go_on.set()
        bench.right(running.result(30), large)
        bench.right(whole.latents(lanes), whole)
    assert simulator.races() == [] and simulator.violations() == []


def test_a_form_that_fits_on_no_device_costs_none(bench: Bench) -> None:
    large = Asked("sequential", 1, devices=1, pictures=8).again()
    small = [cudasim.Device(memory_bytes=100_000)] * 2
    with (
        gpulanes.machine(small, threads_apart=True) as simulator,
        gpulanes.gpu_lanes(bench.folder, bench.kernels, 2) as lanes,
    ):
        with pytest.raises(LaneError, match=r"GPU 1 .*OUT_OF_MEMORY") as caught:
            large.latents(lanes)
        assert caught.value.lanes_left == 1
        with pytest.raises(DeviceError, match="no GPU has room"):
            large.latents(lanes)
        assert len(lanes) == 2
    assert simulator.races() == [] and simulator.violations() == []


def test_who_gives_up_leaves_its_group_as_it_was(bench: Bench) -> None:
    class Stop(Exception):
        pass

    def stop(done: Any) -> None:
        raise Stop

    one = Asked("aggressive", 2, devices=2, seed=1)
    with bench.lanes() as (_, lanes), bench.held(lanes) as held:
        running = held.begin(one)
        with pytest.raises(Stop):
            held.threads.submit(one.latents, lanes, stop).result(30)
        bench.right(held.threads.submit(one.latents, lanes).result(30), one)
        with pytest.raises(LaneError, match="on_round asked for another picture"):
            one.latents(lanes, lambda done: one.latents(lanes))
        held.go_on.set()
        bench.right(running.result(30), one)


def test_closing_waits_for_all_groups(bench: Bench) -> None:
    one = Asked("sequential", 1, devices=1)
    with bench.lanes(3) as (simulator, lanes), bench.held(lanes) as held:
        running = [held.begin(one) for _ in range(2)]
        waits = held.threads.submit(replace(one, devices=3).latents, lanes)
        closed = held.threads.submit(lanes.close)
        time.sleep(0.05)
        assert not closed.done()
        held.go_on.set()
        closed.result(30)
        for made in running:
            bench.right(made.result(30), one)
        with pytest.raises(LaneError, match="closed"):
            waits.result(30)
        assert {kind: n for kind, n in simulator.live_objects().items() if n and kind != "contexts"} == {}


def test_a_number_of_devices_that_cannot_be(bench: Bench) -> None:
    with bench.lanes(2) as (_, lanes), pytest.raises(dt.InputError, match="devices must be at least 1"):
        Asked(devices=0).latents(lanes)


# The tests above would see it.


def test_two_groups_with_a_device_in_common_are_found_out(bench: Bench) -> None:
    """A lease that gives what is taken: pictures are wrong, or the detector says so."""

    def careless(things: Sequence[Any], taken: set[Any], size: int) -> Any:
        return tuple(things[-size:])

    one, other = (Asked("aggressive", 2, "ddpm", devices=2, seed=seed, pictures=2) for seed in (1, 2))
    found = []
    with gpulanes.machine(4, delays=3, delay_us=100, threads_apart=True) as simulator:
        with (
            gpulanes.gpu_lanes(bench.folder, bench.kernels, 4) as lanes,
            bench.held(lanes) as held,
            mock.patch.object(gpu_lease, "group_of", careless),
        ):
            made = [held.begin(asked) for asked in (one, other)]
            held.go_on.set()
            for latents, asked in zip(made, (one, other), strict=True):
                if latents.exception() is not None or not np.array_equal(
                    latents.result(), asked.latents(bench.host)
                ):
                    found.append(asked)
        found += [line for line in simulator.races() if "race" in line]
    assert any("race" in str(line) for line in found)


def test_work_that_no_lease_orders_is_a_race(bench: Bench) -> None:
    """What another thread has waited for is no order: one that uses a device next has to have it leased."""
    asked = Asked("aggressive", 2, devices=2).again()
    with gpulanes.machine(2, threads_apart=True) as simulator:
        with gpulanes.gpu_lanes(bench.folder, bench.kernels, 2) as lanes, ThreadPoolExecutor(1) as thread:
            bench.right(asked.latents(lanes), asked)
            assert simulator.races() == []
            with mock.patch.object(simulator, "take_over", lambda: None):
                thread.submit(asked.latents, lanes).result(30)
        assert any("the host has not waited" in line for line in simulator.races())
