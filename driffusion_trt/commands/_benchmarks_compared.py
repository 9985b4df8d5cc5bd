"""`driffusion-trt bench --compare`: two runs held against each other."""

from __future__ import annotations

import argparse
import math

from .._errors import DriffusionError, InputError
from ..benchmark.compare import JUDGED, Change, compare, differences, missing, shown
from ..benchmark.figures import LEAST
from ..benchmark.stored import load
from ._console import Console


def compare_runs(args: argparse.Namespace, console: Console) -> None:
    """Print the ratios.

    Raises:
        InputError: a file that is no result, or runs that have nothing in common.
        DriffusionError: with --fail-above, where a mode is slower by more than that, beyond the noise, or
            where that cannot be said: too few repetitions, or a mode that the new run has not.
    """
    limit, judged = args.fail_above, JUDGED[0] if args.judge_by is None else args.judge_by
    if judged not in JUDGED:
        raise InputError(f"--judge-by {judged} was given; there is {' and '.join(JUDGED)}")
    if limit is not None and not 0 <= limit < math.inf:
        raise InputError(f"--fail-above {limit:g} was given; it must be at least 0")
    old, new = (load(path) for path in args.compare)
    changes = compare(old, new, judged)
    for line in differences(old, new):
        console.warn(line)
    for name, one in (("old", old), ("new", new)):
        console.note(f"{name}: {one['date']}, commit {one['commit']}, repetitions: {one['repetitions']}")
    console.out(shown(changes))
    console.note(_legend(judged, changes))
    if limit is not None:
        _gate(limit, changes, missing(old, new))


def _legend(judged: str, changes: list[Change]) -> str:
    count = sum(not one.is_measure for one in changes)
    return (
        "time above 1 is slower; speed-up is over sequential of the same run, and holds where machines "
        f"differ in speed; drift is the mean relative L2. slower, faster: by the {judged}, whose interval "
        f"leaves out 1. Intervals are made for {count} together: in 95 % of comparisons none of them misses."
    )


def _gate(limit: float, changes: list[Change], gone: list[str]) -> None:
    asked = f"--fail-above {limit:g} was asked"
    if gone:
        raise DriffusionError(
            f"{asked}, and the new run has no {', '.join(gone)}; measure the modes and lanes of the old one"
        )
    told = [one for one in changes if not one.is_measure]
    if not told:
        raise DriffusionError(
            f"{asked}, and there is no mode but sequential; --judge-by latency judges that too"
        )
    if unknown := [one for one in told if one.verdict == "?"]:
        raise DriffusionError(
            f"{asked}, and {len(unknown)} of {len(told)} modes have fewer than {LEAST} repetitions in one of "
            "the runs; measure with more --iterations"
        )
    if slower := [one for one in told if one.slower_by(limit)]:
        what = {"latency": "as long as before", "speed-up": "as long as before, sequential's time taken as 1"}
        words = ", ".join(f"{one.mode} with {one.lanes} lanes {one.slowness:.2f} times" for one in slower)
        raise DriffusionError(
            f"slower by more than {limit:g} %, beyond the noise: {words} {what[slower[0].judged]}"
        )
