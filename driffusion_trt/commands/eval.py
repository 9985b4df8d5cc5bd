"""`driffusion-trt eval`: its options. The work is in `_evaluating`, which loads what is heavy."""

from __future__ import annotations

import argparse

from ._console import Console
from ._options import (
    MODES,
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
    "Make the same pictures in every mode, and say how good they are and how far from sequential ones:\n"
    "the protocol of DRiffusion (2603.25872) on MS-COCO's captions, or the bundled models' own test."
)
EPILOG = """\
metrics:
  drift          relative L2 of the latents and PSNR, from the sequential picture
  alignment      of bundled models: pictures that show all that their held-out prompt names
  frechet        of bundled models: Fréchet distance in their classifier's features
  fid            Fréchet Inception distance from --reference
  clip           CLIP score
  pickscore      PickScore v1
  hpsv2          HPSv2.1
  Weights are looked for before any picture is made; docs/evaluating.md says where they come from.

output:
  WORK/<mode>/00000.png, pictures.jsonl    pictures with their settings
  WORK/results.json, results.csv           every figure with its 95 % interval
  What was stopped goes on where it was; modes, lanes, metrics and pictures can be added later.

example:
  driffusion-trt eval --work eval/demo --count 200 --modes aggressive,window --lanes 2,4
  driffusion-trt eval --work eval/sdxl --model models/sdxl --captions captions_val2017.json \\
    --reference val2017 --modes aggressive,conservative,window,tolerance --lanes 2,3,4"""

# Repeated here, since its module loads more than help needs; a test holds the copies together.
METRICS = ("drift", "alignment", "frechet", "fid", "clip", "pickscore", "hpsv2")


def names(text: str) -> list[str]:
    """Words with commas between them."""
    found = [part.strip() for part in text.split(",")]
    if not all(found):
        raise argparse.ArgumentTypeError(f"{text!r} has an empty name")
    return list(dict.fromkeys(found))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    option(parser, "--work", "FOLDER", "where pictures, scores and results go; made if it is missing")
    _what(parser.add_argument_group("what"))
    _how(parser.add_argument_group("how"))
    _scores(parser.add_argument_group("metrics"))
    group = parser.add_argument_group("output")
    group.add_argument("--json", action="store_true", help="print results.json instead of tables")
    group.add_argument("-q", "--quiet", action="store_true", help="print results, warnings and errors only")
    group.add_argument("-v", "--verbose", action="store_true", help="print more, and tracebacks of errors")


def _what(group: argparse._ArgumentGroup) -> None:
    model_option(group)
    option(group, "--captions", "FILE", "MS-COCO's captions_val2017.json; the first caption of each picture")
    option(group, "--prompts-file", "FILE", "prompts, one a line, # for comments; - is stdin")
    option(group, "--count", "N", "pictures (default: all; of held-out prompts 200)", type=whole)
    option(group, "--seed", "N", "of the first picture; picture k has seed N + k (default: 0)", type=whole)


def _how(group: argparse._ArgumentGroup) -> None:
    option(
        group,
        "--modes",
        "M,M,...",
        f"beside sequential: {', '.join(MODES[1:])} (default: aggressive,conservative)",
        type=names,
        names=MODES,
    )
    option(group, "--lanes", "N,N,...", "noises predicted at once (default: 2,3,4)", type=wholes)
    option(group, "--rounds", "N", "of modes skip, window and paradigms; of tolerance the most", type=whole)
    option(
        group,
        "--tolerance",
        "T",
        "of modes tolerance (default: 0.01) and paradigms (0.1)",
        type=number,
    )
    steps_option(group)
    guidance_option(group)
    option(group, "--negative-prompt", "TEXT", "what guidance leads away from")
    scheduler_option(group)
    size_options(group)
    option(group, "--devices", "N", "that make pictures, as for `run` (default: auto)", type=devices)
    option(group, "--batch-size", "N", "pictures in one network call (default: 1)", type=whole)


def _scores(group: argparse._ArgumentGroup) -> None:
    option(
        group,
        "--metrics",
        "M,M,...",
        "see below (default: the first three for held-out prompts, else all others and drift)",
        type=names,
        names=METRICS,
    )
    option(group, "--reference", "PATH", "for fid: real pictures, or an .npz with mu and sigma of them")
    option(group, "--inception", "FILE", "for fid: pt_inception-2015-12-05-6726825d.pth")
    option(group, "--clip", "PATH", "for clip: a folder or hub id (default: openai/clip-vit-large-patch14)")
    option(group, "--pickscore", "PATH", "a folder or hub id (default: yuvalkirstain/PickScore_v1)")
    option(group, "--hpsv2", "PATH", "HPS_v2.1_compressed.pt, or its folder (default: from xswu/HPSv2)")
    option(group, "--score-device", "NAME", "of the scoring networks: cpu, cuda, cuda:1 (default: auto)")


def run(args: argparse.Namespace, console: Console) -> None:
    from ._evaluating import evaluate

    evaluate(args, console)
