"""Text encoders and the VAE on the lead of each group of simulated GPUs, while other groups have theirs."""

from __future__ import annotations

import contextlib
import logging
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import cudasim
import gpulanes
import numpy as np
import pytest
import standin

import driffusion_trt as dt
from driffusion_trt._call import LaneWarning, Watch
from driffusion_trt._errors import DeviceError, EngineError, LaneError
from driffusion_trt.engines.key import onnx_hash
from driffusion_trt.engines.manifest import ModelFolder
from driffusion_trt.engines.store import PlanStore
from driffusion_trt.runtime import gpu_sessions
from driffusion_trt.runtime._lead import current_lead, led_by, now_led_by
from driffusion_trt.runtime.gpu_beside import Beside
from driffusion_trt.runtime.gpu_network import GpuNetwork
from driffusion_trt.server.orders import PipelineShop

PROMPT, STEPS = "a red fox left of a blue star", 6
ILLEGAL_ADDRESS = 700
NETWORKS = {"text_encoder", "vae_decoder", "vae_encoder"}


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model that can start from pictures, with plans of the stand-in for two kinds of GPUs."""
    made = gpulanes.planned_model(tmp_path_factory.mktemp("planned") / "model", encoder=True)
    gpulanes.add_plans(ModelFolder.open(made), targets=("sm86",))
    return made


@pytest.fixture(autouse=True)
def _kernels(kernels_library: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    image = tmp_path / "kernels.image"
    image.write_bytes(cudasim.kernel_image(kernels_library))
    monkeypatch.setenv("DRIFFUSION_KERNELS", str(image))
    with gpulanes.short_trials():
        yield


@contextlib.contextmanager
def machine(devices: Any = 4, *, lost: bool = False, **options: Any) -> Iterator[cudasim.Simulator]:
    """Every thread counts by itself. Nothing is wrong, and unless a GPU is lost nothing left, in the end."""
    with gpulanes.machine(devices, threads_apart=True, delays=3, delay_us=100, **options) as simulator:
        yield simulator
        if not lost:
            gpulanes.clean(simulator)
        assert simulator.races() == [] and simulator.violations() == []


def picture(pipe: dt.Pipeline, devices: int | None, **settings: Any) -> Any:
    """As the engine asks for it: with so many GPUs."""
    asked = {"steps": STEPS, "mode": "sequential", "seed": 3, **settings}
    request, checked = pipe._checked(PROMPT, asked)
    return pipe._made(replace(request, devices=devices), checked, Watch.check(asked))


@contextlib.contextmanager
def calls() -> Iterator[list[tuple[str, int]]]:
    """Networks beside the lanes that ran, and on which GPU."""
    seen: list[tuple[str, int]] = []
    run = GpuNetwork.run

    def noted(network: GpuNetwork, inputs: Any) -> Any:
        made = run(network, inputs)
        seen.append((network.session.name, network.device.ordinal))
        return made

    with mock.patch.object(GpuNetwork, "run", noted):
        yield seen


@contextlib.contextmanager
def loads() -> Iterator[list[tuple[str, int]]]:
    """Networks that are loaded by pipelines made in the block, and on which GPU."""
    seen: list[tuple[str, int]] = []
    load = gpu_sessions.load_session

    def noted(folder: ModelFolder, name: str, gpu: Any, device: Any) -> Any:
        seen.append((name, device.ordinal))
        return load(folder, name, gpu, device)

    with mock.patch.object(gpu_sessions, "load_session", noted):
        yield seen


def at_once(count: int, network: str) -> Any:
    """So many runs of a network on devices wait for one another, each in the work of its own stream."""
    together, run = threading.Barrier(count), standin.IExecutionContext._run

    def meet(context: standin.IExecutionContext) -> None:
        if Path(context.engine.session.path).stem == network:
            together.wait(20)
        run(context)

    return mock.patch.object(standin.IExecutionContext, "_run", meet)


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(1e-3)


def same(made: Any, wanted: Any) -> None:
    np.testing.assert_array_equal(made.latents, wanted.latents)
    assert [one.tobytes() for one in made.images] == [one.tobytes() for one in wanted.images]


@pytest.mark.parametrize(("groups", "devices"), [(2, 2), (4, 1)])
def test_groups_encode_and_decode_at_the_same_time_on_their_leads(
    planned: Path, groups: int, devices: int
) -> None:
    with machine(), dt.Pipeline.load(planned, devices="cuda") as pipe, ThreadPoolExecutor(groups) as threads:
        wanted = [picture(pipe, None, seed=seed) for seed in range(groups)]
        turn = [threading.Barrier(groups) for _ in range(STEPS)]

        def one(seed: int) -> Any:
            # All of them have their group at the same time.
            return picture(
                pipe, devices, seed=seed, callback_on_round_end=lambda done: turn[done.round - 1].wait(20)
            )

        with calls() as seen, at_once(groups, "text_encoder"), at_once(groups, "vae_decoder"):
            made = [*threads.map(one, range(groups))]
        for got, right in zip(made, wanted, strict=True):
            same(got, right)
        leads = [4 - devices * (k + 1) for k in range(groups)]
        decoded = [place for name, place in seen if name == "vae_decoder"]
        encoded = {place for name, place in seen if name == "text_encoder"}
        assert sorted(decoded) == sorted(leads) and encoded == set(leads)


def test_who_gets_another_group_than_it_expected_decodes_on_that_ones_lead(planned: Path) -> None:
    """All GPUs are in use when it comes, and another one is the first to be free."""
    with machine(3), dt.Pipeline.load(planned, devices="cuda") as pipe, ThreadPoolExecutor(4) as threads:
        wanted = picture(pipe, None)
        go_on = [threading.Event() for _ in range(3)]

        def hold(place: int) -> Any:
            there = threading.Event()

            def held(done: Any) -> None:
                there.set()
                assert go_on[place].wait(20)

            made = threads.submit(picture, pipe, 1, callback_on_round_end=held)
            assert there.wait(20)
            return made

        try:
            running = {place: hold(place) for place in (2, 1, 0)}
            with calls() as seen:
                late = threads.submit(picture, pipe, 1)
                until(lambda: len(seen) == 2)  # its prompt, and none
                go_on[1].set()
                same(late.result(20), wanted)
                assert seen[:2] == [("text_encoder", 2)] * 2 and ("vae_decoder", 2) not in seen
                assert seen.count(("vae_decoder", 1)) == 2
        finally:
            for one in go_on:
                one.set()
        for made in running.values():
            same(made.result(20), wanted)


def test_forms_on_every_lead_are_bounded(planned: Path) -> None:
    """Calls of many sizes: four of them are kept on each lead, and memory stops growing."""
    with machine(2) as simulator, dt.Pipeline.load(planned, devices="cuda") as pipe:
        (decoder,) = [one for one in pipe._stages._beside if one._name == "vae_decoder"]
        empty = simulator.memory_bytes()
        took: list[int] = []
        for k in range(12):
            for device in pipe._lanes.leads:
                with led_by(device):
                    decoder.run({"latents": np.zeros((1 + k % 8, 4, 16, 16), np.float32)})
            now = simulator.memory_bytes()
            took.append(now["device 1"] - empty["device 1"])
            assert took[-1] == now["device 0"] - empty["device 0"]
        kept = [len(place.made._forms) for place in decoder._places.values() if place.made is not None]
        assert kept == [4, 4] and max(took[8:]) <= max(took[:8])


def test_pictures_from_pictures_in_tiles_on_every_lead(planned: Path) -> None:
    start = {"image": np.random.default_rng(4).random((1, 64, 64, 3)), "strength": 0.8}
    with machine(2), dt.Pipeline.load(planned, devices="cuda") as pipe:
        wanted, plain = picture(pipe, None, **start), picture(pipe, None, num_images=2)
        with calls() as seen:
            same(picture(pipe, 1, **start), wanted)
            same(picture(pipe, 1, num_images=2), plain)
        assert set(seen) == {(name, 1) for name in NETWORKS}


def test_many_calls_of_all_kinds_from_several_threads(planned: Path) -> None:
    """Networks are loaded on the way, on several leads at once."""
    asked = [
        {"seed": k, "num_images": 1 + k % 2, "mode": "aggressive" if k % 3 else "sequential", "lanes": 1}
        for k in range(12)
    ]
    with machine(), dt.Pipeline.load(planned, devices="cuda") as pipe, ThreadPoolExecutor(4) as threads:
        wanted = [picture(pipe, None, **one) for one in asked]
        devices = [1, 2, None, 1, 3, 1] * 2
        made = threads.map(lambda k: picture(pipe, devices[k], **asked[k]), range(len(asked)))
        for got, right in zip(made, wanted, strict=True):
            same(got, right)


def test_a_pipeline_alone_loads_nothing_but_on_its_lead(planned: Path) -> None:
    with machine(), loads() as loaded, dt.Pipeline.load(planned, devices="cuda") as pipe:
        picture(pipe, None)
        pipe.warm_up()
        assert {place for name, place in loaded if name != "denoiser"} == {0}
        assert ("vae_encoder", 0) not in loaded
        loaded.clear()
        picture(pipe, 2)
        picture(pipe, 2, seed=4)
        assert loaded == [("text_encoder", 2), ("vae_decoder", 2)]


def test_a_service_has_all_of_them_on_every_gpu_before_its_first_request(planned: Path) -> None:
    """Text encoders and the decoder with memory for a picture of its own size, the VAE's encoder without."""
    image = np.zeros((1, 64, 64, 3))
    with machine(3), loads() as loaded, dt.Pipeline.load(planned, devices="cuda") as pipe:

        def forms() -> dict[str, set[int]]:
            return {
                beside._name: {len(place.made._forms) for place in beside._places.values() if place.made}
                for beside in pipe._stages._beside
            }

        with mock.patch.object(dt.Pipeline, "measure"):
            PipelineShop(pipe).open()
        once = Counter({(name, k): 1 for name in (*NETWORKS, "denoiser") for k in range(3)})
        assert Counter(loaded) == once
        assert forms() == {"text_encoder": {1}, "vae_decoder": {1}, "vae_encoder": {0}}
        with ThreadPoolExecutor(3) as threads:
            [*threads.map(lambda k: picture(pipe, 1, seed=k), range(9))]
            assert forms() == {"text_encoder": {1}, "vae_decoder": {1}, "vae_encoder": {0}}
            [*threads.map(lambda k: picture(pipe, 1, seed=k, image=image, strength=0.5), range(9))]
        assert Counter(loaded) == once


