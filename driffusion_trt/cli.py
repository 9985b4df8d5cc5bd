# PYTHON_ARGCOMPLETE_OK
"""The `driffusion-trt` command; this module and all that it imports need the standard library only."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from . import __version__
from ._errors import DriffusionError, InputError, did_you_mean
from .commands import COMMANDS
from .commands._console import Console, drop_stdout, one_paragraph

PROGRAM = "driffusion-trt"
_OVERVIEW = """\
One diffusion picture faster: future states are drafted, their noises predicted in
parallel, and the ordinary solver refines with them (DRiffusion, arXiv 2603.25872)."""
_EXAMPLES = f"""\
example:
  {PROGRAM} run "a red fox left of a blue star" --lanes 2 --seed 7 -o fox.png

exit status: 0 done, 1 failed, 2 called wrongly, 130 interrupted.
`{PROGRAM} COMMAND --help` lists the options of a command."""


class _Parser(argparse.ArgumentParser):
    """argparse with our form of errors, and help that fits a terminal."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; `{self.prog} --help` lists what there is")


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands; parsed arguments carry the command's function as `run`."""

    def shape(prog: str) -> argparse.HelpFormatter:
        return argparse.RawDescriptionHelpFormatter(prog, max_help_position=28)

    listed = "\n".join(f"  {name:<12}{command.help}" for name, command in COMMANDS.items())
    parser = _Parser(
        prog=PROGRAM,
        usage=f"{PROGRAM} COMMAND ...",
        description=f"{_OVERVIEW}\n\ncommands:\n{listed}",
        epilog=_EXAMPLES,
        formatter_class=shape,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"{PROGRAM} {__version__}")
    commands = parser.add_subparsers(dest="command", prog=PROGRAM, help=argparse.SUPPRESS)
    for name, command in COMMANDS.items():
        sub = commands.add_parser(
            name,
            usage=f"{PROGRAM} {name} {command.usage}",
            description=command.description,
            epilog=command.epilog,
            formatter_class=shape,
            allow_abbrev=False,
        )
        command.add_arguments(sub)
        sub.set_defaults(run=command.run, parser=sub)
    return parser


def _spelt(argv: Sequence[str]) -> list[str]:
    """Long options with hyphens, whichever way they were spelt."""
    spelt = []
    for word in argv:
        name, equals, value = word.partition("=")
        spelt.append(name.replace("_", "-") + equals + value if name.startswith("--") else word)
    return spelt


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parsed arguments; what stands among or after the options without being one is in `words`.

    Raises InputError for misuse, SystemExit after --help and --version.
    """
    before, after = list(argv), []
    if "--" in before:  # what follows are words, whatever they begin with
        at = before.index("--")
        before, after = before[:at], before[at + 1 :]
    if before and not before[0].startswith("-") and before[0] not in COMMANDS:
        hint = f'; for a picture: {PROGRAM} run "{before[0]}"' if " " in before[0] else ""
        raise InputError(f"there is no command {before[0]!r}{hint or did_you_mean(before[0], COMMANDS)}")
    parser = build_parser()
    _complete(parser)
    args, rest = parser.parse_known_args(_spelt(before))
    if args.command is None:
        raise InputError(f"no command was given; the first is: {PROGRAM} run PROMPT, or see {PROGRAM} --help")
    for word in rest:
        if word.startswith("-") and word != "-":
            name = word.partition("=")[0]
            raise InputError(
                f"{args.command} has no option {name}{did_you_mean(name, _options(args.parser))}"
            )
    words = getattr(args, "words", None)
    if words is None and (rest or after):
        raise InputError(
            f"{args.command} takes no {[*rest, *after][0]!r}; see {PROGRAM} {args.command} --help"
        )
    args.words = [*(words or ()), *rest, *after]
    return args


def _options(parser: argparse.ArgumentParser) -> list[str]:
    return [name for action in parser._actions for name in action.option_strings if name.startswith("--")]


def _complete(parser: argparse.ArgumentParser) -> None:
    if "_ARGCOMPLETE" in os.environ:
        import argcomplete

        argcomplete.autocomplete(parser)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line (by default the process's) and return its exit status."""
    argv = sys.argv[1:] if argv is None else argv
    for stream in (sys.stdout, sys.stderr):
        # A path or prompt that the terminal cannot show must not end a run that has worked.
        with contextlib.suppress(AttributeError):
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    verbose = False
    try:
        args = parse(argv)
        verbose = getattr(args, "verbose", False)
        args.run(args, Console(quiet=getattr(args, "quiet", False), verbose=verbose))
        status = 0
    except (DriffusionError, OSError) as error:
        if verbose:
            import traceback

            traceback.print_exc()
        print(f"{PROGRAM}: error: {one_paragraph(error)}", file=sys.stderr)
        status = 2 if isinstance(error, InputError) else 1
    except KeyboardInterrupt:
        print(f"{PROGRAM}: interrupted", file=sys.stderr)
        status = 130
    finally:
        try:
            sys.stdout.flush()
        except OSError:  # the reader has gone away, or the disk is full; what matters was said before
            drop_stdout()
    return status
