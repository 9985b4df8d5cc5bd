"""The bench of elastic lanes, over pictures of known costs and over a tiny model."""

from __future__ import annotations

import asyncio
import itertools
import statistics
from pathlib import Path

import pytest
import tiny
from fakeshop import FakeShop

import driffusion_trt as dt
from bench import elastic
from driffusion_trt._kept_costs import KeptCosts
from driffusion_trt.planning.costs import Costs


def test_arrivals_are_as_often_as_was_asked_and_the_same_again() -> None:
    times = elastic.arrivals(50.0, 4000, 1)
    assert times == sorted(times) == elastic.arrivals(50.0, 4000, 1)
    assert statistics.mean(b - a for a, b in itertools.pairwise(times)) == pytest.approx(0.02, rel=0.1)


def test_all_three_see_the_same_load(capsys: pytest.CaptureFixture[str]) -> None:
    shop, loads = FakeShop(2, step_ms=2.0), (0.2, 3.0)
    found = asyncio.run(elastic.measure(shop, {}, repeats=2, requests=5, loads=loads))
    assert len(found["capacity"]) == 2
    for row in found["repeats"]:
        for load, at_load in row.items():
            count = round(5 * max(1, 3 * float(load)))
            assert {one["made"] + one["refused"] for one in at_load.values()} == {count}
            assert at_load["all"]["lanes"] == 2 and at_load["one"]["lanes"] == 1
            assert 1 <= at_load["elastic"]["lanes"] <= 2
    shown = elastic.summary(found)
    assert list(shown["loads"]) == ["0.2", "3"]
    elastic.show(shown)
    said = capsys.readouterr().out
    assert "| 300 % | elastic |" in said and "20 %: elastic's p50_ms over all:" in said


def test_it_runs_on_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(KeptCosts, "read", lambda *_: Costs(2, (1.0, 1.9)))
    folder = tiny.make_model_folder(tmp_path / "tiny")

    async def run() -> float:
        with dt.Pipeline.load(folder, devices=["cpu"] * 2) as pipe:
            shop = elastic.OpenShop(pipe)
            assert await elastic.capacity(shop, {"steps": 4}, 8) > 0
            seen = await elastic.loaded(shop, "elastic", [0.0, 0.01, 0.02], {"steps": 4})
            return seen.figures()["made"]

    assert asyncio.run(run()) == 3
