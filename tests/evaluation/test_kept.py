"""What was reported before is kept as long as it is of the same pictures, weights and reference."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from driffusion_trt.evaluation.kept import Reported

CLIP = {"title": "CLIP score", "key": "a"}


def reported(path: Path, count: int, pictures: int = 4) -> Reported:
    rows = [
        {
            "name": name,
            "pictures": pictures,
            "metrics": {"relative_l2": {"value": 0.1}, "clip": {"value": 20.0}},
        }
        for name in ("sequential", "skip-5")
    ]
    data = {"metrics": {"relative_l2": {"better": "lower"}, "clip": CLIP}, "rows": rows}
    (path / "results.json").write_text(json.dumps(data))
    return Reported.read(path / "results.json", count)


def rows(**metrics: Any) -> list[dict[str, Any]]:
    return [{"name": "sequential", "pictures": 4, "metrics": metrics}, {"name": "skip-5", "metrics": {}}]


def test_figures_of_as_many_pictures_are_added(tmp_path: Path) -> None:
    before = reported(tmp_path, 4)
    assert before.drift and before.other == ()
    both = before.added_to({"fid": {"key": "f"}}, rows(fid={"value": 3.0}))
    assert both["metrics"] == {"fid": {"key": "f"}, "clip": CLIP}
    assert [row["metrics"] for row in both["rows"]] == [
        {"fid": {"value": 3.0}, "clip": {"value": 20.0}},
        {"clip": {"value": 20.0}},
    ]


def test_new_figures_win_and_other_weights_do_not_mix(tmp_path: Path) -> None:
    before = reported(tmp_path, 4)
    same = before.added_to({"clip": CLIP}, rows(clip={"value": 21.0}))["rows"]
    assert [row["metrics"]["clip"]["value"] for row in same] == [21.0, 20.0]
    other = before.added_to({"clip": {**CLIP, "key": "b"}}, rows(clip={"value": 21.0}))["rows"]
    assert [row["metrics"] for row in other] == [{"clip": {"value": 21.0}}, {}]


def test_figures_of_more_or_fewer_pictures_are_left_behind_by_name(tmp_path: Path) -> None:
    before = reported(tmp_path, 4, pictures=3)
    assert before.drift and before.other == ("clip",)
    assert before.added_to({}, rows())["rows"] == rows()


@pytest.mark.parametrize(
    "text", ["", "[]", '{"metrics": 3, "rows": []}', '{"metrics": {}, "rows": [{}]}', "[" * 99999]
)
def test_results_that_are_damaged_are_made_anew(tmp_path: Path, text: str) -> None:
    (tmp_path / "results.json").write_text(text)
    assert Reported.read(tmp_path / "results.json", 4) == Reported()
