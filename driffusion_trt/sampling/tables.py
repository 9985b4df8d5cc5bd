"""Small coefficient tables: everything between two network calls is one of them.

A form is a linear combination of named latents, in float64, perhaps with coefficients of each
picture's own; a table is a few forms that are evaluated together. docs/method.md says why this is
all that a sampler needs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

Kind = Literal["state", "input", "output", "noise", "x0"]
Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]


class Column(NamedTuple):
    """A latent that the sampler holds, by what it is and the number of its state.

    `state` i is x_i; `input` i is what the network saw for state i (x_i itself or a
    draft of it) and `output` i what it returned, raw; `noise` l is the standard normal
    of step l; `x0` i is the clean latent that a multistep solver remembers of step i.
    """

    kind: Kind
    number: int


Number = float | Float64  # one for all pictures, or (B,) with one for each
Form = dict[Column, Number]


def total(*parts: tuple[Number, Mapping[Column, Number]]) -> Form:
    """Sum of (factor, form) pairs; what cancels exactly or is multiplied by 0 is left out."""
    out: Form = {}
    for factor, form in parts:
        for column, coefficient in form.items():
            out[column] = out.get(column, 0.0) + factor * coefficient
    return {column: value for column, value in out.items() if not isinstance(value, float) or value != 0.0}


_Term = tuple[Column, Float32, int]  # how much of a column, and 1 or −1 where it is that


_ORDER: dict[Kind, int] = {"state": 0, "input": 1, "output": 2, "x0": 3, "noise": 4}


@dataclass(frozen=True, slots=True, eq=False)
class Table:
    """`targets[r] = Σ_c coefficients[..., r, c] · columns[c]`.

    `coefficients` is float64, (rows, columns), or (batch, rows, columns) where every
    picture of a batch has its own.
    """

    targets: tuple[Column, ...]
    columns: tuple[Column, ...]
    coefficients: Float64
    _terms: list[list[_Term]] | None = field(init=False, repr=False, default=None)

    def __post_init__(self) -> None:
        assert self.coefficients.shape[-2:] == (len(self.targets), len(self.columns))
        self.coefficients.setflags(write=False)

    def _rows(self) -> list[list[_Term]]:
        """For each row the columns that it has, and how much of each; kept, as a plan is run many times.

        GPU lanes, which may get another table every round, read `coefficients` and have no use for it.
        """
        if self._terms is None:
            coefficients = self.coefficients
            if coefficients.ndim == 3 and len(coefficients) == 1:
                coefficients = coefficients[0]  # a number in place of an array of one
            single = coefficients.astype(np.float32)
            used: NDArray[Any] = coefficients if coefficients.ndim == 2 else (coefficients != 0).any(0)
            terms: list[list[_Term]] = [[] for _ in self.targets]
            for row, values in enumerate(used.tolist()):
                for at, value in enumerate(values):
                    if value:
                        sign = int(value) if coefficients.ndim == 2 and abs(value) == 1 else 0
                        terms[row].append((self.columns[at], single[..., row, at], sign))
            object.__setattr__(self, "_terms", terms)
        assert self._terms is not None
        return self._terms

    @classmethod
    def of(cls, forms: Mapping[Column, Form]) -> Table:
        """The table whose rows are `forms`, its columns in one fixed order."""
        names = {column for form in forms.values() for column in form}
        columns = tuple(sorted(names, key=lambda column: (_ORDER[column.kind], column.number)))
        place = {column: at for at, column in enumerate(columns)}
        values = [value for form in forms.values() for value in form.values()]
        batch = {len(value) for value in values if not isinstance(value, float)}
        coefficients = np.zeros((*batch, len(forms), len(columns)))
        for row, form in enumerate(forms.values()):
            for column, value in form.items():
                coefficients[..., row, place[column]] = value
        return cls(tuple(forms), columns, coefficients)

    def apply(self, latents: Mapping[Column, Float32]) -> list[Float32]:
        """Evaluate all rows in float32, term by term in the order of the columns.

        The sum is elementwise, so a picture's bits do not depend on its batch. A row
        that is one column times 1 returns that very array: nobody writes into latents.
        """
        return [_weighted_sum(terms, latents) for terms in self._rows()]


def _weighted_sum(terms: Iterable[_Term], latents: Mapping[Column, Float32]) -> Float32:
    out: Float32 | None = None
    scratch: Float32 | None = None
    own = False  # whether `out` is ours to write into
    for column, factor, sign in terms:
        latent = latents[column]
        if factor.ndim:  # each picture's own
            factor = factor.reshape(-1, *([1] * (latent.ndim - 1)))
        if out is None:
            out, own = (latent, False) if sign == 1 else (latent * factor, True)
            continue
        if sign:  # x + 1·y and x + (−1)·y to the bit, in one pass
            out = (np.add if sign == 1 else np.subtract)(out, latent, out if own else None)
        else:
            scratch = np.multiply(latent, factor, scratch)
            out = np.add(out, scratch, out if own else None)
        own = True
    assert out is not None, "a row without terms"
    return out
