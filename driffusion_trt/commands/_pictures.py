"""The work of `driffusion-trt run`: check everything, load, make, write, report."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

from .. import __version__
from .._auto import check_auto, leaves_open
from .._errors import InputError
from .._planner import Planner, PlanSettings, planned
from .._request import Request
from .._source import resolved
from ..engines.manifest import ModelFolder
from ..models import ModelSpec
from ..pictures import save_png
from ..pipeline import Pipeline
from ..planning.candidates import OF_AUTO
from ..runtime.devices import Asked, choose_devices
from ..sampling.noise import noise_streams
from ..sampling.plan import Plan, default_lanes
from ..sampling.sample import RoundDone
from ._choosing import name_plan
from ._compare import HOW_MEASURED, compare
from ._console import Console, Tick
from ._inputs import OF_MODE, fill_from_picture, read_prompts, read_start
from ._job import Done, Job, Picture
from ._output import check_writable, comparison, places

# Options that `Pipeline.__call__` takes by the same name.
_SETTINGS = (
    *("prompt_2", "prompt_3", "negative_prompt", "negative_prompt_2", "negative_prompt_3", "height", "width"),
    *("steps", "guidance_scale", "mode", "lanes", "split_guidance", "quality", "deadline_ms"),
    *("scheduler", "eta", "clip_skip", *OF_MODE),
)
_SHOWN = 100  # characters of a prompt in a warning
_NOT_SEQUENTIAL = (*OF_MODE, "split_guidance")


def make_pictures(args: argparse.Namespace, console: Console, start: float) -> None:
    """Run the command; `start` is when it began, by `time.perf_counter`.

    Raises InputError for misuse before anything is loaded or written.
    """
    with console.warnings():
        job = _checked(args)
        done = Done()
        with Pipeline.load(job.model, devices=job.devices, **job.options) as pipe:
            done.devices = pipe.devices
            load_ms = 1e3 * (time.perf_counter() - start)
            if leaves_open(job.settings):
                begun = time.perf_counter()
                job = _with_plan(job, pipe, args, console)
                done.choose_ms = 1e3 * (time.perf_counter() - begun)
            job = replace(job, plan=pipe.plan(**job.settings))
            _say_first(job, pipe, console)
            _say_replayed(args, job, pipe, console)
            try:
                _make(job, pipe, console, done)
            finally:  # also after Ctrl-C: these are whole
                for path in [] if args.json else done.paths:
                    console.out(str(path))
    timings = done.timings(load_ms, start)
    if args.json:
        console.out_json(_facts(job, done, timings))
    _say_last(done, timings, console)


def _checked(args: argparse.Namespace) -> Job:
    """Every check that needs no network."""
    if args.from_picture is not None:
        fill_from_picture(args)
    for name in ("explain", "measure"):
        if getattr(args, name) and args.mode not in (None, "auto"):
            raise InputError(f"--{name} was given with mode {args.mode}; it is for mode auto")
    if args.compare and args.mode == "sequential":
        raise InputError("--compare compares a mode with sequential; choose another --mode, or leave it out")
    size = 1 if args.batch_size is None else args.batch_size
    if size < 1:
        raise InputError(f"batch-size={size} was asked; it must be at least 1")
    model = args.model or "demo"
    folder = ModelFolder.open(model)
    settings = {name: value for name in _SETTINGS if (value := getattr(args, name)) is not None}
    settings = dict(resolved(folder.spec, settings | read_start(args)))
    check_auto(settings)
    planner = Planner(folder)
    plan, devices = _planned(args, folder, planner, planned(settings))
    pictures, start = _pictures(args, folder.spec, planner.own_size, settings)
    paths = [picture.path for picture in pictures]
    extra = [comparison(path) for path in paths] if args.compare else []
    check_writable([*paths, *extra], make_folder=args.output is not None and args.output.endswith("/"))
    batches = [pictures[at : at + size] for at in range(0, len(pictures), size)]
    options = {
        "cuda_graphs": not args.no_cuda_graphs,
        "peer_copies": not args.no_peer_copies,
        "nan_policy": args.nan_policy or "error",
        "fp32_model": args.fp32_model,
    }
    return Job(model, devices, options, plan, settings, start, batches, args.compare)


def _planned(
    args: argparse.Namespace, folder: ModelFolder, planner: Planner, settings: PlanSettings
) -> tuple[Plan, Asked]:
    """The plan and the devices; devices that nobody counted are no more than its lanes need.

    Of mode auto it is a sequential one, in place of the plan that is chosen once the devices are measured.
    """
    asked: Asked = "auto" if args.devices is None else args.devices
    count = choose_devices(asked, folder).count
    if leaves_open(settings):
        named = {name: value for name, value in settings.items() if name not in OF_AUTO}
        return planner.plan(count, **cast(PlanSettings, {**named, "mode": "sequential"})), asked
    each, steps = planner.devices_per_lane(**settings), planner.schedule(**settings).steps
    lanes, devices = _width(args.lanes, asked, count, steps, each)
    return planner.plan(count, **cast(PlanSettings, {**settings, "lanes": lanes})), devices


def _width(lanes: int | None, asked: Asked, count: int, steps: int, each: int) -> tuple[int, Asked]:
    """Lanes and devices, of which there are so many; each lane takes one, or two."""
    width = max(1, count // each)
    wanted = default_lanes(width, steps) if lanes is None else lanes
    return wanted, min(count, each * min(width, wanted)) if asked == "auto" else asked


def _pictures(
    args: argparse.Namespace, spec: ModelSpec, own_size: tuple[int, int], settings: dict[str, Any]
) -> tuple[list[Picture], dict[str, str]]:
    """The pictures to make, and the hashes of what they start from."""
    prompts = read_prompts(args.words, args.prompts_file)
    images = 1 if args.num_images is None else args.num_images
    first = 0 if args.seed is None else args.seed
    request = Request.check(spec, own_size, prompts, {**settings, "num_images": images, "seed": first})
    noise_streams(first + len(request.prompts) - 1, 1)  # the last seed can be too large
    named = [(texts[0], first + k) for k, texts in enumerate(request.prompts)]
    paths = places(args.output, named)
    pictures = [Picture(prompt, seed, path) for (prompt, seed), path in zip(named, paths, strict=True)]
    return pictures, {} if request.source is None else request.source.facts


def _with_plan(job: Job, pipe: Pipeline, args: argparse.Namespace, console: Console) -> Job:
    """The job with the plan that mode auto chooses; a sequential one is not compared with itself."""
    prompts = [picture.prompt for picture in job.batches[0]]
    named = name_plan(pipe, job.settings, prompts, console, explain=args.explain, again=args.measure)
    same = named["mode"] == "sequential" and not named["split_guidance"]
    if job.compare and same:
        console.note("auto took the sequential plan, so there is nothing to compare with it")
    return replace(job, settings=named, compare=job.compare and not same)


def _say_first(job: Job, pipe: Pipeline, console: Console) -> None:
    plan = job.plan
    for notice in plan.schedule.notices:
        console.warn(notice)
    prompts = dict.fromkeys(picture.prompt for batch in job.batches for picture in batch)
    for prompt in [*prompts, job.settings.get("negative_prompt", "")]:
        for complaint in pipe.complaints(prompt):
            shown = prompt if len(prompt) <= _SHOWN else f"{prompt[:_SHOWN]}..."
            console.warn(f"{shown!r}: {complaint}")
    console.note(
        f"{plan.mode}, {plan.steps} steps of {plan.schedule.solver}, {plan.lanes} lanes on "
        f"{pipe.where}: {_at_least(plan)}{plan.sequential_calls} rounds, {plan.model_calls} predictions, "
        f"ideal speed-up {'at most ' if _at_least(plan) else ''}{plan.ideal_speedup:.2f}",
        detail=True,
    )


def _say_replayed(args: argparse.Namespace, job: Job, pipe: Pipeline, console: Console) -> None:
    """The same settings make the same picture with the same start, weights and code only."""
    was: dict[str, Any] = getattr(args, "replayed", {})
    for name, now in (*job.start.items(), ("model_hash", pipe.model_hash), ("version", __version__)):
        if name in was and was[name] != now:
            console.warn(
                f"{args.from_picture} was made with {name.replace('_', ' ')} {was[name]!r}, this is {now!r}; "
                "the picture may differ"
            )


def _make(job: Job, pipe: Pipeline, console: Console, done: Done) -> None:
    """Make, write and compare batch by batch; `done` has at any time what is on disk."""
    if job.compare:
        pipe.warm_up(len(job.batches[0]), split_guidance=job.settings.get("split_guidance", False))
    steps = job.plan.schedule.steps
    each = steps + (job.plan.steps if job.compare else 0)
    with console.progress(each * len(job.batches)) as tick:
        for number, batch in enumerate(job.batches):
            label = "" if len(job.batches) == 1 else f"batch {number + 1} of {len(job.batches)}, "
            ask = {"prompt": [p.prompt for p in batch], "seed": [p.seed for p in batch], **job.settings}
            result = pipe(**ask, callback_on_round_end=_watch(tick, each * number, label))
            batch[0].path.parent.mkdir(exist_ok=True)  # not before: the call may have been refused
            for picture, image, facts in zip(batch, result.images, result.settings, strict=True):
                save_png(image, picture.path, facts)
                done.paths.append(picture.path)
            done.settings += result.settings
            done.batches.append(result.timings)
            done.stats.append(result.stats)
            if job.compare:
                exact = {name: value for name, value in ask.items() if name not in _NOT_SEQUENTIAL}
                exact["mode"] = "sequential"
                watch = _watch(tick, each * number + steps, f"{label}sequential ")
                sequential = pipe(**exact, callback_on_round_end=watch)
                found = compare(result, sequential, [comparison(picture.path) for picture in batch])
                done.comparisons += found
                done.paths += [item.path for item in found]


def _watch(tick: Tick, before: int, label: str) -> Callable[[RoundDone], None]:
    """The bar counts steps: how many rounds there will be not every plan knows."""
    return lambda now: tick(before + now.state, f"{label}round {now.round}/{now.rounds}")


def _at_least(plan: Plan) -> str:
    return "at least " if "tolerance" in plan.asked() else ""


def _say_last(done: Done, timings: dict[str, float], console: Console) -> None:
    for item in done.comparisons:
        console.note(
            f"{item.path.name}: PSNR {item.psnr_db:.1f} dB, relative L2 {item.relative_l2:.4f}; "
            f"denoise {item.denoise_ms:.0f} ms, sequential {item.sequential_ms:.0f} ms: "
            f"{item.speedup:.2f} times as fast ({HOW_MEASURED})"
        )
    chosen = f"choose {timings['choose_ms']:.0f} ms, " if "choose_ms" in timings else ""
    console.note(
        f"load {timings['load_ms']:.0f} ms, {chosen}encode {timings['encode_ms']:.0f} ms, "
        f"denoise {timings['denoise_ms']:.0f} ms "
        f"({timings['rounds']:.0f} rounds, median {timings['round_ms']:.1f} ms), "
        f"decode {timings['decode_ms']:.0f} ms, total {timings['total_ms']:.0f} ms"
    )


def _facts(job: Job, done: Done, timings: dict[str, float]) -> dict[str, Any]:
    plan = job.plan
    paths = [picture.path for batch in job.batches for picture in batch]
    facts: dict[str, Any] = {
        "pictures": [
            {"path": str(path), "settings": item} for path, item in zip(paths, done.settings, strict=True)
        ],
        "plan": {
            "mode": plan.mode,
            "lanes": plan.lanes,
            "devices": done.devices,
            "steps": plan.steps,
            "sequential_calls": plan.sequential_calls,
            "model_calls": plan.model_calls,
            "ideal_speedup": plan.ideal_speedup,
        },
        # Batch by batch: a plan that adapts says beforehand only how few calls there can be.
        "taken": [{"sequential_calls": one.rounds, "model_calls": one.predictions} for one in done.stats],
        "timings": timings | {"rounds_ms": [list(item.rounds_ms) for item in done.batches]},
    }
    if job.compare:
        facts["compare"] = {"measured": HOW_MEASURED, "pictures": [item.facts() for item in done.comparisons]}
    return facts
