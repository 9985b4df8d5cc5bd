"""Results say when, on what and from which sources they are."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench import report


def test_results_carry_their_circumstances(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    written = json.loads(report.write("x", {"figure": 1.5}, ["numpy"]).read_text())
    assert written["figure"] == 1.5
    assert written["machine"]["cores"] >= 1
    assert written["machine"]["processor"]
    assert set(written) == {"date", "commit", "machine", "versions", "figure"}
    assert not list(tmp_path.glob("*.partial"))


def test_spread_and_table() -> None:
    assert report.spread([3.0, 1.0, 2.0]) == {"median": 2.0, "low": 1.5, "high": 2.5}
    assert report.spread([4.0]) == {"median": 4.0, "low": 4.0, "high": 4.0}
    assert report.table(["a", "b"], [["1", "2"]]) == "| a | b |\n|---|---|\n| 1 | 2 |"