# Leads that cannot have a network.


def refused(name: str, place: int, error: Exception) -> Any:
    """A network finds no room for the form of any call on one GPU."""
    make = GpuNetwork._make

    def made(network: GpuNetwork, shapes: Any) -> Any:
        if (network.session.name, network.device.ordinal) == (name, place):
            raise error
        return make(network, shapes)

    return mock.patch.object(GpuNetwork, "_make", made)


def test_a_lead_without_room_leaves_a_network_to_the_first_gpu_for_a_minute(
    planned: Path, caplog: pytest.LogCaptureFixture
) -> None:
    error = DeviceError("no room", "CUDA_ERROR_OUT_OF_MEMORY")
    with machine(2), dt.Pipeline.load(planned, devices="cuda") as pipe:
        wanted = picture(pipe, None)
        with refused("vae_decoder", 1, error), calls() as seen:
            for _ in range(2):
                same(picture(pipe, 1), wanted)
        assert [place for name, place in seen if name == "vae_decoder"] == [0, 0]
        (line,) = [one.getMessage() for one in caplog.records if one.name == "driffusion_trt.runtime"]
        assert "GPU 1 (Simulated GPU) has no vae_decoder" in line and "on GPU 0 (Simulated GPU): no r" in line
        with calls() as seen:
            same(picture(pipe, 1), wanted)
            assert ("vae_decoder", 0) in seen
        for network in pipe._stages._beside:
            for place in network._places.values():
                place.left_out_until_s -= 61
        with calls() as seen:
            same(picture(pipe, 1), wanted)
            assert ("vae_decoder", 1) in seen
        assert len(pipe._lanes) == 2


