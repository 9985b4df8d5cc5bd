"""Rounds of a window or tolerance as far as they do not depend on the picture, which a plan keeps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from .rounds import Round
from .tables import Table
from .traced import TapedTable

__all__ = ["PLACES_KEPT", "Asked", "Place", "Places"]

PLACES_KEPT = 256  # of one plan: a picture is at one place a round, and most pictures at the same ones


@dataclass(frozen=True, slots=True)
class Asked:
    """What a round observes, in this order: sums for θ, then distances.

    fitted: how far behind the last known prediction each was that had to be extrapolated.
    drafted: states whose drafts are compared with the refined ones.
    """

    fitted: tuple[int, ...]
    drafted: tuple[int, ...]
    tables: tuple[Table, ...]


class Place(NamedTuple):
    """All of a round that does not depend on the picture: in `item` the drafts may be for no θ in particular.

    drafts: those for any θ, where they depend on it. sizes: what distances are relative to.
    """

    item: Round
    asked: Asked
    drafts: TapedTable | None
    sizes: Sequence[float]


class Places:
    """The rounds of a plan by the state reached, the states known, and which shares of θ have been fitted.

    Any number of walks may use them at once: a place is the same whoever makes it.
    """

    def __init__(self) -> None:
        self._found: dict[object, Place] = {}

    def get(self, key: object) -> Place | None:
        return self._found.get(key)

    def add(self, key: object, place: Place) -> Place:
        if len(self._found) >= PLACES_KEPT:
            self._found.clear()
        self._found[key] = place
        return place
