"""What is carried from the state where the network predicted to another one, and to later states.

docs/method.md section 4. A prediction at a draft x̃_i gives x̂0 and ε̂. At the refined state x_i the same
x̂0 may hold ("x0"), or the same G = ε̂ − x̂0, the velocity of rectified flow ("G"), with which
x̂0 = (x − s·G)/(a + s). Of a tolerance "x0" moves along x with the slope that details of a picture have.
Extrapolated over the states not predicted yet:
Ĝ_i = G_l + θ1·d·∇ + θ2·(d(d+1)/2)·∇², d = i − l, with backward differences at the last predicted l.
"""

from __future__ import annotations

import functools
from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

from . import skip
from .schedule import Schedule
from .tables import Column, Float64, Form, Number, total

Carry = Literal["G", "x0"]
CARRIES: tuple[Carry, ...] = ("G", "x0")
DETAIL = 0.08  # found on the bundled models: docs/method.md section 4
SECOND_ORDER_REACH = 3  # the term of the second difference grows with the square of the distance


@dataclass(frozen=True, slots=True)
class Theta:
    """Shares of the first and second difference, in [0, 1]: numbers, or (B,) with one for each picture."""

    first: Number = 0.5
    second: Number = 0.5


# θ1 or θ2 in plain floats: one for all pictures as long as nothing was fitted, then one for each.
Shares = float | list[float]


class Carried:
    """Predictions at the states `known`, as one carried quantity, and what they say of other states.

    order: of the extrapolation: 0 holds the last one, 1 and 2 use differences, where there are as many.
    detailed: x̂0 of a prediction moves along x by `detail_slope`; else it is the same at every x.
    """

    def __init__(self, schedule: Schedule, carry: Carry, order: int, *, detailed: bool = False) -> None:
        self._schedule, self._carry, self._order = schedule, carry, order
        self._detailed = detailed and carry == "x0"
        self.known: set[int] = set()

    @property
    def last(self) -> int:
        """The last state that was predicted; −1 before the first."""
        return max(self.known, default=-1)

    def quantity(self, i: int) -> Form:
        """G or x̂0 of the prediction at state i, from what the network saw and returned."""
        seen: Form = {Column("input", i): 1.0}
        output: Form = {Column("output", i): 1.0}
        found = skip.predicted(self._schedule, i, seen, output)
        return found.x0 if self._carry == "x0" else total((1.0, found.eps), (-1.0, found.x0))

    def differences(self) -> list[Form]:
        """The last quantity and its backward differences, as many as order and history allow."""
        last = self.last
        terms = [self.quantity(last)]
        if self._order >= 1 and last - 1 in self.known:
            terms.append(total((1.0, terms[0]), (-1.0, before := self.quantity(last - 1))))
            if self._order >= 2 and last - 2 in self.known:
                terms.append(total((1.0, terms[0]), (-2.0, before), (1.0, self.quantity(last - 2))))
        return terms

    def extrapolated(self, i: int, differences: list[Form], theta: Theta) -> Form:
        """The quantity at a state after the last that was predicted."""
        first, second = weights(i - self.last)
        parts: list[tuple[Number, Form]] = [(1.0, differences[0])]
        if len(differences) > 1:
            parts.append((theta.first * first, differences[1]))
        if len(differences) > 2:
            parts.append((theta.second * second, differences[2]))
        return total(*parts)

    def moved(self, i: int, x: Form) -> skip.Prediction:
        """x̂0 and ε̂ at the state x of number i, from the prediction at this number, made at another x."""
        quantity = self.quantity(i)
        if self._detailed:
            slope = detail_slope(float(self._schedule.a[i]), float(self._schedule.s[i]))
            quantity = total((1.0, quantity), (slope, x), (-slope, {Column("input", i): 1.0}))
        return self.at(i, x, quantity)

    def at(self, i: int, x: Form, quantity: Form) -> skip.Prediction:
        """x̂0 and ε̂ at the state x of number i, where the quantity is taken to be this."""
        a, s = float(self._schedule.a[i]), float(self._schedule.s[i])
        if self._carry == "x0":
            return skip.Prediction(quantity, total((1 / s, x), (-a / s, quantity)))
        width = a + s
        return skip.Prediction(
            total((1 / width, x), (-s / width, quantity)), total((1 / width, x), (a / width, quantity))
        )


