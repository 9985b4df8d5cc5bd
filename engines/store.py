"""The plans of a model folder: kept by their key, taken whole or refused with the reason.

    plans/<platform>/<network>-<digest of the key>.plan
    plans/<platform>/<network>-<digest of the key>.json    key, checksum and facts of the build

The .json is written last: a plan without one is half made, and is swept away.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .._errors import DriffusionError, InputError, ModelError
from .._manifest import sha256
from .gpus import Gpu
from .key import PlanKey, Platform

__all__ = ["Plan", "PlanStore"]

_FORMAT = 1
_REMEDY = "build it again: driffusion-trt build"


@dataclass(frozen=True, slots=True)
class Plan:
    """A plan and its record. `problem` says in words why it cannot be used; empty where it can."""

    path: Path
    key: PlanKey | None
    sha256: str = ""
    size_bytes: int = 0
    facts: dict[str, Any] = field(default_factory=dict)
    problem: str = ""
    mtime_ns: int = 0


class PlanStore:
    """The plans in `folder`/plans; `folder` is a model folder. Who writes holds the folder's lock."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "plans"

    def temporary(self, key: PlanKey) -> Path:
        """Where a plan is to be written before `commit`; its folder is made."""
        folder = self.root / key.platform.folder
        folder.mkdir(parents=True, exist_ok=True)
        return folder / f"{key.stem}.plan.partial"

    def commit(self, key: PlanKey, facts: Mapping[str, Any]) -> Plan:
        """Take in the plan that was written to `temporary(key)`, with facts of its build.

        Raises:
            OSError: it cannot be read or renamed.
        """
        written = self.temporary(key)
        path = written.with_suffix("")
        os.replace(written, path)
        return self.record(key, facts)

    def record(self, key: PlanKey, facts: Mapping[str, Any], digest: str | None = None) -> Plan:
        """Write the record of a plan that is there, over an older one if there is one.

        Args:
            digest: its SHA-256, where that is known.

        Raises:
            OSError: the plan cannot be read, or the record not be written.
        """
        path = self._path(key)
        status = path.stat()
        record = {
            "format": _FORMAT,
            "key": key.to_json(),
            "sha256": sha256(path) if digest is None else digest,
            "size_bytes": status.st_size,
            "mtime_ns": status.st_mtime_ns,
            "facts": dict(facts),
        }
        note = path.with_suffix(".json.partial")
        with note.open("w", encoding="utf-8") as file:
            file.write(json.dumps(record, indent=2) + "\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(note, path.with_suffix(".json"))
        return self._read(path)

    def _path(self, key: PlanKey) -> Path:
        return self.root / key.platform.folder / f"{key.stem}.plan"

    def find(self, key: PlanKey) -> Plan | None:
        """The plan of this very key, by its record and size; None where it is not there, or not whole.

        One whose time is not the recorded one, as after a copy or an alteration, is hashed.
        """
        path = self._path(key)
        if not path.with_suffix(".json").exists():
            return None
        plan = self._read(path)
        if plan.problem or plan.key != key:
            return None
        if path.stat().st_mtime_ns != plan.mtime_ns:
            if sha256(path) != plan.sha256:
                return None
            plan = self.record(key, plan.facts, plan.sha256)  # not to be hashed again
        return plan

    def has(self, key: PlanKey) -> bool:
        """Whether `find` finds it."""
        return self.find(key) is not None

    def remove(self, plan: Plan) -> list[Path]:
        """Take a plan out, the record first: a plan without one is never used. Returns what was there."""
        there = [path for path in (plan.path.with_suffix(".json"), plan.path) if path.exists()]
        for path in there:
            path.unlink()
        return there

    def plans(self) -> Iterator[Plan]:
        """Every plan or record of one, with its problem if any; sizes are compared, contents are not."""
        found = (path for end in ("plan", "json") for path in self.root.glob(f"*/*.{end}"))
        for path in sorted({path.with_suffix(".plan") for path in found}):
            yield self._read(path)

    def _read(self, path: Path) -> Plan:
        note = path.with_suffix(".json")
        try:
            data = json.loads(note.read_text("utf-8"))
            if data["format"] != _FORMAT:
                return Plan(path, None, problem=f"{note.name} has format {data['format']}, not {_FORMAT}")
            key = PlanKey.from_json(data["key"])
            plan = Plan(path, key, str(data["sha256"]), int(data["size_bytes"]), dict(data["facts"]))
            mtime_ns = int(data.get("mtime_ns", 0))
        except FileNotFoundError:
            return Plan(path, None, problem=f"{note.name} is missing: its build was interrupted")
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            return Plan(path, None, problem=f"{note.name} cannot be read ({type(error).__name__}: {error})")
        return Plan(path, key, plan.sha256, plan.size_bytes, plan.facts, _size_problem(plan), mtime_ns)

    def verify(self, plan: Plan) -> str:
        """The plan's problem after hashing its file; empty where it is the one that was built."""
        if plan.problem or sha256(plan.path) == plan.sha256:
            return plan.problem
        return "it was altered: its SHA-256 is not the one that was recorded"

    def choose(
        self,
        network: str,
        onnx_sha256: str,
        *,
        flavour: str,
        version: str,
        gpu: Gpu,
        sizes: tuple[int, int, int] | None = None,
    ) -> Plan:
        """The plan for a network on this machine.

        Args:
            onnx_sha256: what `onnx_hash` gives for the network's ONNX files now.
            flavour, version: the TensorRT that will run it.
            gpu: the GPU that will run it.
            sizes: batch, height and width of the latents that it has to take.

        Raises:
            ModelError: there is no plan for it; the message says why each that is there will not do.
            InputError: the plans that would do are for other sizes.
        """
        reasons: list[str] = []
        fitting: list[tuple[Plan, PlanKey]] = []
        for plan in self.plans():
            if plan.key is None or plan.key.network != network:
                if plan.key is None and plan.path.name.startswith(f"{network}-"):
                    reasons.append(f"{plan.path.name}: {plan.problem}")
                continue
            reason = plan.problem or plan.key.platform.why_not(flavour, version, gpu)
            if not reason and plan.key.onnx_sha256 != onnx_sha256:
                reason = "it was built from another ONNX file than the folder has now"
            if reason:
                reasons.append(f"{plan.path.name}: {reason}")
            else:
                fitting.append((plan, plan.key))
        if not fitting:
            here = str(Platform(flavour, version, (gpu.target,), gpu.name))
            why = "; ".join(dict.fromkeys(reasons)) or "there are none"
            raise ModelError(
                f"{self.root.parent} has no plan of {network!r} for {here} ({why}); {_REMEDY} "
                f"--output {self.root.parent} --target this"
            )
        return _of_size(fitting, sizes)

    def open(self, plan: Plan) -> mmap.mmap:
        """The plan's bytes, mapped, after their checksum was compared; close it after use.

        Raises:
            ModelError: the file is not the one that was built.
        """
        if plan.problem:
            raise ModelError(f"{plan.path}: {plan.problem}; {_REMEDY}")
        with plan.path.open("rb") as file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        if hashlib.sha256(data).hexdigest() != plan.sha256:
            data.close()
            raise ModelError(
                f"{plan.path} was altered: its SHA-256 is not the one that was recorded; {_REMEDY}"
            )
        return data

    def sweep(self, current: Mapping[str, str]) -> list[Path]:
        """Remove what no run can use: half-made files, and plans of ONNX files that are no more.

        Args:
            current: `onnx_hash` by network.

        Returns:
            What was removed.
        """
        removed = list(self.root.glob("*/*.partial"))
        for path in removed:
            path.unlink()
        for plan in self.plans():
            if plan.key is None or plan.problem or current.get(plan.key.network) != plan.key.onnx_sha256:
                removed += self.remove(plan)
        return removed


def _size_problem(plan: Plan) -> str:
    try:
        found = plan.path.stat().st_size
    except OSError as error:
        return f"it cannot be read ({error.strerror})"
    if found != plan.size_bytes:
        return (
            f"it has {found:,} bytes and was built with {plan.size_bytes:,}: it is cut short or was altered"
        )
    return ""


def _of_size(fitting: list[tuple[Plan, PlanKey]], sizes: tuple[int, int, int] | None) -> Plan:
    """The first plan that takes the sizes, those first that were made for smaller ranges."""
    fitting.sort(key=lambda pair: pair[1].profile.height.max * pair[1].profile.width.max)
    if sizes is None:
        return fitting[0][0]
    refusal: DriffusionError | None = None
    for plan, key in fitting:
        try:
            key.profile.check(*sizes)
        except InputError as error:
            refusal = refusal or error
        else:
            return plan
    assert refusal is not None
    raise refusal