def test_room_is_made_on_the_lead_before_it_is_left_out(planned: Path) -> None:
    """The lanes there give back what they keep, and the picture is decoded where it was made."""
    with machine(2), dt.Pipeline.load(planned, devices="cuda") as pipe:
        wanted = picture(pipe, None)
        make, made_room = GpuNetwork._make, pipe._lanes.make_room
        room = threading.Event()

        def made(network: GpuNetwork, shapes: Any) -> Any:
            if network.session.name == "vae_decoder" and network.device.ordinal == 1 and not room.is_set():
                raise DeviceError("no room", "CUDA_ERROR_OUT_OF_MEMORY")
            return make(network, shapes)

        def make_room(device: Any, waiting: Any) -> None:
            made_room(device, waiting)
            assert device.ordinal == 1
            room.set()

        for network in pipe._stages._beside:
            network.make_room = make_room
        with mock.patch.object(GpuNetwork, "_make", made), calls() as seen:
            same(picture(pipe, 1), wanted)
        assert room.is_set() and ("vae_decoder", 1) in seen


@pytest.mark.parametrize("why", ["no plan", "altered"])
def test_a_lead_of_a_kind_that_has_no_plan_of_a_network(
    planned: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, why: str
) -> None:
    folder = ModelFolder.open(shutil.copytree(planned, tmp_path / "model"))
    digest = onnx_hash(folder, "vae_decoder")
    (plan,) = [
        plan
        for plan in PlanStore(folder.path).plans()
        if plan.key is not None and plan.key.onnx_sha256 == digest and "sm86" in plan.path.parts[-2]
    ]
    if why == "no plan":
        plan.path.unlink()
    else:
        plan.path.write_bytes(plan.path.read_bytes()[:-9] + b"alterered")
    kinds = [cudasim.Device(), cudasim.Device("Other GPU", (8, 6))]
    with machine(kinds), loads() as loaded, dt.Pipeline.load(folder.path, devices="cuda") as pipe:
        wanted = picture(pipe, None)
        with calls() as seen:
            for _ in range(3):
                same(picture(pipe, 1), wanted)
        assert Counter(seen) == Counter({("text_encoder", 1): 6, ("vae_decoder", 0): 3})
        assert loaded.count(("vae_decoder", 1)) == 1, "it is asked once"
        lines = [one.getMessage() for one in caplog.records if one.name == "driffusion_trt.runtime"]
        assert len(lines) == 1 and "GPU 1 (Other GPU) has no vae_decoder" in lines[0]
        assert [one.device.usable for one in pipe._lanes.workers] == [True, True]


