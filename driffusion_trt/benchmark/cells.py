"""What is measured: modes and baselines with their settings and lanes, from `mode[:key=value...]`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .._errors import InputError, did_you_mean
from ..sampling.plan import MODES

__all__ = ["DEFAULT_MODES", "SEQUENTIAL", "Cell", "cells"]

DEFAULT_MODES = "sequential,aggressive,conservative,window,tolerance"
SPLIT = "split"  # sequential, its guidance on two devices
_ALONE = ("sequential", SPLIT)  # they take one lane whatever there is, and so does skip with its rounds
_NAMES = (*MODES, "auto", SPLIT)


@dataclass(frozen=True, slots=True)
class Cell:
    """One thing to be measured.

    spelt: as on the command line, without the lanes. lanes: noises predicted at once; of mode auto the most.
    settings: of `Pipeline.__call__`. threads: that each CPU lane spreads a network call over.
    """

    spelt: str
    lanes: int
    settings: Mapping[str, Any] = field(hash=False)
    threads: int = 1

    @property
    def name(self) -> str:
        """What tells it from the others of a run; `--modes` takes it too."""
        return self.spelt if self.lanes == 1 else f"{self.spelt}:lanes={self.lanes}"

    @property
    def devices(self) -> int:
        """That it can use."""
        return self.lanes * (2 if self.settings.get("split_guidance") else 1)


def cells(modes: str, lanes: Sequence[int]) -> list[Cell]:
    """Each mode with each number of lanes, sequential first: all others are compared with it.

    modes: with commas, each `mode[:key=value...]`; `lanes=` there counts in place of `lanes`. With one lane
    every mode is sequential, so that it is left out where there are others.

    Raises InputError for what there is not.
    """
    if not lanes:
        raise InputError("no lanes were given; give numbers with commas, such as --lanes 2,4")
    for count in lanes:
        if count < 1:
            raise InputError(f"lanes={count} was asked; it must be at least 1")
    found = {SEQUENTIAL.name: SEQUENTIAL}
    for text in modes.split(","):
        for one in _of_mode(text.strip(), lanes):
            found[one.name] = one
    return list(found.values())


def _of_mode(text: str, lanes: Sequence[int]) -> list[Cell]:
    mode, *pairs = text.split(":")
    if mode not in _NAMES:
        raise InputError(f"--modes has {text!r}: there is no mode {mode!r}{did_you_mean(mode, _NAMES)}")
    found = [_pair(text, pair) for pair in pairs]
    given = dict(found)
    if len(given) < len(found):
        raise InputError(f"--modes has {text!r}, with the same key twice; give each once")
    if mode == SPLIT and "split" in given:
        raise InputError(f"--modes has {text!r}; {SPLIT} is sequential with split=yes; leave split= out")
    own, threads = given.pop("lanes", None), given.pop("threads", 1)
    settings = {_SETTING.get(name, name): value for name, value in given.items()}
    settings["mode"] = "sequential" if mode == SPLIT else mode
    if mode == SPLIT:
        settings["split_guidance"] = True
    spelt = ":".join([mode, *(pair for pair in pairs if not pair.startswith("lanes="))])
    if mode in _ALONE or (mode == "skip" and "rounds" in settings):
        if own is not None:
            alone = mode if mode in _ALONE else "skip with its rounds"
            raise InputError(
                f"--modes has {text!r}; {alone} takes one lane whatever there is: leave lanes= out"
            )
        return [Cell(spelt, 1, {**settings, "lanes": 1}, threads)]
    wanted = list(lanes) if own is None else [own]
    several = [count for count in wanted if count > 1]
    if not several:
        raise InputError(f"--modes has {text!r}, and one lane is sequential; give two lanes or more")
    return [Cell(spelt, count, {**settings, "lanes": count}, threads) for count in several]


def _pair(text: str, pair: str) -> tuple[str, Any]:
    name, equals, value = pair.partition("=")
    if not equals or name not in _KEYS:
        hint = did_you_mean(name, _KEYS)
        raise InputError(f"--modes has {text!r}: {pair!r} is no key=value that goes with a mode{hint}")
    try:
        return name, _KEYS[name](value)
    except ValueError:
        raise InputError(f"--modes has {text!r}: {value!r} is no value of {name}") from None


def _positive(text: str) -> int:
    if (value := int(text)) < 1:
        raise ValueError
    return value


def _switch(text: str) -> bool:
    if text not in ("yes", "no"):
        raise ValueError
    return text == "yes"


def _order(text: str) -> int | str:
    return text if text == "auto" else int(text)


def _blocks(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split("+"))


_KEYS: dict[str, Callable[[str], Any]] = {
    "lanes": _positive,
    "threads": _positive,
    "split": _switch,
    "rounds": _positive,
    "blocks": _blocks,
    "tolerance": float,
    "order": _order,
    "carry": str,
    "quality": str,
    "deadline_ms": float,
}
_SETTING = {"split": "split_guidance"}  # of a call, where it has another name there

SEQUENTIAL = Cell("sequential", 1, {"mode": "sequential", "lanes": 1})
