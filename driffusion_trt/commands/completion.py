"""`driffusion-trt completion`: the shell's side of argcomplete."""

from __future__ import annotations

import argparse

from ._console import Console

DESCRIPTION = "Print the code that completes options and names of this command in a shell."
EPILOG = """\
for the running shell, or in its start-up file:
  bash, zsh:  eval "$(driffusion-trt completion bash)"
  fish:       driffusion-trt completion fish | source"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", choices=("bash", "zsh", "fish"), help="the shell")


def run(args: argparse.Namespace, console: Console) -> None:
    from argcomplete.shell_integration import shellcode

    console.out(shellcode(["driffusion-trt"], shell=args.shell))
