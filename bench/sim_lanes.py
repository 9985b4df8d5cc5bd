"""Lanes on simulated devices, over networks of full size that hardly compute, for bench.sim_report."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

import driffusion_trt as dt
from driffusion_trt.engines.flavours import FLAVOURS
from driffusion_trt.engines.trt_session import TensorRTSession
from driffusion_trt.runtime._driver import Device
from driffusion_trt.runtime.cuda import CudaLanes, Engine
from driffusion_trt.runtime.gpu_beside import Beside
from driffusion_trt.runtime.gpu_network import GpuNetwork
from driffusion_trt.sampling.noise import noise_streams

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))
import cudasim  # type: ignore[import-not-found]  # noqa: E402
import gpulanes  # type: ignore[import-not-found]  # noqa: E402
import standin  # type: ignore[import-not-found]  # noqa: E402

__all__ = ["SD3", "SDXL", "SMALL", "Bench", "Model", "picture"]

_BETAS = {"num_train_timesteps": 1000, "beta_schedule": "scaled_linear", "timestep_spacing": "leading"}
_EULER = {"_class_name": "EulerDiscreteScheduler", "prediction_type": "epsilon", **_BETAS}
_FLOW = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 3.0}


@dataclass(frozen=True)
class Model:
    """What the lanes see of a model: its inputs' names and sizes, and its scheduler."""

    name: str
    latents: str
    shape: tuple[int, int, int]
    inputs: Mapping[str, tuple[int, ...]]
    scheduler: Mapping[str, Any]


SMALL = Model("small", "sample", (4, 8, 8), {"encoder_hidden_states": (4, 16)}, _EULER)
SDXL = Model(
    "SDXL 1024x1024",
    "sample",
    (4, 128, 128),
    {"encoder_hidden_states": (77, 2048), "text_embeds": (1280,), "time_ids": (6,)},
    _EULER,
)
SD3 = Model(
    "SD3 1024x1024",
    "hidden_states",
    (16, 128, 128),
    {"encoder_hidden_states": (333, 4096), "pooled_projections": (2048,)},
    _FLOW,
)


def make_network(model: Model, path: Path) -> dict[str, list[list[int]]]:
    """Write an ONNX file with the model's inputs, all of which are used; returns shapes of its profile."""
    sizes = {model.latents: model.shape, "timestep": (), **model.inputs}
    half = numpy_helper.from_array(np.array(0.5, np.float32), "half")
    nodes = [helper.make_node("Mul", [model.latents, "half"], ["sum0"])]
    constants, last = [half], "sum0"
    for k, (name, shape) in enumerate(list(sizes.items())[1:], 1):
        mean = name
        if shape:
            axes = numpy_helper.from_array(np.arange(1, len(shape) + 1), f"axes{k}")
            nodes.append(helper.make_node("ReduceMean", [name, axes.name], [f"mean{k}"], keepdims=0))
            constants.append(axes)
            mean = f"mean{k}"
        nodes += [
            helper.make_node("Tanh", [mean], [f"tanh{k}"]),
            helper.make_node("Unsqueeze", [f"tanh{k}", "sides"], [f"wide{k}"]),
            helper.make_node("Add", [last, f"wide{k}"], [f"sum{k}"]),
        ]
        last = f"sum{k}"
    nodes.append(helper.make_node("Identity", [last], ["out_sample"]))
    constants.append(numpy_helper.from_array(np.array([1, 2, 3]), "sides"))
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ("batch", *shape))
        for name, shape in {**sizes, "out_sample": model.shape}.items()
    ]
    graph = helper.make_graph(nodes, "denoiser", values[:-1], values[-1:], constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return {name: [[batch, *shape] for batch in (1, 2, 8)] for name, shape in sizes.items()}


class Bench:
    """Makes lanes on simulated devices, and keeps what was found wrong in all of them."""

    def __init__(self, folder: Path, library: Path | None = None) -> None:
        """library: the kernels' host build; made here where it is None."""
        self._folder = folder
        self._image = cudasim.kernel_image(library or gpulanes.build_kernels(ROOT, folder / "kernels"))
        self._plans: dict[str, bytes] = {}
        self.races: list[str] = []

    def _plan(self, model: Model) -> bytes:
        if model.name not in self._plans:
            path = self._folder / f"{model.latents}-{len(self._plans)}.onnx"
            # What lies between an engine's layers is the engine's, and not counted: as little as can be.
            self._plans[model.name] = standin.plan(str(path), make_network(model, path), scratch=256)
        return self._plans[model.name]

    @contextlib.contextmanager
    def machine(self, devices: int, **options: Any) -> Iterator[Any]:
        """A simulated machine; what was found on it is kept."""
        memory = [cudasim.Device(memory_bytes=8 << 30)] * devices
        with gpulanes.machine(memory, **options) as simulator:
            try:
                yield simulator
            finally:
                self.races += simulator.races() + simulator.violations()

    @contextlib.contextmanager
    def lanes(self, model: Model, devices: int, **options: Any) -> Iterator[CudaLanes]:
        """Lanes on the first devices of the machine."""
        with contextlib.ExitStack() as stack:
            engines = []
            for ordinal in range(devices):
                device = stack.enter_context(Device(ordinal))
                device.make_current()
                session = TensorRTSession(self._plan(model), FLAVOURS["tensorrt-rtx"], name=model.name)
                stack.callback(session.close)
                engines.append(Engine(device, session))
            given = {"latents": model.latents, "image": lambda device: self._image, **options}
            yield stack.enter_context(CudaLanes(engines, **given))

    @contextlib.contextmanager
    def beside(self, model: Model, lanes: CudaLanes) -> Iterator[Beside]:
        """A network beside the lanes for text encoders and the VAE, with the inputs of the denoiser."""

        def load(device: Device) -> GpuNetwork:
            device.make_current(again=True)
            session = TensorRTSession(self._plan(model), FLAVOURS["tensorrt-rtx"], name=model.name)
            return GpuNetwork(device, session)

        with Beside(model.name, [(device, partial(load, device)) for device in lanes.leads]) as made:
            made.make_room = lanes.make_room
            made.load()
            yield made


def picture(
    model: Model, lanes: CudaLanes, rounds: int, mode: str = "aggressive", devices: int | None = None
) -> Callable[[], object]:
    """A picture with guidance, in so many rounds that all but the first one keep every lane busy.

    devices: that it has, one a lane; None for all.
    """
    width = len(lanes) if devices is None else devices
    steps = 1 + width * (rounds - 1)
    plan = dt.make_plan(dt.Schedule.from_config(dict(model.scheduler), steps), mode=mode, lanes=width)
    random = np.random.default_rng(0)
    given, other = (
        {name: random.standard_normal((1, *shape)).astype(np.float32) for name, shape in model.inputs.items()}
        for _ in range(2)
    )
    job = lanes.job(given, 5.0, other, devices=devices)
    noise = random.standard_normal((1, *model.shape)).astype(np.float32)
    return lambda: job.sample(plan, noise, noise_streams(0, 1))
