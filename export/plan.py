"""What an export will do, decided from names, sizes and times of files alone; nothing heavy is loaded."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from .._errors import InputError, MissingExtraError, did_you_mean
from .._manifest import MANIFEST
from ..models import ModelSpec, get_spec
from .checkpoint import Checkpoint, read_checkpoint
from .estimate import Estimate, estimate_export
from .hub import find_checkpoint
from .lora_files import Lora, check_loras, touching
from .parts import parts_of
from .record import RECORD, Record, stamps

__all__ = ["PRECISIONS", "Export", "check_output", "plan_export"]

PRECISIONS = ("fp16", "bf16", "fp32")

_PACKAGES = ("torch", "diffusers", "transformers", "onnx", "onnxscript", "onnxruntime")
# onnxruntime is not among them: it only checks.
_MAKERS = ("torch", "diffusers", "transformers", "onnx", "onnxscript")


@dataclass(frozen=True, slots=True)
class Export:
    """One export, ready to run.

    `sources` says for every network, tokenizer and the scheduler what it is made from; `make` names
    those that are missing or made from something else; `check` the networks to be compared with torch.
    `finished`: nothing is left to do.
    """

    checkpoint: Checkpoint
    output: Path
    precision: str
    loras: tuple[Lora, ...]
    allow_pickle: bool
    skip: tuple[str, ...]
    versions: Mapping[str, str]
    sources: Mapping[str, dict[str, Any]]
    make: tuple[str, ...]
    check: tuple[str, ...]
    finished: bool
    estimate: Estimate

    @property
    def networks(self) -> tuple[str, ...]:
        """Every ONNX file that the folder will have, without its suffix."""
        parts = (component.part for component in self.checkpoint.components.values())
        return tuple(name for part in parts for name in part.networks)

    def precision_of(self, network: str) -> str:
        """What a network is multiplied in: an autoencoder that overflows in fp16 is left in fp32."""
        for component in self.checkpoint.components.values():
            if network in component.part.networks:
                return self.checkpoint.precision_of(component, self.precision)
        return self.precision

    def parameters(self, network: str) -> int:
        """About how many numbers a network's weights are."""
        for component in self.checkpoint.components.values():
            if network in component.part.networks:
                return component.parameters // len(component.part.networks)
        return 0


def plan_export(
    family: str,
    checkpoint: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    precision: str = "fp16",
    verify: bool = True,
    lora: Sequence[tuple[str | os.PathLike[str], float]] = (),
    allow_pickle: bool = False,
    skip: Collection[str] = (),
) -> Export:
    """Read the checkpoint and what is known of `output`; arguments and errors are those of `export_model`."""
    spec = get_spec(family)
    _check_options(spec, precision, skip)
    versions = _versions()
    loras = check_loras(lora, spec)
    folder = find_checkpoint(checkpoint, spec, precision=precision, allow_pickle=allow_pickle, skip=skip)
    source = read_checkpoint(folder, spec, allow_pickle=allow_pickle, skip=skip)
    output = Path(output)
    check_output(output)
    sources = _sources(source, precision, loras, versions)
    record = Record.load(output)
    make = tuple(name for name in sources if not record.is_current(name, sources[name]))
    networks = [name for component in source.components.values() for name in component.part.networks]
    check = tuple(
        name for name in networks if verify and (name in make or record.entries[name].parity is None)
    )
    return Export(
        checkpoint=source,
        output=output,
        precision=precision,
        loras=loras,
        allow_pickle=allow_pickle,
        skip=tuple(skip),
        versions=versions,
        sources=sources,
        make=make,
        check=check,
        finished=not make and not check and record.is_current(MANIFEST, {"of": sources}),
        estimate=estimate_export(source, precision, export=make, verify=check),
    )


def _check_options(spec: ModelSpec, precision: str, skip: Collection[str]) -> None:
    if precision not in PRECISIONS:
        raise InputError(f"unknown precision {precision!r}{did_you_mean(str(precision), PRECISIONS)}")
    optional = [part.name for part in parts_of(spec) if part.optional]
    for name in skip:
        if name not in optional:
            known = " and ".join(optional) or "nothing"
            raise InputError(f"{name!r} cannot be skipped: {spec.family} can do without {known}")


def _versions() -> dict[str, str]:
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError as error:
            raise MissingExtraError(name, "export") from error
    return versions


def check_output(output: Path) -> None:
    """Raise InputError where `output` holds something else than a model."""
    if output.is_dir():
        names = {path.name for path in output.iterdir()}
        if not names or RECORD in names or all(n.startswith(".") or n == "plans" for n in names):
            return
        if MANIFEST in names and _is_ours(output / MANIFEST):
            return
    elif not output.exists():
        return
    raise InputError(f"{output} exists and is not a model folder; name another, or remove it")


def _is_ours(manifest: Path) -> bool:
    """Other programs have a manifest.json too, such as web apps."""
    try:
        found = json.loads(manifest.read_text("utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(found, dict) and {"format", "family"} <= found.keys()


def _sources(
    checkpoint: Checkpoint, precision: str, loras: Sequence[Lora], versions: Mapping[str, str]
) -> dict[str, dict[str, Any]]:
    makers = {name: versions[name] for name in _MAKERS}
    sources: dict[str, dict[str, Any]] = {}
    for component in checkpoint.components.values():
        source = {
            "files": stamps(checkpoint.folder, component.files),
            "family": checkpoint.spec.family,
            "precision": checkpoint.precision_of(component, precision),
            "loras": _loras(touching(loras, component.part.name, checkpoint.spec)),
            "versions": makers,
        }
        sources |= dict.fromkeys(component.part.networks, source)
    for encoder in checkpoint.text_encoders:
        folder = checkpoint.tokenizer(encoder)
        files = [*(path for path in sorted(folder.iterdir()) if path.is_file())]
        files.append(checkpoint.components[encoder].folder / "config.json")
        sources[folder.name] = {"files": stamps(checkpoint.folder, files), "versions": makers}
    sources["scheduler"] = {"files": stamps(checkpoint.folder, [checkpoint.scheduler])}
    return sources


def _loras(loras: Sequence[Lora]) -> list[Any]:
    made = []
    for path, scale in loras:
        ((_, stamp),) = stamps(path.parent, [path]).items()
        made.append([str(path), *stamp, scale])
    if made:
        try:
            made.append(["peft", metadata.version("peft")])
        except metadata.PackageNotFoundError as error:
            raise MissingExtraError("peft", "export") from error
    return made
