"""Model folders whose plans are the stand-in's, and GPU lanes over them on the simulated driver."""

from __future__ import annotations

import itertools
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import cudasim
import standin
import tiny

from driffusion_trt.engines.flavours import FLAVOURS
from driffusion_trt.engines.manifest import ModelFolder
from driffusion_trt.engines.onnx_session import OnnxSession
from driffusion_trt.engines.plans import plan_requests
from driffusion_trt.engines.profiles import Profile, Range, fill_shapes
from driffusion_trt.engines.store import PlanStore
from driffusion_trt.engines.trt_session import TensorRTSession
from driffusion_trt.runtime import _peer_trial
from driffusion_trt.runtime._driver import Device
from driffusion_trt.runtime._resources import PinnedMemory
from driffusion_trt.runtime.cuda import CudaLanes, Engine
from driffusion_trt.runtime.gpu_lease import Leases
from driffusion_trt.runtime.gpu_network import GpuNetwork

RTX = FLAVOURS["tensorrt-rtx"]


def build_kernels(root: Path, folder: Path) -> Path:
    """The kernels' host build, made by the project's own CMake in a folder."""
    options = ["-DDRIFFUSION_FATBIN=OFF", "-DDRIFFUSION_HOST=ON"]
    for command in (
        ["cmake", "-S", str(root), "-B", str(folder), *options],
        ["cmake", "--build", str(folder), "--target", "kernels_host"],
    ):
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "warning" not in done.stdout + done.stderr
    return kernels_in(folder)


def kernels_in(folder: Path) -> Path:
    """The library in a folder where it was built."""
    (path,) = folder.rglob("libdriffusion_kernels_host.so")
    return path


@contextmanager
def short_trials() -> Iterator[None]:
    """Peer copies are tried with fewer bytes when lanes start."""
    small = {"_SIZE": 8192, "_CUTS": ((0, 0, 4096), (3, 1021, 5003))}
    with mock.patch.multiple(_peer_trial, **small):
        yield


@contextmanager
def machine(devices: int | Iterable[cudasim.Device], **options: Any) -> Iterator[cudasim.Simulator]:
    """A simulated machine whose TensorRT is the stand-in, and which sees the host's use of pinned memory.

    The driver cannot know when the host reads or writes there; here every view that is made of pinned
    memory counts as a write at that moment, so that one that comes too early, before a copy is done, is
    a race.
    """
    make_array = PinnedMemory.array

    def told(memory: PinnedMemory, *arguments: Any, **named: Any) -> Any:
        view = make_array(memory, *arguments, **named)
        simulator.host_access(view.ctypes.data, view.nbytes, write=True)
        return view

    with (
        cudasim.Simulator(devices=devices, **options) as simulator,
        mock.patch.dict(sys.modules, {RTX.module: standin}),
        mock.patch.object(standin, "on_stream", simulator.enqueue),
        mock.patch.object(PinnedMemory, "array", told),
        leases_told(simulator),
        networks_told(simulator),
    ):
        yield simulator


@contextmanager
def leases_told(simulator: cudasim.Simulator) -> Iterator[None]:
    """With `threads_apart`: it is leases that order what threads do on a device one after another."""
    take, give_back = Leases._take, Leases._give_back

    def taken(leases: Leases[Any], *given: Any) -> Any:
        group = take(leases, *given)
        simulator.take_over()
        return group

    def given_back(leases: Leases[Any]) -> None:
        simulator.hand_over()
        give_back(leases)

    with mock.patch.object(Leases, "_take", taken), mock.patch.object(Leases, "_give_back", given_back):
        yield


class ToldLock:
    """A lock that the simulator hears of."""

    _numbers = itertools.count(1)

    def __init__(self, simulator: cudasim.Simulator) -> None:
        self._simulator, self._lock, self._number = simulator, threading.Lock(), next(self._numbers)

    def __enter__(self) -> None:
        self._lock.acquire()
        self._simulator.take_over(self._number)

    def __exit__(self, *error: object) -> None:
        self._simulator.hand_over(self._number)
        self._lock.release()


@contextmanager
def networks_told(simulator: cudasim.Simulator) -> Iterator[None]:
    """With `threads_apart`: each network beside the lanes has a lock, which orders its calls alone."""
    make = GpuNetwork.__init__

    def made(network: GpuNetwork, *given: Any, **named: Any) -> None:
        make(network, *given, **named)
        network._lock = ToldLock(simulator)  # type: ignore[assignment]

    with mock.patch.object(GpuNetwork, "__init__", made):
        yield


def shapes_of(onnx: Path, sides: Mapping[str, Range]) -> dict[str, list[list[int]]]:
    """Least, best and greatest shape of every input, as a plan has them."""
    with OnnxSession(onnx) as session:
        inputs = {name: info.shape for name, info in session.inputs.items()}
    return {name: [list(shape) for shape in three] for name, three in fill_shapes(inputs, sides).items()}


def stand_in_plan(folder: ModelFolder, network: str, profile: Profile, **odd: Any) -> bytes:
    """A plan for the stand-in of one network of a model folder."""
    onnx = folder.network(network)
    return standin.plan(str(onnx), shapes_of(onnx, profile.sides(network, folder.spec)), **odd)


def add_plans(folder: ModelFolder, *, batch_size: int = 8, targets: Sequence[str] = ("sm89",)) -> None:
    """Give a model folder plans of the stand-in for every network."""
    _, height, width = folder.manifest.shapes["picture"]
    profile = Profile.pictures(folder.spec, height=height, width=width, batch_size=batch_size)
    store = PlanStore(folder.path)
    for request in plan_requests(folder, profile, RTX, standin.__version__, targets=targets):
        data = stand_in_plan(folder, request.key.network, profile)
        store.temporary(request.key).write_bytes(data)
        store.commit(request.key, {"seconds": 0.0, "warnings": []})


def planned_model(folder: Path, *, encoder: bool = False) -> Path:
    """A tiny model folder with plans of the stand-in for sm89."""
    made = tiny.make_model_folder(folder, encoder=encoder)
    add_plans(ModelFolder.open(made))
    return made


@contextmanager
def gpu_lanes(
    folder: ModelFolder,
    kernels_library: Path,
    devices: int | Sequence[int] = 1,
    *,
    batch_size: int = 8,
    odd: Mapping[int, Mapping[str, Any]] | None = None,
    **options: Any,
) -> Iterator[CudaLanes]:
    """Lanes over the denoiser of a folder, one engine on each simulated device.

    devices: how many, or their numbers in the order of the engines; one may be there more than once.
    """
    profile = Profile.pictures(folder.spec, batch_size=batch_size)
    image = cudasim.kernel_image(kernels_library)
    with ExitStack() as stack:
        engines = []
        ordinals = range(devices) if isinstance(devices, int) else devices
        given = {ordinal: stack.enter_context(Device(ordinal)) for ordinal in dict.fromkeys(ordinals)}
        for ordinal in ordinals:
            device = given[ordinal]
            device.make_current()
            plan = stand_in_plan(folder, "denoiser", profile, **(odd or {}).get(ordinal, {}))
            session = TensorRTSession(plan, RTX, name="denoiser")
            stack.callback(session.close)
            engines.append(Engine(device, session))
        yield stack.enter_context(CudaLanes(engines, image=lambda device: image, **options))


def clean(simulator: cudasim.Simulator) -> None:
    """Nothing was found, and nothing is left."""
    assert simulator.races() == []
    assert simulator.violations() == []
    assert simulator.unknown_calls() == {}
    assert {kind: count for kind, count in simulator.live_objects().items() if count} == {}
