"""bench.quality: what is stored of pictures, how it is judged, and the documents that are made of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import driffusion_trt as dt
from bench import quality, quality_table, readme
from bench.crowd import Demo, make_pictures
from bench.quality import Cell, Maker
from driffusion_trt.engines.manifest import BUNDLED
from driffusion_trt.evaluation.frechet import Gaussian, frechet
from driffusion_trt.evaluation.heldout import Checker, draw_real, prompt


@pytest.mark.parametrize("model", BUNDLED)
def test_a_crowd_makes_the_pictures_of_the_pipeline(model: str) -> None:
    demo, indices = Demo([5], model), [5, 6]
    demo.learn(indices)
    plan = dt.make_plan(demo.schedule(6), mode="window", lanes=2)
    made = make_pictures(demo, plan, indices, 3.0)
    with dt.Pipeline.load(model, devices=2) as pipe:
        for one, index in zip(made, indices, strict=True):
            alone = pipe(prompt(index)[0], steps=6, mode="window", lanes=2, guidance_scale=3.0, seed=[index])
            assert np.linalg.norm(one.latents - alone.latents[0]) < 1e-4 * np.linalg.norm(one.latents)


@pytest.fixture
def maker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Maker]:
    monkeypatch.setattr(quality, "CHUNK", 2)
    one = Maker("demo", 3.0, tmp_path, Checker())
    yield one
    one.close()


def test_chunks_are_made_once_and_compared_with_sequential(maker: Maker, tmp_path: Path) -> None:
    made = maker.chunk(Cell("aggressive", 4), 2000)
    base = maker.chunk(Cell("sequential", 1), 2000)
    assert made["rounds"].tolist() == [14, 14] and base["rounds"].tolist() == [50, 50]
    assert base["latents"].shape == (2, 4, 16, 16) and "latents" not in made
    assert (made["relative_l2"] > 0).all() and (made["relative_l2"] < 0.1).all()
    assert (made["psnr_db"] > 30).all()
    stored = sorted(tmp_path.rglob("*.npz"))
    assert [path.name for path in stored] == ["aggressive-4-2000.npz", "sequential-1-2000.npz"]
    before = [path.stat().st_mtime_ns for path in stored]
    again = maker.chunk(Cell("aggressive", 4), 2000)
    assert all(np.array_equal(again[name], made[name]) for name in made)
    assert [path.stat().st_mtime_ns for path in stored] == before


def test_cells_have_the_calls_that_the_table_says() -> None:
    schedule = Demo([]).schedule()
    calls = {
        (cell.method, cell.lanes): dt.make_plan(schedule, **cell.options(50)).sequential_calls
        for cell in quality.cells([2, 4])
        if not cell.method.startswith(("tolerance", "asyncdiff"))
    }
    for method in ("direct skip", "paradigms", "aggressive", "window"):
        assert (calls[method, 2], calls[method, 4]) == (26, 14)
    assert (calls["sequential", 1], calls["conservative", 2], calls["conservative", 4]) == (50, 34, 20)


def _stored(count: int, seed: int) -> dict[str, np.ndarray]:
    labels = np.array([prompt(2000 + k)[1] for k in range(count)])
    rng = np.random.default_rng(seed)
    return {
        "labels": np.where(labels < 0, 0, labels),  # what a prompt leaves open may be anything
        "features": rng.normal(size=(count, 8)),
        "rounds": np.full(count, 50),
        "predictions": np.full(count, 50),
    }


def test_a_row_says_how_far_it_is_from_sequential() -> None:
    drawn = Gaussian.of(np.random.default_rng(9).normal(size=(500, 8)))
    base = _stored(60, 0)
    judge = quality_table.Judge(base, drawn, 2000)
    same = judge(base)
    assert same["right"]["mean"] == 1 and same["frechet_minus_sequential"]["mean"] == 0
    assert same["right"]["low"] < 0.95 and same["right"]["high"] > 0.999, "60 right ones are not 100 %"
    assert same["right_minus_sequential"]["low"] < 0 < same["right_minus_sequential"]["high"]
    other = {**base, "relative_l2": np.linspace(0, 0.2, 60), "psnr_db": np.linspace(40, 60, 60)}
    other["features"] = base["features"] + 1  # eight features further off by one each, squared
    other["labels"] = base["labels"].copy()
    other["labels"][:15, 0] = 2 - other["labels"][:15, 0] % 2  # another layout
    wrong = int((other["labels"][:, 0] != base["labels"][:, 0]).sum())
    row = judge(other)
    assert row["right"]["mean"] == pytest.approx(1 - wrong / 60) and wrong >= 5
    assert row["right_minus_sequential"]["high"] < 0
    low, mean, high = (row["frechet_minus_sequential"][name] for name in ("low", "mean", "high"))
    shift = base["features"].mean(0) - drawn.mean
    assert mean == pytest.approx(((shift + 1) ** 2 - shift**2).sum())
    assert low < mean < high
    assert row["relative_l2"]["worst"] == 0.2 and row["psnr_db"]["worst"] == 40
    words = quality_table.as_table(
        [{"method": "sequential", "lanes": 1, **same}, {"method": "x", "lanes": 2, **row}]
    )
    assert f"{100 * (1 - wrong / 60):.1f} (" in words and "0.1000 (0.200)" in words


def test_more_pictures_than_are_drawn_have_a_distance_to_compare_with(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    written: dict[str, Any] = {}
    monkeypatch.setattr(quality_table, "REAL_PICTURES", 20)
    monkeypatch.setattr(quality_table.report, "write", lambda _, result: written.update(result))
    checker, count = Checker(), 24
    labels, features = checker(draw_real(count)[0])
    calls = {"rounds": np.full(count, 50), "predictions": np.full(count, 50)}
    found = {("demo", 3.0, Cell("sequential", 1)): {"labels": labels, "features": features, **calls}}
    quality_table.report_all(found, {"demo": "x"}, checker, 2000, write=True)
    assert written["drawn_pictures"] == 20
    others, target = checker(draw_real(count, 20)[0])[1], checker(draw_real(20)[0])[1]
    assert written["frechet_of_drawn_pictures"] == pytest.approx(frechet(others, target))


def test_the_documents_say_what_the_results_say() -> None:
    assert readme.main(["--check"]) == 0, "run python -m bench.readme"


def test_parts_are_replaced_and_the_rest_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readme, "MAKERS", {"x": lambda: "new"})
    text = "before\n<!-- bench.readme: x -->\nold\nold\n<!-- end -->\nafter\n"
    wanted = "before\n<!-- bench.readme: x -->\n\nnew\n\n<!-- end -->\nafter\n"
    assert readme.renewed(text) == wanted == readme.renewed(wanted)
    with pytest.raises(KeyError):
        readme.renewed("<!-- bench.readme: y -->\n<!-- end -->")
