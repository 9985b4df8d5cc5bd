"""A few physical figures of one device, its links and its host, from which costs on any number follow."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Self

from .._errors import InputError, did_you_mean
from .._foreign import is_number, plain, read_json
from .costs import Costs

__all__ = ["Machine"]

_LEAST = 1e-6  # of what is divided by
_US = 1e-3  # milliseconds
_GB_S = 1e-6  # bytes a millisecond, of 10^9 bytes a second: bytes * _GB_S / gb_s are milliseconds


@dataclass(frozen=True, slots=True)
class Machine:
    """Devices of one kind, by what is measured on one of them, on one pair, and on the host.

    call_ms: of one network call of 1, 2, 3, ... rows on one device, the others idle. A row is one picture's
        latents with or without the prompt; further rows take what the last one took.
    latents_bytes: of one picture's latents, as they travel between devices (float32).
    copy_us, copy_gb_s: latency and bandwidth (10^9 bytes a second) of a copy from device to device; without
        a bandwidth copies take the latency alone.
    host_us: the host's work for a round, and for each device at work in it.
    ahead: the host does that work while the devices are at earlier rounds, as it does for GPUs; CPU lanes
        wait for it.
    look_us: of a look at what a round showed, by plans that decide or extrapolate by it.
    encode_ms, decode_ms: of a picture's prompt and of its latents.
    crowded: how many times as long a call takes while all devices are at work: 1 where they share nothing.
    rows: of one network call, from and to, as in `Costs`.
    source: where the figures are from, in words.

    Raises InputError for figures that cannot be.
    """

    call_ms: tuple[float, ...]
    latents_bytes: int = 0
    copy_us: float = 0.0
    copy_gb_s: float | None = None
    host_us: tuple[float, float] = (0.0, 0.0)
    ahead: bool = True
    look_us: float = 0.0
    encode_ms: float = 0.0
    decode_ms: float = 0.0
    crowded: float = 1.0
    rows: tuple[int, int] = (1, 0)
    source: str = ""

    def __post_init__(self) -> None:
        _check("latents_bytes", self.latents_bytes, 0, whole=True)
        for name in ("copy_us", "look_us", "encode_ms", "decode_ms"):
            _check(name, getattr(self, name), 0)
        for name in ("host_us", "rows"):
            for one in getattr(self, name):
                _check(name, one, 0, whole=name == "rows")
        _check("crowded", self.crowded, 1)
        if not self.call_ms:
            raise InputError("call_ms must have times, one for each number of rows")
        for one in self.call_ms:
            _check("call_ms", one, _LEAST)
        if self.copy_gb_s is not None and not is_number(self.copy_gb_s, _LEAST):
            shown = plain(repr(self.copy_gb_s), 60)
            raise InputError(f"copy_gb_s must be above 0 GB/s, not {shown}; leave it out for no bound")
        if len(self.host_us) != 2 or len(self.rows) != 2:
            raise InputError(f"host_us and rows are pairs, not {self.host_us} and {self.rows}")

    def costs(self, devices: int) -> Costs:
        """What rounds take on so many of them.

        A round's messages leave the lead over its one link, and its predictions come back over it: one copy
        there and one back, and the bytes of all devices but the lead.

        Raises InputError for fewer than one device.
        """
        two, all_ = (self._exchange_ms(others) for others in (1, max(1, devices - 1)))
        host_ms = self.host_us[0] * _US, self.host_us[1] * _US
        return Costs(
            devices,
            self.call_ms,
            self.crowded,
            (two, all_) if devices > 1 else (0.0, 0.0),
            self.look_us * _US,
            self.encode_ms + self.decode_ms,
            self.rows,
            host_ms=host_ms,
            ahead=self.ahead,
        )

    def _exchange_ms(self, others: int) -> float:
        bytes_ms = 0.0 if self.copy_gb_s is None else self.latents_bytes * _GB_S / self.copy_gb_s
        return 2 * (self.copy_us * _US + others * bytes_ms)

    def to_json(self) -> dict[str, Any]:
        """The figures by name, for `from_json`."""
        return asdict(self)

    @classmethod
    def from_json(cls, stored: object) -> Self:
        """Figures by name; all but `call_ms` may be left out.

        Raises InputError for unknown names, and values that cannot be.
        """
        if not isinstance(stored, dict):
            raise InputError('figures of a machine are a JSON object, such as {"call_ms": [41.0, 77.5]}')
        known = {field.name for field in fields(cls)}
        for name in stored:
            if name not in known:
                raise InputError(
                    f"there is no figure {plain(repr(name), 60)}{did_you_mean(str(name), known)}"
                )
        if "call_ms" not in stored:
            raise InputError("call_ms is missing: milliseconds of a network call of 1, 2, ... rows")
        values = dict(stored)
        for name in ("call_ms", "host_us", "rows"):
            if name in values:
                if not isinstance(values[name], list | tuple):
                    raise InputError(f"{name} must be a list of numbers, not {plain(repr(values[name]), 60)}")
                values[name] = tuple(values[name])
        if not isinstance(values.get("source", ""), str) or not isinstance(values.get("ahead", True), bool):
            raise InputError(f"source is a text and ahead true or false; these are {plain(repr(stored))}")
        values["source"] = plain(values.get("source", ""))
        return cls(**values)

    @classmethod
    def read(cls, path: Path) -> Self:
        """From a JSON file, as `python -m bench.gpu` writes them. Raises InputError as `from_json` does."""
        stored = read_json(path, "as figures of a machine")
        try:
            return cls.from_json(stored)
        except InputError as error:
            raise InputError(f"{path}: {error}") from error


def _check(name: str, value: object, least: float, *, whole: bool = False) -> None:
    if not is_number(value, least, whole=whole):
        kind = "whole number" if whole else "finite number"
        shown = plain(repr(value), 60)
        raise InputError(f"{name} must be a {kind} of at least {least:g}, and 1e12 at most, not {shown}")