def detail_slope(a: float, s: float) -> float:
    """How far x̂0 moves along with x where noise is small against details: a·c²/(a²·c² + s²), c = `DETAIL`.

    Of a Gaussian whose standard deviation is c. Near 0 up to the last few states, and near 1/a at the last.
    """
    return a * DETAIL**2 / (a**2 * DETAIL**2 + s**2)


def weights(distance: int) -> tuple[float, float]:
    """Factors of the first and second difference at so many states after the last that was predicted."""
    return float(distance), distance * (distance + 1) / 2 if distance <= SECOND_ORDER_REACH else 0.0


def fit_rows(carried: Carried, differences: list[Form], targets: Collection[int]) -> list[Form]:
    """Rows whose inner products `fitted` needs: the differences, and the sums of weighted residuals.

    carried: with the states that were known before the round; where the round has predicted one of them
    again, the new prediction counts. targets: states that were extrapolated, and are predicted by now.
    """
    residuals = {i: total((1.0, carried.quantity(i)), (-1.0, differences[0])) for i in targets}
    rows = differences[1:]
    sums = [
        total(*((weights(i - carried.last)[order], residual) for i, residual in residuals.items()))
        for order in range(len(rows))
    ]
    return [*rows, *sums]


def fitted(gram: Float64, distances: tuple[int, ...], before: Shares) -> tuple[list[float], list[float]]:
    """θ by least squares, per picture, from inner products (B, rows, rows) of the rows of `fit_rows`.

    Residuals r_i on f1 = d·∇ and f2 = (d(d+1)/2)·∇²; first θ2, clamped to [0, 1], then θ1 for that θ2. Where
    there is no ∇² there is no θ2. before: θ1 so far, for where there is nothing to learn from.
    """
    w11, w12, w22 = _products(distances)
    count = gram.shape[-1] // 2
    firsts, seconds = [], []
    # In plain floats: arrays of a few numbers take ten times as long.
    for k, rows in enumerate(gram.tolist()):
        a11, b1 = w11 * rows[0][0], rows[0][count]
        if count > 1:
            a12, a22, b2 = w12 * rows[0][1], w22 * rows[1][1], rows[1][3]
            determinant = a11 * a22 - a12 * a12
            solvable = determinant > 1e-9 * a11 * a22
            second = _clamped((a11 * b2 - a12 * b1) / determinant) if solvable else 0.0
            seconds.append(_coarse(second))
            b1 -= second * a12
        firsts.append(_coarse(_clamped(b1 / a11) if a11 > 0 else _of(before, k)))
    return firsts, seconds


@functools.lru_cache(maxsize=256)
def _products(distances: tuple[int, ...]) -> tuple[float, float, float]:
    """Sums over the distances of f1·f1, f1·f2 and f2·f2 in units of ∇ and ∇²; halves, so exact."""
    pairs = [weights(distance) for distance in distances]
    return (
        sum((first * first for first, _ in pairs), 0.0),
        sum((first * second for first, second in pairs), 0.0),
        sum((second * second for _, second in pairs), 0.0),
    )


def _of(shares: Shares, picture: int) -> float:
    return shares if isinstance(shares, float) else shares[picture if len(shares) > 1 else 0]


def _clamped(share: float) -> float:
    """To [0, 1]; a NaN stays one."""
    return 0.0 if share < 0 else 1.0 if share > 1 else share


def _coarse(theta: float) -> float:
    """In steps of 1/1024, so that sums which devices add up in another order make the same picture."""
    return round(1024 * theta) / 1024 if theta == theta else theta
