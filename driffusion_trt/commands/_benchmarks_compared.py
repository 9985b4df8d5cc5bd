"""`driffusion-trt bench --compare`: two runs held against each other."""

from __future__ import annotations

import argparse
import math

from .._errors import DriffusionError, InputError
from ..benchmark.compare import compare, differences, load, shown
from ._console import Console

_LEGEND = (
    "time above 1 is slower; speed-up is over sequential of the same run, and holds where machines differ in "
    "speed. slower, faster: the interval of the time leaves out 1."
)


def compare_runs(args: argparse.Namespace, console: Console) -> None:
    """Print the ratios.

    Raises:
        InputError: a file that is no result, or runs that have nothing in common.
        DriffusionError: with --fail-above, where a mode is slower by more than that, beyond the noise.
    """
    limit = args.fail_above
    if limit is not None and not 0 <= limit < math.inf:
        raise InputError(f"--fail-above {limit:g} was given; it must be at least 0")
    old, new = (load(path) for path in args.compare)
    changes = compare(old, new)
    for line in differences(old, new):
        console.warn(line)
    for name, one in (("old", old), ("new", new)):
        console.note(f"{name}: {one['date']}, commit {one['commit']}, repetitions: {one['repetitions']}")
    console.out(shown(changes))
    console.note(_LEGEND)
    if limit is None:
        return
    if unknown := [one for one in changes if one.time_interval is None]:
        raise DriffusionError(
            f"--fail-above {limit:g} was asked, and {len(unknown)} of {len(changes)} modes have fewer than 3 "
            "repetitions in one of the runs; measure with more --iterations"
        )
    if slower := [one for one in changes if one.slower_by(limit)]:
        words = ", ".join(f"{one.mode} with {one.lanes} lanes {one.time:.2f} times" for one in slower)
        raise DriffusionError(f"slower by more than {limit:g} %, beyond the noise: {words} the old time")
