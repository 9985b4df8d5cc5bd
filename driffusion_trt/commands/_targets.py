"""What `driffusion-trt build` builds plans for: GPUs of this machine, architectures, or nothing."""

from __future__ import annotations

import argparse
from dataclasses import dataclass

from .._errors import InputError
from ..engines.flavours import (
    FLAVOURS,
    Flavour,
    check_target,
    check_version,
    choose_flavour,
    get_flavour,
    installed_version,
    load_tensorrt,
    parse_targets,
)
from ..engines.gpus import Gpu, Gpus, find_gpus
from ..engines.profiles import Profile, parse_shapes
from ..models import ModelSpec
from ._console import Console

__all__ = ["Target", "profile_of", "targets_of"]

_EXAMPLE = "--target sm89,sm120"


@dataclass(frozen=True, slots=True)
class Target:
    """One set of plans: with which TensorRT, for which architectures or which GPU of this machine."""

    flavour: Flavour
    version: str
    architectures: tuple[str, ...]
    gpu: Gpu | None = None

    def __str__(self) -> str:
        where = str(self.gpu) if self.gpu is not None else ", ".join(self.architectures)
        return f"{where} with {self.flavour.title} {self.version}"


def targets_of(args: argparse.Namespace, console: Console) -> list[Target]:
    """The sets of plans that were asked for; none where the build stops at ONNX.

    Raises:
        InputError: a target or flavour that cannot be had here.
        MissingExtraError: its TensorRT is not installed, or too old.
    """
    flavour = None if args.flavour is None else get_flavour(args.flavour)
    if args.target == "cpu":
        if flavour is not None:
            raise InputError(f"--flavour {flavour.name} builds plans, and --target cpu none; leave one out")
        return []
    gpus = find_gpus()
    if args.target in (None, "this"):
        if gpus.found:
            return [_here(gpu, flavour, gpus) for gpu in gpus.kinds]
        if args.target == "this":
            raise InputError(
                f"--target this was asked, and no GPU was found ({gpus.why_none}); for plans without a GPU "
                f"name architectures, such as {_EXAMPLE}, or stop at ONNX with --target cpu"
            )
        console.note(
            f"no GPU was found ({gpus.why_none}): stopping at ONNX, which CPU lanes run; "
            f"for plans name architectures, such as {_EXAMPLE}"
        )
        return []
    words = [word.strip() for word in args.target.split(",")]
    if {"this", "cpu"} & set(words):
        raise InputError(f"--target {args.target}: 'this' and 'cpu' stand alone; run two builds for both")
    chosen = flavour or FLAVOURS["tensorrt-rtx"]
    architectures = parse_targets(words, chosen)
    return [Target(chosen, _version(chosen, gpus), architectures)]


def _here(gpu: Gpu, flavour: Flavour | None, gpus: Gpus) -> Target:
    chosen = flavour or choose_flavour(gpu)
    check_target(chosen, gpu)
    return Target(chosen, _version(chosen, gpus), (gpu.target,), gpu)


def _version(flavour: Flavour, gpus: Gpus) -> str:
    version = installed_version(flavour)
    if version is None:  # not from a wheel, or not there: loading it tells
        version = str(load_tensorrt(flavour, gpus.cuda).__version__)
    check_version(flavour, version, gpus.cuda)
    return version


def profile_of(args: argparse.Namespace, spec: ModelSpec, picture: tuple[int, int] | None = None) -> Profile:
    """The sizes that were asked for; by default `picture`, the height and width of the checkpoint's own.

    Raises InputError for sizes that the model cannot have, or that were given twice.
    """
    given = [getattr(args, f"{which}_shapes") for which in ("min", "opt", "max")]
    if not any(given):
        height, width = picture or (spec.height, spec.width)
        return Profile.pictures(
            spec,
            height=height if args.height is None else args.height,
            width=width if args.width is None else args.width,
            batch_size=1 if args.batch_size is None else args.batch_size,
            dynamic=args.build_dynamic_shape,
            static_batch=args.build_static_batch,
        )
    for name in ("height", "width", "batch_size", "build_dynamic_shape", "build_static_batch"):
        if getattr(args, name) not in (None, False):
            raise InputError(f"--{name.replace('_', '-')} and --opt-shapes both give sizes; leave one out")
    least, best, greatest = (None if text is None else parse_shapes(text) for text in given)
    best = best or greatest or least
    assert best is not None
    return Profile.of_shapes(spec, least or best, best, greatest or best)
