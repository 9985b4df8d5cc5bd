"""The two flavours of TensorRT behind one interface: which is there, which suits a GPU, how to get it.

`tensorrt` compiles on the GPU that will run the plan, for that kind of GPU only. `tensorrt-rtx`
compiles for a list of architectures on any machine, also one without a GPU, and finishes the
kernels when the plan is loaded.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .._errors import InputError, MissingExtraError, did_you_mean
from .gpus import Gpu

__all__ = [
    "FLAVOURS",
    "Flavour",
    "check_precision",
    "check_version",
    "choose_flavour",
    "get_flavour",
    "installed_version",
    "load_tensorrt",
    "parse_targets",
]


@dataclass(frozen=True, slots=True)
class Flavour:
    """One flavour: how it is called here, by Python and by pip.

    `targets` are the architectures it compiles for without having the GPU; none means that
    it needs the GPU itself. `least` is the oldest version that it is called as here; `lacks` are
    the precisions that it has no matrix products of, by architecture.
    """

    name: str
    title: str
    module: str
    targets: tuple[str, ...]
    least: tuple[int, int]
    lacks: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def extra(self) -> str:
        """The extra of this package that brings it."""
        return self.name


FLAVOURS: Mapping[str, Flavour] = {
    flavour.name: flavour
    for flavour in (
        Flavour("tensorrt", "TensorRT", "tensorrt", (), (11, 0), {"sm75": ("bf16",)}),
        Flavour(
            "tensorrt-rtx",
            "TensorRT-RTX",
            "tensorrt_rtx",
            ("sm75", "sm80", "sm86", "sm89", "sm120", "sm121"),
            (1, 7),
            {"sm75": ("fp32", "bf16")},
        ),
    )
}


def get_flavour(name: str) -> Flavour:
    """The flavour called `name`, with hyphen or underscore.

    Raises:
        InputError: there is none of that name.
    """
    found = FLAVOURS.get(name.replace("_", "-"))
    if found is None:
        raise InputError(f"unknown flavour {name!r}{did_you_mean(name, FLAVOURS)}")
    return found


def installed_version(flavour: Flavour) -> str | None:
    """The version that is installed, or None; without loading its libraries.

    The wheels are named after their CUDA version, so several names may carry the module.
    """
    for cuda in ("13", "12"):
        for form in (f"{flavour.module}_cu{cuda}_bindings", f"{flavour.module}_cu{cuda}"):
            try:
                return importlib.metadata.version(form)
            except importlib.metadata.PackageNotFoundError:
                continue
    try:
        return importlib.metadata.version(flavour.module)
    except importlib.metadata.PackageNotFoundError:
        return None


def load_tensorrt(flavour: Flavour, cuda: tuple[int, int] | None = None) -> Any:
    """The Python module of a flavour.

    Args:
        cuda: the highest CUDA version that this machine's driver runs, for the advice.

    Raises:
        MissingExtraError: it is not installed; the message has the pip command for this machine.
    """
    try:
        return importlib.import_module(flavour.module)
    except ImportError as error:
        raise missing(flavour, cuda) from error


def missing(
    flavour: Flavour, cuda: tuple[int, int] | None = None, found: str | None = None
) -> MissingExtraError:
    """The error for a flavour that is not there, or too old; drivers before CUDA 13 need other wheels."""
    least = "{}.{}".format(*flavour.least)
    command = None
    if cuda is not None and cuda < (13, 0):
        command = (
            f"pip install '{flavour.name}-cu12>={least}' 'cuda-bindings<13' nvidia-cuda-nvrtc-cu12 "
            "nvidia-cuda-runtime-cu12 onnx-ir polygraphy"
        )
    title = flavour.title if found is None else f"{flavour.title} {least} or newer"
    return MissingExtraError(title, flavour.extra, command=command, found=found)


def check_version(flavour: Flavour, version: str, cuda: tuple[int, int] | None = None) -> None:
    """Raise MissingExtraError where `version` is older than what is called here; `cuda` as in `load_tensorrt`."""
    if not _new_enough(flavour, version):
        raise missing(flavour, cuda, version)


def _new_enough(flavour: Flavour, version: str | None) -> bool:
    match = re.match(r"(\d+)\.(\d+)", version or "")
    return match is not None and (int(match[1]), int(match[2])) >= flavour.least


def choose_flavour(gpu: Gpu) -> Flavour:
    """The flavour for a GPU of this machine: an installed one that supports it, `tensorrt` first."""
    plain, rtx = FLAVOURS["tensorrt"], FLAVOURS["tensorrt-rtx"]
    there = {flavour.name: _new_enough(flavour, installed_version(flavour)) for flavour in (plain, rtx)}
    if not there[plain.name] and there[rtx.name] and gpu.target in rtx.targets:
        return rtx
    return plain


def check_precision(flavour: Flavour, targets: Sequence[str], precisions: Mapping[str, str]) -> None:
    """Raise InputError where a network's precision is one that a target has no kernels for.

    Args:
        targets: architectures.
        precisions: "fp32", "fp16" or "bf16" by network.
    """
    for target in targets:
        for precision in flavour.lacks.get(target, ()):
            networks = [name for name, own in precisions.items() if own == precision]
            if networks:
                raise InputError(_no_precision(flavour, target, precision, networks, set(precisions.values())))


def _no_precision(
    flavour: Flavour, target: str, precision: str, networks: Sequence[str], all_precisions: set[str]
) -> str:
    remedies = [f"build for other GPUs than {target}"]
    if len(all_precisions) == 1:
        remedies.append("take --precision fp16")
    plain = FLAVOURS["tensorrt"]
    if flavour.targets and precision not in plain.lacks.get(target, ()):
        remedies.append(f"build on such a GPU with --flavour {plain.name} --target this")
    return (
        f"{flavour.title} has no matrix products in {precision} for {target}, and {precision} is the precision "
        f"of {', '.join(networks)}; {', or '.join(remedies)}"
    )


def check_target(flavour: Flavour, gpu: Gpu) -> None:
    """Raise InputError where the flavour has nothing for this GPU."""
    if flavour.targets and gpu.target not in flavour.targets:
        raise InputError(
            f"{flavour.title} does not support {gpu}; it has {', '.join(flavour.targets)}. "
            "Use --flavour tensorrt for this GPU"
        )


_TARGET = re.compile(r"(?:sm_?)?(\d+)\.?(\d)")


def parse_targets(text: str | Sequence[str], flavour: Flavour) -> tuple[str, ...]:
    """Target architectures: "sm89,sm120", also spelt "8.9" or "sm_89"; sorted, each once.

    Raises:
        InputError: the flavour cannot compile for one of them, or for any without its GPU.
    """
    words = text.split(",") if isinstance(text, str) else list(text)
    if not flavour.targets:
        raise InputError(
            f"{flavour.title} compiles only for the GPU that it runs on: use --target this on a machine "
            f"that has it, or --flavour tensorrt-rtx for {','.join(words)}"
        )
    targets = set()
    for word in words:
        match = _TARGET.fullmatch(word.strip().lower())
        name = "sm{}{}".format(*match.groups()) if match else word.strip()
        if name not in flavour.targets:
            raise InputError(_no_target(name, match is not None, flavour))
        targets.add(name)
    return tuple(sorted(targets, key=lambda name: int(name[2:])))


def _no_target(name: str, known_form: bool, flavour: Flavour) -> str:
    if known_form:
        return (
            f"{flavour.title} has no target {name}; it has {', '.join(flavour.targets)}. "
            "For other GPUs (H100 is sm90, B200 sm100) build on the machine that has them, "
            "with --flavour tensorrt --target this"
        )
    known = (*flavour.targets, "cpu", "this")
    return f"{name!r} is not a target{did_you_mean(name, known)}"
