"""Costs that are doubted are measured anew: by calls that have the time, and by who asks in quiet moments."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import calibrated
import numpy as np
import pytest
import tiny

import driffusion_trt as dt
from driffusion_trt import Pipeline, _measured_costs
from driffusion_trt._kept_costs import KeptCosts
from driffusion_trt._measured_costs import MeasuredCosts
from driffusion_trt._trial import Trial
from driffusion_trt.engines.onnx_session import BoundRun
from driffusion_trt.planning.costs import Costs
from driffusion_trt.planning.measuring import Shape

PROMPT = "a red fox"
GOOD = calibrated.COSTS
CROWDED = replace(GOOD, crowded=8.0, disturbed=True)  # with these nothing is worth a second lane
LESS_CROWDED = replace(GOOD, crowded=7.0, disturbed=True)
OPEN: dict[str, Any] = {"steps": 20, "guidance_scale": 3.0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return calibrated.make_model_folder(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "driffusion-trt" / "costs"


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is doubted is due."""
    monkeypatch.setattr(_measured_costs, "_PAUSES_S", (0.0, 0.0))
    monkeypatch.setattr(_measured_costs, "_REST", 0.0)


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Costs]]:
    """What measurements find, one after another; those that a test leaves were not made."""
    costs: list[Costs] = []
    monkeypatch.setattr(MeasuredCosts, "_measured", lambda *_: costs.pop(0))
    yield costs


def four(folder: Path) -> Pipeline:
    return Pipeline.load(folder, devices=["cpu"] * 4)


@pytest.mark.usefixtures("at_once")
def test_the_next_call_measures_disturbed_costs_anew(
    folder: Path, cache: Path, found: list[Costs], caplog: pytest.LogCaptureFixture
) -> None:
    found += [CROWDED, GOOD]
    with four(folder) as pipe, caplog.at_level(logging.INFO, "driffusion_trt.costs"):
        pipe.measure()
        assert not list(cache.glob("*"))
        result = pipe(PROMPT, **OPEN, seed=3)
        assert not found and pipe.measure() == GOOD
        facts = result.settings[0]
        assert facts["mode"] == "tolerance", "by the new costs; the plan is recorded"
        np.testing.assert_array_equal(pipe(**result.call()).latents, result.latents)
        pipe(PROMPT, **OPEN)
    assert [line.partition(":")[0] for line in caplog.messages] == [
        "costs were measured while other work took the cores; they are to be measured anew",
        "costs were measured anew",
    ]
    with four(folder) as pipe:
        assert pipe.measure() == GOOD, "kept for later processes"


@pytest.mark.usefixtures("at_once")
def test_a_plan_by_disturbed_costs_makes_the_same_picture_after_they_were_renewed(
    folder: Path, found: list[Costs]
) -> None:
    found += [CROWDED, CROWDED, GOOD]
    with four(folder) as pipe:
        pipe.measure()
        before = pipe(PROMPT, **OPEN, seed=3)
        after = pipe(PROMPT, **OPEN, seed=3)
        assert [one.settings[0]["mode"] for one in (before, after)] == ["sequential", "tolerance"]
        np.testing.assert_array_equal(pipe(**before.call()).latents, before.latents)


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize(
    "settings", [{"deadline_ms": 1e6}, {"mode": "aggressive"}, {"lanes": 1, "split_guidance": False}], ids=str
)
def test_calls_with_a_deadline_or_without_a_choice_measure_nothing(
    folder: Path, found: list[Costs], settings: dict[str, Any]
) -> None:
    found += [CROWDED, GOOD]
    with four(folder) as pipe:
        pipe.measure()
        pipe(PROMPT, **OPEN, **settings)
        assert found == [GOOD] and pipe.measure() == CROWDED


def test_it_is_done_seldom(folder: Path, found: list[Costs]) -> None:
    found += [CROWDED, CROWDED, GOOD]
    with four(folder) as pipe:
        costs = pipe._auto.costs
        assert costs.renewal_in_s() is None, "nothing is doubted yet"
        pipe.measure()
        pipe(PROMPT, **OPEN)
        assert len(found) == 2 and 9 < (costs.renewal_in_s() or 0.0) <= 10
        costs._due_s = time.monotonic()
        assert costs.renewal_in_s() == 0.0
        pipe(PROMPT, **OPEN)
        assert len(found) == 1 and 19 < (costs.renewal_in_s() or 0.0) <= 20, "twice as seldom each time"


def test_no_more_than_a_small_part_of_the_time_of_calls_goes_into_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def slowly(*_: object) -> Costs:
        asked.append(1)
        time.sleep(0.1)
        return CROWDED

    monkeypatch.setattr(MeasuredCosts, "_measured", slowly)
    monkeypatch.setattr(_measured_costs, "_PAUSES_S", (0.0, 0.0))
    with four(folder) as pipe:
        pipe.measure()
        assert pipe._auto.costs.renewal_in_s() == 0.0, "for who asks in a quiet moment"
        pipe.choice(**OPEN)
        assert len(asked) == 1
        pipe._auto.costs._ended_s -= 20 * 0.2
        pipe.choice(**OPEN)
        assert len(asked) == 2


