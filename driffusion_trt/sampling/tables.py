"""Small coefficient tables: everything between two network calls is one of them.

A form is a linear combination of named latents, in float64, perhaps with coefficients of each
picture's own; a table is a few forms that are evaluated together. docs/method.md says why this is
all that a sampler needs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal, NamedTuple

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


Factor = float | Float32  # of a column: one for all pictures, or (B,) with one for each
Terms = list[list[tuple[Column, Factor]]]  # of each row the columns that it has


_ORDER: dict[Kind, int] = {"state": 0, "input": 1, "output": 2, "x0": 3, "noise": 4}


class Table:
    """`targets[r] = Σ_c coefficients[..., r, c] · columns[c]`."""

    __slots__ = ("_coefficients", "_terms", "columns", "targets")

    def __init__(
        self,
        targets: tuple[Column, ...],
        columns: tuple[Column, ...],
        coefficients: Float64 | None = None,
        terms: Terms | None = None,
    ) -> None:
        """coefficients: (rows, columns), or (batch, rows, columns) where each picture of a batch has its own.

        terms: in place of them, for one picture.
        """
        self.targets, self.columns = targets, columns
        self._coefficients, self._terms = coefficients, terms
        if coefficients is not None:
            assert coefficients.shape[-2:] == (len(targets), len(columns))
            coefficients.setflags(write=False)

    @property
    def coefficients(self) -> Float64:
        """Float64, (rows, columns) or (batch, rows, columns): what GPU lanes read, and CPU lanes do not."""
        if self._coefficients is None:
            assert self._terms is not None
            found = np.zeros((1, len(self.targets), len(self.columns)))
            for row, terms in enumerate(self._terms):
                for column, factor in terms:
                    found[0, row, self.columns.index(column)] = factor
            found.setflags(write=False)
            self._coefficients = found
        return self._coefficients

    def _rows(self) -> Terms:
        """For each row the columns that it has, and how much of each; kept, as a plan is run many times."""
        if self._terms is None:
            coefficients = self.coefficients
            if coefficients.ndim == 3 and len(coefficients) == 1:
                coefficients = coefficients[0]  # a number in place of an array of one
            single = coefficients.astype(np.float32)
            own = coefficients.ndim == 3
            used = (coefficients != 0).any(0) if own else coefficients != 0
            self._terms = [
                [
                    (self.columns[at], single[:, row, at] if own else float(single[row, at]))
                    for at in np.flatnonzero(used[row]).tolist()
                ]
                for row in range(len(self.targets))
            ]
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


def _weighted_sum(terms: Iterable[tuple[Column, Factor]], latents: Mapping[Column, Float32]) -> Float32:
    out: Float32 | None = None
    scratch: Float32 | None = None
    own = False  # whether `out` is ours to write into
    for column, factor in terms:
        latent = latents[column]
        if isinstance(factor, np.ndarray):  # each picture's own
            factor, one, minus_one = factor.reshape(-1, *([1] * (latent.ndim - 1))), False, False
        else:
            one, minus_one = factor == 1.0, factor == -1.0
        if out is None:
            out, own = (latent, False) if one else (latent * factor, True)
            continue
        if one or minus_one:  # x + 1·y and x + (−1)·y to the bit, in one pass
            out = (np.add if one else np.subtract)(out, latent, out if own else None)
        else:
            scratch = np.multiply(latent, factor, scratch)
            out = np.add(out, scratch, out if own else None)
        own = True
    assert out is not None, "a row without terms"
    return out
