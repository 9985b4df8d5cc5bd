"""What the kernels are given, as csrc/arguments.h lays it out; the header explains the limits."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .._errors import InputError, did_you_mean
from ..sampling.window import OBSERVED_ROWS

__all__ = [
    "GRAM_ROWS",
    "MAX_COLUMNS",
    "MAX_ROWS",
    "STRANDS",
    "Dtype",
    "FillTimestepArguments",
    "Forms",
    "GramPartialArguments",
    "GramTotalArguments",
    "KeepArguments",
    "LinearArguments",
    "NonfiniteArguments",
    "Source",
    "Target",
    "ToPixelsArguments",
    "kind_of",
    "pack_forms",
    "pack_targets",
    "vectors_fit",
]

MAX_COLUMNS, MAX_ROWS, GRAM_ROWS, STRANDS = 40, 16, OBSERVED_ROWS, 1024

Dtype = Literal["float32", "float16", "bfloat16"]
_KINDS: dict[str, int] = {"float32": 0, "float16": 1, "bfloat16": 2}


class Source(NamedTuple):
    """A column: where it is, and of which dtype.

    conditional: address of the conditional half where the column is guided, (c − u)·g + u, and
        `address` is the unconditional one; 0 where it is taken as it is.
    """

    address: int
    dtype: Dtype = "float32"
    conditional: int = 0


class Target(NamedTuple):
    """A row's result. With a message, its header is written too: timestep `slot`, guidance and round."""

    address: int
    dtype: Dtype = "float32"
    message: int = 0
    slot: int = 0
    timestep: float = 0.0


class Forms(ctypes.Structure):
    _fields_ = (
        ("columns", ctypes.c_uint64 * MAX_COLUMNS),
        ("conditional", ctypes.c_uint64 * MAX_COLUMNS),
        ("per_picture", ctypes.c_uint64),
        ("guidance_at", ctypes.c_uint64),
        ("elements", ctypes.c_int64),
        ("coefficients", ctypes.c_float * MAX_ROWS * MAX_COLUMNS),
        ("guidance", ctypes.c_float),
        ("batch", ctypes.c_int),
        ("rows", ctypes.c_int),
        ("column_count", ctypes.c_int),
        ("aligned", ctypes.c_int),
        ("terms", ctypes.c_uint16 * MAX_COLUMNS),
        ("kinds", ctypes.c_uint8 * MAX_COLUMNS),
    )


class LinearArguments(ctypes.Structure):
    _fields_ = (
        ("forms", Forms),
        ("targets", ctypes.c_uint64 * MAX_ROWS),
        ("messages", ctypes.c_uint64 * MAX_ROWS),
        ("timesteps", ctypes.c_float * MAX_ROWS),
        ("round", ctypes.c_int),
        ("kinds", ctypes.c_uint8 * MAX_ROWS),
        ("slots", ctypes.c_uint8 * MAX_ROWS),
    )


class GramPartialArguments(ctypes.Structure):
    _fields_ = (("forms", Forms), ("partials", ctypes.c_uint64))


class GramTotalArguments(ctypes.Structure):
    _fields_ = (
        ("partials", ctypes.c_uint64),
        ("target", ctypes.c_uint64),
        ("batch", ctypes.c_int),
        ("rows", ctypes.c_int),
    )


class NonfiniteArguments(ctypes.Structure):
    _fields_ = (
        ("values", ctypes.c_uint64),
        ("flags", ctypes.c_uint64),
        ("mark", ctypes.c_uint64),
        ("elements", ctypes.c_int64),
        ("batch", ctypes.c_int),
        ("kind", ctypes.c_int),
        ("aligned", ctypes.c_int),
    )


class ToPixelsArguments(ctypes.Structure):
    _fields_ = (
        ("decoded", ctypes.c_uint64),
        ("pixels", ctypes.c_uint64),
        ("plane", ctypes.c_int64),
        ("batch", ctypes.c_int),
        ("kind", ctypes.c_int),
        ("aligned", ctypes.c_int),
    )