# GPUs that fail.


@pytest.mark.filterwarnings("ignore::driffusion_trt.pipeline.LaneWarning")
@pytest.mark.parametrize("hangs", [False, True])
@pytest.mark.parametrize("network", ["text_encoder", "vae_decoder"])
def test_a_lead_that_fails_is_taken_out_with_its_networks(planned: Path, hangs: bool, network: str) -> None:
    run, broken = GpuNetwork.run, threading.Event()

    with (
        machine(3, lost=hangs, hang_limit_ms=5000) as simulator,
        dt.Pipeline.load(planned, devices="cuda", deadline_s=0.5) as pipe,
    ):
        wanted = picture(pipe, None)
        same(picture(pipe, 1), wanted)

        def fail(this: GpuNetwork, inputs: Any) -> Any:
            if this.session.name == network and this.device.ordinal == 2 and not broken.is_set():
                broken.set()
                if hangs:
                    simulator.hang(device=2)
                else:
                    simulator.fail("cuMemcpyHtoDAsync", ILLEGAL_ADDRESS, device=2)
            return run(this, inputs)

        with mock.patch.object(GpuNetwork, "run", fail), calls() as seen:
            same(picture(pipe, 1), wanted)
            assert broken.is_set() and (network, 0) in seen and (network, 2) not in seen
            for _ in range(2):
                same(picture(pipe, 1), wanted)
        assert [one.device.ordinal for one in pipe._lanes.workers] == [0, 1]
        assert seen[-3:] == [("text_encoder", 1), ("text_encoder", 1), ("vae_decoder", 1)]
        simulator.let_go()
    if not hangs:
        assert {kind: n for kind, n in simulator.live_objects().items() if n} == {}


