"""GPU lanes on simulated devices: the pictures of the CPU lanes, without a race, whatever the machine is."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import permutations
from pathlib import Path
from typing import Any
from unittest import mock

import cudasim
import gpulanes
import numpy as np
import pytest
import standin
import tiny
from gpucalls import SCHEDULES, Asked, Deciding, Floats, normal
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import driffusion_trt as dt
from driffusion_trt import InputError
from driffusion_trt.engines.manifest import ModelFolder
from driffusion_trt.runtime._driver import Device, driver
from driffusion_trt.runtime._resources import Stream
from driffusion_trt.runtime.cuda import CudaLanes, Engine
from driffusion_trt.runtime.gpu_request import Request
from driffusion_trt.runtime.host import HostLanes
from driffusion_trt.sampling.noise import noise_streams
from driffusion_trt.sampling.plan import MODES
from driffusion_trt.sampling.sample import RoundDone
from driffusion_trt.sampling.tables import Float64


def same(made: Floats, wanted: Floats, devices: int, asked: Asked) -> None:
    """To the bit, unless a device was given several drafts, or both branches of split guidance, in one batch.

    ONNX Runtime may then block its sums in another way; both sums are float32, so that they differ by a
    few roundings, which the steps carry on.
    """
    pairs = asked.split and asked.guidance_scale != 1
    if asked.planned().lanes <= (devices // 2 if pairs else devices):
        np.testing.assert_array_equal(made, wanted)
    else:
        np.testing.assert_allclose(made, wanted, rtol=0, atol=2e-6 * np.abs(wanted).max())


@pytest.fixture(scope="module", autouse=True)
def _short_trials() -> Iterator[None]:
    """Peer copies are tried with fewer bytes: every test here starts lanes, and test_peers has the rest."""
    with gpulanes.short_trials():
        yield


@dataclass(frozen=True)
class Bench:
    """What a test here needs to start lanes and to know what they should make."""

    folder: ModelFolder
    kernels: Path
    host: HostLanes
    simulators: list[cudasim.Simulator] = field(default_factory=list)

    @contextlib.contextmanager
    def lanes(
        self, devices: int | Sequence[int], machine: dict[str, Any] | None = None, **options: Any
    ) -> Iterator[CudaLanes]:
        """Lanes on a machine of their own, on which nothing is wrong or left afterwards."""
        count = devices if isinstance(devices, int) else max(devices) + 1
        with gpulanes.machine(count, **{"delays": 1, "delay_us": 50, **(machine or {})}) as simulator:
            self.simulators.append(simulator)
            with gpulanes.gpu_lanes(self.folder, self.kernels, devices, **options) as lanes:
                yield lanes
            gpulanes.clean(simulator)

    def calls(self) -> dict[str, int]:
        """Of the driver, on the machine made last."""
        return defaultdict(int, self.simulators[-1].calls())

    def check(self, lanes: CudaLanes, asked: Asked) -> None:
        same(asked.latents(lanes), asked.latents(self.host), len(lanes), asked)


@pytest.fixture
def bench(folder: ModelFolder, kernels_library: Path, host: HostLanes) -> Bench:
    return Bench(folder, kernels_library, host)


def modes(lanes: Sequence[int]) -> list[Asked]:
    """A call in every mode, for several numbers of drafts at once; guidance, batches, splits in turn."""
    made = [Asked(mode, count) for mode in MODES for count in lanes]
    scales, pictures = (3.0, 1.0, 0.0), (1, 2)
    return [
        replace(asked, guidance_scale=scales[k % 3], pictures=pictures[k % 2], seed=10 * k, split=k % 4 > 1)
        for k, asked in enumerate(made)
    ]


PEERS: dict[str, dict[str, Any]] = {
    "peers": {},
    "staged": {"peer_copies": False},
    "some": {"machine": {"peers": [(0, 1), (1, 0), (1, 2), (2, 1), (0, 3)]}},  # 3 reaches nobody back
}


@pytest.mark.parametrize("copies", PEERS)
@pytest.mark.parametrize("devices", [1, 2, 3, 4, 8])
def test_every_mode_makes_the_pictures_of_the_cpu(bench: Bench, devices: int, copies: str) -> None:
    options = dict(PEERS[copies])
    pairs = options.get("machine", {}).get("peers")
    if pairs is not None:
        options["machine"] = {"peers": [pair for pair in pairs if max(pair) < devices]}
    with bench.lanes(devices, batch_size=10, **options) as lanes:
        staged = [lanes.is_staged(worker.device) for worker in lanes.workers]
        direct = {"peers": devices, "staged": 1, "some": min(devices, 2)}[copies]
        assert staged == [k >= direct for k in range(devices)]
        for asked in modes([devices, 2 * devices, 5]):
            bench.check(lanes, asked)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("copies", ["peers", "staged"])
def test_every_scheduler(bench: Bench, schedule: str, copies: str) -> None:
    with bench.lanes(2, **PEERS[copies]) as lanes:
        for mode in MODES:
            for count in (2, 4):
                bench.check(lanes, Asked(mode, count, schedule, steps=9, pictures=2))


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_pictures_from_a_later_start_and_with_a_part_that_is_kept(bench: Bench, schedule: str) -> None:
    with bench.lanes(2) as lanes:
        for mode in MODES:
            for first, inpaint in ((3, False), (3, True), (None, True)):
                asked = Asked(mode, 2, schedule, steps=9, pictures=2, first=first, inpaint=inpaint)
                bench.check(lanes, asked)
        asked = Asked("aggressive", 2, schedule, steps=9, first=3).again()
        for k in range(3):  # one plan, with and without a part that is kept
            bench.check(lanes, replace(asked, seed=k, inpaint=k != 1))


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_baseline_with_a_window_wider_than_a_launch(bench: Bench, schedule: str) -> None:
    """ParaDiGMS reads two latents for every state of its window, and noises: more than 40 columns."""
    config, eta = SCHEDULES[schedule]
    walked = dt.Schedule.from_config(config, 30, eta=eta)
    with bench.lanes(3, batch_size=20) as lanes:
        for how in ({"tolerance": 0.3}, {"tolerance": 0}, {"rounds": 5}):
            plan = dt.make_plan(walked, mode="paradigms", lanes=24, **how)
            bench.check(lanes, Asked("paradigms", 24, schedule, steps=30, pictures=2, plan=plan))


def test_a_part_is_kept_where_a_lane_has_many_drafts(bench: Bench) -> None:
    with bench.lanes(1, batch_size=40) as lanes:
        bench.check(lanes, Asked("aggressive", 20, steps=25, inpaint=True))


@pytest.mark.parametrize("graphs", [True, False])
@pytest.mark.parametrize(
    ("ordinals", "split"),
    [
        ([0, 0], False),
        ([0, 0], True),
        ([0, 1], True),
        ([0, 1, 1, 0], True),
        ([1, 0, 1], False),
        ([0, 1, 2, 3], True),
        ([0], True),
        ([0, 1, 0], True),
        ([0, 1, 2, 3, 4], True),
    ],
)
def test_any_placement_of_engines(bench: Bench, ordinals: list[int], split: bool, graphs: bool) -> None:
    for copies in ("peers", "staged"):
        with bench.lanes(ordinals, graphs=graphs, **PEERS[copies]) as lanes:
            assert len(lanes) == len(ordinals)
            for scale in (3.0, 1.0):
                for count in (max(1, len(lanes) // 2), len(lanes), 3):
                    bench.check(lanes, Asked(lanes=count, guidance_scale=scale, pictures=2, split=split))


@pytest.mark.parametrize("devices", [1, 2, 3, 4, 5])
def test_split_guidance_takes_pairs_of_devices_call_by_call(bench: Bench, devices: int) -> None:
    """One launch for each branch of each prediction where guidance is split, else one for both."""
    pairs = devices // 2
    with bench.lanes(devices) as lanes, pytest.MonkeyPatch.context() as patch:
        calls: list[tuple[int, int]] = []
        enqueue = Request.enqueue

        def noted(request: Request) -> None:
            calls.append((lanes.workers.index(request._worker), request.form.branches))
            enqueue(request)

        patch.setattr(Request, "enqueue", noted)
        for seed in range(2):
            for split in (True, False):
                asked = Asked("conservative", pairs if split and pairs else devices, split=split, seed=seed)
                calls.clear()
                bench.check(lanes, asked)
                apart = split and devices > 1
                predictions = asked.planned().model_calls
                assert {branches for _, branches in calls} == {1 if apart else 2}
                assert len(calls) == predictions * (2 if apart else 1)
                used = {worker for worker, _ in calls}
                assert used == set(range(2 * pairs if apart else devices)), "an odd one idles"


@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("devices", [1, 2, 5])
def test_warming_up_gets_ready_what_calls_of_the_kind_need(bench: Bench, devices: int, split: bool) -> None:
    asked = Asked("aggressive", max(1, devices // 2) if split else devices, split=split)
    text, empty = (normal(k, 1, tiny.LENGTH, tiny.WIDTH) for k in (1, 2))
    with bench.lanes(devices) as lanes:
        job = lanes.job(text, 3.0, empty, split_guidance=split)
        job.warm_up((tiny.CHANNELS, tiny.SIDE, tiny.SIDE))
        ready = [list(worker._requests) for worker in lanes.workers]
        bench.check(lanes, asked)
        assert [list(worker._requests) for worker in lanes.workers] == ready
    used = devices // 2 * 2 if split and devices > 1 else devices
    assert [len(forms) for forms in ready] == [1] * used + [0] * (devices - used)


@pytest.mark.parametrize("copies", ["peers", "staged"])
def test_split_and_whole_pictures_of_one_plan_are_kept_side_by_side(bench: Bench, copies: str) -> None:
    """Nothing is made anew when the kinds take turns, and what they share is not mixed up."""
    asked = Asked("aggressive", 2, "ddpm", steps=8, pictures=2).again()
    kinds = [
        replace(asked, split=split, guidance_scale=scale, seed=seed)
        for seed, split, scale in ((1, True, 3.0), (2, False, 3.0), (3, True, 1.0), (4, True, 7.5))
    ]
    with bench.lanes(4, **PEERS[copies]) as lanes:
        for one in kinds:
            bench.check(lanes, one)
        simulator = bench.simulators[-1]
        held, made = simulator.memory_bytes(), bench.calls()
        for one in (*kinds, *reversed(kinds), *kinds[::2]):
            bench.check(lanes, one)
        assert simulator.memory_bytes() == held
        grown = {name for name, count in bench.calls().items() if count > made[name]}
        assert not {name for name in grown if "Alloc" in name or "Create" in name or "Instantiate" in name}
        assert len(lanes._team._pictures) == 3  # without guidance there is nothing to split
        # A branch of a split prediction and a prediction without guidance are one form of request.
        assert [len(worker._requests) for worker in lanes.workers] == [2, 2, 1, 1]
        for worker in lanes.workers:
            lanes.make_room(worker.device)
        assert [simulator.memory_bytes()[f"device {k}"] for k in range(4)] == [0] * 4
        for one in kinds:
            bench.check(lanes, one)


def test_a_picture_is_graph_launches_and_copies_and_no_more(bench: Bench) -> None:
    """No allocation, no wait for a whole stream or device, and one launch for each prediction."""
    asked = Asked("aggressive", 2).again()
    with bench.lanes(2) as lanes:
        asked.latents(lanes)
        before = bench.calls()
        asked.latents(lanes)
        grown = {name: count - before.get(name, 0) for name, count in bench.calls().items()}
    assert grown["cuGraphLaunch"] == asked.planned().model_calls
    may = (
        "cuEvent",
        "cuStreamWaitEvent",
        "cuStreamQuery",
        "cuMemcpy",
        "cuMemsetD8Async",
        "cuLaunchKernel",
        "cuGraphLaunch",
    )
    assert [name for name, count in grown.items() if count and not name.startswith(may)] == [
        "cuCtxSetCurrent"
    ]
    assert not any(grown.get(f"cuEvent{what}") for what in ("Create", "Destroy", "Synchronize"))


def test_an_engine_that_cannot_be_captured_goes_without_graphs(bench: Bench) -> None:
    """TensorRT says so by False and a word to its logger, not by an error of the driver."""
    asked = Asked("conservative", 2)
    with bench.lanes(2, graphs=True) as lanes:
        enqueue = standin.on_stream
        assert enqueue is not None

        def refuse(stream: Any, *arguments: Any, **named: Any) -> int:
            status, capturing = driver().cuStreamIsCapturing(stream)
            assert int(status) == 0
            return 900 if int(capturing) else enqueue(stream, *arguments, **named)

        with mock.patch.object(standin, "on_stream", refuse):
            bench.check(lanes, asked)
            assert set(lanes.without_graphs) == {worker.device.title for worker in lanes.workers}
            bench.check(lanes, replace(asked, guidance_scale=1.0))
    assert standin.on_stream is None


@given(
    ordinals=st.lists(st.integers(0, 3), min_size=1, max_size=4),
    pairs=st.sets(st.sampled_from(list(permutations(range(4), 2)))),
    graphs=st.booleans(),
    delays=st.integers(1, 1 << 30),
    calls=st.lists(
        st.builds(
            Asked,
            mode=st.sampled_from(MODES),
            lanes=st.integers(1, 6),
            schedule=st.sampled_from(list(SCHEDULES)),
            steps=st.integers(2, 9),
            guidance_scale=st.sampled_from([0.0, 1.0, 3.0, 7.5]),
            pictures=st.integers(1, 3),
            seed=st.integers(0, 99),
            split=st.booleans(),
        ),
        min_size=1,
        max_size=5,
    ),
)
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_machine_and_any_calls(
    bench: Bench,
    ordinals: list[int],
    pairs: set[tuple[int, int]],
    graphs: bool,
    delays: int,
    calls: list[Asked],
) -> None:
    count = max(ordinals) + 1
    machine = {"delays": delays, "delay_us": 200, "peers": [pair for pair in pairs if max(pair) < count]}
    with bench.lanes(ordinals, machine, graphs=graphs, batch_size=18) as lanes:
        for asked in calls:
            bench.check(lanes, asked)


@pytest.mark.parametrize("seed", range(3))
def test_long_delays_change_nothing(bench: Bench, seed: int) -> None:
    asked = Asked("aggressive", 4, "ddpm", steps=9, pictures=2)
    for copies in ("peers", "staged"):
        machine = {"delays": 100 + seed, "delay_us": 3000}
        with bench.lanes(4, machine, **PEERS[copies]) as lanes:
            bench.check(lanes, asked)
            bench.check(lanes, replace(asked, seed=5))


def test_many_drafts_have_more_terms_than_one_launch_takes(bench: Bench) -> None:
    """With noise of every step a refined state of 16 drafts is a sum over 48 latents."""
    for mode in ("aggressive", "conservative"):
        asked = Asked(mode, 18, "ddim, eta 0.7", steps=38)
        assert max(len(item.refine.columns) for item in asked.planned().rounds) > 40
        with bench.lanes(2, batch_size=9) as lanes:
            bench.check(lanes, asked)


def test_many_plans_and_guidance_scales_in_turn(bench: Bench) -> None:
    """More than are kept: what was let go is made anew, and what is kept is still whole."""
    calls = [Asked("aggressive", 3, steps=6 + k % 5, guidance_scale=1.5 + k, seed=k) for k in range(13)]
    calls = [asked.again() for asked in calls]
    with bench.lanes(2) as lanes:
        for asked in (*calls, *reversed(calls), *calls[::3], *calls[-4:]):
            bench.check(lanes, asked)


def test_what_is_kept_makes_room_where_memory_is_short(bench: Bench) -> None:
    """A device is not lost because forms of request that nobody uses now fill its memory."""
    asked = Asked("sequential", 1, steps=2, pictures=8)
    with bench.lanes(1) as lanes:
        asked.latents(lanes)
        used = bench.simulators[-1].memory_bytes()["device 0"]
    small = [cudasim.Device(memory_bytes=used * 5 // 2)]
    with gpulanes.machine(small) as simulator:  # two of these fit, and never a third
        with gpulanes.gpu_lanes(bench.folder, bench.kernels) as lanes:
            for k in (8, 7, 6, 5, 8, 7):
                bench.check(lanes, replace(asked, pictures=k))
            assert simulator.memory_bytes()["device 0"] > used
        gpulanes.clean(simulator)


def test_plans_made_for_one_call_each(bench: Bench) -> None:
    """A new plan may lie in memory where an old one was, so that kept pictures must keep their plans."""
    with bench.lanes(2) as lanes:
        for k in range(30):
            bench.check(lanes, Asked(MODES[k % 4], 2, steps=3 + k % 7))
            kept = {id(picture.plan): number for (number, *_), picture in lanes._team._pictures.items()}
            assert all(place == number for place, number in kept.items()) and len(kept) == min(k + 1, 8)


def test_calls_from_several_threads_wait_for_one_another(bench: Bench) -> None:
    calls = [
        Asked(MODES[k % 4], 2, steps=5 + k % 2, guidance_scale=(1.0, 3.0)[k % 2], seed=k, split=k % 3 > 1)
        for k in range(8)
    ]
    wanted = [asked.latents(bench.host) for asked in calls]
    with bench.lanes(4) as lanes, ThreadPoolExecutor(4) as threads:
        for made, right in zip(threads.map(lambda asked: asked.latents(lanes), calls), wanted, strict=True):
            np.testing.assert_array_equal(made, right)


def test_closing_waits_for_the_picture_under_way(bench: Bench) -> None:
    asked, begun = Asked("sequential", steps=9), threading.Event()

    def slowly(_: RoundDone) -> None:
        begun.set()
        time.sleep(0.01)

    with bench.lanes(2) as lanes, ThreadPoolExecutor(1) as threads:
        made = threads.submit(asked.latents, lanes, slowly)
        assert begun.wait(30)
        lanes.close()
        with pytest.raises(dt.LaneError, match="closed"):
            asked.latents(lanes)
        np.testing.assert_array_equal(made.result(30), asked.latents(bench.host))


# What is told of rounds.


@pytest.mark.parametrize("mode", MODES)
def test_rounds_are_told_in_order_and_as_on_the_cpu(bench: Bench, mode: str) -> None:
    asked = Asked(mode, 3, steps=8)
    told: list[RoundDone] = []
    wanted: list[RoundDone] = []
    right = asked.latents(bench.host, wanted.append)
    with bench.lanes(3) as lanes:
        np.testing.assert_array_equal(asked.latents(lanes, told.append), right)
    assert told == wanted


@pytest.mark.parametrize("scheduler", ["ddim", "euler", "dpm-solver++", "flow"])
@pytest.mark.parametrize("mode", MODES)
def test_a_round_shows_the_clean_latents_of_the_cpu_lanes(bench: Bench, mode: str, scheduler: str) -> None:
    asked = Asked(mode, 3, scheduler, steps=8, pictures=2)
    told: list[Floats] = []
    wanted: list[Floats] = []
    kept: list[RoundDone] = []
    right = asked.latents(bench.host, lambda done: wanted.append(done.latents()))

    def look(done: RoundDone) -> None:
        kept.append(done)
        if done.round != 2:  # who does not ask gets no copy, and later rounds are as they were
            told.append(done.latents())

    with bench.lanes(3, {"delay_us": 500}) as lanes:
        np.testing.assert_array_equal(asked.latents(lanes, look), right)
        with pytest.raises(InputError, match="latents of round 1 are no longer on the GPU"):
            kept[0].latents()
        bench.check(lanes, asked)
    del wanted[1]
    assert len(told) == len(wanted)
    for one, other in zip(told, wanted, strict=True):
        np.testing.assert_array_equal(one, other)
    assert not np.array_equal(told[0], told[1])


def test_clean_latents_cost_a_copy_only_where_somebody_asks(bench: Bench) -> None:
    asked = Asked("aggressive", 2, steps=8)
    copies: list[int] = []
    copy_to_host = Stream.copy_to_host

    def counted(stream: Stream, *arguments: Any) -> None:
        copies[-1] += 1
        copy_to_host(stream, *arguments)

    with bench.lanes(2) as lanes, pytest.MonkeyPatch.context() as patch:
        asked.latents(lanes)
        patch.setattr(Stream, "copy_to_host", counted)
        for ask in (None, lambda done: None, lambda done: done.latents()):
            copies.append(0)
            asked.latents(lanes, ask)
    rounds = asked.planned().sequential_calls
    assert copies[0] == copies[1] and copies[2] == copies[0] + rounds


class Cancelled(Exception):
    pass


@pytest.mark.parametrize("kind", [Cancelled, KeyboardInterrupt])
@pytest.mark.parametrize("copies", ["peers", "staged"])
def test_a_cancelled_picture_leaves_the_lanes_whole(
    bench: Bench, copies: str, kind: type[BaseException]
) -> None:
    asked = Asked("aggressive", 2, "ddpm", steps=8)
    with bench.lanes(2, {"delay_us": 2000}, **PEERS[copies]) as lanes:
        for last in (1, 2, asked.planned().sequential_calls):

            def cancel(done: RoundDone, last: int = last) -> None:
                if done.round == last:
                    raise kind

            with pytest.raises(kind):
                asked.latents(lanes, cancel)
            bench.check(lanes, replace(asked, seed=50 + last))


@pytest.mark.parametrize("site", ["fetch", "send_back", "receive", "post"])
@pytest.mark.parametrize("copies", ["peers", "staged"])
def test_an_interrupt_in_the_middle_of_a_round_leaves_the_lanes_whole(
    bench: Bench, copies: str, site: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C comes anywhere: the lead has not been told to wait for what the lanes were given."""
    from driffusion_trt.runtime.gpu_links import WorkerLink

    asked, calls = Asked("aggressive", 2, steps=8), 0
    method = getattr(WorkerLink, site)

    def interrupted(self: WorkerLink, *arguments: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise KeyboardInterrupt
        method(self, *arguments)

    with bench.lanes(2, {"delay_us": 3000}, **PEERS[copies]) as lanes:
        bench.check(lanes, asked)
        with monkeypatch.context() as patch:
            patch.setattr(WorkerLink, site, interrupted)
            with pytest.raises(KeyboardInterrupt):
                asked.latents(lanes)
        bench.check(lanes, replace(asked, seed=9))


def test_a_round_is_told_when_it_is_over(bench: Bench) -> None:
    """And not when it was enqueued: a device that hangs holds up what is told too."""
    asked = Asked("sequential", 1).again()
    told: list[RoundDone] = []
    with bench.lanes(1) as lanes, ThreadPoolExecutor(1) as threads:
        asked.latents(lanes)
        simulator = bench.simulators[-1]
        simulator.hang(device=0)
        made = threads.submit(asked.latents, lanes, told.append)
        try:
            time.sleep(0.1)
            assert told == []
        finally:
            simulator.let_go()
        made.result(30)
    assert [done.round for done in told] == list(range(1, 8))


def test_time_in_a_callback_is_not_the_devices(bench: Bench) -> None:
    asked = Asked("sequential", steps=8)
    with bench.lanes(2, deadline_s=0.5) as lanes:
        asked.latents(lanes)
        np.testing.assert_array_equal(
            asked.latents(lanes, lambda _: time.sleep(0.1)), asked.latents(bench.host)
        )


def test_a_callback_may_use_another_device(bench: Bench) -> None:
    """As a preview that torch decodes: it leaves its own context current and does not say so."""
    asked = Asked("aggressive", 2)
    with bench.lanes(2, graphs=False) as lanes:
        other = lanes.workers[1].device

        def meddle(_: RoundDone) -> None:
            assert int(driver().cuCtxSetCurrent(other.context)[0]) == 0

        np.testing.assert_array_equal(asked.latents(lanes, meddle), asked.latents(bench.host))


def test_a_callback_that_asks_for_another_picture_is_told(bench: Bench) -> None:
    """It would wait for itself."""
    asked = Asked("sequential")

    def ask(_: RoundDone) -> None:
        asked.latents(lanes)

    with bench.lanes(1) as lanes:
        with pytest.raises(dt.LaneError, match="on_round asked for another picture"):
            asked.latents(lanes, ask)
        bench.check(lanes, asked)


def test_lanes_closed_in_a_callback_end_after_the_picture(bench: Bench) -> None:
    asked = Asked("sequential")
    with bench.lanes(2) as lanes:
        np.testing.assert_array_equal(
            asked.latents(lanes, lambda _: lanes.close()), asked.latents(bench.host)
        )
        with pytest.raises(dt.LaneError, match="closed"):
            asked.latents(lanes)


# Plans that decide on the way.


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("devices", [1, 2, 4])
def test_a_plan_that_decides_on_the_way(
    bench: Bench, devices: int, schedule: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Floats] = []
    ahead = Deciding.ahead

    def noted(matrix: Float64 | None) -> int:
        if matrix is not None:
            seen.append(np.array(matrix))
        return ahead(matrix)

    monkeypatch.setattr(Deciding, "ahead", staticmethod(noted))
    asked = Asked(schedule=schedule, steps=11, lanes=3, pictures=2)
    plan = asked.planned()
    asked = replace(asked, plan=Deciding(plan.schedule, "deciding", 3, plan.steps, ()))
    right = asked.latents(bench.host)
    wanted, seen[:] = list(seen), []
    with bench.lanes(devices) as lanes:
        for _ in range(2):
            same(asked.latents(lanes), right, len(lanes), asked)
            assert len(seen) == len(wanted) > 1
            for matrix, other in zip(seen, wanted, strict=True):
                np.testing.assert_allclose(matrix, other, rtol=1e-4)
            seen.clear()
        told: list[RoundDone] = []
        asked.latents(lanes, told.append)
        bench.check(lanes, Asked(lanes=3, schedule=schedule))
    assert [done.round for done in told] == list(range(1, len(told) + 1)) and told[-1].state == 11


# What cannot be.


def test_inputs_that_do_not_fit_are_refused_and_harm_nothing(bench: Bench) -> None:
    asked, plan = Asked(pictures=2), Asked().planned()
    text = normal(1, 2, tiny.LENGTH, tiny.WIDTH)
    streams = noise_streams(0, 2)
    with bench.lanes(1, batch_size=2) as lanes:
        job = lanes.job(text, 3.0, text)
        for noise in (normal(0, 1, 4, 16, 16), normal(0, 3, 4, 16, 16), normal(0, 2, 4, 8, 8)):
            with pytest.raises(dt.InputError):
                job.sample(plan, noise, streams)
        with pytest.raises(dt.InputError):
            job.sample(plan, normal(0, 2, 4, 16, 16).astype(np.float64), streams)  # type: ignore[arg-type]
        with pytest.raises(dt.InputError, match="built for"):  # three drafts of two pictures: batch 12 of 4
            job.sample(Asked(lanes=3).planned(), normal(0, 2, 4, 16, 16), streams)
        bench.check(lanes, replace(asked, lanes=1))


def test_an_engine_with_other_timesteps_is_refused(bench: Bench) -> None:
    """They are written as float32 by a kernel, which would write past the end of smaller ones."""
    with (
        bench.lanes(1, odd={0: {"timestep": "HALF"}}) as lanes,
        pytest.raises(dt.InputError, match=r"timestep.*float16.*float32"),
    ):
        Asked().latents(lanes)


def test_lanes_that_were_closed_stay_so_where_a_device_is_lost(bench: Bench) -> None:
    with gpulanes.machine(2) as simulator:
        with gpulanes.gpu_lanes(bench.folder, bench.kernels, 2) as lanes:
            device = lanes.workers[1].device
            text = normal(1, 1, tiny.LENGTH, tiny.WIDTH)
            job = lanes.job(text, 1.0)
            lanes.close()
            device.lost = True  # as a network beside the lanes would find
            with pytest.raises(dt.LaneError, match="closed"):
                job.sample(Asked().planned(), normal(3, 1, 4, 16, 16), noise_streams(0, 1))
            device.lost = False
        gpulanes.clean(simulator)


def test_embeddings_are_copied(bench: Bench) -> None:
    asked = Asked()
    text, empty = normal(1, 1, tiny.LENGTH, tiny.WIDTH), normal(2, 1, tiny.LENGTH, tiny.WIDTH)
    with bench.lanes(1) as lanes:
        job = lanes.job(text, 3.0, empty)
        text[:], empty[:] = 0, 0
        noise = normal(3, 1, 4, 16, 16)
        made = job.sample(asked.planned(), noise, noise_streams(0, 1)).latents
    same(made, asked.latents(bench.host), 1, asked)


def test_two_owners_of_one_device(bench: Bench) -> None:
    """Nobody need know that they are the same: copies between them go through the host."""
    with gpulanes.machine(1) as simulator:
        image = cudasim.kernel_image(bench.kernels)
        with (
            gpulanes.gpu_lanes(bench.folder, bench.kernels) as first,
            Device(0) as again,
        ):
            engines = [first._crew.engines[0], Engine(again, first._crew.engines[0].session)]
            with CudaLanes(engines, image=lambda device: image) as lanes:
                bench.check(lanes, Asked())
        gpulanes.clean(simulator)


def test_the_demo_model(kernels_library: Path) -> None:
    """A real network: a UNet with attention, on two devices as on two CPU lanes."""
    demo = ModelFolder.open("demo")
    asked = Asked("aggressive", 2, steps=5)
    with gpulanes.machine(2, delays=5) as simulator:
        with (
            gpulanes.gpu_lanes(demo, kernels_library, 2) as lanes,
            HostLanes(demo.network("denoiser"), 2) as host,
        ):
            np.testing.assert_array_equal(asked.latents(lanes), asked.latents(host))
        gpulanes.clean(simulator)
