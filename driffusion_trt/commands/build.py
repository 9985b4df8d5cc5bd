"""`driffusion-trt build`: its options. The work is in `_building`, which loads what is heavy."""

from __future__ import annotations

import argparse

from ._console import Console
from ._options import DEMOS, number, option, whole

DESCRIPTION = "Turn a checkpoint into a model folder: ONNX checked against torch, and TensorRT plans."
EPILOG = """\
targets:
  this           the GPUs of this machine (the default where there are any)
  cpu            ONNX only, which CPU lanes run (the default where there is none)
  sm89,sm120     plans of TensorRT-RTX for these architectures; needs no GPU

shapes:
  Plans are for pictures of one size, one at a time, unless you say otherwise; batches cover
  guidance, which doubles them. --min-shapes, --opt-shapes and --max-shapes give the denoiser's
  latents instead: sample:2x4x96x96 (hidden_states for SD3).

A build that was stopped goes on where it was; one that is done says so at once.

example:
  driffusion-trt build --model sdxl --checkpoint stabilityai/stable-diffusion-xl-base-1.0 \\
    --output models/sdxl --height 1024 --width 1024"""

# Repeated here, since their modules load more than help needs; a test holds the copies together.
FAMILIES = ("sd21", "sd21-base", "sdxl", "sd3", "sd35-medium", "sd35-large", *DEMOS)
FLAVOURS = ("tensorrt", "tensorrt-rtx")
PRECISIONS = ("fp16", "bf16", "fp32")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    _what(parser.add_argument_group("what"))
    _sizes(parser.add_argument_group("sizes that plans are for"))
    group = parser.add_argument_group("plans")
    option(group, "--target", "WHERE", "this, cpu, or architectures such as sm89,sm120; see below")
    option(
        group,
        "--flavour",
        "NAME",
        f"{' or '.join(FLAVOURS)} (default: what suits the target)",
        names=FLAVOURS,
        aliases=["--flavor"],
    )
    option(group, "--jobs", "N", "plans built at once, as memory allows (default: 2)", type=whole)
    option(
        group,
        "--optimization-level",
        "N",
        "how hard TensorRT tries, 0 to 5 (default: its own)",
        type=whole,
        aliases=["--builder-optimization-level"],
    )
    group = parser.add_argument_group("output")
    option(
        group,
        "--output",
        "DIR",
        "the model folder (default: models/<family>)",
        short="-o",
        aliases=["--output-dir"],
    )
    group.add_argument("--json", action="store_true", help="print one JSON object and nothing else to stdout")
    group.add_argument("-q", "--quiet", action="store_true", help="print the path, warnings and errors only")
    group.add_argument("-v", "--verbose", action="store_true", help="print more, and tracebacks of errors")


def _what(group: argparse._ArgumentGroup) -> None:
    option(group, "--model", "FAMILY", ", ".join(FAMILIES), names=FAMILIES)
    option(group, "--checkpoint", "PATH", "a diffusers folder, or the id of one on the hub")
    option(
        group,
        "--precision",
        "NAME",
        f"{', '.join(PRECISIONS)} (default: fp16, or fp32 for --target cpu)",
        names=PRECISIONS,
    )
    group.add_argument(
        "--lora-path", metavar="FILE", nargs="+", action="extend", help="LoRAs to fuse into the weights"
    )
    group.add_argument(
        "--lora-weight",
        metavar="W",
        nargs="+",
        action="extend",
        type=number,
        help="their scales (default: 1)",
    )
    group.add_argument("--skip", metavar="NAME", action="append", help="leave out text_encoder_3 of SD3 (T5)")
    group.add_argument("--no-verify", action="store_true", help="do not compare networks with torch")
    group.add_argument("--allow-pickle", action="store_true", help="take weights that can run code: *.bin")


def _sizes(group: argparse._ArgumentGroup) -> None:
    option(group, "--height", "N", "pixels (default: the model's)", type=whole)
    option(group, "--width", "N", "pixels (default: the model's)", type=whole)
    option(group, "--batch-size", "N", "most pictures at once (default: 1)", type=whole)
    group.add_argument(
        "--build-dynamic-shape", action="store_true", help="sides from half to one and a half times that"
    )
    group.add_argument("--build-static-batch", action="store_true", help="only the full batch, with guidance")
    for which in ("min", "opt", "max"):
        option(group, f"--{which}-shapes", "SHAPES", "see below", aliases=[f"--trt-{which}-shapes"])


def run(args: argparse.Namespace, console: Console) -> None:
    from ._building import build

    build(args, console)
