"""Pipelines on simulated GPUs: found, loaded from plans, the CPU lanes' pictures, devices that fail."""

from __future__ import annotations

import asyncio
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest import mock

import gpulanes
import numpy as np
import pytest

import driffusion_trt as dt
from driffusion_trt._call import LaneWarning
from driffusion_trt._tiles import Tile
from driffusion_trt.engines.manifest import ModelFolder
from driffusion_trt.runtime.devices import choose_devices
from driffusion_trt.runtime.gpu_network import GpuNetwork

pytest_plugins = ("cudasim.fixtures",)

PROMPT, STEPS = "a red fox left of a blue star", 8


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return gpulanes.planned_model(tmp_path_factory.mktemp("planned") / "model")


@pytest.fixture(autouse=True)
def machine(gpu_machine: Any) -> Any:
    return gpu_machine


@pytest.fixture(scope="module")
def encoding(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model that can start from pictures, with its plans."""
    return gpulanes.planned_model(tmp_path_factory.mktemp("encoding") / "model", encoder=True)


def picture(pipe: dt.Pipeline, **options: Any) -> dt.pipeline.Result:  # type: ignore[name-defined]
    return pipe(PROMPT, **{"steps": STEPS, "seed": 3, "mode": "aggressive", **options})


def test_finished_kernels_are_kept_for_the_next_process(
    planned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One file for each plan, in the user's cache: the model's folder, maybe read-only, is what it was."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    before = sorted(planned.rglob("*"))
    kept = tmp_path / "driffusion-trt" / "kernels"
    with dt.Pipeline.load(planned, devices="cuda") as pipe:
        assert not kept.exists()
        pipe.warm_up()
        assert len(list(kept.iterdir())) == 1, "the denoiser's are there once they were used"
    files = sorted(kept.iterdir())
    assert len(files) == 3 and {file.read_bytes() for file in files} == {b"kernels"}
    assert all(file.name.endswith(".sm89.jit") for file in files), files
    files[0].write_bytes(b"kernels of the day before")
    with dt.Pipeline.load(planned, devices="cuda") as pipe:
        pipe.warm_up()
    assert files[0].read_bytes() == b"kernels of the day before", "the session had them"
    assert sorted(planned.rglob("*")) == before


@pytest.mark.parametrize("mode", ["sequential", "aggressive", "conservative"])
def test_the_picture_of_the_cpu_lanes(planned: Path, machine: Any, mode: str) -> None:
    with dt.Pipeline.load(planned, devices=["cpu"] * 2) as pipe:
        wanted = picture(pipe, mode=mode, lanes=2)
    with dt.Pipeline.load(planned, devices="cuda") as pipe:
        assert pipe.devices == 2 and pipe.where.startswith("GPU 0 (Simulated GPU)")
        assert pipe.warm_up() > 0
        got = picture(pipe, mode=mode, lanes=2)
        again = picture(pipe, mode=mode, lanes=2)
    np.testing.assert_array_equal(got.latents, wanted.latents)
    np.testing.assert_array_equal(got.latents, again.latents)
    assert got.images[0].tobytes() == wanted.images[0].tobytes()
    assert got.timings.rounds_ms == () and got.timings.denoise_ms > 0
    assert {k: v for k, v in machine.live_objects().items() if v} == {}


def test_rounds_are_told_where_somebody_listens(planned: Path) -> None:
    told: list[int] = []
    with dt.Pipeline.load(planned, devices=["cuda:0", "cuda:1"]) as pipe:
        result = picture(pipe, callback_on_round_end=lambda done: told.append(done.round))
    assert told == list(range(1, result.plan.sequential_calls + 1))
    assert len(result.timings.rounds_ms) == len(told)


def test_cancel_ends_the_call_after_the_round_under_way(planned: Path, machine: Any) -> None:
    cancel = threading.Event()
    told: list[int] = []

    def watch(done: Any) -> None:
        told.append(done.round)
        cancel.set()

    with dt.Pipeline.load(planned, devices="cuda") as pipe:
        wanted = picture(pipe)
        with pytest.raises(dt.CancelledError, match="after round 1 of"):
            picture(pipe, cancel=cancel, callback_on_round_end=watch)
        with pytest.raises(dt.CancelledError, match="before its first round"):
            picture(pipe, cancel=cancel)
        assert told == [1]
        again = picture(pipe, cancel=threading.Event())
        awaited = asyncio.run(pipe.generate(PROMPT, steps=STEPS, seed=3, mode="aggressive"))
    np.testing.assert_array_equal(again.latents, wanted.latents)
    np.testing.assert_array_equal(awaited.latents, wanted.latents)
    assert {k: v for k, v in machine.live_objects().items() if v} == {}


def test_a_call_that_waits_for_another_can_be_cancelled(planned: Path) -> None:
    """Without waiting for the picture that is made first."""
    cancel, begun, go_on = threading.Event(), threading.Event(), threading.Event()

    def hold(done: Any) -> None:
        begun.set()
        assert go_on.wait(30)

    with dt.Pipeline.load(planned, devices="cuda") as pipe, ThreadPoolExecutor(2) as threads:
        wanted = picture(pipe)
        first = threads.submit(picture, pipe, callback_on_round_end=hold)
        assert begun.wait(30)
        second = threads.submit(picture, pipe, cancel=cancel)
        try:
            with pytest.raises(TimeoutError):
                second.result(0.1)
            cancel.set()
            with pytest.raises(dt.CancelledError, match="before its first round"):
                second.result(10)
            assert not first.done()
        finally:
            go_on.set()
        np.testing.assert_array_equal(first.result(30).latents, wanted.latents)
        np.testing.assert_array_equal(picture(pipe).latents, wanted.latents)


def test_a_call_that_waits_for_memory_can_be_cancelled(planned: Path) -> None:
    """A text encoder without room has the lanes on its GPU make some, after the picture under way."""
    cancel, begun, go_on = threading.Event(), threading.Event(), threading.Event()

    def hold(done: Any) -> None:
        begun.set()
        assert go_on.wait(30)

    def short(network: GpuNetwork, inputs: Any) -> Any:
        raise dt.DeviceError("no room", "CUDA_ERROR_OUT_OF_MEMORY")

    with dt.Pipeline.load(planned, devices="cuda") as pipe, ThreadPoolExecutor(2) as threads:
        wanted = picture(pipe)
        first = threads.submit(picture, pipe, callback_on_round_end=hold)
        assert begun.wait(30)
        try:
            with mock.patch.object(GpuNetwork, "run", short):
                second = threads.submit(pipe, "a blue fox", steps=STEPS, cancel=cancel)
                with pytest.raises(TimeoutError):
                    second.result(0.1)
                cancel.set()
                with pytest.raises(dt.CancelledError, match="while it waited for memory of a GPU"):
                    second.result(10)
            assert not first.done()
        finally:
            go_on.set()
        np.testing.assert_array_equal(first.result(30).latents, wanted.latents)


def test_split_guidance_staged_copies_and_no_graphs(planned: Path) -> None:
    with dt.Pipeline.load(planned, devices=["cpu"]) as pipe:
        wanted = picture(pipe, lanes=1)
        apart = picture(pipe, lanes=1, split_guidance=True)
    with dt.Pipeline.load(planned, devices="cuda", cuda_graphs=False, peer_copies=False) as pipe:
        assert pipe.warm_up(split_guidance=True) > 0
        got = picture(pipe, split_guidance=True)
    assert got.plan.lanes == 1 and got.settings[0]["split_guidance"] is True
    np.testing.assert_array_equal(got.latents, apart.latents)
    # ONNX Runtime multiplies batches of 1 and of 2 in another order.
    assert np.linalg.norm(got.latents - wanted.latents) < 1e-5 * np.linalg.norm(wanted.latents)


def test_a_number_and_auto_take_gpus_with_plans_only(planned: Path, tmp_path: Path) -> None:
    folder = ModelFolder.open(planned)
    assert [gpu.index for gpu in choose_devices("auto", folder).gpus] == [0, 1]
    assert choose_devices(1, folder).count == 1 and choose_devices(1, folder).gpus
    assert choose_devices(["cpu"], folder).gpus == ()
    assert [gpu.index for gpu in choose_devices(["cuda:1", "cuda:1"], folder).gpus] == [1, 1]
    bare = Path(shutil.copytree(planned, tmp_path / "bare"))
    shutil.rmtree(bare / "plans")
    assert choose_devices(2, ModelFolder.open(bare)).gpus == ()
    assert str(choose_devices(2, ModelFolder.open(bare))) == "2 CPU threads"


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (3, "plans for 2 GPUs of this machine; ask for fewer"),
        (["cuda:2"], "this machine has 2 GPUs, cuda:0 to cuda:1"),
        (["cuda:0", "cpu"], "give a number from 1"),
        (["cuda:x"], "give a number from 1"),
        ("gpu", "give a number from 1"),
    ],
)
def test_devices_that_cannot_be_had(planned: Path, asked: Any, said: str) -> None:
    with pytest.raises(dt.InputError, match=said):
        choose_devices(asked, ModelFolder.open(planned))


def test_a_gpu_without_a_plan_says_why(planned: Path, tmp_path: Path, machine: Any) -> None:
    import cudasim

    machine.configure([cudasim.Device("NVIDIA H200", (9, 0))])
    with pytest.raises((dt.ModelError, dt.MissingExtraError), match=r"TensorRT|tensorrt"):
        dt.Pipeline.load(planned, devices=["cuda:0"])
    assert {k: v for k, v in machine.live_objects().items() if v} == {}


def test_a_device_that_fails_costs_a_warning_and_not_the_picture(planned: Path, machine: Any) -> None:
    with dt.Pipeline.load(planned, devices=["cpu"]) as pipe:
        wanted = picture(pipe, lanes=1)
    with dt.Pipeline.load(planned, devices="cuda") as pipe:
        picture(pipe, lanes=2)
        machine.fail("cuGraphLaunch", 719, call=3, device=1)
        with pytest.warns(LaneWarning, match=r"GPU 1 .*made with the 1 lanes left"):
            got = picture(pipe, lanes=2)
        assert got.plan.lanes == 1 and got.settings[0]["lanes"] == 1
        np.testing.assert_array_equal(got.latents, wanted.latents)
        np.testing.assert_array_equal(picture(pipe, lanes=1).latents, wanted.latents)


@pytest.mark.parametrize(("devices", "lanes", "left"), [(2, 1, 1), (3, 1, 1), (4, 2, 1), (5, 2, 2)])
def test_a_device_that_fails_under_split_guidance(
    planned: Path, machine: Any, devices: int, lanes: int, left: int
) -> None:
    """The plan is made again for the pairs that are left, and other calls have all devices."""
    import cudasim

    machine.configure([cudasim.Device()] * devices)
    with dt.Pipeline.load(planned, devices=["cpu"]) as pipe:
        wanted = picture(pipe, lanes=left, split_guidance=devices > 2)
        whole = picture(pipe, lanes=devices - 1)
    with dt.Pipeline.load(planned, devices="cuda") as pipe:
        assert pipe.plan(steps=30, mode="aggressive", split_guidance=True).lanes == lanes
        assert picture(pipe, lanes=lanes, split_guidance=True).plan.lanes == lanes
        machine.fail("cuGraphLaunch", 719, call=3, device=1)
        with pytest.warns(LaneWarning, match=rf"GPU 1 .*made with the {left} lanes left"):
            got = picture(pipe, lanes=lanes, split_guidance=True)
        assert got.plan.lanes == got.settings[0]["lanes"] == left
        assert pipe.devices == devices - 1
        for _ in range(2):
            np.testing.assert_array_equal(picture(pipe, lanes=devices - 1).latents, whole.latents)
            again = picture(pipe, lanes=left, split_guidance=True)
            np.testing.assert_array_equal(again.latents, got.latents)
    np.testing.assert_array_equal(got.latents, wanted.latents)
    assert {k: v for k, v in machine.live_objects().items() if v} == {}


def test_where_no_device_is_left(planned: Path, machine: Any) -> None:
    with dt.Pipeline.load(planned, devices=["cuda:0"]) as pipe:
        picture(pipe, lanes=1)
        machine.fail("cuGraphLaunch", 719, call=1, device=0)
        with pytest.raises(dt.LaneError, match="GPU 0"):
            picture(pipe, lanes=1)
        with pytest.raises(dt.DriffusionError):
            picture(pipe, lanes=1)


@pytest.mark.parametrize("calls", [1, 2])
def test_the_networks_of_the_lead_move_to_another_device(planned: Path, machine: Any, calls: int) -> None:
    with dt.Pipeline.load(planned, devices=["cpu"]) as pipe:
        wanted = picture(pipe, lanes=1)
    with dt.Pipeline.load(planned, devices="cuda") as pipe:
        picture(pipe, lanes=2)
        # The text encoder's first copy on the lead, or its second.
        machine.fail("cuMemcpyHtoDAsync", 700, call=calls, device=0)
        with pytest.warns(LaneWarning):
            got = picture(pipe, lanes=2)
    np.testing.assert_array_equal(got.latents, wanted.latents)
    assert got.images[0].tobytes() == wanted.images[0].tobytes()


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("mode", ["sequential", "aggressive"])
def test_pictures_from_pictures_are_those_of_the_cpu_lanes(
    encoding: Path, machine: Any, mode: str, masked: bool
) -> None:
    random = np.random.default_rng(4)
    start: dict[str, Any] = {"image": random.random((1, 64, 64, 3)), "strength": 0.8}
    if masked:
        start["mask_image"] = random.random((64, 64)) < 0.5
    with dt.Pipeline.load(encoding, devices=["cpu"] * 2) as pipe:
        wanted = picture(pipe, mode=mode, lanes=2, **start)
    with dt.Pipeline.load(encoding, devices="cuda") as pipe:
        made = picture(pipe, mode=mode, lanes=2, **start)
    assert wanted.plan.steps == made.plan.steps == 6
    np.testing.assert_array_equal(made.latents, wanted.latents)


def test_large_pictures_are_made_in_tiles_of_the_plans_size(encoding: Path, machine: Any) -> None:
    """The plans take 64 x 64 pixels; the denoiser's do too, so this is the autoencoder alone."""
    with dt.Pipeline.load(encoding, devices="cuda") as pipe:
        autoencoder = pipe._stages._autoencoder
        latents = np.random.default_rng(5).standard_normal((1, 4, 24, 20)).astype(np.float32)
        tile = autoencoder.tile_for(96, 80)
        assert tile == Tile(64, 64)
        tiled = autoencoder.decode(latents, tile)
    with dt.Pipeline.load(encoding, devices=["cpu"]) as pipe:
        whole = pipe._stages._autoencoder.decode(latents)
    assert tiled.shape == whole.shape == (1, 3, 96, 80)
    assert np.abs(tiled - whole).mean() < 0.05


def test_mode_auto_measures_the_gpus_and_its_picture_can_be_made_again(
    planned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with dt.Pipeline.load(planned, devices="cuda") as pipe:
        costs = pipe.measure()
        least, most = costs.rows
        assert costs.devices == 2 and least == 1 and most >= 2, "of the plan's profile"
        assert len(costs.call_ms) == (4 if most >= 4 else 2)
        choice = pipe.choice(steps=STEPS)
        assert "calls with guidance take" in choice.explained()[0]
        made = pipe(PROMPT, steps=STEPS, seed=3)
        assert made.plan is pipe.plan(steps=STEPS)
        again = pipe(**made.call())
        np.testing.assert_array_equal(made.latents, again.latents)
    (kept,) = tmp_path.rglob("costs/*.json")
    assert "GPU 0" in kept.read_text()