class KeepArguments(ctypes.Structure):
    _fields_ = (
        ("targets", ctypes.c_uint64 * MAX_ROWS),
        ("latents", ctypes.c_uint64),
        ("noise", ctypes.c_uint64),
        ("repaint", ctypes.c_uint64),
        ("elements", ctypes.c_int64),
        ("a", ctypes.c_float * MAX_ROWS),
        ("s", ctypes.c_float * MAX_ROWS),
        ("rows", ctypes.c_int),
        ("aligned", ctypes.c_int),
    )


class FillTimestepArguments(ctypes.Structure):
    _fields_ = (
        ("message", ctypes.c_uint64),
        ("timesteps", ctypes.c_uint64),
        ("branches", ctypes.c_int),
        ("drafts", ctypes.c_int),
        ("pictures", ctypes.c_int),
    )


def kind_of(dtype: str) -> int:
    """The kernels' number of a dtype. Raises InputError where they have none."""
    if dtype not in _KINDS:
        raise InputError(f"the kernels cannot read {dtype!r}{did_you_mean(dtype, _KINDS)}")
    return _KINDS[dtype]


def vectors_fit(tensors: Sequence[tuple[int, Dtype]], elements: int, batch: int) -> bool:
    """Whether every picture of every tensor begins where four elements can be one access."""
    if batch > 1 and elements % 4:
        return False
    return all(address % (16 if dtype == "float32" else 8) == 0 for address, dtype in tensors)


def pack_forms(
    forms: Forms,
    sources: Sequence[Source],
    coefficients: NDArray[np.float64],
    elements: int,
    batch: int,
    coefficients_address: int,
    guidance_scale: float,
) -> None:
    """Fill in everything but `aligned`.

    Raises InputError where the sizes do not fit each other or the kernels.
    """
    rows, columns = coefficients.shape[-2:]
    own = coefficients.ndim == 3
    if columns != len(sources) or (own and len(coefficients) != batch):
        raise InputError(
            f"coefficients of shape {coefficients.shape} do not fit {len(sources)} columns and batch {batch}"
        )
    if own != bool(coefficients_address):
        raise InputError("coefficients of every picture's own, and only those, need an address on the device")
    if columns > MAX_COLUMNS or rows > MAX_ROWS:
        raise InputError(
            f"a launch takes {MAX_COLUMNS} columns and {MAX_ROWS} rows at most, not {columns} and {rows}; "
            "split the rows, or continue a sum from a float32 column of its own"
        )
    if elements < 0 or batch < 1:
        raise InputError(f"a batch of {batch} pictures of {elements} elements cannot be")
    # As Table.apply: a term is where some picture's float64 coefficient is not 0.
    terms = np.any(coefficients != 0, 0) if own else coefficients != 0
    if not terms.any(1).all():
        raise InputError("a row without terms cannot be computed; leave it out")
    if not own:  # pictures lie one after another and are all alike
        elements, batch = elements * batch, 1
        table: NDArray[Any] = np.frombuffer(forms.coefficients, np.float32).reshape(MAX_COLUMNS, MAX_ROWS)
        table[:columns, :rows] = coefficients.T
    forms.columns[:columns] = [source.address for source in sources]
    forms.conditional[:columns] = [source.conditional for source in sources]
    forms.kinds[:columns] = [kind_of(source.dtype) for source in sources]
    forms.terms[:columns] = (terms.T @ (1 << np.arange(rows))).tolist()
    forms.per_picture, forms.guidance = coefficients_address, guidance_scale
    forms.elements, forms.batch = elements, batch
    forms.rows, forms.column_count = rows, columns


def pack_targets(arguments: LinearArguments, targets: Sequence[Target]) -> None:
    """Fill in the rows' side."""
    rows = len(targets)
    if rows != arguments.forms.rows:
        raise InputError(f"{rows} targets for {arguments.forms.rows} rows of coefficients")
    arguments.targets[:rows] = [target.address for target in targets]
    arguments.kinds[:rows] = [kind_of(target.dtype) for target in targets]
    arguments.messages[:rows] = [target.message for target in targets]
    arguments.slots[:rows] = [target.slot for target in targets]
    arguments.timesteps[:rows] = [target.timestep for target in targets]
