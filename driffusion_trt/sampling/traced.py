"""Tables whose coefficients follow from θ: the arithmetic is taken down once, and done again for every θ.

The same operations in the same order as with the numbers themselves, so the same bits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np

from .tables import Column, Factor, Form, Number, Table, Terms

__all__ = ["Tape", "TapedTable", "Traced"]

_MULTIPLY, _ADD, _ADD_TRACED = range(3)
_Step = tuple[int, int, float]  # what is done, to which value, with which number or value


class Tape:
    """What was done with some inputs, in order; every step makes one more value."""

    def __init__(self) -> None:
        self.inputs = 0
        self.steps: list[_Step] = []

    def input(self) -> Number:
        """The next input, to compute with. All of them come before the first step."""
        assert not self.steps
        self.inputs += 1
        return cast(Number, Traced(self, self.inputs - 1))

    def add(self, kind: int, value: int, other: float) -> Traced:
        self.steps.append((kind, value, other))
        return Traced(self, self.inputs + len(self.steps) - 1)

    def values(self, inputs: Sequence[Number]) -> list[Number]:
        """All values for these inputs: numbers, or (B,) with one for each picture."""
        found = list(inputs)
        for kind, value, other in self.steps:
            if kind == _MULTIPLY:
                found.append(found[value] * other)
            elif kind == _ADD:
                found.append(found[value] + other)
            else:
                found.append(found[value] + found[int(other)])
        return found


@dataclass(frozen=True, slots=True, eq=False)
class Traced:
    """A number that is not known yet; what it is multiplied with and added to goes on the tape."""

    tape: Tape
    at: int

    def __mul__(self, other: float) -> Traced:
        return self if other == 1.0 else self.tape.add(_MULTIPLY, self.at, other)

    def __add__(self, other: float | Traced) -> Traced:
        if isinstance(other, Traced):
            return self.tape.add(_ADD_TRACED, self.at, other.at)
        return self.tape.add(_ADD, self.at, other)

    __rmul__, __radd__ = __mul__, __add__


class TapedTable:
    """A table of forms of which some coefficients are `Traced`."""

    def __init__(self, tape: Tape, forms: Mapping[Column, Form]) -> None:
        self._tape = tape
        plain = {
            target: {column: 1.0 if isinstance(value, Traced) else value for column, value in form.items()}
            for target, form in forms.items()
        }
        self.plain = Table.of(plain)  # with 1 in place of what is not known yet
        width = len(self.plain.columns)
        place = {column: at for at, column in enumerate(self.plain.columns)}
        # Of each row its columns, in order, with a coefficient or with the number of a value on the tape.
        self._rows: list[list[tuple[Column, float, int | None]]] = [
            [
                (column, cast(float, plain[target][column]), _on_tape(form[column]))
                for column in sorted(form, key=place.__getitem__)
            ]
            for target, form in forms.items()
        ]
        self._traced = [
            (row * width + place[column], at)
            for row, terms in enumerate(self._rows)
            for column, _, at in terms
            if at is not None
        ]

    def __bool__(self) -> bool:
        """Whether anything is traced."""
        return bool(self._traced)

    def table(self, inputs: Sequence[Sequence[float]]) -> Table:
        """The table for these inputs, each (B,): its coefficients are (B, rows, columns)."""
        if len(inputs[0]) == 1:
            return self._of_one([one[0] for one in inputs])
        batch, shape = len(inputs[0]), self.plain.coefficients.shape
        coefficients = self.plain.coefficients.reshape(1, -1).repeat(batch, 0)
        values = self._tape.values([np.array(one) for one in inputs])
        for at, value in self._traced:
            coefficients[:, at] = values[value]
        return Table(self.plain.targets, self.plain.columns, coefficients.reshape(batch, *shape))

    def _of_one(self, inputs: list[float]) -> Table:
        """In plain floats, which are ten times as fast as arrays of one."""
        values = cast(list[float], self._tape.values(inputs))
        rows: Terms = []
        for row in self._rows:
            terms: list[tuple[Column, Factor]] = []
            for column, factor, at in row:
                if at is not None:
                    factor = values[at]
                if factor:
                    terms.append((column, factor))
            rows.append(terms)
        return Table(self.plain.targets, self.plain.columns, terms=rows)


def _on_tape(value: Number) -> int | None:
    return value.at if isinstance(value, Traced) else None
