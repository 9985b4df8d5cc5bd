"""The commands of `driffusion-trt`, one module each; heavy imports wait until a command runs."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from . import bench, build, completion, doctor, eval, inspect, plan, run, serve
from ._console import Console

__all__ = ["COMMANDS", "Command"]


@dataclass(frozen=True, slots=True)
class Command:
    """How a command looks in help, its options, and what it does with them."""

    help: str
    usage: str
    description: str
    epilog: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace, Console], None]


COMMANDS: Mapping[str, Command] = {
    "run": Command(
        "make pictures from prompts",
        "[options] PROMPT [PROMPT ...]",
        run.DESCRIPTION,
        run.EPILOG,
        run.add_arguments,
        run.run,
    ),
    "build": Command(
        "turn a checkpoint into ONNX and TensorRT plans",
        "--model FAMILY --checkpoint PATH [options]",
        build.DESCRIPTION,
        build.EPILOG,
        build.add_arguments,
        build.run,
    ),
    "inspect": Command(
        "show what a model folder holds, and check it",
        "[options] FOLDER",
        inspect.DESCRIPTION,
        inspect.EPILOG,
        inspect.add_arguments,
        inspect.run,
    ),
    "plan": Command(
        "show rounds and ideal speed-up of the modes",
        "[options]",
        plan.DESCRIPTION,
        plan.EPILOG,
        plan.add_arguments,
        plan.run,
    ),
    "bench": Command(
        "measure modes beside each other, or compare two runs",
        "[options]",
        bench.DESCRIPTION,
        bench.EPILOG,
        bench.add_arguments,
        bench.run,
    ),
    "eval": Command(
        "compare the modes' pictures: FID, CLIP, PickScore, HPSv2.1, drift",
        "--work FOLDER [options]",
        eval.DESCRIPTION,
        eval.EPILOG,
        eval.add_arguments,
        eval.run,
    ),
    "serve": Command(
        "serve pictures over HTTP, with a web page",
        "[options]",
        serve.DESCRIPTION,
        serve.EPILOG,
        serve.add_arguments,
        serve.run,
    ),
    "doctor": Command(
        "show what this machine can do, what is missing and broken",
        "[options]",
        doctor.DESCRIPTION,
        doctor.EPILOG,
        doctor.add_arguments,
        doctor.run,
    ),
    "completion": Command(
        "print the code that completes this command in a shell",
        "{bash,zsh,fish}",
        completion.DESCRIPTION,
        completion.EPILOG,
        completion.add_arguments,
        completion.run,
    ),
}
