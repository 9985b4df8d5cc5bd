"""`driffusion-trt bench`: its options. The work is in `_benchmarking`, which loads what is heavy."""

from __future__ import annotations

import argparse

from .._errors import InputError
from ._console import Console
from ._options import (
    devices,
    guidance_option,
    model_option,
    number,
    option,
    scheduler_option,
    size_options,
    steps_option,
    whole,
    wholes,
)

DESCRIPTION = (
    "Measure modes and baselines beside each other in one process: latency by stage, speed-up over\n"
    "sequential, memory, and how far pictures are from the sequential ones; or compare two such runs."
)
EPILOG = """\
modes, with commas:
  sequential, aggressive, conservative, window, tolerance, skip, paradigms, auto, and split, which
  is sequential with its guidance on two devices. Each may have settings, as mode:key=value: lanes,
  rounds, tolerance, order, carry, blocks (1+2+3), quality, deadline_ms, split (yes or no), threads.
  sequential:threads=2 is ONNX Runtime by itself, each network call on two threads of the CPU.

Every repetition takes the next prompt and seed, in all modes; ratios are of one repetition.
docs/benchmarking.md says how to read the figures, and what not to compare.

example:
  driffusion-trt bench --modes aggressive,tolerance:tolerance=0.005,sequential:threads=2 --lanes 2
  driffusion-trt bench --lanes 2,4 --iterations 20 --json new.json --plot new.svg --trace t.json
  driffusion-trt bench --compare old.json new.json --fail-above 5"""

# Repeated here, since its module loads more than help needs; a test holds the copies together.
JUDGED = ("speed-up", "latency")
_OF_COMPARING = ("compare", "fail_above", "judge_by", "quiet", "verbose")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    _what(parser.add_argument_group("what"))
    _pictures(parser.add_argument_group("pictures"))
    _output(parser.add_argument_group("output"))
    group = parser.add_argument_group("two runs")
    group.add_argument("--compare", metavar=("OLD", "NEW"), nargs=2, help="compare two files of --json")
    option(
        group, "--fail-above", "PERCENT", "fail where NEW is slower by more, beyond the noise", type=number
    )
    option(
        group,
        "--judge-by",
        "NAME",
        "speed-up over the run's own sequential, or latency (default: speed-up)",
        names=JUDGED,
    )


def _what(group: argparse._ArgumentGroup) -> None:
    option(group, "--modes", "MODES", "see below (default: the five of this project)")
    option(group, "--lanes", "N,N,...", "noises predicted at once (default: as many as devices)", type=wholes)
    option(group, "--iterations", "N", "repetitions after the warm-up (default: 10)", type=whole)
    model_option(group)
    option(
        group,
        "--devices",
        "N",
        "auto, a number, cuda, or a list: cuda:0,cuda:1 or cpu,cpu (default: auto, no more than lanes)",
        type=devices,
    )
    group.add_argument(
        "--no-memory", action="store_true", help="leave out memory, for which each is made by a process alone"
    )
    group.add_argument("--no-cuda-graphs", action="store_true", help="launch kernels and engines one by one")
    group.add_argument("--no-peer-copies", action="store_true", help="copy from GPU to GPU through the host")


def _pictures(group: argparse._ArgumentGroup) -> None:
    steps_option(group)
    guidance_option(group)
    option(group, "--prompts", "FILE", "prompts, one a line, # for comments; - is stdin (default: a handful)")
    option(group, "--seed", "N", "seed of the first picture (default: 0)", type=whole)
    option(group, "--batch-size", "N", "pictures of each call (default: 1)", type=whole)
    size_options(group)
    scheduler_option(group)


def _output(group: argparse._ArgumentGroup) -> None:
    option(group, "--json", "FILE", "all figures, with machine, versions and commit")
    option(group, "--csv", "FILE", "a row for each mode and number of lanes")
    option(group, "--plot", "FILE", "speed-up against drift: .svg, .png or .pdf (needs matplotlib)")
    option(group, "--trace", "FILE", "the last picture of each as a trace for ui.perfetto.dev, lane by lane")
    option(group, "--lpips", "PATH", "weights of LPIPS (AlexNet), for one more drift (needs torch)")
    group.add_argument("-q", "--quiet", action="store_true", help="print results, warnings and errors only")
    group.add_argument("-v", "--verbose", action="store_true", help="print more, and tracebacks of errors")


def run(args: argparse.Namespace, console: Console) -> None:
    if args.compare is None:
        for name in ("fail_above", "judge_by"):
            if (value := getattr(args, name)) is not None:
                shown = f"--{name.replace('_', '-')} {value}"
                raise InputError(f"{shown} was given; it goes with --compare OLD NEW")
        from ._benchmarking import benchmark

        return benchmark(args, console)
    given = [
        name
        for name, value in vars(args).items()
        if value is not None
        and value is not False
        and name not in (*_OF_COMPARING, "command", "run", "parser", "words")
    ]
    if given:
        raise InputError(f"--{given[0].replace('_', '-')} was given; it does not go with --compare")
    from ._benchmarks_compared import compare_runs

    return compare_runs(args, console)
