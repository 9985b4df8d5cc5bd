"""Tiles that overlap by a quarter and are blended linearly: those of diffusers' AutoencoderKL.

diffusers' own arithmetic needs sides that divide by four; here the others work too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["LEAST_TILE", "Tile", "in_tiles"]

Array = NDArray[np.float32]

LEAST_TILE = 4  # latents: of fewer no quarter overlaps


@dataclass(frozen=True, slots=True)
class Tile:
    """Height and width of a tile in pixels."""

    height: int
    width: int


def in_tiles(
    run: Callable[[Array], Array],
    source: Array,
    sides: tuple[int, int],
    *,
    grow: int = 1,
    shrink: int = 1,
    even: bool = False,
) -> Array:
    """`run` on one tile of `source` after the other, each blended into those above and to the left of it.

    Beside the result it keeps one tile, and the lowest quarters of a row of them.

    Args:
        run: a tile of `source` to (1, C', ...), float32.
        source: (1, C, height, width); its sides are `shrink` times those in latents.
        sides: height and width of a tile in latents.
        grow: sides of what `run` gives are `grow` times those in latents.
        even: tiles at the edge reach back to be of full size, where diffusers cuts them off.

    Returns:
        (1, C', h, w) float32.
    """
    rows, columns = (size // shrink for size in source.shape[2:])
    overlaps = [side // 4 * grow for side in sides]
    above: dict[int, Array] = {}
    result: Array | None = None
    for row in _spans(rows, sides[0], even):
        left: Array | None = None
        for column in _spans(columns, sides[1], even):
            out = run(np.ascontiguousarray(source[:, :, row.read(shrink), column.read(shrink)]))
            made = np.array(out[:, :, row.keep(grow), column.keep(grow)])  # a copy, to be blended into
            if result is None:
                result = np.empty((1, made.shape[1], rows * grow, columns * grow), np.float32)
            if column.begin in above:
                _blend(above.pop(column.begin), made, axis=2)
            if left is not None:
                _blend(left, made, axis=3)
            if row.next < rows:
                above[column.begin] = made[:, :, -overlaps[0] :].copy()
            left = made[:, :, :, -overlaps[1] :]
            shown = made[:, :, : row.step * grow, : column.step * grow]
            result[:, :, row.write(grow), column.write(grow)] = shown
    assert result is not None
    return result


@dataclass(frozen=True, slots=True)
class _Span:
    """One side of a tile, in latents: from `begin` to `end`, read from `start`, shown for `step`."""

    start: int
    begin: int
    end: int
    step: int

    @property
    def next(self) -> int:
        return self.begin + self.step

    def read(self, factor: int) -> slice:
        return slice(self.start * factor, self.end * factor)

    def keep(self, factor: int) -> slice:
        """What of the output belongs to the tile; the rest was context for it."""
        return slice((self.begin - self.start) * factor, None)

    def write(self, factor: int) -> slice:
        return slice(self.begin * factor, self.next * factor)


def _spans(size: int, side: int, even: bool) -> Iterator[_Span]:
    step = side - side // 4
    for begin in range(0, size, step):
        end = min(begin + side, size)
        yield _Span(max(0, end - side) if even else begin, begin, end, min(step, size - begin))


def _blend(before: Array, after: Array, axis: int) -> None:
    """Lead from `before`, which ends within `after` or with it, over to `after`, in place and linearly."""
    extent = min(before.shape[axis], after.shape[axis])
    for k in range(extent):
        at: list[Any] = [slice(None)] * 4
        at[axis] = k
        of = list(at)
        of[axis] = before.shape[axis] - extent + k
        share = k / extent
        after[tuple(at)] = before[tuple(of)] * np.float32(1 - share) + after[tuple(at)] * np.float32(share)
