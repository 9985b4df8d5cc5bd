"""`driffusion-trt plan --costs FILE`: what any number of devices would take, from figures of one."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .._errors import InputError
from ..planning.candidates import Wanted
from ..planning.choice import choose
from ..planning.latency import TERMS, Work, latency_ms, pays_up_to, terms_ms
from ..planning.machine import Machine
from ..sampling.plan import WINDOW_LANES
from ._console import Console
from ._options import BASELINES, MODES
from ._planning import Plans

_DEVICES = 8
_MOST = 100_000
_WIDTHS = {name: max(7, len(name) + 2) for name in reversed(TERMS)}
_GAIN = 0.05  # a device that brings less does not pay


@dataclass(frozen=True, slots=True)
class _Row:
    """One plan on so many devices, and how long it takes."""

    devices: int
    mode: str
    split: bool
    rounds: float
    ms: float
    loop_ms: float
    terms: dict[str, float]


class WhatIf:
    """Latencies of the modes on machines that need not be here. Raises InputError for what cannot be."""

    def __init__(self, args: argparse.Namespace, plans: Plans) -> None:
        self._machine, self._plans = Machine.read(Path(args.costs)), plans
        self._most = _DEVICES if args.devices is None else args.devices
        if isinstance(self._most, bool) or not isinstance(self._most, int) or not 0 < self._most <= _MOST:
            raise InputError(
                f"--devices {args.devices} was given; with --costs it is a number: the most devices, up to "
                f"{_MOST}"
            )
        self._modes = [one for one in MODES if one not in BASELINES] if args.mode is None else [args.mode]
        self._guided = plans.guidance_scale is None or plans.guidance_scale > 1
        self._expected = plans.expected()
        self._steps = plans.schedule.steps
        sequential = self._row(1, "sequential", False)
        if sequential is None:
            raise InputError(
                f"{args.costs}: calls take {self._machine.rows} rows; a sequential picture is none"
            )
        self._sequential: _Row = sequential

    def rows(self) -> list[_Row]:
        """For 1, 2, 4, 8, ... devices and the most: every mode, with guidance in one batch and split."""
        found: list[_Row | None] = [self._sequential]
        for devices in self._counts():
            for split in (False, True) if self._guided else (False,):
                for mode in self._modes:
                    if devices > 1 and (mode != "sequential" or split):
                        found.append(self._row(devices, mode, split))
        return [one for one in found if one is not None]

    def facts(self) -> list[dict[str, Any]]:
        return [
            {
                "devices": one.devices,
                "mode": one.mode,
                "split_guidance": one.split,
                "rounds": one.rounds,
                "expected_ms": one.ms,
                "expected_speedup": self._speedup(one),
                "expected_loop_speedup": self._loop_speedup(one),
                "terms_ms": one.terms,
            }
            for one in self.rows()
        ]

    def pays(self) -> dict[str, int]:
        """By mode, guidance in one batch: the number of devices after which one more brings less than 5 %.

        Of all numbers up to --devices, 16 at least.
        """
        found = {mode: self._alone(mode) for mode in self._modes if mode != "sequential"}
        return {
            mode: pays_up_to({1: self._sequential.ms, **times}, _GAIN)
            for mode, times in found.items()
            if times
        }

    @property
    def _scanned(self) -> int:
        """No plan has more lanes than steps, so that what comes after these brings nothing."""
        return max(WINDOW_LANES, min(self._most, self._steps + 1))

    def _alone(self, mode: str) -> dict[int, float]:
        """Milliseconds of a mode with guidance in one batch, by number of devices."""
        made = {n: self._row(n, mode, False) for n in range(2, self._scanned + 1)}
        return {n: one.ms for n, one in made.items() if one is not None}

    def chosen(self) -> dict[int, str]:
        """What mode auto takes, by number of devices; nothing for a bare scheduler config."""
        if self._expected is None:
            return {}
        wanted = Wanted(self._steps, self._guided)
        return {n: str(choose(self._machine.costs(n), wanted, self._expected)) for n in self._counts()}

    def _counts(self) -> list[int]:
        return sorted({self._most, *(2**k for k in range(self._most.bit_length()))})

    def _row(self, devices: int, mode: str, split: bool) -> _Row | None:
        """None where there is no such plan: too many lanes for it, a device too few, or calls too large."""
        costs, lanes = self._machine.costs(devices), devices // 2 if split else devices
        lanes = 1 if mode == "sequential" else lanes
        fits = lanes and costs.fits(lanes, guided=self._guided, split=split)
        if not fits or (lanes == 1 and mode != "sequential") or not self._plans.takes(mode, lanes):
            return None
        if mode == "tolerance" and self._expected is None:
            return None
        try:
            plan = self._plans.make(mode, lanes)
        except InputError:
            if len(self._modes) == 1 and devices == self._most and not split:
                raise
            return None
        work = Work.of(plan, None if self._expected is None else self._expected.of_plan(plan))
        ms = latency_ms(costs, work, guided=self._guided, split=split)
        terms = terms_ms(costs, work, guided=self._guided, split=split)
        return _Row(devices, mode, split, work.count, ms, ms - terms["beside"], terms)

    def _speedup(self, one: _Row) -> float:
        return self._sequential.ms / one.ms

    def _loop_speedup(self, one: _Row) -> float:
        return self._sequential.loop_ms / one.loop_ms

    def table(self) -> str:
        """One line a plan; the terms in percent of its latency."""
        head = f"{'devices':>7}  {'mode':<21}{'rounds':>6}{'ms':>8}{'speed-up':>10}{'loop':>7}"
        lines = [head + "".join(f"{name:>{width}}" for name, width in _WIDTHS.items())]
        for one in self.rows():
            mode = one.mode + (" + split" if one.split else "")
            line = f"{one.devices:>7}  {mode:<21}{one.rounds:>6.3g}{one.ms:>8.1f}"
            line += f"{self._speedup(one):>9.2f}x{self._loop_speedup(one):>6.2f}x"
            shares = {name: 100 * one.terms[name] / one.ms for name in _WIDTHS}
            lines.append(
                line + "".join(f"{shares[name]:>{width - 1}.1f}%" for name, width in _WIDTHS.items())
            )
        return "\n".join(lines)

    def footnotes(self) -> Iterator[str]:
        source = self._machine.source
        yield f"expected from the figures of one device{': ' + source if source else ''}"
        yield "loop: speed-up of the denoising loop alone, without `beside`: encoders and decoder"
        if self._expected is None and "tolerance" in self._modes:
            yield "tolerance is left out: how many rounds it takes is calibrated for model folders alone"
        elif self._expected is not None and "tolerance" in self._modes:
            yield f"tolerance: {self._expected.basis}"
        most = max(WINDOW_LANES, self._most)
        guidance = "guidance in one batch" if self._guided else "without guidance"
        for mode, devices in self.pays().items():
            last = most if self._plans.takes(mode, most) else WINDOW_LANES
            if devices < last:
                yield (
                    f"{mode}, {guidance}: of up to {last} devices each after {_devices(devices)} brings less "
                    f"than {100 * _GAIN:g} %"
                )
        for devices, words in self.chosen().items():
            yield f"auto, {_devices(devices)}: {words}"


def _devices(count: int) -> str:
    return "1 device" if count == 1 else f"{count} devices"


def show(args: argparse.Namespace, plans: Plans, console: Console) -> None:
    """Print it. Raises InputError for options that do not go together."""
    for name in ("lanes", "blocks", "timeline", "output"):
        value = getattr(args, name)
        if value is not None and value is not False:
            why = "lanes follow from the devices" if name == "lanes" else "it shows times on devices"
            raise InputError(f"--{name} was given; it does not go with --costs: {why}")
    found = WhatIf(args, plans)
    schedule = plans.schedule
    if args.json:
        facts = {"scheduler": schedule.solver, "steps": schedule.steps, "plans": found.facts()}
        console.out_json(facts | {"pays_up_to_devices": found.pays(), "auto": found.chosen()})
        return
    console.out(f"{schedule.steps} steps of {schedule.solver}\n\n{found.table()}\n")
    console.out("\n".join(found.footnotes()))
