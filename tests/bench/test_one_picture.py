"""The measurements of whole processes: what their stages are, and a real one on the demo."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from bench import cold_start


def test_stages_are_the_times_between_marks() -> None:
    marks = {"imported": 1.0, "loaded": 1.5, "made": 4.0, "written": 4.25, "peak_rss_bytes": 9}
    found = cold_start.stages(marks)
    assert found == {"start-up": 1.0, "loading": 0.5, "sampling": 2.5, "total": 4.25}
    assert tuple(found) == cold_start.STAGES
    spread = {stage: {"median": value, "low": 0.0, "high": 9.0} for stage, value in found.items()}
    assert cold_start.rows({"us": spread})[0][:2] == ["us", "1.00 (0.00–9.00)"]


def test_a_process_makes_a_picture_and_says_when(tmp_path: Path) -> None:
    marks = cold_start.picture(("driffusion", "--steps", "2"), "demo", tmp_path / "out.png")
    with Image.open(tmp_path / "out.png") as image:
        assert image.size == (64, 64)
    assert 0 < marks["imported"] < marks["loaded"] < marks["made"] < marks["written"]
    assert 50e6 < marks["peak_rss_bytes"] < 1e9
    assert all(value > 0 for value in cold_start.stages(marks).values())


def test_a_process_that_fails_says_why(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="no folder"):
        cold_start.picture(("driffusion",), str(tmp_path / "none"), tmp_path / "out.png")
