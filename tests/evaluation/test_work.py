"""The folder of an evaluation: what it keeps, refuses, and mends after a kill."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from driffusion_trt import InputError, ModelError
from driffusion_trt.evaluation.making import rows_of
from driffusion_trt.evaluation.work import RowFolder, Work

SETTINGS: dict[str, Any] = {"model": "demo", "steps": 20, "seed": 0}


def refused(folder: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message), Work.opened(folder, settings):
        pass


def test_a_folder_is_fixed_to_its_settings(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "work"
    with Work.opened(folder, SETTINGS):
        assert json.loads((folder / "eval.json").read_text()) == SETTINGS
    with Work.opened(folder, dict(SETTINGS)):
        pass
    changed = {**SETTINGS, "steps": 30, "seed": 3}
    refused(folder, changed, r"made with seed 0 \(now 3\), steps 20 \(now 30\); name another --work")
    refused(folder, {**SETTINGS, "scheduler": "ddim"}, r"scheduler None \(now 'ddim'\)")


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with (
        pytest.raises(InputError, match=r"holds 'thesis.txt' and no eval\.json"),
        Work.opened(tmp_path, SETTINGS),
    ):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
    refused(tmp_path / "thesis.txt", SETTINGS, "is a file")


def test_one_evaluation_at_a_time(tmp_path: Path) -> None:
    with Work.opened(tmp_path / "w", SETTINGS):
        refused(tmp_path / "w", SETTINGS, "is in use by another evaluation")


def test_a_row_is_fixed_to_its_options(tmp_path: Path) -> None:
    work = Work(tmp_path)
    work.row("skip-9", {"mode": "skip", "lanes": 1, "rounds": 9})
    with pytest.raises(InputError, match=r"skip-9 were made with rounds 9 \(now 8\)"):
        work.row("skip-9", {"mode": "skip", "lanes": 1, "rounds": 8})


def row_with(folder: Path, count: int) -> RowFolder:
    row = RowFolder(folder)
    for index in range(count):
        Image.new("RGB", (4, 4)).save(row.picture(index))
        row.add({"index": index, "calls": 3})
    return row


def test_a_line_that_was_cut_off_is_made_again(tmp_path: Path) -> None:
    row_with(tmp_path, 3)
    log = tmp_path / "pictures.jsonl"
    whole = log.read_text()
    for cut in (1, 5, len(whole.splitlines()[-1])):
        log.write_text(whole[:-cut])
        row = RowFolder(tmp_path)
        assert row.missing(4) == [2, 3]
        row.add({"index": 2, "calls": 3})
        assert log.read_text() == whole, "the rest of the line is gone"


def test_a_picture_that_is_gone_is_made_again(tmp_path: Path) -> None:
    row_with(tmp_path, 3).picture(1).unlink()
    assert RowFolder(tmp_path).missing(3) == [1]


def test_a_damaged_line_in_the_middle_is_not_passed_over(tmp_path: Path) -> None:
    row_with(tmp_path, 3)
    lines = (tmp_path / "pictures.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "pictures.jsonl").write_text(lines[0] + "{oops\n" + lines[2])
    with pytest.raises(ModelError, match="is damaged in line 2"):
        RowFolder(tmp_path)


def test_lines_end_at_line_feeds_alone(tmp_path: Path) -> None:
    row = row_with(tmp_path, 1)
    text = "a\u2028b\u0085c\x0b\x1cd\r\ne"
    Image.new("RGB", (4, 4)).save(row.picture(1))
    row.add({"index": 1, "settings": {"negative_prompt": text}})
    again = RowFolder(tmp_path)
    assert again.records[1]["settings"]["negative_prompt"] == text


def test_a_last_batch_that_was_shorter_is_made_again(tmp_path: Path) -> None:
    """Of five pictures in batches of two, and then of six, four, and five again."""
    row = RowFolder(tmp_path)
    for index in range(5):
        Image.new("RGB", (4, 4)).save(row.picture(index))
        row.add({"index": index, "settings": {"batch": 2} if index < 4 else {}})
    row = RowFolder(tmp_path)
    assert row.missing(5, 2) == []
    assert row.missing(6, 2) == [4, 5]
    assert row.missing(3, 2) == [2], "a fresh run of three would make it alone"
    row.add({"index": 4, "settings": {"batch": 2}})
    assert RowFolder(tmp_path).missing(5, 2) == [4]


def test_rows_that_are_there(tmp_path: Path) -> None:
    work = Work(tmp_path)
    work.row("skip-9", {"mode": "skip", "lanes": 1, "rounds": 9})
    assert work.rows() == {"skip-9": {"mode": "skip", "lanes": 1, "rounds": 9}}
    (tmp_path / "skip-9" / "row.json").write_text('{"mode": "skip"}')
    with pytest.raises(InputError, match=r"row\.json has no mode and lanes; remove .*skip-9"):
        work.rows()


def test_latents_that_drift_is_from(tmp_path: Path) -> None:
    row, latents = RowFolder(tmp_path), np.arange(12, dtype=np.float32).reshape(3, 2, 2)
    row.keep_latents(7, latents)
    assert np.array_equal(row.latents(7), latents)
    assert not list(tmp_path.rglob("*.partial"))
    with pytest.raises(ModelError, match=r"00008\.npy cannot be read .*drift is measured from it"):
        row.latents(8)


def test_rows_are_sequential_and_every_mode_with_every_number_of_lanes() -> None:
    rows = rows_of(["aggressive", "skip", "tolerance", "sequential"], [2, 4], 50, None, 0.02)
    assert [(row.name, row.asked) for row in rows] == [
        ("sequential", {"mode": "sequential", "lanes": 1}),
        ("aggressive-n2", {"mode": "aggressive", "lanes": 2}),
        ("aggressive-n4", {"mode": "aggressive", "lanes": 4}),
        ("skip-26", {"mode": "skip", "lanes": 1, "rounds": 26}),
        ("skip-14", {"mode": "skip", "lanes": 1, "rounds": 14}),
        ("tolerance-n2-t0.02", {"mode": "tolerance", "lanes": 2, "tolerance": 0.02}),
        ("tolerance-n4-t0.02", {"mode": "tolerance", "lanes": 4, "tolerance": 0.02}),
    ]


def test_settings_that_no_mode_takes_are_refused() -> None:
    with pytest.raises(InputError, match="there is no such mode; did you mean 'aggressive'"):
        rows_of(["agressive"], [2], 50, None, None)
    with pytest.raises(
        InputError, match="--tolerance was given, and goes with the modes tolerance, paradigms"
    ):
        rows_of(["window"], [2], 50, None, 0.1)
    with pytest.raises(InputError, match="--rounds was given"):
        rows_of(["aggressive"], [2], 50, 9, None)
