"""The lanes of a plan over time, as text for a terminal and as SVG."""

from __future__ import annotations

import argparse
import os
import shutil
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path

from .._errors import InputError
from ..sampling.plan import Plan
from ..sampling.timeline import Cell, Kind, Turn, timeline
from ._console import Console
from ._output import check_writable
from ._planning import Plans

__all__ = ["as_svg", "as_text", "headline", "show"]

_MARKS: dict[Kind, tuple[str, str]] = {"exact": ("[", "]"), "taken": (" ", " "), "ahead": ("(", ")")}
_MEANINGS: dict[Kind, str] = {
    "exact": "at the exact state",
    "taken": "at a draft; its step is taken with this prediction",
    "ahead": "at a draft, to draft better: a later round predicts this state again",
}
_LABEL = 7  # characters before the first round

# Sizes in pixels, and colours as (fill, line, text).
_COLUMN, _ROW, _LEFT, _TOP = 32, 26, 66, 78
_COLOURS: dict[Kind, tuple[str, str, str]] = {
    "exact": ("#1f4e79", "#1f4e79", "#ffffff"),
    "taken": ("#a9cbe8", "#7fadd3", "#12324d"),
    "ahead": ("#ffffff", "#c3c9d0", "#6b747d"),
}
_INK, _PALE, _STEP = "#24292f", "#6b747d", ("#dff0d8", "#cde5c2")


def show(args: argparse.Namespace, plans: Plans, console: Console) -> None:
    """`plan --timeline` and `plan -o`: print the one, write the other.

    Raises InputError where the file is no .svg, or cannot be written.
    """
    path = None if args.output is None else Path(args.output)
    if path is not None:
        if path.suffix.lower() != ".svg":
            raise InputError(f"output {args.output!r} is no .svg file; give {path.with_suffix('.svg').name}")
        check_writable([path], make_folder=False)
    args.mode = args.mode or "aggressive"  # so that --rounds and --blocks are of it
    plan = plans.make(args.mode, _lanes(args))
    if path is not None:
        partial = path.with_name(f"{path.name}.partial")
        partial.write_text(as_svg(plan), encoding="utf-8")
        os.replace(partial, path)
    if args.json:
        console.out_json({"timeline": [_facts(turn) for turn in timeline(plan)]})
    elif args.timeline:
        console.out(as_text(plan, shutil.get_terminal_size((100, 24)).columns))
    else:
        console.out(str(path))


def _lanes(args: argparse.Namespace) -> int:
    if args.lanes is not None:
        return int(args.lanes)
    return 1 if args.mode == "sequential" else 4


def _facts(turn: Turn) -> dict[str, object]:
    cells = [{"state": cell.state, "kind": cell.kind} for cell in turn.cells]
    return {"lanes": cells, "before": turn.before, "after": turn.after}


def headline(plan: Plan) -> str:
    """What is shown, in words."""
    lanes = f"{plan.lanes} lane{'' if plan.lanes == 1 else 's'}"
    least = "tolerance" in plan.asked() and plan.lanes > 1
    return (
        f"{plan.mode}, {lanes}: {plan.steps} steps of {plan.schedule.solver} in "
        f"{plan.sequential_calls} rounds" + (" at the fewest, with every draft near" if least else "")
    )


