"""`driffusion-trt run`: its options. The work is in `_pictures`, which loads what is heavy."""

from __future__ import annotations

import argparse
import time

from ._console import Console
from ._options import (
    MODES,
    NAN_POLICIES,
    QUALITIES,
    devices,
    guidance_option,
    model_option,
    number,
    option,
    scheduler_option,
    steps_option,
    whole,
    wholes,
)

DESCRIPTION = "Make pictures from prompts, and write them as PNG files with their settings inside."
EPILOG = """\
output:
  default        <words of the prompt>-<seed>.png in the working folder
  -o name.png    that file; with several pictures name-0.png, name-1.png, ...
  -o folder/     <words of the prompt>-<seed>.png in that folder
  A file that is there already is replaced. Paths go to stdout, all else to stderr.

seeds:
  Picture k of a run has the seed SEED + k, and can be made again alone with it (in modes tolerance
  and paradigms nearly so: a batch takes the rounds of its hardest picture).

example:
  driffusion-trt run "a red fox left of a blue star" --mode aggressive --lanes 2 --compare"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "words", metavar="PROMPT", nargs="*", help="what the picture shows; several make several pictures"
    ).completer = lambda **_: ()  # type: ignore[attr-defined]
    _what(parser.add_argument_group("what"))
    _how(parser.add_argument_group("how"))
    _on_gpus(parser.add_argument_group("on GPUs"))
    _output(parser.add_argument_group("output"))


def _what(group: argparse._ArgumentGroup) -> None:
    option(group, "--prompts-file", "FILE", "more prompts, one a line, # for comments; - is stdin")
    option(group, "--negative-prompt", "TEXT", "what guidance leads away from")
    for which, place in ((2, "second"), (3, "third")):
        option(group, f"--prompt-{which}", "TEXT", f"for the {place} text encoder (default: PROMPT)")
        option(group, f"--negative-prompt-{which}", "TEXT", "the same, to lead away from")
    option(
        group,
        "--height",
        "N",
        "of the pictures in pixels (default: that of --image, or the model's)",
        type=whole,
    )
    option(
        group,
        "--width",
        "N",
        "of the pictures in pixels (default: that of --image, or the model's)",
        type=whole,
    )
    model_option(group)
    option(
        group,
        "--num-images",
        "N",
        "pictures of each prompt (default: 1)",
        type=whole,
        aliases=["--num-images-per-prompt"],
    )
    option(group, "--seed", "N", "seed of the first picture (default: 0)", type=whole)
    _from_image(group)
    option(group, "--from-picture", "FILE", "take what is not given here from a PNG that `run` wrote")


def _how(group: argparse._ArgumentGroup) -> None:
    steps_option(group)
    guidance_option(group)
    option(
        group,
        "--mode",
        "MODE",
        f"auto, {', '.join(MODES)} (default: auto)",
        names=("auto", *MODES),
    )
    option(
        group,
        "--quality",
        "LEVEL",
        f"of mode auto: {', '.join(QUALITIES)} (default: balanced)",
        names=QUALITIES,
    )
    option(group, "--deadline-ms", "MS", "of mode auto: the time for a picture or batch of them", type=number)
    group.add_argument("--explain", action="store_true", help="say what mode auto chose from, and why")
    group.add_argument(
        "--measure", action="store_true", help="measure for mode auto, though it was done before"
    )
    option(group, "--lanes", "N", "noises predicted at once; of mode auto the most", type=whole)
    group.add_argument(
        "--split-guidance",
        action=argparse.BooleanOptionalAction,
        help="predict with and without the prompt on two devices a lane, not in one batch",
    )
    option(group, "--rounds", "N", "of modes skip, window and paradigms; of tolerance the most", type=whole)
    option(group, "--blocks", "N,N,...", "steps of each round after the first, for --rounds", type=wholes)
    option(
        group,
        "--tolerance",
        "T",
        "of modes auto and tolerance (default: 0.01), and paradigms (0.1)",
        type=number,
    )
    option(group, "--order", "N", "of the extrapolation in window and tolerance: 0, 1 or 2", type=whole)
    option(group, "--carry", "NAME", "what window and tolerance carry: G or x0", names=("G", "x0"))
    option(
        group,
        "--devices",
        "N",
        "auto, a number, cuda, or a list: cuda:0,cuda:1 or cpu,cpu (default: auto, no more than lanes)",
        type=devices,
    )
    scheduler_option(group)
    option(group, "--eta", "X", "share of fresh noise in a step of ddim, 0 to 1 (default: 0)", type=number)
    option(group, "--clip-skip", "N", "layers of CLIP to stop before the usual one", type=whole)
    option(group, "--batch-size", "N", "pictures in one network call (default: 1)", type=whole)


def _output(group: argparse._ArgumentGroup) -> None:
    option(group, "--output", "PATH", "a .png file or a folder/; see below", short="-o")
    group.add_argument(
        "--compare",
        action="store_true",
        help="also run sequential, and write both side by side to ...-compare.png",
    )
    group.add_argument("--json", action="store_true", help="print one JSON object and nothing else to stdout")
    group.add_argument("-q", "--quiet", action="store_true", help="print paths, warnings and errors only")
    group.add_argument("-v", "--verbose", action="store_true", help="print more, and tracebacks of errors")


def _from_image(group: argparse._ArgumentGroup) -> None:
    option(group, "--image", "FILE", "start from this picture instead of noise")
    option(group, "--mask", "FILE", "make anew what is white here, and keep the rest of --image")
    option(group, "--strength", "X", "share of the steps to run from --image, 0 to 1", type=number)


def _on_gpus(group: argparse._ArgumentGroup) -> None:
    option(group, "--nan-policy", "NAME", f"{' or '.join(NAN_POLICIES)} (default: error)", names=NAN_POLICIES)
    option(group, "--fp32-model", "DIR", "for retry-fp32 (default: the model's folder with -fp32 after it)")
    group.add_argument("--no-cuda-graphs", action="store_true", help="launch kernels and engines one by one")
    group.add_argument("--no-peer-copies", action="store_true", help="copy from GPU to GPU through the host")


def run(args: argparse.Namespace, console: Console) -> None:
    start = time.perf_counter()  # loading what the next line needs is part of what a user waits for
    from ._pictures import make_pictures

    make_pictures(args, console, start)
