"""What commands print: results on stdout; notes, warnings and progress on stderr."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

Tick = Callable[[int, str], None]
_BAR = 24  # characters


class Console:
    """One command's output. quiet: no notes and no progress; verbose: more notes."""

    def __init__(self, *, quiet: bool = False, verbose: bool = False) -> None:
        self.quiet = quiet
        self.verbose = verbose
        self._warned: set[str] = set()

    def out(self, text: str) -> None:
        """A result. A reader that has gone away, as in `| head`, does not stop the work."""
        try:
            print(text, flush=True)
        except BrokenPipeError:
            drop_stdout()

    def out_json(self, value: Mapping[str, Any]) -> None:
        self.out(json.dumps(value, indent=2))

    def note(self, text: str, *, detail: bool = False) -> None:
        """Something good to know; a detail is for -v."""
        if not self.quiet and (self.verbose or not detail):
            _tell(text)

    def warn(self, text: str) -> None:
        """Each warning once."""
        if text not in self._warned:
            self._warned.add(text)
            _tell(f"warning: {text}")

    @contextlib.contextmanager
    def warnings(self) -> Iterator[None]:
        """Python's own warnings become lines like ours."""
        with warnings.catch_warnings():
            warnings.simplefilter("default", UserWarning)
            warnings.showwarning = lambda message, *_args, **_more: self.warn(one_paragraph(message))
            yield

    @contextlib.contextmanager
    def progress(self, total: int) -> Iterator[Tick]:
        """A bar of `total` rounds while the block runs; the tick takes rounds done and what to say."""
        terminal = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
        if self.quiet or not terminal:
            yield lambda done, text: None
            return
        from rich.console import Console as Terminal
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
        from rich.table import Column

        # The text takes what is left of the line: were it to wrap, it would push out the bar.
        rest = Column(no_wrap=True, overflow="ellipsis", ratio=1)
        columns = (
            BarColumn(table_column=Column(width=_BAR)),
            TimeElapsedColumn(table_column=Column(no_wrap=True)),
            TextColumn("{task.description}", markup=False, table_column=rest),
        )
        # A few redraws a second: the bar must not take time from the lanes.
        bar = Progress(
            *columns,
            console=Terminal(stderr=True),
            transient=True,
            expand=True,
            redirect_stdout=False,
            refresh_per_second=6,
        )
        with bar:
            task = bar.add_task("", total=total)
            yield lambda done, text: bar.update(task, completed=done, description=text)


def _tell(text: str) -> None:
    """On stderr; where that cannot be written to, a full disk or nobody who reads, the work goes on."""
    with contextlib.suppress(OSError):
        print(text, file=sys.stderr, flush=True)


def drop_stdout() -> None:
    """Send what is still printed nowhere, so that the interpreter can end in peace."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def one_paragraph(message: object) -> str:
    return " ".join(str(message).split())
