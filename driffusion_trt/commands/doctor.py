"""`driffusion-trt doctor`: what this machine can do, what is missing, and what is broken."""

from __future__ import annotations

import argparse

from ._console import Console
from ._options import model_option

DESCRIPTION = "Show what this machine has for making pictures, what is missing, and what is broken."
EPILOG = """\
Copies between GPUs are tried with patterns and timed. Nothing is written, but compiled
kernels to their cache. Exit status 0 if pictures can be made here, be it on CPU lanes;
1 if something that was found is broken.

example:
  driffusion-trt doctor
  driffusion-trt doctor --model models/sdxl --json"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    model_option(parser)
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object and nothing else to stdout"
    )
    parser.add_argument("-v", "--verbose", action="store_true", help="print tracebacks of errors")


def run(args: argparse.Namespace, console: Console) -> None:
    from .._errors import DriffusionError
    from ._doctor_machine import Findings, examine_machine
    from ._doctor_model import examine_model, expected
    from ._doctor_text import as_json, as_text

    findings = Findings()
    with console.warnings():
        machine = examine_machine(findings)
        model = examine_model(args.model or "demo", machine, findings)
        gains = None if model is None else expected(model, machine, findings)
    if args.json:
        console.out_json(as_json(machine, model, gains, findings))
    else:
        console.out(as_text(machine, model, gains, findings))
    if findings.problems:
        count = len(findings.problems)
        raise DriffusionError(
            f"{count} problem{'s were' if count > 1 else ' was'} found; see the end of the report"
        )