def as_text(plan: Plan, width: int) -> str:
    """A row for each lane, a cell for each round, folded to so many characters."""
    turns = timeline(plan)
    digits = max(len(str(plan.schedule.steps)), len(str(len(turns))))
    cell = digits + 3
    fold = max(1, (width - _LABEL) // cell)
    parts = [headline(plan)]
    for first in range(0, len(turns), fold):
        parts.append("\n".join(_rows(turns, range(first, min(first + fold, len(turns))), plan, digits)))
    shown = {one.kind for turn in turns for one in turn.cells}
    legend = [f"{left}i{right} {_MEANINGS[kind]}" for kind, (left, right) in _MARKS.items() if kind in shown]
    return "\n\n".join([*parts, "\n".join([*legend, "state: where the round arrives; +: steps it takes"])])


def _rows(turns: Sequence[Turn], part: range, plan: Plan, digits: int) -> Iterator[str]:
    def row(label: str, values: Sequence[str]) -> str:
        return f"{label:<{_LABEL}}" + "".join(f"{value:>{digits + 2}} " for value in values).rstrip()

    some = [turns[k] for k in part]
    yield row("round", [f"{k + 1} " for k in part])
    for lane in range(plan.lanes):
        yield row(f"lane {lane}", [_marked(turn.cells, lane, digits) for turn in some])
    yield row("state", [f"{turn.after} " if turn.after > turn.before else "" for turn in some])
    yield row("", [f"+{turn.after - turn.before} " if turn.after > turn.before else "" for turn in some])


def _marked(cells: Sequence[Cell], lane: int, digits: int) -> str:
    if lane >= len(cells):
        return f"{'.':>{digits + 1}} "
    left, right = _MARKS[cells[lane].kind]
    return f"{left}{cells[lane].state:>{digits}}{right}"


def as_svg(plan: Plan) -> str:
    """The same as a picture, to be opened in a browser."""
    turns = timeline(plan)
    shown = [kind for kind in _MARKS if any(one.kind == kind for turn in turns for one in turn.cells)]
    title = headline(plan)
    wide = max(_LEFT + _COLUMN * len(turns) + 24, 10 + round(8.2 * len(title)) + 24, 620)
    steps_at = _TOP + _ROW * plan.lanes + 8
    legend_at = steps_at + _ROW + 28
    high = legend_at + 20 * len(shown) + 24
    body = [
        f'<rect width="{wide}" height="{high}" fill="#ffffff"/>',
        _text(16, 30, title, size=16, anchor="start", colour=_INK, weight=600),
        _text(_LEFT - 10, _TOP - 10, "round", anchor="end", colour=_PALE),
        *(
            _text(_LEFT - 10, _middle(_TOP, lane), f"lane {lane}", anchor="end", colour=_PALE)
            for lane in range(plan.lanes)
        ),
        _text(_LEFT - 10, steps_at + _ROW / 2 + 4, "state", anchor="end", colour=_PALE),
    ]
    for k, turn in enumerate(turns):
        body += _column(plan, k, turn, steps_at)
    for k, kind in enumerate(shown):
        y = legend_at + 20 * k
        body += [_box(_LEFT, y, 22, 15, _COLOURS[kind]), _note(_LEFT + 32, y + 12, _MEANINGS[kind])]
    body += [
        f'<rect x="{_LEFT}" y="{legend_at + 20 * len(shown)}" width="22" height="15" fill="{_STEP[0]}"/>',
        _note(_LEFT + 32, legend_at + 20 * len(shown) + 12, "the state that is reached, and steps taken"),
    ]
    lines = "\n".join(body)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{wide}" height="{high}" viewBox="0 0 {wide} {high}" '
        f'font-family="system-ui, Helvetica, Arial, sans-serif" font-size="12" role="img">\n'
        f"<title>{escape(title)}</title>\n{lines}\n</svg>\n"
    )


def _column(plan: Plan, k: int, turn: Turn, steps_at: int) -> Iterator[str]:
    """One round: its number, its cells, and where it arrives."""
    x, middle = _LEFT + _COLUMN * k, _LEFT + _COLUMN * k + _COLUMN / 2
    yield _text(middle, _TOP - 10, str(k + 1), colour=_PALE)
    for lane in range(plan.lanes):
        y = _TOP + _ROW * lane
        if lane >= len(turn.cells):
            yield f'<rect x="{x + 2}" y="{y + 2}" width="{_COLUMN - 4}" height="{_ROW - 4}" fill="#f3f5f7"/>'
            continue
        cell = turn.cells[lane]
        yield f"<g><title>round {k + 1}, lane {lane}: state {cell.state}, {_MEANINGS[cell.kind]}</title>"
        yield _box(x + 2, y + 2, _COLUMN - 4, _ROW - 4, _COLOURS[cell.kind])
        yield _text(middle, _middle(_TOP, lane), str(cell.state), colour=_COLOURS[cell.kind][2]) + "</g>"
    if turn.after > turn.before:
        fill = _STEP[k % 2]
        yield f'<rect x="{x}" y="{steps_at}" width="{_COLUMN}" height="{_ROW}" fill="{fill}"/>'
        yield _text(middle, steps_at + _ROW / 2 + 4, str(turn.after), colour=_INK)
        yield _text(middle, steps_at + _ROW + 14, f"+{turn.after - turn.before}", size=10, colour=_PALE)


def _middle(top: int, lane: int) -> float:
    return top + _ROW * lane + _ROW / 2 + 4


def _box(x: float, y: float, width: float, height: float, colours: tuple[str, str, str]) -> str:
    fill, line, _ = colours
    return (
        f'<rect x="{x + 0.5}" y="{y + 0.5}" width="{width - 1}" height="{height - 1}" rx="3" fill="{fill}" '
        f'stroke="{line}"/>'
    )


def _note(x: float, y: float, text: str) -> str:
    return _text(x, y, text, anchor="start", colour=_INK)


def _text(
    x: float, y: float, text: str, *, colour: str, size: int = 12, anchor: str = "middle", weight: int = 400
) -> str:
    return (
        f'<text x="{x:g}" y="{y:g}" font-size="{size}" font-weight="{weight}" text-anchor="{anchor}" '
        f'fill="{colour}">{escape(text)}</text>'
    )
