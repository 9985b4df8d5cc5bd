"""What `driffusion-trt doctor` says of one model: which plans run here, and what more lanes would bring."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from .._errors import DriffusionError, InputError
from ..engines.flavours import FLAVOURS, choose_flavour
from ..engines.gpus import Gpu
from ..engines.key import onnx_hash
from ..engines.manifest import BUNDLED, ModelFolder
from ..engines.plans import plan_cost
from ..engines.store import Plan, PlanStore
from ..runtime.kernels import message_bytes
from ..runtime.peers import PeerLink
from ..sampling.plan import BASELINES, MODES, make_plan
from ..sampling.schedule import Schedule
from ._building_output import size
from ._doctor_machine import Findings, Machine

__all__ = ["Exchange", "Expected", "Fit", "Gain", "ModelState", "examine_model", "expected"]

_LANES = (1, 2, 4, 8)


@dataclass(frozen=True, slots=True)
class Fit:
    """A network on one kind of GPU: the plan that runs there, or why none does."""

    gpu: str
    network: str
    plan: str | None
    why_not: str


@dataclass(frozen=True, slots=True)
class ModelState:
    """plans: how many there are, for whatever GPU. build: the command that makes those for this machine."""

    folder: ModelFolder
    plans: int
    weights_bytes: int
    fits: tuple[Fit, ...]
    build: str


@dataclass(frozen=True, slots=True)
class Gain:
    """What a mode does with so many lanes, if nothing but the network took time."""

    mode: str
    lanes: int
    rounds: int
    ideal_speedup: float


@dataclass(frozen=True, slots=True)
class Exchange:
    """Messages of one round as the copies were measured, one after another.

    faster_above_ms: a network call has to take at least so long for these lanes to be faster than
        any fewer, in mode aggressive; None where they never are.
    """

    lanes: int
    round_ms: float
    faster_above_ms: float | None


@dataclass(frozen=True, slots=True)
class Expected:
    """gpus: those that can be used here. exchanges: for the lanes whose copies were measured."""

    scheduler: str
    steps: int
    gpus: int
    cpu_lanes: int
    gains: tuple[Gain, ...]
    exchanges: tuple[Exchange, ...]


def examine_model(name: str, machine: Machine, findings: Findings) -> ModelState | None:
    """The model's plans on the GPUs that are here; None where it cannot be opened."""
    try:
        folder = ModelFolder.open(name)
        plans = list(PlanStore(folder.path).plans())
        networks = [n for n in folder.networks if plan_cost(n, 0, "tensorrt") is not None]
        files = [entry for network in networks for entry in folder.files_of(network).values()]
    except DriffusionError as error:
        findings.problem(str(error))
        return None
    # Plans of a bundled model go to a copy, not into the installed package.
    source = f"--model {name}" if name in BUNDLED else f"--output {folder.path}"
    kinds = {str(state.gpu): state.gpu for state in machine.gpus}
    state = ModelState(
        folder,
        len(plans),
        sum(file.size_bytes for file in files),
        tuple(_fit(gpu, net, folder, plans, machine) for gpu in kinds.values() for net in networks),
        f"driffusion-trt build {source} --target this",
    )
    for title, gpu in kinds.items():
        lacking = [fit.network for fit in state.fits if fit.gpu == title and fit.plan is None]
        # Without TensorRT that is what to get first, and it was said.
        if lacking and machine.packages[choose_flavour(gpu).name] is not None:
            findings.note(f"no plan of {', '.join(lacking)} of {name} runs on {gpu}; run: {state.build}")
    denoiser_bytes = sum(file.size_bytes for file in folder.files_of("denoiser").values())
    _weigh(name, state, denoiser_bytes, machine, findings)
    return state


def _fit(gpu: Gpu, network: str, folder: ModelFolder, plans: Sequence[Plan], machine: Machine) -> Fit:
    flavour = choose_flavour(gpu).name
    version = machine.packages[flavour]
    if version is None:
        return Fit(str(gpu), network, None, f"{FLAVOURS[flavour].title} is not installed")
    reasons = []
    for plan in plans:
        if plan.key is None or plan.key.network != network:
            continue
        reason = plan.problem or plan.key.platform.why_not(flavour, version, gpu)
        if not reason and plan.key.onnx_sha256 != onnx_hash(folder, network):
            reason = "it was built from another ONNX file than the folder has now"
        if not reason:
            return Fit(str(gpu), network, plan.path.relative_to(folder.path).as_posix(), "")
        reasons.append(f"{plan.path.name}: {reason}")
    return Fit(str(gpu), network, None, "; ".join(reasons) or "there is no plan of it")


