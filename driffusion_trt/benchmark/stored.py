"""A run's JSON as it is read back: whatever is in it is checked, since a file may be damaged or another's."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .._errors import InputError
from .._foreign import is_number, plain, read_json
from .report import FORMAT, KIND

__all__ = ["load"]

_LEAST_MS = 1e-9  # less is no time, and its ratios are no numbers


def load(path: str) -> dict[str, Any]:
    """A run's JSON, its texts without control characters.

    Raises InputError where the file cannot be read, is none, or is damaged.
    """
    found = read_json(Path(path), "as JSON, as `bench --json` writes it")
    if not isinstance(found, dict) or found.get("kind") != KIND:
        raise InputError(f"{path} is no result of `driffusion-trt bench`; give what `bench --json` wrote")
    if found.get("format") is True or found.get("format") != FORMAT:
        stored = plain(repr(found.get("format")), 40)
        raise InputError(f"{path} has format {stored}, and this version reads {FORMAT}; measure it again")
    try:
        cleaned: dict[str, Any] = _cleaned(found)
        _check(cleaned)
    except RecursionError as error:
        raise InputError(f"{path} is damaged: it is nested too deep; measure it again") from error
    except _DamagedError as error:
        raise InputError(f"{path} is damaged: {plain(str(error))}; measure it again") from error
    return cleaned


class _DamagedError(Exception):
    """What is wrong, in words."""


def _need(holds: bool, words: str) -> None:
    if not holds:
        raise _DamagedError(words)


def _cleaned(value: Any) -> Any:
    """The same with texts that a terminal may show; keys too."""
    if isinstance(value, str):
        return plain(value, len(value) + 1)
    if isinstance(value, list):
        return [_cleaned(one) for one in value]
    if isinstance(value, dict):
        return {_cleaned(name): _cleaned(one) for name, one in value.items()}
    return value


def _check(found: Mapping[str, Any]) -> None:
    for name in ("machine", "model", "settings", "versions"):
        _need(isinstance(found.get(name), dict), f"{name} is no object")
    for name in ("date", "commit"):
        _need(isinstance(found.get(name), str), f"{name} is no text")
    _need(isinstance(found.get("version", ""), str), "version is no text")
    repetitions, cells = found.get("repetitions"), found.get("cells")
    if not isinstance(repetitions, int) or not is_number(repetitions, 1, whole=True):
        raise _DamagedError("repetitions is no number of at least 1")
    if not isinstance(cells, list) or not cells:
        raise _DamagedError("it has no cells")
    names = set()
    for cell in cells:
        if not isinstance(cell, dict) or not isinstance(cell.get("name"), str) or not cell["name"]:
            raise _DamagedError("a cell has no name")
        _need(cell["name"] not in names, f"cell {cell['name']!r} is there twice")
        names.add(cell["name"])
        _check_cell(cell, repetitions)


def _check_cell(cell: Mapping[str, Any], repetitions: int) -> None:
    where = f"cell {cell['name']!r}"
    _need(isinstance(cell.get("mode"), str), f"{where} has no mode")
    _need(is_number(cell.get("lanes"), 1, whole=True), f"{where} has no number of lanes")
    _need(isinstance(cell.get("plan", {}), dict), f"{where} has no plan")
    raw = cell.get("raw")
    if not isinstance(raw, dict):
        raise _DamagedError(f"{where} has no times")
    for name in ("latency_ms", "speedup"):
        values = raw.get(name)
        if not isinstance(values, list) or not all(is_number(one, _LEAST_MS) for one in values):
            raise _DamagedError(f"{where} has no times: {name} must be a list of numbers above 0")
        _need(
            len(values) == repetitions, f"{where} has {len(values)} of {name} for {repetitions} repetitions"
        )
    drifts = raw.get("relative_l2", [])
    if not isinstance(drifts, list) or not all(is_number(one) for one in drifts):
        raise _DamagedError(f"{where}: relative_l2 must be a list of numbers of at least 0")
