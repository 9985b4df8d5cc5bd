"""How `driffusion-trt doctor` shows what it has found: to people, and to programs."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from ..engines.flavours import FLAVOURS
from ..runtime.peers import PeerLink, can_use
from ._building_output import size
from ._doctor_gpus import GpuState, packaged_kernels
from ._doctor_machine import Findings, Host, Machine
from ._doctor_model import Expected, ModelState

__all__ = ["as_json", "as_text"]

_LABEL = 11
_TRY = 'driffusion-trt run "a red circle above a blue square"'


def as_json(
    machine: Machine, model: ModelState | None, gains: Expected | None, findings: Findings
) -> dict[str, Any]:
    """One object; a key is always there, None or empty where nothing was found."""
    return {
        "version": machine.version,
        "host": asdict(machine.host),
        "disk": asdict(machine.disk),
        "packages": machine.packages,
        "driver": {
            "version": machine.driver,
            "cuda": None if machine.cuda is None else "{}.{}".format(*machine.cuda),
            "why_no_gpu": machine.why_no_gpu or None,
        },
        "gpus": [
            {
                "index": state.gpu.index,
                "name": state.gpu.name,
                "target": state.gpu.target,
                "memory_bytes": state.gpu.memory_bytes,
                "free_bytes": state.free_bytes,
                "pci_bus_id": state.pci_bus_id,
                "kernels": state.kernels,
                "usable": state.usable,
            }
            for state in machine.gpus
        ],
        "peers": [{**asdict(link), "usable": can_use(link)} for link in machine.peers],
        "model": None
        if model is None
        else {
            "folder": str(model.folder.path),
            "family": model.folder.manifest.family,
            "precision": model.folder.manifest.precision,
            "weights_bytes": model.weights_bytes,
            "plans": model.plans,
            "fits": [asdict(fit) for fit in model.fits],
            "build": model.build,
        },
        "expected": None if gains is None else asdict(gains),
        "notes": findings.notes,
        "problems": findings.problems,
        "ok": not findings.problems,
    }


def as_text(machine: Machine, model: ModelState | None, gains: Expected | None, findings: Findings) -> str:
    """The report: what is there, what more lanes would bring, then notes, and problems last."""
    width = min(max(shutil.get_terminal_size().columns, 60), 100)
    parts = [
        f"driffusion-trt {machine.version}, Python {machine.host.python}, {machine.host.system}",
        "",
        *_blocks(_machine_rows(machine), width),
        *([] if not machine.peers else ["", *_matrix(machine.peers, width)]),
        *([] if model is None else ["", *_blocks(_model_rows(model, machine), width)]),
        *([] if gains is None else ["", *_table(gains, width)]),
        "",
        *(line for text in findings.notes for line in _paragraph(f"note: {text}", width)),
        *([""] if findings.notes and findings.problems else []),
        *(line for text in findings.problems for line in _paragraph(f"problem: {text}", width)),
    ]
    if not findings.problems:
        parts += [""] if findings.notes else []
        parts += _paragraph(f"no problems were found; for a picture: {_TRY}", width)
    return "\n".join(parts)


def _paragraph(text: str, width: int, hanging: int = 2) -> list[str]:
    return textwrap.wrap(
        text, width, subsequent_indent=" " * hanging, break_long_words=False, break_on_hyphens=False
    )


def _blocks(rows: Iterator[tuple[str, str]], width: int) -> list[str]:
    return [line for label, text in rows for line in _paragraph(f"{label:<{_LABEL}}{text}", width, _LABEL)]


def _machine_rows(machine: Machine) -> Iterator[tuple[str, str]]:
    yield from _host_rows(machine.host)
    room = "unknown" if machine.disk.free_bytes is None else f"{size(machine.disk.free_bytes)} free"
    yield "disk", f"{room} for {machine.disk.path} (SD2.1 with its plans takes 5 GB, SDXL 14 GB)"
    titles = {name: flavour.title for name, flavour in FLAVOURS.items()}
    named = [(titles.get(name, name), version) for name, version in machine.packages.items()]
    there = ", ".join(f"{name} {version}" for name, version in named if version)
    absent = ", ".join(name for name, version in named if not version)
    yield "packages", "; ".join(filter(None, [there, absent and f"not installed: {absent}"]))
    cuda = "" if machine.cuda is None else "supports CUDA {}.{}".format(*machine.cuda)
    told = ", ".join(filter(None, [machine.driver, cuda]))
    yield "driver", told or "none was found"
    if not machine.gpus:
        yield "GPUs", f"none ({machine.why_no_gpu}); pictures are made on CPU lanes"
        nvrtc = machine.packages["nvidia-cuda-nvrtc"]
        ready = "of the package" if packaged_kernels() else nvrtc and "compiled by NVRTC at first use"
        yield "kernels", ready or "none in the package, and no NVRTC to compile them; only GPUs need them"
    for state in machine.gpus:
        yield f"GPU {state.gpu.index}", _gpu(state)


def _host_rows(host: Host) -> Iterator[tuple[str, str]]:
    memory = [] if host.memory_bytes is None else [f"{size(host.memory_bytes)} of memory"]
    if host.free_memory_bytes is not None:
        memory.append(f"{size(host.free_memory_bytes)} free")
    yield "host", ", ".join([f"{host.cores or 'unknown'} cores", *memory])
    if host.onnxruntime is None:
        yield "CPU lanes", "none: ONNX Runtime does not load"
    else:
        yield "CPU lanes", f"{host.cpu_lanes}, with ONNX Runtime {host.onnxruntime}"


def _gpu(state: GpuState) -> str:
    free = "" if state.free_bytes is None else f" ({size(state.free_bytes)} free)"
    parts = [str(state.gpu), f"{size(state.gpu.memory_bytes)}{free}"]
    parts += [state.pci_bus_id] if state.pci_bus_id else []
    parts += [f"kernels {state.kernels}"] if state.kernels else []
    return ", ".join([*parts, *([] if state.usable else ["not usable, see below"])])


def _matrix(links: Sequence[PeerLink], width: int) -> list[str]:
    """Rows are sources; a cell has GB/s and microseconds."""
    numbers = sorted({link.source for link in links})
    cells = {(link.source, link.target): _cell(link) for link in links}
    legend = (
        "Copies between GPUs, tried with patterns: GB/s, and microseconds of a small one, from the GPU of "
        "the row to that of the column"
    )
    if any(link.verified and not link.access for link in links):
        legend += "; *: through the host, since there is no direct access"
    if not all(link.verified for link in links):
        legend += "; BAD: see the problems below"
    lines = _paragraph(legend, width, 0)
    lines.append("from    " + "".join(f"{f'GPU {number}':>9}" for number in numbers))
    for source in numbers:
        row = "".join(f"{cells.get((source, target), '-'):>9}" for target in numbers)
        lines.append(f"{f'GPU {source}':<8}{row}")
    return lines


def _cell(link: PeerLink) -> str:
    if not link.verified:
        return "BAD"
    star = "" if link.access else "*"
    if link.bandwidth_gb_s is None or link.latency_us is None:
        return f"ok{star}"
    return f"{_short(link.bandwidth_gb_s)}/{_short(link.latency_us)}{star}"


def _short(value: float) -> str:
    return f"{value:.1f}" if value < 10 else f"{value:.0f}"


def _model_rows(model: ModelState, machine: Machine) -> Iterator[tuple[str, str]]:
    manifest = model.folder.manifest
    yield "model", f"{manifest.family}, {manifest.precision}, in {model.folder.path}"
    if not machine.gpus:
        count = f"{model.plans} plans, for GPUs that are not here" if model.plans else "none"
        yield "plans", f"{count}; CPU lanes need none"
    for gpu in dict.fromkeys(fit.gpu for fit in model.fits):
        reasons: dict[str, list[str]] = {}
        for fit in model.fits:
            if fit.gpu == gpu:
                reasons.setdefault(fit.why_not, []).append(fit.network)
        told = (
            f"none of {', '.join(networks)}: {why}" if why else ", ".join(networks)
            for why, networks in reasons.items()
        )
        yield "plans", f"for {gpu}: {'; '.join(told)}"


def _table(gains: Expected, width: int) -> list[str]:
    lanes = sorted({gain.lanes for gain in gains.gains})
    by_place = {(gain.mode, gain.lanes): gain for gain in gains.gains}
    here = (
        f"{gains.gpus} GPUs" if gains.gpus > 1 else "1 GPU" if gains.gpus else f"{gains.cpu_lanes} CPU lanes"
    )
    lines = _paragraph(
        f"Rounds and ideal speed-up, as if only network calls took time, for {gains.steps} steps of "
        f"{gains.scheduler}; of tolerance the fewest, since a picture takes as many as it needs. Calculated, "
        f"not measured; this machine has {here}.",
        width,
        0,
    )
    lines.append(
        "mode         " + "".join(f"{f'{count} lanes' if count > 1 else '1 lane':>13}" for count in lanes)
    )
    for mode in dict.fromkeys(gain.mode for gain in gains.gains):
        row = (by_place.get((mode, count)) for count in lanes)
        cells = (f"{gain.rounds:>6}{gain.ideal_speedup:>6.2f}x" if gain else f"{'-':>13}" for gain in row)
        lines.append(f"{mode:<13}" + "".join(cells))
    return [*lines, *_fewer(gains, width)]


def _fewer(gains: Expected, width: int) -> list[str]:
    """When fewer lanes are faster, as far as that can be told."""
    if not gains.gpus:
        text = (
            f"More CPU lanes than {gains.cpu_lanes} share its cores and are no faster. Messages between CPU "
            "lanes take no time worth naming."
        )
        return _paragraph(text, width, 0)
    if not gains.exchanges:
        why = "there is one GPU" if gains.gpus == 1 else "copies were not measured"
        return _paragraph(f"What messages between lanes cost is not known here: {why}.", width, 0)
    lines = []
    for item in gains.exchanges:
        when = "never faster than fewer lanes"
        if item.faster_above_ms is not None:
            when = f"faster than fewer where a network call takes over {_time(item.faster_above_ms)}"
        lines.append(f"{item.lanes} lanes: messages {_time(item.round_ms)} a round, {when}")
    text = "How long a network call takes is not known here; `driffusion-trt run` prints it."
    return [line for entry in [*lines, text] for line in _paragraph(entry, width, 2)]


def _time(ms: float) -> str:
    return f"{ms:.1f} ms" if ms >= 1 else f"{1000 * ms:.0f} us"
