"""Two runs held against each other: verdicts, what is warned of, and files that are no results."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from driffusion_trt import InputError
from driffusion_trt.benchmark.compare import compare, differences, missing, shown
from driffusion_trt.benchmark.stored import load


def cell(
    name: str, times: Sequence[float], sequential: Sequence[float], lanes: int = 2, drift: float = 0.001
) -> dict[str, Any]:
    speedup = [slow / fast for slow, fast in zip(sequential, times, strict=True)]
    return {
        "name": name,
        "mode": name.partition(":")[0],
        "lanes": lanes,
        "plan": {"mode": name.partition(":")[0], "ideal_speedup": 3.0},
        "raw": {"latency_ms": [*times], "speedup": speedup, "relative_l2": [drift] * len(times)},
    }


def run(factor: float = 1.0, seed: int = 0, count: int = 12, **odd: Any) -> dict[str, Any]:
    """A run in which `aggressive` takes `factor` times 50 ms, with 4 % of noise."""
    noise = 1 + 0.04 * np.random.default_rng(seed).standard_normal((2, count))
    slow, fast = (100 * noise[0]).tolist(), (50 * factor * noise[1]).tolist()
    return {
        "kind": "driffusion-trt bench",
        "format": 1,
        "version": "1.0",
        "date": "2026-01-01T00:00:00+00:00",
        "commit": "abc",
        "repetitions": count,
        "machine": {"processor": "x", "cores": 2},
        "versions": {"python": "3.12.1"},
        "model": {"family": "demo"},
        "settings": {"steps": 50, "prompts": ["a red fox"] * 20},
        "cells": [cell("sequential", slow, slow, 1), cell("aggressive:lanes=2", fast, slow)],
        **odd,
    }


@pytest.mark.parametrize(
    ("factor", "verdict", "slower_by_5"),
    [(1.0, "same", False), (1.2, "slower", True), (0.8, "faster", False), (1.045, "slower", False)],
)
def test_verdicts(factor: float, verdict: str, slower_by_5: bool) -> None:
    count = 12 if factor != 1.045 else 60
    old, new = run(seed=1, count=count), run(factor, seed=2, count=count)
    sequential, aggressive = compare(old, new)
    assert (sequential.verdict, compare(old, new, "latency")[0].verdict) == ("–", "same")
    assert compare(old, new, "latency")[1].verdict == verdict
    assert aggressive.verdict == verdict and aggressive.slower_by(5) is slower_by_5
    assert aggressive.time == pytest.approx(factor, rel=0.03)
    assert aggressive.speedup == pytest.approx(1 / factor, rel=0.04)
    assert aggressive.slowness == pytest.approx(1 / aggressive.speedup)
    low, high = aggressive.time_interval or (0, 0)
    assert low < aggressive.time < high


def test_the_same_run_is_the_same_and_five_repetitions_tell_nothing() -> None:
    (_, same) = compare(run(), run())
    assert (same.time, same.speedup, same.verdict) == (1.0, 1.0, "same")
    (_, few) = compare(run(count=5), run(2.0, count=5))
    assert few.verdict == "?" and not few.slower_by(5) and few.time_interval is None
    assert compare(run(count=6), run(2.0, count=6))[1].verdict == "slower"


def test_more_modes_have_wider_intervals() -> None:
    old, new = run(seed=6), run(1.03, seed=7)
    (_, alone) = compare(old, new)
    for one in (old, new):
        first = one["cells"][1]
        one["cells"] += [first | {"name": f"window:lanes={k}"} for k in range(2, 12)]
    among = compare(old, new)[1]
    low, high = alone.speedup_interval or (0, 0)
    lower, higher = among.speedup_interval or (0, 0)
    assert lower < low and high < higher


def test_a_machine_that_is_twice_as_slow_has_the_speed_ups_of_before() -> None:
    old, new = run(seed=3), run(seed=4)
    for one in new["cells"]:
        one["raw"]["latency_ms"] = [2 * value for value in one["raw"]["latency_ms"]]
    _, found = compare(old, new)
    assert found.verdict == "same" and found.time == pytest.approx(2, rel=0.05)
    assert [one.verdict for one in compare(old, new, "latency")] == ["slower", "slower"]
    low, high = found.speedup_interval or (0, 0)
    assert low < 1 < high


def test_what_makes_them_hard_to_compare_is_said() -> None:
    assert differences(run(), run(seed=5)) == []
    odd = run(machine={"processor": "y", "cores": 2}, settings={"steps": 20, "prompts": ["a red fox"] * 20})
    odd["cells"][1]["name"] = "aggressive:lanes=4"
    odd["model"]["precision"] = "fp16"
    assert differences(run(), odd) == [
        'machine: processor differs: "x" then, "y" now',
        'model: precision differs: null then, "fp16" now',
        "settings: steps differs: 50 then, 20 now",
        "only the new run has aggressive:lanes=4",
        "only the old run has aggressive:lanes=2",
    ]
    many = differences(run(), run(settings={"steps": 50, "prompts": []}))
    assert len(many) == 1 and many[0].endswith("... then, [] now") and len(many[0]) < 120


def test_another_plan_or_version_or_other_pictures_are_said() -> None:
    other = run(version="1.1")
    other["cells"][1]["plan"] = {"mode": "aggressive", "ideal_speedup": 2.0, "blocks": [1, 2]}
    other["cells"][1]["raw"]["relative_l2"] = [0.004] * 12
    assert differences(run(), other) == [
        'version differs: "1.0" then, "1.1" now',
        "plan of aggressive:lanes=2: ideal speedup differs: 3.0 then, 2.0 now",
        "plan of aggressive:lanes=2: blocks differs: null then, [1, 2] now",
        "drift of aggressive:lanes=2 differs: 0.0010 then, 0.0040 now: the times are of other pictures",
    ]
    row = shown(compare(run(), other)).splitlines()[2]
    assert re.search(r" 0\.0010 +0\.0040 ", row)
    longer = run(count=20)
    longer["cells"][1]["raw"]["relative_l2"][12:] = [0.1] * 8  # pictures that the other has not
    assert differences(run(), longer) == []


def test_what_the_new_run_has_not() -> None:
    new = run()
    del new["cells"][1]
    assert missing(run(), new) == ["aggressive:lanes=2"] and missing(new, run()) == []


def test_the_table() -> None:
    lines = shown(compare(run(), run(1.5, seed=1))).splitlines()
    assert [line.split()[0] for line in lines] == ["mode", "sequential", "aggressive"]
    assert lines[2].endswith("slower") and "1." in lines[2] and "–" in lines[2]


def test_nothing_in_common() -> None:
    other = run()
    other["cells"] = [cell("window:lanes=2", [1.0], [1.0])]
    with pytest.raises(InputError, match="no mode with the same lanes in common"):
        compare(run(), other)


def damaged(**odd: Any) -> str:
    return json.dumps(run(repetitions=1) | {"cells": [cell("x", [1.0], [1.0]) | odd]})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "cannot be read"),
        ("{", "cannot be read as JSON"),
        ('{"kind": NaN}', "NaN is no number of JSON"),
        ("[" * 100_000, "too deep"),
        ("[1]", "is no result of `driffusion-trt bench`"),
        ('{"kind": "other"}', "is no result of"),
        ('{"kind": "driffusion-trt bench", "format": 2}', "has format 2, and this version reads 1"),
        ('{"kind": "driffusion-trt bench", "format": 1}', "is damaged"),
        (damaged(raw={}), "is damaged"),
        (damaged(raw={"latency_ms": [-1.0], "speedup": [1.0]}), r"is damaged: cell 'x' has no times"),
        (damaged(raw={"latency_ms": [True], "speedup": [1.0]}), r"is damaged: cell 'x' has no times"),
        (damaged(raw={"latency_ms": [10**401], "speedup": [1.0]}), r"is damaged: cell 'x' has no times"),
        (damaged(raw={"latency_ms": [5e-324], "speedup": [1.0]}), r"is damaged: cell 'x' has no times"),
        (damaged(raw={"latency_ms": [1.0], "speedup": []}), "0 of speedup for 1 repetitions"),
        (damaged(raw={"latency_ms": 1.0, "speedup": [1.0]}), "has no times"),
        (damaged(raw={"latency_ms": [1.0], "speedup": [1.0], "relative_l2": ["x"]}), "relative_l2 must be"),
        (damaged(name=None), "a cell has no name"),
        (damaged(name=["x"]), "a cell has no name"),
        (damaged(mode=3), "cell 'x' has no mode"),
        (damaged(lanes=1.5), "cell 'x' has no number of lanes"),
        (damaged(lanes=True), "cell 'x' has no number of lanes"),
        (damaged(plan=[]), "cell 'x' has no plan"),
        (json.dumps(run() | {"cells": [cell("x", [1.0] * 12, [1.0] * 12)] * 2}), "cell 'x' is there twice"),
        (json.dumps(run() | {"cells": []}), "it has no cells"),
        (json.dumps(run() | {"repetitions": True}), "repetitions is no number"),
        (json.dumps(run() | {"machine": None}), "machine is no object"),
        (json.dumps(run() | {"date": 7}), "date is no text"),
    ],
)
def test_files_that_are_no_results(tmp_path: Path, text: str | None, said: str) -> None:
    path = tmp_path / "run.json"
    if text is not None:
        path.write_text(text, "utf-8")
    with pytest.raises(InputError, match=said):
        load(str(path))


def test_a_result_is_read_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    path.write_text(json.dumps(run()), "utf-8")
    assert load(str(path)) == run()


def test_a_terminal_is_told_nothing_by_a_file(tmp_path: Path) -> None:
    odd = run(date="2026\x1b[2J", settings={"steps": 50, "note\x1b]0;": "a\x9bb\u202ec"})
    odd["cells"][1] |= {"name": "aggressive\x1b[31m", "mode": "aggr\x07essive"}
    path = tmp_path / "run.json"
    path.write_text(json.dumps(odd), "utf-8")
    found = load(str(path))
    words = [found["date"], shown(compare(found, found)), *differences(run(), found)]
    assert not [one for text in words for one in text if not one.isprintable() and one != "\n"]
    assert found["cells"][1]["name"] == "aggressive[31m"
