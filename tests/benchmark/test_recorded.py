"""What a recorder takes down on CPU lanes, as stages and as a trace."""

from __future__ import annotations

import json
import threading
from collections import defaultdict
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import tiny

from driffusion_trt import InputError, Pipeline, Recorder
from driffusion_trt.benchmark.stages import STAGES, split
from driffusion_trt.benchmark.trace import trace
from driffusion_trt.sampling.recording import HOST, Span, span

PROMPT, STEPS = "a red fox left of a blue star", 9
Event = dict[str, Any]


@pytest.fixture(scope="module")
def pipe(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    folder = tiny.make_model_folder(tmp_path_factory.mktemp("models") / "tiny")
    with Pipeline.load(folder, devices=["cpu"] * 2) as made:
        yield made


def picture(pipe: Pipeline, **settings: Any) -> tuple[Any, Recorder]:
    recorder = Recorder()
    asked = {"steps": STEPS, "seed": 1, "mode": "aggressive", "lanes": 2, **settings}
    return pipe(PROMPT, recorder=recorder, **asked), recorder


def test_it_changes_no_bit_and_sees_every_prediction(pipe: Pipeline) -> None:
    for settings in ({}, {"mode": "tolerance"}, {"split_guidance": True}, {"lanes": 4}):
        result, recorder = picture(pipe, **settings)
        plain = pipe(PROMPT, **{"steps": STEPS, "seed": 1, "mode": "aggressive", "lanes": 2, **settings})
        np.testing.assert_array_equal(result.latents, plain.latents)
        names = [one.name for one in recorder.spans]
        calls = result.stats.predictions * (2 if settings.get("split_guidance") else 1)
        assert names.count("predict") == names.count("network") == calls
        assert names.count("draft") == names.count("wait") == names.count("refine") == result.stats.rounds
        assert names.count("tokenize") == names.count("encode") == 2, "with and without the prompt"
        assert names.count("denoise") == names.count("decode") == 1


def test_a_recorder_of_another_kind_is_refused(pipe: Pipeline) -> None:
    with pytest.raises(InputError, match=r"recorder must be a driffusion_trt\.Recorder, not 3"):
        pipe(PROMPT, recorder=3)  # type: ignore[arg-type]


def test_without_a_recorder_a_span_is_nothing() -> None:
    with span(None, "draft"), span(None, "wait") as got:
        assert got is None


def test_a_span_that_raises_is_kept_and_threads_may_add_theirs() -> None:
    recorder = Recorder()
    with pytest.raises(KeyError), recorder.span("draft", steps=3):
        raise KeyError
    threads = [threading.Thread(target=recorder.add, args=("x", "lane", 0.0, 1.0, k)) for k in range(8)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert recorder.spans[0].name == "draft" and recorder.spans[0].facts == {"steps": 3}
    assert sorted(one.round for one in recorder.spans[1:]) == list(range(8))


def made_up(*spans: tuple[str, str, float, float, int]) -> Recorder:
    recorder = Recorder()
    for track, name, start, end, round in spans:
        recorder.add(name, track, start / 1e3, end / 1e3, round)
    return recorder


def test_stages_of_made_up_spans() -> None:
    """Round 1: lane 0 is in its network for 7 ms and lane 1 for 4 and 5; round 2: one lane for 3."""
    recorder = made_up(
        (HOST, "tokenize", 0, 1, 0),
        (HOST, "encode", 1, 3, 0),
        (HOST, "draft", 4, 5, 1),
        (HOST, "wait", 5, 17, 1),
        ("lane 0", "network", 6, 13, 1),
        ("lane 1", "network", 6, 10, 1),
        ("lane 1", "network", 11, 16, 1),
        (HOST, "refine", 17, 19, 1),
        (HOST, "draft", 19, 19.5, 2),
        (HOST, "wait", 19.5, 23, 2),
        ("lane 0", "network", 20, 23, 2),
        (HOST, "refine", 23, 23.5, 2),
        (HOST, "denoise", 4, 24, 0),
        (HOST, "decode", 24, 30, 0),
    )
    found = split(recorder, 32.0)
    wanted = {"tokenize": 1, "encode": 2, "draft": 1.5, "network": 12, "exchange": 3.5, "refine": 2.5}
    assert found.stages == pytest.approx({**wanted, "look": 0, "decode": 6, "other": 3.5})
    assert found.rounds_ms == pytest.approx((9, 3)) and found.denoise_ms == pytest.approx(20)


def test_stages_of_a_picture_add_up(pipe: Pipeline) -> None:
    result, recorder = picture(pipe)
    found = split(recorder, 1.5 * result.timings.total_ms)
    assert tuple(found.stages) == STAGES
    assert sum(found.stages.values()) == pytest.approx(1.5 * result.timings.total_ms)
    assert found.stages["look"] == 0, "on CPU lanes the decision is a part of refine"
    assert all(value > 0 for name, value in found.stages.items() if name != "look")
    assert len(found.rounds_ms) == result.stats.rounds
    inside = sum(found.stages[name] for name in ("draft", "network", "exchange", "refine"))
    assert inside <= found.denoise_ms
    assert found.denoise_ms <= result.timings.denoise_ms, "which has a look at the result besides"


def check_nesting(spans: list[Event]) -> None:
    """Within one thread any two events are apart, or one lies in the other: what Perfetto can draw."""
    ends: list[tuple[float, str]] = []
    for one in sorted(spans, key=lambda event: (event["ts"], -event["dur"])):
        while ends and ends[-1][0] <= one["ts"] + 1e-9:
            ends.pop()
        end = one["ts"] + one["dur"]
        assert not ends or end <= ends[-1][0] + 1e-9, f"{one['name']} leaves {ends[-1][1]}"
        ends.append((end, one["name"]))


def threads_of(found: dict[str, Any]) -> dict[tuple[int, int], list[Event]]:
    events: defaultdict[tuple[int, int], list[Event]] = defaultdict(list)
    for one in found["traceEvents"]:
        if one["ph"] == "X":
            events[one["pid"], one["tid"]].append(one)
    return dict(events)


def names_of(found: dict[str, Any], kind: str) -> dict[tuple[int, int], str]:
    return {
        (one["pid"], one["tid"]): one["args"]["name"] for one in found["traceEvents"] if one["name"] == kind
    }


def test_a_trace_nests_and_predictions_of_a_lane_do_not_overlap(pipe: Pipeline) -> None:
    made = {f"lanes={lanes}": picture(pipe, lanes=lanes, mode="window") for lanes in (2, 4)}
    found = json.loads(json.dumps(trace({name: recorder for name, (_, recorder) in made.items()})))
    assert names_of(found, "process_name") == {(1, 0): "lanes=2", (2, 0): "lanes=4"}
    threads = threads_of(found)
    assert [names_of(found, "thread_name")[key] for key in sorted(threads)] == [
        "host",
        "lane 0",
        "lane 1",
    ] * 2
    for events in threads.values():
        check_nesting(events)
    for key, name in names_of(found, "thread_name").items():
        predictions = sorted(
            (one for one in threads[key] if one["name"] == "predict"), key=lambda event: event["ts"]
        )
        assert bool(predictions) == name.startswith("lane")
        assert all(one["ts"] + one["dur"] <= other["ts"] for one, other in pairwise(predictions))
        assert all(one["args"]["round"] >= 1 and one["args"]["timestep"] >= 0 for one in predictions)
    for pid, (result, recorder) in enumerate(made.values(), 1):
        mine = [one for (at, _), events in threads.items() if at == pid for one in events]
        assert min(one["ts"] for one in mine) == 0 and all(one["dur"] >= 0 for one in mine)
        assert len(mine) == len(recorder.spans)
        assert sum(one["name"] == "predict" for one in mine) == result.stats.predictions


def test_the_check_of_nesting_can_fail() -> None:
    with pytest.raises(AssertionError, match="late leaves early"):
        check_nesting([{"name": "early", "ts": 0, "dur": 2}, {"name": "late", "ts": 1, "dur": 2}])


def test_rounding_takes_no_span_out_of_the_one_around_it() -> None:
    recorder = Recorder()
    start = 12345.678901234
    recorder.spans += [
        Span("lane 0", "network", start + 1.04e-7, start + 9.996e-7, 1, {}),
        Span("lane 0", "predict", start + 1e-7, start + 1e-6, 1, {}),
        Span(HOST, "wait", start, start + 1.1e-6, 1, {}),
    ]
    for events in threads_of(trace({"x": recorder})).values():
        check_nesting(events)
    assert trace({"x": Recorder()})["traceEvents"] == [
        {"ph": "M", "name": "process_name", "pid": 1, "tid": 0, "args": {"name": "x"}}
    ]