@pytest.mark.usefixtures("at_once")
def test_a_call_does_not_wait_for_long_measurements(
    folder: Path, found: list[Costs], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_measured_costs, "_IN_PASSING_S", 0.0)
    found += [CROWDED, GOOD]
    with four(folder) as pipe:
        pipe.measure()
        pipe(PROMPT, **OPEN)
        assert found == [GOOD]
        assert pipe._auto.costs.renew() and pipe.measure() == GOOD, "whoever asks for it gets it"


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("why", ["another call", "the time"])
def test_a_call_gives_up_for_other_calls_and_for_the_time(
    folder: Path, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    asked: list[int] = []

    def measured(costs: MeasuredCosts, size: Any, told: Any, going: Any) -> Costs:
        if going is None:
            time.sleep(0.1)
            return CROWDED
        going()
        if why == "another call":
            with costs._stages.calls:
                pass
        else:
            time.sleep(2 * costs._took_s)
        asked.append(1)
        going()
        return GOOD

    monkeypatch.setattr(MeasuredCosts, "_measured", measured)
    with four(folder) as pipe:
        pipe.measure()
        assert pipe(PROMPT, **OPEN).plan.mode == "sequential" and asked
        assert pipe.measure() == CROWDED
        with pipe._stages.calls:
            pipe.choice(**OPEN)
        assert len(asked) == 1, "where another call is under way it does not begin"


@pytest.mark.usefixtures("at_once")
def test_disturbed_again_the_shorter_times_are_taken(folder: Path, cache: Path, found: list[Costs]) -> None:
    found += [LESS_CROWDED, CROWDED, replace(CROWDED, crowded=6.0)]
    with four(folder) as pipe:
        pipe.measure()
        assert not pipe._auto.costs.renew() and pipe.measure() == LESS_CROWDED
        assert pipe._auto.costs.renew() and pipe.measure().crowded == 6.0
    assert not list(cache.glob("*"))


def test_costs_that_pictures_take_clearly_less_than_are_doubted(
    folder: Path, cache: Path, found: list[Costs], monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = replace(GOOD, call_ms=(30.0, 57.0))
    monkeypatch.setattr(KeptCosts, "read", lambda *_: kept)
    found += [CROWDED, GOOD]
    with four(folder) as pipe:
        costs = pipe._auto.costs
        pipe.measure()
        assert [costs.renewal_in_s(pace) for pace in (0.5, 0.68, 1.0, 4.0)] == [0.0, None, None, None]
        assert not costs.renew() and len(found) == 2
        assert not costs.renew(0.5) and pipe.measure() == kept, "beside other work nothing better was found"
        assert costs.renew(0.5) and pipe.measure() == GOOD
    assert len(list(cache.glob("*.json"))) == 1


def test_what_is_measured_beside_other_calls_is_disturbed(
    folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They keep the cores at work, so that the time of the processor does not show it."""
    run = Trial.timed

    def beside(trial: Trial, shape: Shape) -> float:
        with pipe._stages.calls:
            return run(trial, shape)

    with four(folder) as pipe:
        monkeypatch.setattr(Trial, "disturbed", lambda *_: False)
        monkeypatch.setattr(Trial, "timed", beside)
        assert pipe.measure().disturbed and not list(cache.glob("*"))
        monkeypatch.setattr(Trial, "timed", run)
        with pipe._stages.calls:
            assert pipe.measure(again=True).disturbed
        assert not pipe.measure(again=True).disturbed and list(cache.glob("*"))


def test_one_lane_is_judged_by_one_core(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It cannot have more, however many there are."""
    asked: list[int] = []
    monkeypatch.setattr(_measured_costs, "auto_lanes", lambda: 8)
    monkeypatch.setattr(Trial, "disturbed", lambda _, cores: bool(asked.append(cores)))
    for devices in (["cpu"], ["cpu"] * 4):
        with Pipeline.load(folder, devices=devices) as pipe:
            pipe.measure()
    assert asked == [1, 4]


def test_what_goes_on_is_asked_after_every_round(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever comes meanwhile waits for one call of the network on every lane at most."""
    calls: list[int] = []
    run = BoundRun.__call__

    def counted(self: BoundRun) -> None:
        calls.append(1)
        run(self)

    monkeypatch.setattr(BoundRun, "__call__", counted)
    with four(folder) as pipe:
        own = pipe.measure()
        pipe._auto.costs._costs[tiny.SIDE * 4, tiny.SIDE * 4] = replace(own, disturbed=True)
        at: list[int] = []

        def going() -> None:
            at.append(len(calls))
            if len(at) == 60:
                raise dt.CancelledError("enough")

        with pytest.raises(dt.CancelledError, match="enough"):
            pipe._auto.costs.renew(going=going)
        assert max(np.diff(at)) == 4 and len(calls) == at[-1], "and no call begins after it"
        assert pipe.measure().disturbed
