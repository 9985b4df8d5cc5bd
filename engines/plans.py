"""The plans that a model folder lacks, built side by side as far as memory allows."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .._child import Children
from .._errors import DriffusionError, MissingExtraError, ModelError
from ..models import ON_HOST
from .flavours import Flavour
from .gpus import Gpu
from .key import PlanKey, Platform, onnx_hash
from .manifest import ModelFolder
from .profiles import Profile
from .store import Plan, PlanStore

__all__ = [
    "Cost",
    "PlanRequest",
    "build_plans",
    "check_comparison",
    "current_hashes",
    "plan_cost",
    "plan_requests",
]

# From builds of SD2.1, SDXL and SD3 with TensorRT-RTX on two cores of an x86 server; plain TensorRT tries its
# kernels out on the GPU, which takes longer.
_SECONDS, _SECONDS_PER_GB = 3.0, {"tensorrt-rtx": 16.0, "tensorrt": 60.0}
_MEMORY_BYTES, _MEMORY_PER_BYTE = 600_000_000, 3.3
_DISK_BYTES, _DISK_PER_BYTE = 2_000_000, 1.02
_COMPARING = "comparing with ONNX Runtime"


@dataclass(frozen=True, slots=True)
class Cost:
    """What one build is expected to take: time, memory at its highest, and the plan on disk."""

    seconds: float
    memory_bytes: int
    disk_bytes: int


def plan_cost(network: str, onnx_bytes: int, flavour: str) -> Cost | None:
    """The cost of the plan of a network whose ONNX files are this large; None where none is built."""
    if network in ON_HOST:
        return None
    return Cost(
        _SECONDS + onnx_bytes / 1e9 * _SECONDS_PER_GB[flavour],
        _MEMORY_BYTES + int(_MEMORY_PER_BYTE * onnx_bytes),
        _DISK_BYTES + int(_DISK_PER_BYTE * onnx_bytes),
    )


@dataclass(frozen=True, slots=True)
class PlanRequest:
    """One plan to be had: its key, its network, its cost.

    `gpu` is the one of this machine that it is for, on which it is compared with ONNX
    Runtime if `verify`; plain TensorRT also builds on it. `built` is the plan itself where it
    is there and only the comparison is missing.
    """

    key: PlanKey
    onnx: Path
    sides: dict[str, list[int]]
    cost: Cost
    gpu: Gpu | None = None
    verify: bool = True
    built: Plan | None = None

    @property
    def name(self) -> str:
        """What messages call it."""
        platform = self.key.platform
        return f"{self.key.network} for {platform.gpu or ', '.join(platform.targets)}"


def plan_requests(
    folder: ModelFolder,
    profile: Profile,
    flavour: Flavour,
    version: str,
    *,
    targets: Sequence[str] = (),
    gpu: Gpu | None = None,
    optimization_level: int | None = None,
    verify: bool = True,
) -> list[PlanRequest]:
    """A plan for each network of a folder, largest first.

    Args:
        targets: architectures, for a flavour that compiles without the GPU.
        gpu: or the GPU of this machine that they are for.
        verify: compare them with ONNX Runtime, where `gpu` is given.
    """
    if gpu is not None:
        platform = Platform(flavour.name, version, (gpu.target,), "" if flavour.targets else gpu.name)
    else:
        platform = Platform(flavour.name, version, tuple(targets))
    manifest = folder.manifest
    # TensorRT's float32 is TF32 unless it is told otherwise, which is not what fp32 was asked for.
    options: dict[str, Any] = {
        "optimization_level": optimization_level,
        "tf32": not manifest.precision.startswith("fp32"),
    }
    requests = []
    for network in folder.networks:
        onnx_bytes = sum(entry.size_bytes for entry in folder.files_of(network).values())
        cost = plan_cost(network, onnx_bytes, flavour.name)
        if cost is None:
            continue
        sides = profile.sides(network, folder.spec)
        plain = {name: [r.min, r.opt, r.max] for name, r in sides.items()}
        key = PlanKey(network, onnx_hash(folder, network), manifest.precision, profile, platform, options)
        requests.append(PlanRequest(key, folder.network(network), plain, cost, gpu, verify))
    return sorted(requests, key=lambda request: -request.cost.memory_bytes)


def check_comparison() -> None:
    """Raise MissingExtraError where plans cannot be compared with ONNX Runtime, before any is built."""
    if importlib.util.find_spec("polygraphy") is None:
        raise MissingExtraError("polygraphy", "tensorrt", command="pip install polygraphy")


def current_hashes(folder: ModelFolder) -> dict[str, str]:
    """`onnx_hash` of every network of a folder."""
    return {network: onnx_hash(folder, network) for network in folder.networks}


def build_plans(
    store: PlanStore,
    requests: Sequence[PlanRequest],
    *,
    jobs: int = 1,
    memory_bytes: int | None = None,
    on_phase: Callable[[PlanRequest, str], None] = lambda request, phase: None,
    on_done: Callable[[PlanRequest, Plan], None] = lambda request, plan: None,
) -> list[Plan]:
    """Build these plans and take them into the store; who calls holds the folder's lock.

    Args:
        jobs: builds at the same time; fewer where `memory_bytes` would not hold them, and
            only one on a GPU whose kernels are being timed.
        on_phase: told a request and what TensorRT is at.
        on_done: told each plan as soon as it is in the store.

    Raises:
        EngineError: TensorRT refused a network or failed; a plan whose comparison could not be run is
            kept, and compared by the next build.
        ModelError: a plan differs from ONNX Runtime; it is not kept.
    """
    waiting = list(requests)
    running: dict[str, PlanRequest] = {}
    built = {request.name: dict(request.built.facts) for request in requests if request.built is not None}
    plans = []
    try:
        with Children() as children:
            while waiting or running:
                while (request := _next(waiting, list(running.values()), jobs, memory_bytes)) is not None:
                    waiting.remove(request)
                    running[request.name] = request
                    on_phase(request, "starting" if request.built is None else _COMPARING)
                    _start(children, store, request)
                event = children.wait()
                request = running[event.child]
                if event.error is not None:
                    _give_up(store, request, built.get(request.name), event.error)
                    raise event.error
                if not event.done:
                    if "phase" in event.report:
                        on_phase(request, event.report["phase"])
                elif request.gpu is not None and request.verify and request.name not in built:
                    built[request.name] = event.result
                    on_phase(request, _COMPARING)
                    _start_comparison(children, request, store.temporary(request.key), event.result["inputs"])
                else:
                    facts = built.pop(request.name, None)
                    facts = event.result if facts is None else {**facts, "parity": event.result}
                    plans.append(_keep(store, request, facts))
                    del running[request.name]
                    on_done(request, plans[-1])
    finally:  # also of those that were stopped because another failed
        for request in running.values():
            store.temporary(request.key).unlink(missing_ok=True)
    return plans


def _keep(store: PlanStore, request: PlanRequest, facts: dict[str, Any]) -> Plan:
    if request.built is None:
        return store.commit(request.key, facts)
    return store.record(request.key, facts, request.built.sha256)


def _give_up(
    store: PlanStore, request: PlanRequest, facts: dict[str, Any] | None, error: DriffusionError
) -> None:
    """What becomes of a plan whose build or comparison failed."""
    if facts is None:
        return  # it was not built
    if isinstance(error, ModelError):  # it computes something else
        if request.built is not None:
            store.remove(request.built)
        return
    if request.built is None:
        store.commit(request.key, facts)
    kept = f"{error}; the plan is kept, and the same command compares it once that is mended"
    error.args = (kept, *error.args[1:])


def _next(
    waiting: Sequence[PlanRequest], running: Sequence[PlanRequest], jobs: int, memory_bytes: int | None
) -> PlanRequest | None:
    """The first request that can start beside what is running; one always can where nothing is."""
    if not running:
        return waiting[0] if waiting else None
    if len(running) >= jobs:
        return None
    used = sum(request.cost.memory_bytes for request in running)
    timed = {request.gpu.index for request in running if request.gpu and request.key.platform.gpu}
    for request in waiting:
        fits = memory_bytes is None or used + request.cost.memory_bytes <= memory_bytes
        if fits and not (request.gpu and request.gpu.index in timed):
            return request
    return None


def _start(children: Children, store: PlanStore, request: PlanRequest) -> None:
    if request.built is None:
        _start_build(children, store, request)
    else:
        _start_comparison(children, request, request.built.path, request.built.facts["inputs"])


def _start_build(children: Children, store: PlanStore, request: PlanRequest) -> None:
    key = request.key
    timings = None
    if not key.platform.gpu:
        targets = key.platform.targets
    else:
        targets = ()
        timings = str(store.temporary(key).with_name(f"{key.network}.timings").absolute())
    arguments: Mapping[str, Any] = {
        "onnx": str(request.onnx.absolute()),
        "plan": str(store.temporary(key).absolute()),
        "flavour": key.platform.flavour,
        "targets": list(targets),
        "sides": request.sides,
        **key.options,
        "timing_cache": timings,
    }
    children.start(request.name, f"{__package__}.builder:build_plan", arguments, env=_environment(request))


def _start_comparison(
    children: Children, request: PlanRequest, plan: Path, inputs: Mapping[str, Any]
) -> None:
    arguments = {
        "network": request.key.network,
        "onnx": str(request.onnx.absolute()),
        "plan": str(plan.absolute()),
        "flavour": request.key.platform.flavour,
        "precision": request.key.precision,
        "sides": request.sides,
        "inputs": inputs,
    }
    children.start(request.name, f"{__package__}.compare:compare_plan", arguments, env=_environment(request))


def _environment(request: PlanRequest) -> dict[str, str]:
    """The child sees only the GPU that its plan is for; polygraphy has to know the flavour when it loads."""
    rtx = request.key.platform.flavour == "tensorrt-rtx"
    environment = {"POLYGRAPHY_USE_TENSORRT_RTX": "1" if rtx else "0"}
    if request.gpu is not None:
        visible = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
        index = request.gpu.index
        environment["CUDA_VISIBLE_DEVICES"] = visible[index] if index < len(visible) else str(index)
        # polygraphy looks for CUDA's runtime there, and does not know where the wheel for CUDA 13 has it.
        folders = [os.environ.get("LD_LIBRARY_PATH", ""), *_cuda_runtime_folders()]
        environment["LD_LIBRARY_PATH"] = os.pathsep.join(filter(None, folders))
    return environment


def _cuda_runtime_folders() -> list[str]:
    """Where the wheel of CUDA's runtime has its library; none where it is not installed."""
    try:
        files = importlib.metadata.files("nvidia-cuda-runtime") or []
    except importlib.metadata.PackageNotFoundError:
        return []
    found = [Path(str(f.locate())).parent for f in files if f.name.startswith("libcudart.so")]
    return list(dict.fromkeys(map(str, found)))
