"""Numbers that several plans take, checked."""

from __future__ import annotations

import sys

from .._errors import InputError

__all__ = ["TOLERANCE", "check_tolerance", "check_whole", "is_auto"]

TOLERANCE = 0.01  # of mode `tolerance`, where none is given


def is_auto(given: object) -> bool:
    """By type first: an array compares with a text element by element."""
    return isinstance(given, str) and given == "auto"


def check_tolerance(given: object, default: float = TOLERANCE) -> float:
    """A tolerance. Raises InputError for what cannot be one."""
    if given is None:
        return default
    if isinstance(given, bool) or not isinstance(given, int | float) or not 0 <= given <= sys.float_info.max:
        raise InputError(f"tolerance must be a number of at least 0, not {given!r}")
    return float(given)


def check_whole(name: str, value: object, least: int, most: int | None) -> None:
    """Raises InputError for what is no whole number between the two."""
    span = f"at least {least}" if most is None else f"from {least} to {most}"
    if isinstance(value, bool) or not isinstance(value, int):
        raise InputError(f"{name} must be a whole number {span}, not {value!r}")
    if value < least or (most is not None and value > most):
        raise InputError(f"{name}={value} was asked; it must be {span}")
