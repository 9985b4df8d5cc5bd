"""calibration.json of a model folder: what was measured of its network, by `driffusion-trt plan --calibrate`.

For a solver, a number of steps, a guidance scale and a number of lanes: the blocks of mode `window` for every
number of rounds, and the rounds that mode `tolerance` takes. docs/method.md section 9.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np

from ._errors import ModelError
from ._manifest import CALIBRATION
from .engines.key import onnx_hash
from .engines.lock import lock_folder
from .engines.manifest import ModelFolder

__all__ = [
    "Calibration",
    "CalibrationWarning",
    "Entry",
    "Growth",
    "Spent",
    "add_entries",
    "check_addable",
    "plain",
]

FORMAT = 1  # raised when entries mean something else than they did before
_NUMBER = (int, float)
_REMEDY = "remove it and calibrate again, or restore it"


class CalibrationWarning(UserWarning):
    """A model folder has a calibration that is not of its network, and is not used."""


@dataclass(frozen=True, slots=True)
class Spent:
    """Rounds that mode `tolerance` took: their mean over the pairs, and what nine of ten stayed within."""

    mean: float
    most: float


@dataclass(frozen=True, slots=True)
class Growth:
    """An error at a state with this share of signal ends as factor·share^−power times as large.

    Over the last sixth of the steps this goes to 1, in its logarithm: there an error stays what it is.
    """

    factor: float
    power: float


@dataclass(frozen=True, slots=True)
class Entry:
    """What was measured for one kind of request.

    pairs: prompts with a seed each that it was measured on. carry, order: of the windows.
    strides: blocks by the number of rounds. errors, even_errors: what the latents are expected to be off by,
        for these and for even strides: the root of the summed squares of what each round's error grows to.
    spent: rounds of mode `tolerance`, by tolerance. growth: of errors to the end of the picture; None with
        `strides`, errors and it left out where only rounds were measured.
    """

    solver: str
    steps: int
    guidance_scale: float
    lanes: int
    pairs: int
    carry: str
    order: int
    strides: Mapping[int, tuple[int, ...]]
    errors: Mapping[int, float]
    even_errors: Mapping[int, float]
    spent: Mapping[float, Spent]
    growth: Growth | None

    @property
    def key(self) -> tuple[str, int, float, int]:
        return self.solver, self.steps, self.guidance_scale, self.lanes

    def blocks(self, rounds: int) -> tuple[int, ...] | None:
        """Solver steps of each round after the first; None where there cannot be so many rounds."""
        return self.strides.get(rounds)

    def rounds(self, tolerance: float) -> float | None:
        """Rounds that a picture takes on average; None for tolerances outside of what was measured.

        Between measured ones it is linear in the tolerance's logarithm, and never rises with the tolerance.
        """
        return self._between(tolerance, {at: one.mean for at, one in self.spent.items()})

    def most_rounds(self, tolerance: float) -> float | None:
        """The same of what nine pictures of ten stay within."""
        return self._between(tolerance, {at: one.most for at, one in self.spent.items()})

    @staticmethod
    def _between(tolerance: float, measured: Mapping[float, float]) -> float | None:
        at = sorted(measured)
        if not at or not at[0] <= tolerance <= at[-1]:
            return None
        falling = np.minimum.accumulate([measured[one] for one in at])  # a few pictures need not fall evenly
        return float(np.interp(math.log(tolerance), np.log(at), falling))


@dataclass(frozen=True, slots=True)
class Calibration:
    """The entries of a model folder; make one with `Calibration.read`.

    notice: why the folder's file is not used, in words; empty where it is, or there is none.
    """

    entries: tuple[Entry, ...] = ()
    notice: str = ""

    @classmethod
    def read(cls, folder: ModelFolder) -> Self:
        """The folder's calibration; without entries where it has none, or one of another network.

        Raises ModelError where the file is damaged, or of another format.
        """
        path = folder.path / CALIBRATION
        try:
            data = json.loads(path.read_text("utf-8"))
        except FileNotFoundError:
            return cls()
        except (OSError, ValueError) as error:
            raise ModelError(f"{path} cannot be read ({error}); {_REMEDY}") from error
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            found = data.get("format") if isinstance(data, dict) else None
            raise ModelError(f"{path} has format {found!r}, this version reads {FORMAT}; {_REMEDY}")
        try:
            entries = tuple(parsed(entry) for entry in data["entries"])
            network = data["network"]
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ModelError(f"{path} is damaged ({type(error).__name__}: {error}); {_REMEDY}") from error
        if network != onnx_hash(folder, "denoiser"):
            return cls(
                notice=f"{path} was measured with another network than the folder has; remove it to "
                "calibrate anew"
            )
        return cls(entries)

    def find(self, *, solver: str, steps: int, guidance_scale: float, lanes: int) -> Entry | None:
        """The entry for this solver, steps and lanes whose guidance scale is the nearest.

        Scales up to 1, which all mean no guidance, count as 1; of two that are as near it is the larger,
        which is the harder one. None where there is no entry of this solver, steps and lanes.
        """
        wanted = max(guidance_scale, 1.0)
        fitting = [e for e in self.entries if (e.solver, e.steps, e.lanes) == (solver, steps, lanes)]
        return min(fitting, key=lambda e: (abs(e.guidance_scale - wanted), -e.guidance_scale), default=None)

    def with_entries(self, entries: Iterable[Entry]) -> Self:
        """These, over older ones of the same request."""
        merged = {entry.key: entry for entry in (*self.entries, *entries)}
        return replace(self, entries=tuple(merged[key] for key in sorted(merged)))


def parsed(data: Mapping[str, Any]) -> Entry:
    """An entry from JSON. Raises KeyError, TypeError or ValueError for what `plain` would not write."""
    strides = {int(k): tuple(map(int, blocks)) for k, blocks in data["blocks"].items()}
    numbers = {name: {int(k): float(v) for k, v in data[name].items()} for name in ("errors", "even_errors")}
    spent = {float(k): Spent(float(v["mean"]), float(v["most"])) for k, v in data["rounds"].items()}
    growth = data["growth"]
    entry = Entry(
        str(data["solver"]),
        int(data["steps"]),
        float(data["guidance_scale"]),
        int(data["lanes"]),
        int(data["pairs"]),
        str(data["carry"]),
        int(data["order"]),
        strides,
        numbers["errors"],
        numbers["even_errors"],
        spent,
        None if growth is None else Growth(float(growth["factor"]), float(growth["power"])),
    )
    for rounds, blocks in strides.items():
        fits = all(1 <= one <= entry.lanes for one in blocks)
        if len(blocks) != rounds - 1 or sum(blocks) != entry.steps - 1 or not fits:
            raise ValueError(f"blocks of {rounds} rounds are {blocks}")
    if numbers["errors"].keys() != strides.keys() or numbers["even_errors"].keys() != strides.keys():
        raise ValueError("errors are not those of the blocks")
    values = [*numbers["errors"].values(), *numbers["even_errors"].values(), entry.guidance_scale]
    values += [] if entry.growth is None else [entry.growth.factor, entry.growth.power]
    values += [number for one in spent.values() for number in (one.mean, one.most)]
    if not all(math.isfinite(value) and value >= 0 for value in (*values, *spent)) or 0.0 in spent:
        raise ValueError("a figure is not a number of at least 0")
    return entry


def _growth(growth: Growth) -> dict[str, float]:
    return {"factor": float(f"{growth.factor:.4g}"), "power": float(f"{growth.power:.4g}")}


def plain(entry: Entry) -> dict[str, Any]:
    """An entry as JSON."""
    return {
        "solver": entry.solver,
        "steps": entry.steps,
        "guidance_scale": entry.guidance_scale,
        "lanes": entry.lanes,
        "pairs": entry.pairs,
        "carry": entry.carry,
        "order": entry.order,
        "growth": None if entry.growth is None else _growth(entry.growth),
        "blocks": {str(rounds): list(blocks) for rounds, blocks in entry.strides.items()},
        "errors": {str(rounds): one for rounds, one in entry.errors.items()},
        "even_errors": {str(rounds): one for rounds, one in entry.even_errors.items()},
        "rounds": {str(at): {"mean": one.mean, "most": one.most} for at, one in entry.spent.items()},
    }


def check_addable(folder: ModelFolder) -> Calibration:
    """The folder's calibration, where entries can be added to it; nothing is left behind.

    Raises ModelError where the folder cannot be written to, or its file is damaged or of another network.
    """
    found = Calibration.read(folder)
    if found.notice:
        raise ModelError(found.notice)
    try:
        descriptor, trial = tempfile.mkstemp(prefix=f".{CALIBRATION}.", suffix=".partial", dir=folder.path)
        os.close(descriptor)
        os.unlink(trial)
    except OSError as error:
        raise ModelError(
            f"{folder.path} cannot be written to ({error.strerror}), so {CALIBRATION} cannot be kept there; "
            "make a copy of the folder, or calibrate as a user who may write to it"
        ) from error
    return found


def add_entries(folder: ModelFolder, entries: Iterable[Entry]) -> Path:
    """Add entries to the folder's file, over older ones of the same request; whole, or not at all.

    Raises ModelError as `check_addable` does, and where another process is writing to the folder.
    """
    with _locked(folder):
        merged = check_addable(folder).with_entries(entries)
        # One entry a line: the file can be read, and differences of two be seen.
        lines = ",\n ".join(json.dumps(plain(entry)) for entry in merged.entries)
        network = onnx_hash(folder, "denoiser")
        text = f'{{"format": {FORMAT}, "network": "{network}", "entries": [\n {lines}\n]}}\n'
        path = folder.path / CALIBRATION
        descriptor, partial = tempfile.mkstemp(prefix=f".{CALIBRATION}.", suffix=".partial", dir=folder.path)
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(partial, 0o644)  # mkstemp's 0600 would keep it from other users
            os.replace(partial, path)
        except BaseException:
            os.unlink(partial)
            raise
    return path


@contextlib.contextmanager
def _locked(folder: ModelFolder) -> Iterator[None]:
    check_addable(folder)  # a folder that cannot be written to cannot be locked, and this says so better
    with lock_folder(folder.path):
        yield
