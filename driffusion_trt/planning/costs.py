"""What rounds of network calls take on some devices, from a few measured times."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Self

from .._errors import InputError

__all__ = ["Costs"]

_TUPLES: dict[str, Callable[[Any], Any]] = {
    "call_ms": float,
    "exchange_ms": float,
    "rows": int,
    "host_ms": float,
}


@dataclass(frozen=True, slots=True)
class Costs:
    """Times of one picture size on some devices, in milliseconds; without measurement in network calls.

    devices: how many there are.
    call_ms: of a round that is one network call of 1, 2, 3, ... rows on one device, the others idle;
        a row is one picture's latents with or without the prompt. Further rows take what the last one took.
    crowded: how many times as long the same takes while all devices are at work, at least 1.
    exchange_ms: what a round takes more when it is spread over two devices, and over all: latents there,
        predictions back.
    look_ms: what a round takes more where the plan looks at what it showed, to decide the next one or to
        fit how it extrapolates.
    host_ms: the host's own work for a round, and for each device at work in it. ahead: it is done while the
        devices are at earlier rounds, so that a round takes at least as long; else, and for a round that is
        looked at, it comes on top. Nil where it was measured as a part of the calls and looks.
    picture_ms: what a picture takes beside its rounds: encoders and decoder.
    rows: of one network call, from and to: several drafts on one device are one call, and can be no more
        than fit into it; to 0 where there is no such bound, and they are calls of their own.
    measured: whether all of this was; see `assumed`. disturbed: other work took the devices meanwhile.
    """

    devices: int
    call_ms: tuple[float, ...]
    crowded: float = 1.0
    exchange_ms: tuple[float, float] = (0.0, 0.0)
    look_ms: float = 0.0
    picture_ms: float = 0.0
    rows: tuple[int, int] = (1, 0)
    measured: bool = True
    host_ms: tuple[float, float] = (0.0, 0.0)
    ahead: bool = True
    disturbed: bool = False

    def __post_init__(self) -> None:
        times = (*self.call_ms, *self.exchange_ms, *self.host_ms, self.look_ms, self.picture_ms, self.crowded)
        if not all(math.isfinite(ms) and ms >= 0 for ms in times):
            raise InputError(f"times of costs must be finite and at least 0, not {times}")
        if self.devices < 1 or not self.call_ms or min(self.call_ms) <= 0 or self.crowded < 1:
            raise InputError(f"costs need a device, a time of a call, and crowded of at least 1: {self}")

    @classmethod
    def assumed(cls, devices: int) -> Self:
        """Where nothing was measured: calls take time by their rows, and nothing else takes any."""
        return cls(devices, (1.0, 2.0), measured=False)

    def share(self, devices: int) -> Self:
        """Of so many of the devices while the others are at work for somebody else; all of them as they are.

        Raises InputError where there are not so many.
        """
        if not 1 <= devices <= self.devices:
            raise InputError(f"a share of {devices} devices was asked, and there are {self.devices}")
        if devices == self.devices:
            return self
        two, all_ = self.exchange_ms
        most = two + (all_ - two) * max(0, devices - 2) / max(1, self.devices - 2)
        crowd = tuple(self.crowded * ms for ms in self.call_ms)
        return replace(self, devices=devices, call_ms=crowd, crowded=1.0, exchange_ms=(two, most))

    @property
    def batch_factor(self) -> float:
        """How many times as long a call of two rows takes as one of a single row."""
        return self.rows_ms(2) / self.rows_ms(1)

    def rows_ms(self, rows: int) -> float:
        """One network call of so many rows, alone on the machine."""
        known = self.call_ms
        if rows <= len(known):
            return known[rows - 1]
        more = known[-1] - known[-2] if len(known) > 1 else known[-1]
        return known[-1] + (rows - len(known)) * max(more, 0.0)

    def places(self, *, split: bool) -> int:
        """Noises that are predicted at once on devices of their own; two devices each where split."""
        return self.devices // 2 if split else self.devices

    def round_ms(
        self, drafts: int, *, guided: bool, split: bool, pictures: int = 1, looked: bool = False
    ) -> float:
        """One round that predicts so many noises at once, for a batch of pictures.

        guided: with and without the prompt. split: these two on two devices. looked: the host looks at it.

        Raises InputError where guidance is split over fewer than two devices.
        """
        places = self.places(split=split and guided)
        if not places:
            raise InputError("guidance is split over two devices, and there is one")
        both = split and guided  # then the second device has as much to do as the lead
        busy = min(drafts, places) * (2 if both else 1)
        rows = self._rows(pictures, guided, split)
        lead = self._calls_ms(-(-drafts // places), rows)
        if busy == 1:
            return self._with_host(lead, 1, looked)
        share = (busy - 1) / (self.devices - 1)
        slower = 1 + (self.crowded - 1) * share
        two, all_ = self.exchange_ms
        exchange = two + (all_ - two) * (busy - 2) / max(1, self.devices - 2)
        others = lead if both else self._calls_ms(-(-(drafts - 1) // places), rows)
        return self._with_host(max(slower * lead, slower * others + exchange), busy, looked)

    def _with_host(self, ms: float, busy: int, looked: bool) -> float:
        host_ms = self.host_ms[0] + busy * self.host_ms[1]
        if looked:  # nothing can be done ahead of a look
            return ms + host_ms + self.look_ms
        return max(ms, host_ms) if self.ahead else ms + host_ms

    def times_ms(self, lanes: int, *, guided: bool, split: bool, pictures: int = 1) -> tuple[float, float]:
        """Of a plan's first round, which has nothing to draft with, and of each after it, looks included."""
        looked = lanes > 1
        first, each = (
            self.round_ms(drafts, guided=guided, split=split, pictures=pictures, looked=looked)
            for drafts in (1, lanes)
        )
        return first, each

    def _calls_ms(self, drafts: int, rows: int) -> float:
        """So many drafts of so many rows each on one device."""
        return self.rows_ms(drafts * rows) if self.rows[1] else drafts * self.rows_ms(rows)

    def fits(self, drafts: int, *, guided: bool, split: bool, pictures: int = 1) -> bool:
        """Whether so many noises can be predicted in one round."""
        places = self.places(split=split and guided)
        rows = -(-drafts // max(1, places)) * self._rows(pictures, guided, split)
        least, most = self.rows
        return places > 0 and rows >= least and (not most or rows <= most)

    @staticmethod
    def _rows(pictures: int, guided: bool, split: bool) -> int:
        return pictures * (2 if guided and not split else 1)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, stored: object) -> Self:
        """Raises InputError where this is not what `to_json` gave."""
        try:
            values = dict(stored)  # type: ignore[call-overload]
            for name, kind in _TUPLES.items():
                values[name] = tuple(kind(one) for one in values[name])
            pairs = all(len(values[name]) == 2 for name in _TUPLES if name != "call_ms")
            if set(values) != {field.name for field in fields(cls)} or not pairs:
                raise KeyError(", ".join(values))
            return cls(**values)
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"these are no costs: {json.dumps(stored, default=str)[:200]}") from error