def test_who_waits_for_a_call_that_hangs_does_not_wait_for_its_own(planned: Path) -> None:
    """Four prompts on a lead that hangs: the deadline passes once, and not for one after another."""
    with (
        machine(2, lost=True, hang_limit_ms=5000) as simulator,
        dt.Pipeline.load(planned, devices="cuda", deadline_s=1.0) as pipe,
        ThreadPoolExecutor(4) as threads,
    ):
        (encoder,) = [one for one in pipe._stages._beside if one._name == "text_encoder"]
        lead = pipe._lanes.leads[1]
        given = {name: np.zeros((1, 16), info.dtype) for name, info in encoder.inputs.items()}

        def run(_: int) -> Any:
            with led_by(lead):
                return encoder.run(given)

        run(0)
        with calls() as seen:
            simulator.hang(device=1)
            begun = time.monotonic()
            [*threads.map(run, range(4))]
            took = time.monotonic() - begun
            simulator.let_go()
        assert seen == [("text_encoder", 0)] * 4 and not lead.usable
        assert took < 3.0, f"it took {took:.1f} s"


def test_a_lead_that_the_lanes_see_fail_does_not_decode(planned: Path) -> None:
    with machine(2) as simulator, dt.Pipeline.load(planned, devices="cuda") as pipe:
        wanted = picture(pipe, None)
        same(picture(pipe, 1), wanted)
        simulator.fail("cuGraphLaunch", 719, call=3, device=1)
        with pytest.warns(LaneWarning, match="GPU 1 "), calls() as seen:
            same(picture(pipe, 1), wanted)
        assert [place for name, place in seen if name == "vae_decoder"] == [0]


def test_closing_while_a_lead_loads_leaves_nothing(planned: Path) -> None:
    begun, go_on = threading.Event(), threading.Event()
    load = gpu_sessions.load_session

    def slow(folder: ModelFolder, name: str, gpu: Any, device: Any) -> Any:
        if (name, device.ordinal) == ("text_encoder", 1):
            begun.set()
            assert go_on.wait(20)
        return load(folder, name, gpu, device)

    with machine(2), ThreadPoolExecutor(2) as threads, mock.patch.object(gpu_sessions, "load_session", slow):
        pipe = dt.Pipeline.load(planned, devices="cuda")
        made = threads.submit(picture, pipe, 1)
        assert begun.wait(20)
        closed = threads.submit(pipe.close)
        go_on.set()
        closed.result(20)
        with pytest.raises(LaneError, match="closed"):
            made.result(20)
        with pytest.raises(LaneError, match="closed"):
            pipe._stages._beside[0].load()


# One network by itself.


class Loaded:
    """A network that is none, on one device."""

    def __init__(self, device: Any, error: Exception | None = None, works: bool = True) -> None:
        self.device, self.error, self.sound, self.closed = device, error, works, 0
        self.inputs = {"x": device}

    def run(self, inputs: Any) -> Any:
        if self.error is not None:
            raise self.error
        return {"on": self.device}

    def works(self) -> bool:
        return self.sound

    def close(self) -> None:
        self.closed += 1


class Place:
    def __init__(self, title: str) -> None:
        self.title, self.broken, self.lost = title, False, False

    @property
    def usable(self) -> bool:
        return not (self.broken or self.lost)

    def memory_bytes(self) -> tuple[int, int]:
        if self.broken:
            raise DeviceError("broken", "CUDA_ERROR_LAUNCH_FAILED")
        return 1, 1


def beside(*made: Any) -> tuple[Beside, list[Place]]:
    """A network on as many devices; what is an error is raised by loading it there."""
    places = [Place(f"GPU {k}") for k in range(len(made))]

    def load(k: int) -> Any:
        if isinstance(made[k], Exception):
            raise made[k]
        return Loaded(places[k], *made[k])

    choices: Any = [(places[k], lambda k=k: load(k)) for k in range(len(made))]
    return Beside("net", choices), places


def test_where_it_runs() -> None:
    network, (first, second, third) = beside((), (), ())
    with pytest.raises(LaneError, match="net is not loaded"):
        _ = network.inputs
    network.load()
    assert network.inputs == {"x": first} and network.run({}) == {"on": first}
    with led_by(second):  # type: ignore[arg-type]
        assert network.run({}) == {"on": second}
        now_led_by(third)  # type: ignore[arg-type]
        assert network.run({}) == {"on": third} and current_lead() is third
        third.broken = True
        assert network.run({}) == {"on": first}
    now_led_by(second)  # type: ignore[arg-type]
    assert current_lead() is None and network.run({}) == {"on": first}
    with led_by(Place("of another pipeline")), led_by(None):  # type: ignore[arg-type]
        assert network.run({}) == {"on": first}
    first.lost = True
    assert network.run({}) == {"on": second}
    second.broken = True
    with pytest.raises(LaneError, match="every device has failed"):
        network.run({})
    made = [place.made for place in network._places.values()]
    for _ in range(2):
        network.close()
    assert all(one is not None and one.closed for one in made)  # type: ignore[attr-defined]
    with pytest.raises(LaneError, match=r"closed|every device"):
        network.run({})


