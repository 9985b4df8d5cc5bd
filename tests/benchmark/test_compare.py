"""Two runs held against each other: verdicts, what is warned of, and files that are no results."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from driffusion_trt import InputError
from driffusion_trt.benchmark.compare import compare, differences, load, shown


def cell(name: str, times: Sequence[float], sequential: Sequence[float], lanes: int = 2) -> dict[str, Any]:
    speedup = [slow / fast for slow, fast in zip(sequential, times, strict=True)]
    return {
        "name": name,
        "mode": name.partition(":")[0],
        "lanes": lanes,
        "raw": {"latency_ms": [*times], "speedup": speedup},
    }


def run(factor: float = 1.0, seed: int = 0, count: int = 12, **odd: Any) -> dict[str, Any]:
    """A run in which `aggressive` takes `factor` times 50 ms, with 4 % of noise."""
    noise = 1 + 0.04 * np.random.default_rng(seed).standard_normal((2, count))
    slow, fast = (100 * noise[0]).tolist(), (50 * factor * noise[1]).tolist()
    return {
        "kind": "driffusion-trt bench",
        "format": 1,
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
    sequential, aggressive = compare(run(seed=1, count=count), run(factor, seed=2, count=count))
    assert sequential.verdict == "same"
    assert aggressive.verdict == verdict and aggressive.slower_by(5) is slower_by_5
    assert aggressive.time == pytest.approx(factor, rel=0.03)
    assert aggressive.speedup == pytest.approx(1 / factor, rel=0.04)
    low, high = aggressive.time_interval or (0, 0)
    assert low < aggressive.time < high


def test_the_same_run_is_the_same_and_two_repetitions_tell_nothing() -> None:
    (_, same) = compare(run(), run())
    assert (same.time, same.speedup, same.verdict) == (1.0, 1.0, "same")
    (_, few) = compare(run(count=2), run(2.0, count=2))
    assert few.verdict == "?" and not few.slower_by(5) and few.time_interval is None


def test_a_machine_that_is_twice_as_slow_has_the_speed_ups_of_before() -> None:
    old, new = run(seed=3), run(seed=4)
    for one in new["cells"]:
        one["raw"]["latency_ms"] = [2 * value for value in one["raw"]["latency_ms"]]
    _, found = compare(old, new)
    assert found.verdict == "slower" and found.time == pytest.approx(2, rel=0.05)
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


def test_the_table() -> None:
    lines = shown(compare(run(), run(1.5, seed=1))).splitlines()
    assert [line.split()[0] for line in lines] == ["mode", "sequential", "aggressive"]
    assert lines[2].endswith("slower") and "1." in lines[2] and "–" in lines[2]


def test_nothing_in_common() -> None:
    other = run()
    other["cells"] = [cell("window:lanes=2", [1.0], [1.0])]
    with pytest.raises(InputError, match="no mode with the same lanes in common"):
        compare(run(), other)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "cannot be read"),
        ("{", "is no JSON"),
        ("[1]", "is no result of `driffusion-trt bench`"),
        ('{"kind": "other"}', "is no result of"),
        ('{"kind": "driffusion-trt bench", "format": 2}', "has format 2, and this version reads 1"),
        ('{"kind": "driffusion-trt bench", "format": 1}', "is damaged"),
        (json.dumps(run() | {"cells": [cell("x", [0.0001], [1.0]) | {"raw": {}}]}), "is damaged"),
        (json.dumps(run() | {"cells": [cell("x", [-1.0], [1.0])]}), r"is damaged .*'x' has no times"),
        (json.dumps(run() | {"machine": None}), "is damaged"),
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
