"""What goes wrong on simulated devices: an error says which failed, and the next call goes on without it."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any
from unittest import mock

import cudasim
import gpulanes
import numpy as np
import pytest
import standin
import tiny
from numpy.typing import NDArray

import driffusion_trt as dt
from driffusion_trt._errors import DeviceError, InputError, LaneError, ModelError
from driffusion_trt.engines.manifest import ModelFolder
from driffusion_trt.engines.onnx_session import OnnxSession
from driffusion_trt.runtime import peers
from driffusion_trt.runtime._driver import driver
from driffusion_trt.runtime.cuda import CudaLanes
from driffusion_trt.runtime.gpu_links import WorkerLink
from driffusion_trt.runtime.gpu_request import Request
from driffusion_trt.runtime.host import HostLanes
from driffusion_trt.sampling.noise import noise_streams

UNKNOWN, OUT_OF_MEMORY, ILLEGAL_ADDRESS, LAUNCH_FAILED = 999, 2, 700, 719
UNSUPPORTED_IN_CAPTURE = 900
STEPS, GUIDANCE = 10, 3.0
LEAD, LANE = 0, 1
Floats = NDArray[np.float32]


@pytest.fixture(autouse=True)
def engines_take_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    """A real engine makes nonsense of nonsense; ONNX Runtime fails where its table lacks a timestep.

    Lanes get nonsense where the lead fails and nobody knows of it yet.
    """
    run = OnnxSession.run

    def clipped(session: OnnxSession, inputs: dict[str, Any]) -> dict[str, Any]:
        timestep = np.nan_to_num(inputs["timestep"]).clip(0, 999)
        return run(session, {**inputs, "timestep": timestep})

    monkeypatch.setattr(OnnxSession, "run", clipped)


def normal(seed: int, *shape: int) -> Floats:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@cache
def plan_for(lanes: int) -> dt.Plan:
    schedule = dt.Schedule.from_config(tiny.SCHEDULER, STEPS)
    return dt.make_plan(schedule, mode="aggressive", lanes=lanes)


def sample(lanes: CudaLanes | HostLanes, plan: dt.Plan, *, split: bool = False, **options: Any) -> Floats:
    text, empty = (normal(seed, 1, tiny.LENGTH, tiny.WIDTH) for seed in (1, 2))
    noise = normal(3, 1, tiny.CHANNELS, tiny.SIDE, tiny.SIDE)
    job = lanes.job(text, GUIDANCE, empty, split_guidance=split)
    return job.sample(plan, noise, noise_streams(0, 1), **options).latents


@pytest.fixture(scope="module")
def right(folder: ModelFolder) -> Any:
    """The picture of as many CPU lanes, with guidance in one batch or split."""

    @cache
    def picture(count: int, split: bool = False) -> Floats:
        with HostLanes(folder.network("denoiser"), count) as lanes:
            return sample(lanes, plan_for(count), split=split)

    return picture


@dataclass
class Machine:
    """Lanes on simulated devices that something is done to."""

    simulator: cudasim.Simulator
    lanes: CudaLanes
    right: Callable[..., Floats]
    lost: int = 0  # devices that keep what they have, in the end
    armed: bool = False  # the fault has not come yet, and may do so while all is given back

    def width(self, split: bool) -> int:
        """Lanes of a kind: pairs of devices where guidance is split, and the last one by itself."""
        devices = len(self.lanes)
        return min(devices, max(1, devices // 2)) if split else devices

    def check(self, *, split: bool = False) -> None:
        """The lanes that are left make the right picture."""
        count = self.width(split)
        made = sample(self.lanes, plan_for(count), split=split)
        np.testing.assert_array_equal(made, self.right(count, split and len(self.lanes) > 1))

    def fails(self, *words: str, left: int, split: bool = False) -> None:
        """A picture cannot be made: the error has these words, and says how many lanes are left."""
        before = time.monotonic()
        with pytest.raises(LaneError) as caught:
            sample(self.lanes, plan_for(self.width(split)), split=split)
        assert time.monotonic() - before < 3, "the call took long"
        for word in words:
            assert word in str(caught.value)
        assert caught.value.lanes_left == left == self.width(split)
        assert caught.value.__cause__ is not None


@contextmanager
def machine(
    folder: ModelFolder,
    kernels_library: Path,
    right: Callable[..., Floats],
    devices: int | list[cudasim.Device] = 3,
    before: Callable[[cudasim.Simulator], object] = lambda simulator: None,
    **options: Any,
) -> Iterator[Machine]:
    """Lanes whose pictures have 0.4 s of time.

    In the end all is closed, and nothing may be left but what `lost` devices keep: their contexts, and
    what was made in these. What is left of a context that is given back counts as abandoned.
    """
    given: Any = devices
    count = devices if isinstance(devices, int) else len(devices)
    settings = {"deadline_s": 0.4, **options}
    with gpulanes.machine(given, hang_limit_ms=5000) as simulator:
        before(simulator)
        with gpulanes.gpu_lanes(folder, kernels_library, count, **settings) as lanes:
            made = Machine(simulator, lanes, right)
            yield made
            start = time.monotonic()
            lanes.close()
            assert time.monotonic() - start < 2, "closing took long"
        gc.collect()  # an owner that was forgotten warns, which is an error here
        assert simulator.races() == [] and simulator.violations() == []
        assert simulator.unknown_calls() == {}
        alive = {kind: number for kind, number in simulator.live_objects().items() if number}
        abandoned = alive.pop("abandoned", 0)
        if made.armed:  # graphs end with no context
            abandoned += alive.pop("graph_execs", 0)
        assert alive.get("contexts", 0) == made.lost and abandoned == made.armed
        assert made.lost or alive == {}


@pytest.fixture
def make(folder: ModelFolder, kernels_library: Path, right: Any) -> Callable[..., Any]:
    return partial(machine, folder, kernels_library, right)


# What a picture asks of the driver once it is compiled, on which device, and with which options.
PEER: dict[str, Any] = {}
STAGED = {"peer_copies": False}
PLAIN = {"graphs": False}
CALLS = [
    ("cuMemsetD8Async", LANE, PEER),
    ("cuMemcpyHtoDAsync", LEAD, PEER),
    ("cuMemcpyHtoDAsync", LANE, STAGED),
    ("cuMemcpyDtoHAsync", LEAD, STAGED),
    ("cuMemcpyDtoHAsync", LANE, STAGED),
    ("cuMemcpyDtoDAsync", LEAD, PEER),
    ("cuMemcpyPeerAsync", LANE, PEER),
    ("cuLaunchKernel", LEAD, PEER),
    ("cuLaunchKernel", LANE, PLAIN),
    ("cuGraphLaunch", LEAD, PEER),
    ("cuGraphLaunch", LANE, PEER),
    ("cuEventRecord", LEAD, PEER),
    ("cuEventRecord", LANE, PEER),
    ("cuStreamWaitEvent", LEAD, PEER),
    ("cuStreamWaitEvent", LANE, PEER),
    ("cuEventQuery", LEAD, PEER),
    ("cuStreamQuery", LEAD, PEER),
    ("cuStreamQuery", LANE, PEER),
    ("cuCtxSetCurrent", None, PEER),
]


@pytest.mark.parametrize(
    ("entry", "device", "options"), CALLS, ids=[f"{entry}-{device}" for entry, device, _ in CALLS]
)
def test_a_refused_call(
    make: Callable[..., Any], entry: str, device: int | None, options: dict[str, Any]
) -> None:
    """The call that is refused is the first, or a later one, until there are not so many."""
    for call in (1, 2, 5, 14, 41, 122):
        with make(**options) as m:
            m.check()
            before = m.simulator.calls().get(entry, 0)
            m.simulator.fail(entry, UNKNOWN, call=call, device=device)
            try:
                m.fails(entry, "GPU" if device is None else f"GPU {device}", "CUDA_ERROR_UNKNOWN", left=2)
            except pytest.fail.Exception:
                assert call > 1 and m.simulator.calls()[entry] > before
                m.armed = entry == "cuCtxSetCurrent"
                return
            m.check()
    raise AssertionError(f"a picture makes more than 122 calls of {entry}")


def test_the_list_of_calls_is_complete(make: Callable[..., Any]) -> None:
    for options in (PEER, STAGED, PLAIN):
        with make(**options) as m:
            plan = plan_for(3)
            wanted = sample(m.lanes, plan)
            before = m.simulator.calls()
            np.testing.assert_array_equal(sample(m.lanes, plan), wanted)
            made = {entry for entry, count in m.simulator.calls().items() if count > before.get(entry, 0)}
            assert made - {"cudasim_enqueue"} <= {entry for entry, _, _ in CALLS}  # the stand-in's own


# What it asks while it is compiled.
MAKING = [
    ("cuMemAlloc", LEAD),
    ("cuMemAlloc", LANE),
    ("cuMemHostAlloc", LEAD),
    ("cuMemHostAlloc", LANE),
    ("cuEventCreate", LEAD),
    ("cuEventCreate", LANE),
    ("cuMemsetD8Async", LANE),
    ("cuLaunchKernel", LANE),
    ("cuStreamQuery", LANE),
]


@pytest.mark.slow  # hundreds of pictures compiled: a minute and a half
@pytest.mark.parametrize(("entry", "device"), MAKING)
@pytest.mark.parametrize("peer_copies", [True, False])
def test_a_call_refused_while_a_picture_is_compiled(
    make: Callable[..., Any], entry: str, device: int, peer_copies: bool
) -> None:
    """Once, and it is tried again with all the memory that can be had; always, and the device is lost."""
    for call in (1, 2, 5, 20) if "Alloc" in entry else (1, 3):  # then the picture begins
        with make(peer_copies=peer_copies) as m:
            m.simulator.fail(entry, OUT_OF_MEMORY, call=call, device=device)
            m.check()
            assert len(m.lanes) == 3
        if entry == "cuStreamQuery":  # nobody could tell then when memory may be given back
            return
        with make(peer_copies=peer_copies) as m:
            m.simulator.fail(entry, OUT_OF_MEMORY, call=call, times=0, device=device)
            try:
                m.fails(entry, f"GPU {device}", "CUDA_ERROR_OUT_OF_MEMORY", left=2)
            except pytest.fail.Exception:
                assert call > 1
                return
            m.check()


def test_a_device_with_too_little_memory(make: Callable[..., Any]) -> None:
    small = cudasim.Device(memory_bytes=20_000)
    with make([cudasim.Device(), small, cudasim.Device()], peer_copies=False) as m:
        m.fails("GPU 1", "cuMemAlloc", "CUDA_ERROR_OUT_OF_MEMORY", "free memory on it", left=2)
        m.check()
        assert m.simulator.memory_bytes()["device 1"] == 0  # others may have it at once


LATER = [
    ("cuGraphLaunch", LANE, PEER),
    ("cuGraphLaunch", LEAD, PEER),
    ("cuMemcpyPeerAsync", LANE, PEER),
    ("cuMemcpyHtoDAsync", LANE, STAGED),
    ("cuLaunchKernel", LANE, PLAIN),
    ("cuLaunchKernel", LEAD, PEER),
]


@pytest.mark.parametrize("error", [ILLEGAL_ADDRESS, LAUNCH_FAILED])
@pytest.mark.parametrize("call", [1, 3])
@pytest.mark.parametrize(("entry", "device", "options"), LATER)
def test_work_that_fails_later(
    make: Callable[..., Any], entry: str, device: int, options: dict[str, Any], call: int, error: int
) -> None:
    """Others go on with what is in their buffers, so that only the broken device can tell."""
    name = {ILLEGAL_ADDRESS: "CUDA_ERROR_ILLEGAL_ADDRESS", LAUNCH_FAILED: "CUDA_ERROR_LAUNCH_FAILED"}[error]
    with make(**options) as m:
        m.check()
        m.simulator.slow(device, 0.002)  # so that it fails when most calls are made
        m.simulator.fail(entry, error, call=call, device=device, asynchronous=True)
        m.fails(f"GPU {device}", name, "cannot use it again", left=2)
        m.check()
        m.check()


def test_the_last_copy_fails_when_nobody_waits_for_the_device(make: Callable[..., Any]) -> None:
    with make(devices=2) as m:
        m.check()
        # The report of a lane is its last work: the only copy to the host on a lane with peer copies.
        m.simulator.fail("cuMemcpyDtoHAsync", ILLEGAL_ADDRESS, device=LANE, asynchronous=True)
        m.fails("GPU 1", "CUDA_ERROR_ILLEGAL_ADDRESS", left=1)
        m.check()


@pytest.mark.parametrize(
    ("options", "let_go"),
    [(PEER, True), (STAGED, True), (PLAIN, True), (PEER, False)],
    ids=["peer", "staged", "plain", "for ever"],
)
@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("device", [LEAD, LANE])
def test_a_device_that_hangs(
    make: Callable[..., Any], device: int, compiled: bool, options: dict[str, Any], let_go: bool
) -> None:
    with make(**options) as m:
        if compiled:
            m.check()
        m.simulator.hang(device=device)
        m.fails(f"GPU {device} ", "within 0.4 s" if compiled else "took over 0.4 s", left=2)
        m.check()
        m.check()
        assert [k for k in range(3) if m.simulator.memory_bytes()[f"device {k}"] == 0] == []
        if let_go:
            m.simulator.let_go()
            m.lost = 1
        else:  # the others wait for it for ever where it was at work on a picture
            m.lost = 3 if compiled else 1


def test_a_lane_that_hangs_in_the_middle_of_a_picture(make: Callable[..., Any]) -> None:
    with make() as m:
        plan = plan_for(3)
        with pytest.raises(LaneError, match=r"GPU 2 .*within 0\.4 s") as caught:
            sample(m.lanes, plan, on_round=lambda done: m.simulator.hang(device=2))
        assert caught.value.lanes_left == 2
        m.check()
        m.simulator.let_go()
        m.lost = 1


@pytest.mark.parametrize("which", ["lane", "lead", "lane of the lead"])
def test_a_stream_that_hangs(make: Callable[..., Any], which: str) -> None:
    with make() as m:
        m.check()
        workers = m.lanes._team.workers
        stream = {"lane": workers[1].stream, "lead": m.lanes._team.lead.stream}.get(which, workers[0].stream)
        m.simulator.hang(stream=stream.handle)
        m.fails("GPU 1 " if which == "lane" else "GPU 0 ", "within 0.4 s", left=2)
        m.check()
        m.simulator.let_go()
        m.lost = 1


def test_a_lane_that_hangs_after_its_last_round(make: Callable[..., Any]) -> None:
    with make() as m:
        m.check()
        report = WorkerLink.report

        def hanging(link: WorkerLink) -> None:
            if link.worker is m.lanes._team.workers[2]:
                link.worker.settle()
                m.simulator.hang(device=2)
            report(link)

        with mock.patch.object(WorkerLink, "report", hanging):
            m.fails("GPU 2 ", "within 0.4 s", left=2)
        m.check()
        m.simulator.let_go()
        m.lost = 1


def test_two_devices_that_hang(make: Callable[..., Any]) -> None:
    with make(devices=4) as m:
        m.check()
        m.simulator.hang(device=1)
        m.simulator.hang(device=3)
        m.fails("GPU 1 ", " and GPU 3 ", left=2)
        m.check()
        m.simulator.let_go()
        m.lost = 2


def test_a_slow_device_is_waited_for(make: Callable[..., Any]) -> None:
    with make(deadline_s=20.0) as m:
        m.simulator.slow(LANE, 0.01)
        m.check()
        assert len(m.lanes) == 3


def test_memory_comes_back_once_the_work_has_ended(make: Callable[..., Any]) -> None:
    with make() as m:
        m.check()
        m.simulator.hang(device=LANE)
        m.fails(left=2)
        m.check()
        held = m.simulator.memory_bytes()["device 0"]
        m.simulator.let_go()
        time.sleep(0.2)
        sample(m.lanes, plan_for(1))  # one more picture to be compiled
        assert m.simulator.memory_bytes()["device 0"] < held
        m.lost = 1


def test_pictures_that_were_compiled_stay_while_something_hangs(make: Callable[..., Any]) -> None:
    """Giving memory back would wait for ever."""
    with make() as m:
        m.check()
        m.simulator.hang(device=LANE)
        m.fails(left=2)
        for _ in range(10):
            sample(m.lanes, plan_for(2))
        with pytest.raises(InputError, match="was built for"):  # nothing of this one either
            text = normal(1, 17, tiny.LENGTH, tiny.WIDTH)
            noise = normal(3, 17, tiny.CHANNELS, tiny.SIDE, tiny.SIDE)
            m.lanes.job(text, 1.0).sample(plan_for(2), noise, noise_streams(0, 17))
        m.simulator.let_go()
        m.lost = 1


def test_a_refused_capture(make: Callable[..., Any]) -> None:
    """Slower, and the same picture."""
    for entry in ("cuStreamBeginCapture", "cuGraphInstantiate"):
        with make() as m:
            m.simulator.fail(entry, UNSUPPORTED_IN_CAPTURE, device=LANE)
            m.check()
            assert list(m.lanes.without_graphs) == ["GPU 1 (Simulated GPU)"]
            assert entry in m.lanes.without_graphs["GPU 1 (Simulated GPU)"]
            assert len(m.lanes) == 3
            m.check()


@pytest.mark.parametrize(("refuses", "error"), [(True, 900), (False, 901)])
def test_an_engine_that_cannot_be_captured(make: Callable[..., Any], refuses: bool, error: int) -> None:
    """It refuses to run, or has asked for something that spoils the capture."""
    with make() as m:

        def enqueue(stream: int, *arguments: Any, **options: Any) -> int:
            _, capturing = driver().cuStreamIsCapturing(stream)
            if stream == m.lanes._team.workers[1].stream.pointer and int(capturing):
                if refuses:
                    return UNSUPPORTED_IN_CAPTURE
                driver().cuStreamQuery(stream)
            return m.simulator.enqueue(stream, *arguments, **options)

        with mock.patch.object(standin, "on_stream", enqueue):
            m.check()
        assert list(m.lanes.without_graphs) == ["GPU 1 (Simulated GPU)"]
        assert f"CUDA error {error}" in m.lanes.without_graphs["GPU 1 (Simulated GPU)"]
        assert len(m.lanes) == 3
        m.check()


@pytest.mark.parametrize(
    ("odd", "words"), [("run", "an illegal memory access was encountered"), ("context", "Out of memory")]
)
@pytest.mark.parametrize("device", [LEAD, LANE])
def test_an_engine_that_fails(make: Callable[..., Any], odd: str, words: str, device: int) -> None:
    with make(odd={device: {odd: 1}}) as m:
        m.fails(f"GPU {device} ", words, left=2)
        m.check()


def test_an_engine_that_fails_later(make: Callable[..., Any]) -> None:
    with make(graphs=False) as m:
        m.check()
        lane = m.lanes._team.workers[2].stream.pointer

        def refuse(stream: int, *arguments: Any, **options: Any) -> int:
            return 1 if stream == lane else m.simulator.enqueue(stream, *arguments, **options)

        with mock.patch.object(standin, "on_stream", refuse):
            m.fails("GPU 2 ", "CUDA error 1", left=2)
        m.check()


@pytest.mark.parametrize("pair", [(0, 1), (1, 0)])
@pytest.mark.parametrize("fault", ["deny_peer", "corrupt_copies"])
def test_peer_copies_that_cannot_be_trusted(
    make: Callable[..., Any], fault: str, pair: tuple[int, int]
) -> None:
    with make(before=lambda simulator: getattr(simulator, fault)(*pair)) as m:
        devices = [engine.device for engine in m.lanes._crew.engines.values()]
        assert [m.lanes.is_staged(device) for device in devices] == [False, True, False]
        m.check()
        assert len(m.lanes) == 3


@pytest.mark.parametrize("number", [2, 3])
def test_predictions_that_are_not_finite(make: Callable[..., Any], number: int) -> None:
    """An error with round and lane, no picture, and lanes that go on."""
    with make() as m:
        lane, runs = m.lanes._team.workers[2].stream.pointer, []
        run = standin.IExecutionContext._run

        def spoilt(context: standin.IExecutionContext) -> None:
            run(context)
            if context.streams[0] == lane:
                runs.append(1)
                if len(runs) == 1 + number - 1:  # the first run is one before all rounds, and not in round 1
                    shape = tuple(context.get_tensor_shape("out_sample"))
                    context._array("out_sample", shape, np.float32)[0, 0, 0, 7] = np.inf

        where = rf"not finite in round {number} of 4, on lane 2 \(GPU 2"
        with (
            mock.patch.object(standin.IExecutionContext, "_run", spoilt),
            pytest.raises(ModelError, match=where),
        ):
            sample(m.lanes, plan_for(3))
        assert len(m.lanes) == 3
        m.check()


def test_an_engine_that_gives_no_numbers(make: Callable[..., Any]) -> None:
    with make(odd={LANE: {"factor": float("nan")}}) as m:
        for _ in range(2):
            with pytest.raises(ModelError, match=r"not finite in round 2 of 4, on lane 1 \(GPU 1"):
                sample(m.lanes, plan_for(3))
        assert len(m.lanes) == 3


def test_no_lane_is_left(make: Callable[..., Any]) -> None:
    with make(devices=1) as m:
        m.check()
        m.simulator.fail("cuGraphLaunch", UNKNOWN)
        m.fails("GPU 0 ", "no lane is left", left=0)
        for _ in range(2):
            with pytest.raises(LaneError, match=r"every device has failed.*doctor"):
                sample(m.lanes, plan_for(1))


def test_one_after_another(make: Callable[..., Any]) -> None:
    with make(devices=4) as m:
        m.check()
        m.simulator.fail("cuGraphLaunch", UNKNOWN, device=2)
        m.fails("GPU 2 ", left=3)
        m.simulator.fail("cuGraphLaunch", ILLEGAL_ADDRESS, device=0, asynchronous=True)
        m.fails("GPU 0 ", left=2)
        m.check()
        m.simulator.hang(device=1)
        m.fails("GPU 1 ", left=1)
        m.check()
        m.simulator.fail("cuEventRecord", UNKNOWN)
        m.fails("GPU 3 ", "no lane is left", left=0)
        m.simulator.let_go()
        m.lost = 1


def test_a_device_that_gives_no_stream_is_lost_with_the_other(make: Callable[..., Any]) -> None:
    with make() as m:
        m.check()
        m.simulator.fail("cuGraphLaunch", UNKNOWN, device=1)
        m.simulator.fail("cuStreamCreate", UNKNOWN, device=2)
        m.fails("GPU 1 ", left=1)
        m.check()


@pytest.mark.parametrize(("devices", "left"), [(2, 1), (3, 1), (4, 1), (5, 2)])
@pytest.mark.parametrize("device", [LEAD, LANE])
def test_a_half_of_a_lane(make: Callable[..., Any], devices: int, left: int, device: int) -> None:
    """Where guidance is split the others form new pairs; the last device does both halves.

    The lanes that are left are those of the kind that was asked, and all are there for the other kind.
    """
    with make(devices=devices) as m:
        m.check()
        m.check(split=True)
        m.simulator.fail("cuGraphLaunch", UNKNOWN, device=device)
        m.fails(f"GPU {device} ", left=left, split=True)
        assert len(m.lanes) == devices - 1
        for split in (True, False, True):
            m.check(split=split)


def test_an_odd_device_that_idles_fails_unseen(make: Callable[..., Any]) -> None:
    """It has no part in a picture with split guidance, and is lost with the first that needs it."""
    with make(devices=3) as m:
        m.check(split=True)
        m.simulator.fail("cuGraphLaunch", UNKNOWN, device=2)
        m.check(split=True)
        m.fails("GPU 2 ", left=2)
        m.check(split=True)
        m.check()


@pytest.mark.parametrize("first", [False, True])
def test_a_device_that_hangs_between_both_kinds(make: Callable[..., Any], first: bool) -> None:
    with make(devices=4) as m:
        for split in (first, not first):
            m.check(split=split)
        m.simulator.hang(device=3)
        m.fails("GPU 3 ", "within 0.4 s", left=1 if first else 3, split=first)
        for split in (first, not first):
            m.check(split=split)
        m.simulator.let_go()
        m.lost = 1


def test_no_device_is_left_for_split_guidance(make: Callable[..., Any]) -> None:
    with make(devices=2) as m:
        m.check(split=True)
        m.simulator.fail("cuGraphLaunch", UNKNOWN, device=1)
        m.fails("GPU 1 ", left=1, split=True)
        m.check(split=True)
        m.simulator.fail("cuGraphLaunch", UNKNOWN, device=0)
        m.fails("GPU 0 ", "no lane is left", left=0, split=True)


def test_what_fails_beside_the_lanes_leaves_lanes_of_the_kind_that_was_asked(
    make: Callable[..., Any],
) -> None:
    for split, left in ((True, 2), (False, 4)):
        with make(devices=5) as m:
            m.check(split=split)
            m.lanes.workers[4].device.broken = True  # as a network beside the lanes would find
            with pytest.raises(LaneError, match=r"GPU 4 .*failed") as caught:
                sample(m.lanes, plan_for(2), split=split)
            assert caught.value.lanes_left == left
            m.check(split=split)


class Stop(Exception):
    pass


@pytest.mark.parametrize("kind", [Stop, KeyboardInterrupt])
@pytest.mark.parametrize("number", [1, 2])
def test_a_caller_that_stops(make: Callable[..., Any], kind: type[BaseException], number: int) -> None:
    with make() as m:
        m.simulator.slow(LANE, 0.002)

        def stop(done: Any) -> None:
            if done.round == number:
                raise kind

        with pytest.raises(kind):
            sample(m.lanes, plan_for(3), on_round=stop)
        assert not any(m.lanes._team.workers[k].stream.done() is False for k in range(3))
        m.check()
        assert len(m.lanes) == 3


def test_the_keyboard_in_the_middle_of_a_round(make: Callable[..., Any]) -> None:
    """One lane has its work by then, and the lead does not wait for it yet."""
    with make() as m:
        m.check()
        enqueue, streams = Request.enqueue, [worker.stream for worker in m.lanes._team.workers]

        def interrupted(request: Request) -> None:
            if request._worker is m.lanes._team.workers[2]:
                raise KeyboardInterrupt
            enqueue(request)

        m.simulator.slow(LANE, 0.01)
        with mock.patch.object(Request, "enqueue", interrupted), pytest.raises(KeyboardInterrupt):
            sample(m.lanes, plan_for(3))
        assert all(stream.done() for stream in streams)
        m.simulator.slow(LANE, 0)
        m.check()
        assert len(m.lanes) == 3


def test_forms_of_pictures_that_are_kept_stay(make: Callable[..., Any]) -> None:
    """Every one of these pictures needs two forms of its own on the first device."""
    with make(devices=2, deadline_s=20.0) as m:
        plan, made = plan_for(3), []
        for _ in range(2):
            for pictures in range(1, 5):
                text = normal(1, pictures, tiny.LENGTH, tiny.WIDTH)
                noise = normal(3, pictures, tiny.CHANNELS, tiny.SIDE, tiny.SIDE)
                job = m.lanes.job(text, 1.5, 0 * text)
                made.append(job.sample(plan, noise, noise_streams(0, pictures)).latents)
        for first, again in zip(made[:4], made[4:], strict=True):
            np.testing.assert_array_equal(first, again)


STARTS = ["cuStreamCreate", "cuModuleLoadData", "cuModuleGetFunction"]


@pytest.mark.parametrize("entry", STARTS)
@pytest.mark.parametrize("call", [1, 2, 3])
def test_a_start_that_fails_leaves_nothing(make: Callable[..., Any], entry: str, call: int) -> None:
    options: dict[str, Any] = {"before": lambda s: s.fail(entry, UNKNOWN, call=call), "peer_copies": False}
    with pytest.raises(DeviceError, match=f"{entry}.* on GPU .*CUDA_ERROR_UNKNOWN"), make(**options):
        pass


def test_a_device_that_hangs_at_the_start(make: Callable[..., Any]) -> None:
    quick = partial(peers.check_peers, timeout_s=0.8)
    words = r"GPU 1.*did not end in time.*CUDA_VISIBLE_DEVICES"
    with mock.patch.object(peers, "check_peers", quick), pytest.raises(DeviceError, match=words):  # noqa: SIM117
        with make(before=lambda simulator: simulator.hang(device=1)):
            pass


ENDS = [
    "cuMemFree",
    "cuMemFreeHost",
    "cuEventDestroy",
    "cuStreamDestroy",
    "cuGraphExecDestroy",
    "cuModuleUnload",
]


@pytest.mark.parametrize("entry", ENDS)
def test_what_cannot_be_given_back_is_no_error(
    folder: ModelFolder, kernels_library: Path, entry: str
) -> None:
    """The context takes it along: one object, and all others were given back."""
    with gpulanes.machine(2) as simulator:
        with gpulanes.gpu_lanes(folder, kernels_library, 2) as lanes:
            sample(lanes, plan_for(2))
            simulator.fail(entry, UNKNOWN, device=LANE)
        alive = {kind: number for kind, number in simulator.live_objects().items() if number}
        assert alive in ({"abandoned": 1}, {"graph_execs": 1})