BROKEN = DeviceError("it broke", "CUDA_ERROR_LAUNCH_FAILED")
REFUSED = EngineError("refused")
FULL = DeviceError("full", "CUDA_ERROR_OUT_OF_MEMORY")


@pytest.mark.parametrize(
    ("there", "on", "usable"),
    [
        (dt.ModelError("no plan"), 0, True),
        (REFUSED, 0, True),
        (FULL, 0, True),
        (BROKEN, 0, False),
        ((FULL,), 0, True),
        ((BROKEN,), 0, False),
        ((LaneError("late"),), 0, False),
        ((REFUSED, False), 0, False),
        ((REFUSED, True), REFUSED, True),
        ((dt.InputError("a shape"),), dt.InputError, True),
    ],
)
def test_what_goes_wrong_on_a_lead(there: Any, on: Any, usable: bool) -> None:
    network, (first, lead) = beside((), there)
    with led_by(lead):  # type: ignore[arg-type]
        for _ in range(2):
            if on == 0:
                assert network.run({}) == {"on": first}
            else:
                with pytest.raises(type(on) if isinstance(on, Exception) else on):
                    network.run({})
        assert (first.usable, lead.usable) == (True, usable)


@pytest.mark.parametrize(
    ("there", "raised"),
    [
        (dt.ModelError("no plan"), dt.ModelError),
        (BROKEN, DeviceError),
        (FULL, DeviceError),
        ((FULL,), DeviceError),
        ((REFUSED,), EngineError),
    ],
)
def test_the_first_device_has_nobody_to_leave_it_to(there: Any, raised: Callable[..., Exception]) -> None:
    network, (first, _) = beside(there, ())
    for _ in range(2):
        with pytest.raises(raised):  # type: ignore[arg-type, call-overload]
            network.run({})
    assert first.usable
    asked: list[Any] = []
    network.make_room = lambda device, waiting: asked.append(device)
    with pytest.raises(raised):  # type: ignore[arg-type, call-overload]
        network.run({})
    assert asked == ([first] if "full" in str(there) else [])


# The tests above would see it.


def test_calls_on_one_lead_that_no_lock_orders_are_found_out(planned: Path) -> None:
    """A lock that the detector hears nothing of is none to it; what a network does there is seen."""
    with gpulanes.machine(2, threads_apart=True, delays=3, delay_us=100) as simulator:
        with dt.Pipeline.load(planned, devices="cuda") as pipe, ThreadPoolExecutor(2) as threads:
            picture(pipe, None)
            assert simulator.races() == []
            for network in pipe._stages._beside:
                for place in network._places.values():
                    if place.made is not None:
                        place.made._lock = threading.Lock()
            [*threads.map(lambda k: picture(pipe, None, seed=k), range(4))]
        assert any("race" in line for line in simulator.races())


def test_networks_have_locks_of_their_own(planned: Path) -> None:
    """The order of one's calls, or of leases, is none for another: else a race there would not be seen."""
    with machine(1), dt.Pipeline.load(planned, devices="cuda") as pipe:
        made = [place.made for network in pipe._stages._beside for place in network._places.values()]
        numbers = {one._lock._number for one in made if one is not None}
        assert len(numbers) == 2 and 0 not in numbers


def test_the_log_is_quiet_where_nothing_is_wrong(planned: Path, caplog: pytest.LogCaptureFixture) -> None:
    quiet = caplog.at_level(logging.DEBUG, "driffusion_trt")
    with quiet, machine(2), dt.Pipeline.load(planned, devices="cuda") as pipe:
        picture(pipe, 1)
    assert [one for one in caplog.records if one.name.startswith("driffusion_trt")] == []
