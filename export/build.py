"""A checkpoint to a model folder: what is missing is made, network by network, and the manifest comes last.

Nothing here loads torch: children do (`worker`), so that an export that is already done says so in a moment,
and memory is given back when it ends.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from .._child import Children
from .._manifest import MANIFEST, write_manifest
from .estimate import check_room
from .manifest import facts
from .plan import Export, plan_export
from .record import Record

__all__ = ["export_model", "run_export"]

Progress = Callable[[float, str], None]

_NETWORK_COST = 1e8  # of a network of no parameters, in parameters
_CHECK_COST = 0.5  # of comparing a network with torch, in exports


def export_model(
    family: str,
    checkpoint: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    precision: str = "fp16",
    verify: bool = True,
    lora: Sequence[tuple[str | os.PathLike[str], float]] = (),
    allow_pickle: bool = False,
    skip: Collection[str] = (),
    progress: Progress | None = None,
) -> Path:
    """Export the networks of a checkpoint to a model folder, or finish an export that was interrupted.

    Args:
        family: a row of `driffusion_trt.models.MODELS`.
        checkpoint: a diffusers folder, or the id of one on the hub.
        output: the model folder; one that is there is brought up to date, network by network.
        precision: of weights and arithmetic: "fp16", "bf16" or "fp32". Inputs and outputs are float32 in any.
        verify: compare every network with torch, at two shapes; the figures go into the manifest.
        lora: files and scales, fused into the weights.
        allow_pickle: take weights that are pickles where there are no safetensors.
        skip: optional text encoders to leave out ("text_encoder_3" of SD3).
        progress: called with the share that is done, from 0 to 1, and what is being done.

    Returns:
        `output`. Its manifest.json is written last, once everything else is there; until then the folder
        is not a model folder to anybody. Under `parity` it has a figure for each network, null for those that
        were not compared.

    Raises:
        InputError: an option that cannot be, no such checkpoint, or a LoRA that does not fit.
        ModelError: the checkpoint is of another family, incomplete or not to be trusted; this machine has
            not enough disk or memory; or a network differs from torch.
        MissingExtraError: torch or another package of the extra "export" is not installed.
    """
    export = plan_export(
        family,
        checkpoint,
        output,
        precision=precision,
        verify=verify,
        lora=lora,
        allow_pickle=allow_pickle,
        skip=skip,
    )
    return run_export(export, progress)


def run_export(export: Export, progress: Progress | None = None) -> Path:
    """Do what `plan_export` found to be missing; see `export_model`.

    One export at a time may work on a folder: whoever calls this keeps others away.
    """
    tell = _Told(export, progress or (lambda share, text: None))
    if not export.finished:
        check_room(export.estimate, export.output)
        folder = export.output
        (folder / "onnx").mkdir(parents=True, exist_ok=True)
        (folder / MANIFEST).unlink(missing_ok=True)
        record = Record.load(folder)
        record.drop({*export.make, MANIFEST, *(record.entries.keys() - export.sources.keys())})
        _make(export, record, tell)
        _check(export, record, tell)
        assert record.entries.keys() >= export.sources.keys()
        _remove_strangers(export, record)
        tell.begin("hashing the files")
        written = write_manifest(folder, **facts(export, record))
        record.put(MANIFEST, {"of": export.sources}, [written])
    tell.end()
    return export.output


class _Told:
    """Progress as a share of everything that there is to do."""

    def __init__(self, export: Export, progress: Progress) -> None:
        self._progress = progress
        self._done, self._total = 0.0, 0.0
        self._costs: dict[tuple[str, str], float] = {}
        for kind, names, factor in (("export", export.make, 1.0), ("check", export.check, _CHECK_COST)):
            for name in names:
                cost = factor * (export.parameters(name) + _NETWORK_COST) if name in export.networks else 0.0
                self._costs[kind, name] = cost
                self._total += cost

    def begin(self, text: str) -> None:
        self._progress(min(1.0, self._done / self._total) if self._total else 0.0, text)

    def done(self, kind: str, name: str) -> None:
        self._done += self._costs.get((kind, name), 0.0)

    def end(self) -> None:
        self._progress(1.0, "done")


def _make(export: Export, record: Record, tell: _Told) -> None:
    for leftover in export.output.glob("onnx/.*.partial"):  # of an export that was killed
        shutil.rmtree(leftover)
    if "scheduler" in export.make:
        copy = _copy(export.checkpoint.scheduler, export.output / "scheduler" / "scheduler_config.json")
        record.put("scheduler", export.sources["scheduler"], [copy])
    for report in _reports("export", export, [name for name in export.make if name != "scheduler"]):
        name = report["name"]
        if "files" in report:
            record.put(name, export.sources[name], map(Path, report["files"]))
            tell.done("export", name)
        else:
            tell.begin(f"exporting {name}")


def _check(export: Export, record: Record, tell: _Told) -> None:
    for report in _reports("verify", export, export.check):
        name = report["name"]
        if "parity" in report:
            files = [export.output / file for file in record.entries[name].files]
            record.put(name, export.sources[name], files, report["parity"])
            tell.done("check", name)
        else:
            tell.begin(f"comparing {name} with torch")


def _reports(work: str, export: Export, names: Sequence[str]) -> Iterator[dict[str, Any]]:
    """What a process of its own reports while it works on these names."""
    orders = {
        "names": list(names),
        "family": export.checkpoint.spec.family,
        "folder": str(export.checkpoint.folder.absolute()),
        "output": str(export.output.absolute()),
        "precision": export.precision,
        "loras": [[str(path), scale] for path, scale in export.loras],
        "allow_pickle": export.allow_pickle,
        "skip": list(export.skip),
    }
    return _child(work, orders) if names else iter(())


def _child(work: str, orders: dict[str, Any]) -> Iterator[dict[str, Any]]:
    with Children() as children:
        children.start(f"the {work}", f"{__package__}.worker:{work}", orders)
        while len(children):
            event = children.wait()
            if event.error is not None:
                raise event.error
            if event.report:
                yield event.report


def _copy(source: Path, target: Path) -> Path:
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_suffix(".partial")
    shutil.copyfile(source, partial)
    os.replace(partial, target)
    return target


def _remove_strangers(export: Export, record: Record) -> None:
    """Take out what an earlier export of something else has left, or the manifest would answer for it."""
    known = {export.output / file for entry in record.entries.values() for file in entry.files}
    for folder in ("onnx", "scheduler", "tokenizer", "tokenizer_2", "tokenizer_3"):
        for path in (export.output / folder).glob("*"):
            if path not in known and path.is_file():
                path.unlink()
        with contextlib.suppress(OSError):  # not empty, or not there
            (export.output / folder).rmdir()
