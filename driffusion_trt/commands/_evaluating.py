"""The work of `driffusion-trt eval`: check everything, make pictures, score them, report."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

from .. import __version__
from .._errors import InputError
from .._planner import Planner, PlanSettings
from .._request import Request
from ..engines.manifest import ModelFolder
from ..evaluation import metrics as known
from ..evaluation.captions import Prompts, held_out, prompts_of_file, read_captions
from ..evaluation.kept import Reported, other_rows
from ..evaluation.making import Job, make_pictures, rows_of
from ..evaluation.metrics import Metric, Places
from ..evaluation.pinned import devices_facts, model_facts
from ..evaluation.results import as_csv, as_json, as_tables, row_facts
from ..evaluation.scoring import figures
from ..evaluation.work import Work, write_json, write_text
from ..pipeline import Pipeline
from ..runtime.devices import Devices, choose_devices
from ..sampling.noise import noise_streams
from ._console import Console
from ._inputs import read_prompts

__all__ = ["evaluate"]

_SETTINGS = ("guidance_scale", "negative_prompt", "scheduler", "height", "width")
_MODES, _LANES, _HELD_OUT = ("aggressive", "conservative"), (2, 3, 4), 200


@dataclass(frozen=True, slots=True)
class _Checked:
    """An evaluation with everything checked, and the weights of its metrics found."""

    load: Callable[[], Pipeline]
    work: Path
    job: Job
    metrics: list[Metric]
    drift: bool
    settings: dict[str, Any]  # what all pictures of the work folder have in common


def evaluate(args: argparse.Namespace, console: Console) -> None:
    """Run the command.

    Raises:
        InputError: misuse, or a metric that cannot be had; no picture has been made by then.
        ModelError: the model, or weights of a metric, are not what they should be.
    """
    with console.warnings():
        checked = _check(args)
        with Work.opened(checked.work, checked.settings) as work:
            report = _run(checked, work, console)
            write_json(checked.work / "results.json", report)
            write_text(checked.work / "results.csv", as_csv(report["rows"]))
    if args.json:
        console.out_json(report)
    else:
        console.out(as_tables(report["metrics"], report["rows"]))
    console.note(f"written to {checked.work / 'results.json'} and results.csv")


def _check(args: argparse.Namespace) -> _Checked:
    if args.work is None:
        raise InputError("eval needs --work FOLDER, for pictures and results; it is made if it is missing")
    model = args.model or "demo"
    folder = ModelFolder.open(model)
    prompts = _prompts(args, folder)
    asked = "auto" if args.devices is None else args.devices
    devices = choose_devices(asked, folder)
    job = _job(args, folder, prompts, devices)
    places = Places(
        args.reference, args.inception, args.clip, args.pickscore, args.hpsv2, device=args.score_device
    )
    wanted = args.metrics or (known.OWN if prompts.held_out else known.PAPER)
    found = known.prepared(wanted, prompts, places)
    settings = {
        **model_facts(folder),
        **devices_facts(folder, devices),
        "version": __version__,
        "prompts": prompts.source,
        "prompts_sha256": prompts.digest,
        "seed": job.seed,
        "batch_size": job.batch_size,
        **job.settings,
    }
    load = partial(Pipeline.load, model, devices=asked)
    return _Checked(load, Path(args.work), job, found, known.DRIFT in wanted, settings)


def _prompts(args: argparse.Namespace, folder: ModelFolder) -> Prompts:
    if args.captions is not None and args.prompts_file is not None:
        raise InputError("--captions and --prompts-file were both given; leave one out")
    if args.captions is not None:
        return read_captions(args.captions, args.count)
    if args.prompts_file is not None:
        return prompts_of_file(args.prompts_file, read_prompts([], args.prompts_file), args.count)
    if folder.spec.hub_id is not None:
        raise InputError(
            f"{folder.manifest.family} has no prompts of its own, as the bundled models have; give MS-COCO's "
            "--captions captions_val2017.json, or a --prompts-file"
        )
    return held_out(_HELD_OUT if args.count is None else args.count)


def _job(args: argparse.Namespace, folder: ModelFolder, prompts: Prompts, devices: Devices) -> Job:
    """Rows, prompts and settings, with every plan made once, so that none is refused half way."""
    size = 1 if args.batch_size is None else args.batch_size
    if size < 1:
        raise InputError(f"batch-size={size} was asked; it must be at least 1")
    planner = Planner(folder)
    given = {name: value for name in _SETTINGS if (value := getattr(args, name)) is not None}
    steps = planner.schedule(steps=args.steps, scheduler=args.scheduler).steps
    modes, lanes = args.modes or list(_MODES), args.lanes or list(_LANES)
    rows = rows_of(modes, lanes, steps, args.rounds, args.tolerance)
    seed = 0 if args.seed is None else args.seed
    noise_streams(seed + len(prompts.texts) - 1, 1)  # the last seed can be too large
    settings = {"steps": steps, **given}
    request = Request.check(folder.spec, planner.own_size, prompts.texts[0], {**settings, "seed": seed})
    settings["guidance_scale"] = request.guidance_scale
    of_plan = {name: value for name, value in settings.items() if name in PlanSettings.__annotations__}
    for row in rows:
        planner.plan(devices.count, **cast(PlanSettings, {**of_plan, **row.asked}))
    return Job(rows, prompts, seed, size, settings)


def _run(checked: _Checked, work: Work, console: Console) -> dict[str, Any]:
    """The three stages; what the first two made is kept in the work folder, and so is what was reported."""
    job, count = checked.job, len(checked.job.prompts.texts)
    others, short = other_rows(work, [row.name for row in job.rows], count, job.batch_size)
    reported = Reported.read(work.folder / "results.json", count)
    console.note(
        f"{count} pictures of {job.prompts.source}, {len(job.rows)} rows: "
        f"{', '.join(row.name for row in job.rows)}"
    )
    with console.progress(count * len(job.rows)) as tick:
        rows = make_pictures(job, checked.load, work, tick)
    with console.progress(count * len(job.rows) * max(1, len(checked.metrics))) as tick:
        scores = figures(checked.metrics, work, rows, job.prompts.texts, tick)
    drift = checked.drift or reported.drift
    facts = [row_facts(row, rows[row.name], count, scores[row.name], drift) for row in job.rows]
    facts += [row_facts(row, folder, count, {}, drift) for row, folder in others]
    if short:
        console.note(f"not of these {count} pictures, and left out: {', '.join(short)}; add them by --modes")
    if lost := [name for name in reported.other if name not in {metric.name for metric in checked.metrics}]:
        console.note(f"not of these {count} pictures, and left out: {', '.join(lost)}; ask by --metrics")
    return as_json(checked.settings, checked.metrics, facts, drift, reported)
