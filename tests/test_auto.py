"""Mode auto in the pipeline: what is measured is kept, and what is chosen is what runs and is recorded."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import calibrated
import numpy as np
import pytest
import tiny

import driffusion_trt as dt
from driffusion_trt import InputError, LaneError, Pipeline
from driffusion_trt._expected import Expectations, Expected
from driffusion_trt._kept_costs import KeptCosts
from driffusion_trt._measured_costs import MeasuredCosts
from driffusion_trt._trial import Trial
from driffusion_trt.calibration import CalibrationWarning
from driffusion_trt.engines.manifest import ModelFolder
from driffusion_trt.planning.candidates import Wanted
from driffusion_trt.planning.choice import choose
from driffusion_trt.planning.costs import Costs
from driffusion_trt.planning.measuring import Shape

PROMPT = "a red fox"
COSTS = calibrated.COSTS


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return calibrated.make_model_folder(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "driffusion-trt" / "costs"


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    """Costs of four devices, without a measurement."""
    monkeypatch.setattr(KeptCosts, "read", lambda *_: COSTS)


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Shape]]:
    """The shapes that were timed, in order."""
    shapes: list[Shape] = []
    run = Trial.timed

    def note(trial: Trial, shape: Shape) -> float:
        shapes.append(shape)
        return run(trial, shape)

    monkeypatch.setattr(Trial, "timed", note)
    yield shapes


def test_devices_are_measured_once_on_a_machine(folder: Path, cache: Path, timed: list[Shape]) -> None:
    told: list[tuple[int, int]] = []
    with Pipeline.load(folder, devices=2) as pipe:
        measured = pipe.measure(told=lambda done, of: told.append((done, of)))
        assert measured.devices == 2 and measured.measured and min(measured.call_ms) > 0
        assert measured.picture_ms > 0 and measured.rows == (1, 0)
        assert told[-1][0] == told[-1][1] == len(told) == len(timed)
        assert {shape.drafts for shape in timed} == {1, 2} and any(shape.looks for shape in timed)
        assert pipe.measure() is measured
        pipe(PROMPT, steps=4)
    timed.clear()
    with Pipeline.load(folder, devices=2) as pipe:
        assert pipe.measure() == measured and not timed
        pipe.measure(height=32, width=32)  # another size has its own
        assert timed
    assert len(list(cache.glob("*.json"))) == 2
    timed.clear()
    with Pipeline.load(folder, devices=1) as pipe:
        pipe.measure()
        assert timed, "other devices have other costs"


def test_costs_measured_beside_other_work_are_used_and_not_kept(
    folder: Path, cache: Path, timed: list[Shape], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Trial, "disturbed", lambda *_: True)
    with dt.Pipeline.load(folder, devices=2) as pipe:
        measured = pipe.measure()
        assert measured.disturbed and pipe.measure() is measured
        assert "while other work took them" in pipe.choice(steps=4).explained()[1]
    assert not list(cache.glob("*"))
    monkeypatch.undo()


class Waiting:
    """A job whose plans take so many seconds, of which it has the cores for a share."""

    def __init__(self, seconds: float, share: float) -> None:
        self._seconds, self._share = seconds, share

    def sample(self, *_: object) -> None:
        end, work = time.perf_counter() + self._seconds, time.process_time() + self._share * self._seconds
        while time.process_time() < work:
            pass
        time.sleep(max(0.0, end - time.perf_counter()))


@pytest.mark.parametrize(("seconds", "share", "disturbed"), [(0.1, 0.2, True), (0.001, 0.2, False)])
def test_lanes_that_got_a_part_of_the_cores_were_disturbed(
    seconds: float, share: float, disturbed: bool
) -> None:
    schedule = dt.Schedule.from_config({"_class_name": "DDIMScheduler", "clip_sample": False}, 9)
    trial = Trial({True: Waiting(seconds, share)}, (4, 8, 8), lambda steps: schedule)
    trial.timed(Shape(1, True))
    assert not trial.disturbed(2)  # one thread says nothing
    for _ in range(5):  # the shortest counts, and another process may have the cores for a moment
        trial.timed(Shape(2, True))
    assert trial.disturbed(2) is disturbed


@pytest.mark.parametrize("damage", ["", "{", "[]", "5", '{"costs": {}}', '{"costs": {"devices": 0}}'])
def test_kept_costs_that_are_damaged_are_measured_again(
    folder: Path, cache: Path, timed: list[Shape], damage: str
) -> None:
    with Pipeline.load(folder, devices=2) as pipe:
        pipe.measure()
    (path,) = cache.glob("*.json")
    stored = json.loads(path.read_text())
    assert stored["devices"] == "2 CPU threads" and stored["picture"] == [64, 64]
    path.write_text(damage)
    timed.clear()
    with Pipeline.load(folder, devices=2) as pipe:
        pipe.measure()
    assert timed and json.loads(path.read_text())["costs"]["measured"] is True


def test_a_cache_that_cannot_be_written_to_is_no_error(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with Pipeline.load(folder, devices=2) as pipe:
        assert pipe.measure() is pipe.measure()


def test_threads_that_need_costs_at_once_measure_once(
    folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, go = [], threading.Event()

    def slowly(*_: Any) -> Costs:
        calls.append(1)
        go.wait(0.3)
        return COSTS

    monkeypatch.setattr(MeasuredCosts, "_measured", slowly)
    with Pipeline.load(folder, devices=2) as pipe, ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: pipe.measure(), range(4)))
    assert len(calls) == 1 and all(one is found[0] for one in found)


def test_the_choice_is_what_runs_and_what_is_recorded(folder: Path, known: None) -> None:
    with Pipeline.load(folder, devices=4) as pipe:
        choice = pipe.choice(steps=20)
        result = pipe(PROMPT, steps=20, seed=3)
        assert choice.chosen.split and choice.chosen.drafts
        assert result.plan is pipe.plan(steps=20)
        facts = result.settings[0]
        wanted = choice.chosen.settings()
        assert {name: facts[name] for name in wanted} == wanted
        assert not {"quality", "deadline_ms"} & set(facts)
        again = pipe(**result.call())
        assert np.array_equal(again.latents, result.latents) and again.settings == result.settings
        exact = pipe(PROMPT, steps=20, seed=3, quality="exact")
        assert exact.settings[0]["mode"] == "sequential" and exact.settings[0]["split_guidance"] is True
        plain = pipe(PROMPT, steps=20, seed=3, quality="exact", guidance_scale=1.0)
        assert plain.settings[0]["mode"] == "sequential" and "split_guidance" not in plain.settings[0]
        assert pipe(PROMPT, steps=20, split_guidance=False, lanes=2).plan.lanes == 2


def test_a_deadline_bounds_the_rounds(folder: Path, known: None) -> None:
    with Pipeline.load(folder, devices=4) as pipe:
        choice = pipe.choice(steps=20, deadline_ms=170)
        assert choice.chosen.most_rounds is not None
        result = pipe(PROMPT, steps=20, deadline_ms=170)
        assert result.stats.rounds <= result.settings[0]["rounds"] == choice.chosen.most_rounds
        with pytest.raises(InputError, match=r"deadline_ms=50 was asked; the fastest plan for 20 steps"):
            pipe(PROMPT, steps=20, deadline_ms=50)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"quality": "best"}, "quality must be one of exact, high, balanced, fast, not 'best'"),
        ({"quality": 3}, "quality must be one of"),
        ({"quality": "high", "mode": "aggressive"}, "quality='high' was given; it goes with mode 'auto'"),
        ({"deadline_ms": 10, "mode": "window"}, "deadline_ms=10 was given; it goes with mode 'auto'"),
        ({"deadline_ms": -1}, "deadline_ms must be a number of milliseconds above 0, not -1"),
        ({"deadline_ms": True}, "deadline_ms must be a number"),
        ({"deadline_ms": float("nan")}, "deadline_ms must be a number"),
        ({"deadline_ms": 10, "quality": "fast"}, "quality and deadline_ms were given"),
        ({"tolerance": 0.1, "quality": "fast"}, "quality and tolerance were given"),
        ({"rounds": 5}, "rounds=5 was given, and mode 'auto' chooses it"),
        ({"order": 1}, "order=1 was given, and mode 'auto' chooses it"),
        ({"carry": "G"}, "carry='G' was given, and mode 'auto' chooses it"),
        ({"tolerance": -1.0}, "tolerance must be a number of at least 0"),
        ({"lanes": 0}, "lanes=0 was asked; it must be at least 1"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_measured(
    folder: Path, cache: Path, timed: list[Shape], settings: Any, message: str
) -> None:
    with Pipeline.load(folder, devices=2) as pipe:
        for ask in (lambda: pipe(PROMPT, **settings), lambda: pipe.plan(**settings)):
            with pytest.raises(InputError, match=message):
                ask()
    assert not timed and not cache.exists()


def test_a_mode_leaves_no_choice(folder: Path, known: None) -> None:
    with (
        Pipeline.load(folder, devices=2) as pipe,
        pytest.raises(InputError, match="mode 'window' leaves no choice"),
    ):
        pipe.choice(mode="window")
    with pytest.raises(LaneError, match="closed"):
        pipe.measure()


def expected_of(folder: Path, steps: int, guidance: float, **options: Any) -> Expected:
    return Expectations(ModelFolder.open(folder)).of(
        dt.Schedule.from_config(tiny.SCHEDULER, steps, **options), guidance
    )


def test_rounds_are_those_of_the_calibration(folder: Path) -> None:
    own = expected_of(folder, 20, 3.0)
    assert own.basis == "rounds as calibrated with 20 steps of ddim, guidance 3"
    assert own(4, 0.01) == 7.5 and own(1, 0.01) == 20
    assert own(8, 0.01) == 7.5, "how many fewer more lanes take was not calibrated"
    # At least 5.75 with 4 lanes, and 10.5 with 2: a third of the way from once to 7.5 / 5.75 times as many.
    assert own(2, 0.01) == pytest.approx(10.5 * (1 + (7.5 / 5.75 - 1) / 3))
    assert own(4, 0.002) == 9.0 and own(4, 1.0) == 6.0  # of the nearest tolerance that was calibrated
    assert own(4, 1e-4) > 19, "a much smaller one may take all steps"
    assert expected_of(folder, 39, 3.0)(4, 0.01) == pytest.approx(10.5 * 7.5 / 5.75)


@pytest.mark.parametrize(
    ("steps", "guidance", "options"), [(10, 3.0, {}), (20, 9.0, {}), (20, 3.0, {"eta": 1.0})]
)
def test_beyond_what_was_calibrated_no_drafts_are_made(
    folder: Path, steps: int, guidance: float, options: dict[str, Any]
) -> None:
    """Steps that are longer, guidance that is stronger and fresh noise put drafts further off."""
    expected = expected_of(folder, steps, guidance, **options)
    assert expected.basis.startswith("no drafts: ")
    assert all(expected(lanes, 0.01) == steps for lanes in range(1, 17))
    choice = choose(COSTS, Wanted(steps, True, split=False), expected)
    assert not choice.chosen.drafts


def test_a_model_without_a_calibration_has_the_demos_hardest(tmp_path: Path) -> None:
    bare = tiny.make_model_folder(tmp_path / "bare")
    demos = expected_of(bare, 50, 5.0)
    assert demos.basis == "not calibrated: rounds as the demo's hardest with 50 steps of ddim, guidance 7.5"
    rounds = [demos(lanes, 0.01) for lanes in range(1, 17)]
    assert rounds == sorted(rounds, reverse=True) and 1 < rounds[-1] < rounds[0] == 50


def test_a_calibration_of_another_network_is_named(folder: Path, tmp_path: Path) -> None:
    other = tiny.make_model_folder(tmp_path / "other")
    text = (folder / "calibration.json").read_text().replace('"network": "', '"network": "0')
    (other / "calibration.json").write_text(text)
    with pytest.warns(CalibrationWarning, match="measured with another network"):
        expected_of(other, 50, 3.0)


def test_a_user_without_a_home_folder_keeps_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch, timed: list[Shape]
) -> None:
    def nobody() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", nobody)
    with Pipeline.load(folder, devices=2) as pipe:
        assert pipe.measure() is pipe.measure() and timed


def test_nothing_is_measured_where_there_is_one_plan(folder: Path, cache: Path, timed: list[Shape]) -> None:
    with Pipeline.load(folder, devices=1) as pipe:
        assert pipe(PROMPT, steps=4).plan.mode == "sequential"
        assert "assumed, not measured" in pipe.choice(steps=4).explained()[1]
    with Pipeline.load(folder, devices=2) as pipe:
        pipe(PROMPT, steps=4, quality="exact", guidance_scale=1.0)
        pipe(PROMPT, steps=4, lanes=1, split_guidance=True)
        assert not timed and not cache.exists()
        pipe(PROMPT, steps=4)
        assert timed


def test_other_sizes_are_in_proportion_until_they_are_measured(
    folder: Path, cache: Path, timed: list[Shape]
) -> None:
    with Pipeline.load(folder, devices=2) as pipe:
        own = pipe.measure()
        timed.clear()
        choice = pipe.choice(steps=20, height=32, width=32)
        assert not timed and choice.costs.call_ms == pytest.approx([ms / 4 for ms in own.call_ms])
        small = pipe.measure(32, 32)
        assert timed and pipe.choice(steps=20, height=32, width=32).costs.call_ms == small.call_ms
        timed.clear()
        assert pipe.measure(again=True) is not own and timed


def test_a_device_that_fails_while_it_is_measured_leaves_the_others(
    folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, failed = Trial.timed, []

    def once(trial: Trial, shape: Shape) -> float:
        if not failed:
            failed.append(shape)
            raise LaneError("GPU 1 failed", lanes_left=1)
        return run(trial, shape)

    monkeypatch.setattr(Trial, "timed", once)
    with Pipeline.load(folder, devices=2) as pipe:
        assert pipe.measure().measured and failed


def test_a_call_that_is_cancelled_while_devices_are_measured_ends(folder: Path, cache: Path) -> None:
    cancel = threading.Event()
    cancel.set()
    with Pipeline.load(folder, devices=2) as pipe:
        with pytest.raises(dt.CancelledError, match="before its first round"):
            pipe(PROMPT, steps=4, cancel=cancel)
        assert not cache.exists()


def test_what_the_caller_says_of_split_guidance_is_recorded(folder: Path) -> None:
    with Pipeline.load(folder, devices=1) as pipe:
        made = pipe(PROMPT, steps=4, split_guidance=True)
        assert made.settings[0]["split_guidance"] is True
        assert np.array_equal(made.latents, pipe(**made.call()).latents)


def test_a_closed_pipeline_says_so(folder: Path) -> None:
    with Pipeline.load(folder, devices=2) as pipe:
        pass
    for ask in (pipe.plan, pipe.choice, pipe.measure):
        with pytest.raises(LaneError, match="the pipeline is closed"):
            ask()  # type: ignore[operator]
