"""What `driffusion-trt build` was asked for: options that fit together, and what is there already."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .._errors import InputError, ModelError
from .._manifest import MANIFEST, Manifest, read_manifest
from ..engines.manifest import BUNDLED
from ..engines.plans import check_comparison
from ..export.plan import check_output
from ..export.record import RECORD
from ..models import MODELS, ModelSpec, get_spec
from ._console import Console
from ._targets import Target, profile_of, targets_of

__all__ = ["BYTES", "Job", "read_job"]

BYTES = {"fp32": 4, "fp16": 2, "bf16": 2}
_EXPORTING = ("precision", "lora_path", "skip")


@dataclass(frozen=True, slots=True)
class Job:
    """One call of the command.

    `checkpoint` is None where the folder's ONNX files are taken as they are. `damaged`: the folder has a
    manifest that cannot be read, and is to get another.
    """

    args: argparse.Namespace
    spec: ModelSpec
    output: Path
    checkpoint: str | None
    precision: str
    targets: list[Target]
    damaged: bool


def read_job(args: argparse.Namespace, console: Console) -> Job:
    """The call with everything checked that needs no checkpoint; raises InputError for misuse."""
    if args.jobs is not None and args.jobs < 1:
        raise InputError(f"--jobs {args.jobs} was asked; it must be at least 1")
    paths, weights = args.lora_path or [], args.lora_weight or []
    if weights and len(weights) != len(paths):
        raise InputError(f"{len(paths)} LoRAs were given with {len(weights)} weights; give one for each")
    level = args.optimization_level
    if level is not None and not 0 <= level <= 5:
        raise InputError(f"--optimization-level {level} was asked; it must be from 0 to 5")
    if args.output is None and args.model is None:
        raise InputError(f"give --model, one of {', '.join(MODELS)}, and --checkpoint")
    output = Path(args.output if args.output is not None else f"models/{args.model}")
    there = _manifest_of(output, args)
    if args.model is None and there is None:
        raise InputError(f"{output} is not a built model: give --model, one of {', '.join(MODELS)}")
    spec = get_spec(args.model if there is None or args.model is not None else there.family)
    profile_of(args, spec)
    checkpoint = args.checkpoint
    if checkpoint is None and there is not None:
        if there.family != spec.family:
            raise InputError(f"{output} is a {there.family}, not a {spec.family}; name another --output")
        for name in _EXPORTING:
            if getattr(args, name) not in (None, there.precision):
                raise InputError(f"--{name.replace('_', '-')} means a new export: give --checkpoint too")
    elif checkpoint is None and spec.family not in BUNDLED:
        checkpoint = spec.hub_id
        console.note(f"no --checkpoint was given: taking {checkpoint} from the hub")
    targets = targets_of(args, console)
    precision = _precision(args, there, targets, console)
    if precision == "bf16" and not targets:
        raise InputError(
            "bf16 is for GPUs: on a CPU, ONNX Runtime cannot multiply in it; choose --precision fp32 or fp16 "
            "for CPU lanes, or name GPUs with --target"
        )
    if not args.no_verify and any(target.gpu is not None for target in targets):
        check_comparison()  # its absence would show only after the plans are built
    check_output(output)  # before the lock, which lies in it
    damaged = there is None and (output / MANIFEST).exists()
    return Job(args, spec, output, checkpoint, precision, targets, damaged)


def _manifest_of(output: Path, args: argparse.Namespace) -> Manifest | None:
    """What is there, or None. One that is damaged is none where the folder can be made again."""
    if not (output / MANIFEST).exists():
        return None
    try:
        return read_manifest(output)
    except ModelError:
        # A folder without our record of what it was made from may be anything.
        source = args.checkpoint or args.model not in (None, *BUNDLED)
        if args.model is None or not source or not (output / RECORD).exists():
            raise
        return None


def _precision(
    args: argparse.Namespace, there: Manifest | None, targets: Sequence[Target], console: Console
) -> str:
    """The one that was asked for; or that of the folder, so that no plan is lost by another command."""
    if args.precision is not None:
        return str(args.precision)
    kept = None if there is None else there.precision.partition(",")[0]
    if kept in BYTES:
        if kept == "fp32" and targets:
            console.warn(
                f"{args.output} is in fp32, as CPU lanes like it; --precision fp16 suits GPUs better"
            )
        return kept
    if not targets:
        console.note("precision fp32, which suits CPU lanes; for GPUs choose --precision fp16", detail=True)
    return "fp16" if targets else "fp32"