def _weigh(name: str, model: ModelState, denoiser_bytes: int, machine: Machine, findings: Findings) -> None:
    """Whether each GPU has room for all networks: in serve any may lead, and leads encode and decode."""
    for state in machine.gpus:
        free = state.gpu.memory_bytes if state.free_bytes is None else state.free_bytes
        if model.weights_bytes <= free:
            continue
        remedy = "or leave it out with CUDA_VISIBLE_DEVICES"
        first = machine.gpus[0]
        if state is not first and denoiser_bytes <= free:
            remedy = f"or GPU {first.gpu.index} encodes and decodes what serve has it lead"
        findings.note(
            f"the networks of {name} take {size(model.weights_bytes)}, and GPU {state.gpu.index} has "
            f"{size(free)} of memory free; free some, {remedy}"
        )


def expected(model: ModelState, machine: Machine, findings: Findings) -> Expected | None:
    """What lanes would bring, for the model's own scheduler and steps; None where it has none that works."""
    try:
        schedule = Schedule.from_config(model.folder.scheduler_config(), model.folder.spec.steps)
    except DriffusionError as error:
        findings.problem(str(error))
        return None
    here = [state.gpu.index for state in machine.gpus if state.usable]
    most = len(here) or machine.host.cpu_lanes
    lanes = sorted({*_LANES, most})
    shown = [mode for mode in MODES if mode not in BASELINES]
    gains = [_gain(schedule, mode, count) for mode in shown for count in lanes]
    elements = math.prod(model.folder.spec.latent_shape)
    exchanges = _exchanges(here, machine.peers, elements, gains)
    return Expected(
        schedule.solver,
        schedule.steps,
        len(here),
        machine.host.cpu_lanes,
        tuple(gain for gain in gains if gain is not None),
        exchanges,
    )


def _gain(schedule: Schedule, mode: str, lanes: int) -> Gain | None:
    try:
        plan = make_plan(schedule, mode=mode, lanes=lanes)
    except InputError:  # this scheduler cannot be run so
        return None
    return Gain(mode, lanes, plan.sequential_calls, plan.ideal_speedup)


def _exchanges(
    gpus: Sequence[int], links: Sequence[PeerLink], elements: int, gains: Sequence[Gain | None]
) -> tuple[Exchange, ...]:
    """For each number of lanes up to the first GPU whose copies have no figures; one picture, no batches."""
    by_pair = {(link.source, link.target): link for link in links}
    rounds = {gain.lanes: gain.rounds for gain in gains if gain is not None and gain.mode == "aggressive"}
    there, back = message_bytes(1, 1, elements), 4 * elements
    taken, found = [0.0], []  # by the number of other devices
    for gpu in gpus[1:]:
        ways = [_way_ms(by_pair.get((gpus[0], gpu)), there), _way_ms(by_pair.get((gpu, gpus[0])), back)]
        if None in ways:
            break
        taken.append(taken[-1] + sum(way for way in ways if way is not None))
    known = {lanes: taken[lanes - 1] for lanes in rounds if lanes <= len(taken)}
    for lanes in sorted(known)[1:]:
        fewer = [_even_ms(rounds, known, lanes, less) for less in known if less < lanes]
        most = max(fewer)
        found.append(Exchange(lanes, known[lanes], None if math.isinf(most) else most))
    return tuple(found)


def _way_ms(link: PeerLink | None, size_bytes: int) -> float | None:
    if link is None or link.latency_us is None or link.bandwidth_gb_s is None:
        return None
    return link.latency_us / 1e3 + size_bytes / link.bandwidth_gb_s / 1e6


def _even_ms(rounds: dict[int, int], round_ms: dict[int, float], more: int, fewer: int) -> float:
    """The network call t at which rounds·(t + exchange) is the same for both numbers of lanes."""
    saved = rounds[fewer] - rounds[more]
    if saved <= 0:
        return math.inf
    return max(0.0, (rounds[more] * round_ms[more] - rounds[fewer] * round_ms[fewer]) / saved)
