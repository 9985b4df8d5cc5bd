"""The performance model's check on CPU lanes, on a tiny model; and the paper's figures beside the rounds."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny

from bench import cells, paper, performance
from driffusion_trt.planning.machine import Machine


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny.make_model_folder(tmp_path_factory.mktemp("models") / "tiny"))


def test_every_mode_is_foreseen_and_made(model: str) -> None:
    result = performance.measure(model, repeats=2, steps=9)
    rows = {row["cell"]: row for row in result["rows"]}
    assert list(rows) == [
        "sequential, 1 device",
        *(f"{mode}, 2 devices" for mode in cells.MODES),
        "sequential, 2 devices, split guidance",
    ]
    for row in rows.values():
        assert sum(row["terms_ms"].values()) == pytest.approx(row["predicted_ms"])
        assert row["predicted_loop_ms"] < row["predicted_ms"]
        assert row["measured_ms"]["low"] <= row["measured_ms"]["median"] <= row["measured_ms"]["high"]
        assert row["predicted_over_measured"]["low"] > 0
    assert rows["sequential, 1 device"]["rounds"]["expected"] == 9
    assert rows["aggressive, 2 devices"]["rounds"]["expected"] == 5
    assert rows["aggressive, 2 devices"]["rounds"]["median"] == 5
    figures = Machine.from_json(result["figures"])
    assert not figures.ahead and figures.decode_ms > 0
    # Calls of two rows and the host's work of one lane, nine times, and what is beside.
    each = figures.call_ms[1] + sum(figures.host_us) / 1000
    beside = figures.encode_ms + figures.decode_ms
    assert rows["sequential, 1 device"]["predicted_ms"] == pytest.approx(9 * each + beside)
    took = rows["sequential, 1 device"]["measured_ms"]["median"]
    assert took > rows["sequential, 1 device"]["measured_loop_ms"]["median"] > 0


def test_nothing_is_written_unless_asked(
    model: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(performance.report, "RESULTS", tmp_path)
    words = ["--model", model, "--repeats", "1", "--steps", "5"]
    performance.main(words)
    assert not list(tmp_path.iterdir()) and "| sequential, 1 device |" in capsys.readouterr().out
    performance.main([*words, "--write"])
    assert [path.name for path in tmp_path.iterdir()] == ["performance-tiny.json"]


def test_cells_are_those_that_can_be() -> None:
    assert [one.name for one in cells.cells((1,), guided=True)] == ["sequential, 1 device"]
    four = cells.cells((4,), guided=True, modes=("window",))
    assert [(one.mode, one.lanes, one.split) for one in four] == [
        ("sequential", 1, False),
        ("window", 4, False),
        ("window", 2, True),
    ]
    assert not any(one.split for one in cells.cells((1, 2, 4), guided=False))


def test_what_a_round_must_have_cost_in_the_paper() -> None:
    """By hand: 5.96 s of 50 steps are 119.2 ms a step; 1.66 s in 14 rounds 118.6 ms a round."""
    rows = {(row["model"], row["mode"], row["devices"]): row for row in paper.rows()}
    one = rows["SD2.1", "aggressive", 4]
    assert (one["rounds"], one["step_ms"]) == (14, pytest.approx(119.2))
    assert one["overhead_ms"] == pytest.approx(1660 / 14 - 119.2)
    assert rows["SD3", "aggressive", 4]["overhead_ms"] == pytest.approx(3000 / 8 - 11250 / 28)
    low, high = rows["SDXL", "conservative", 2]["overhead"]
    assert low < 0 < high  # its rounding leaves open whether a round cost anything
    assert "| SD3, 28 | aggressive, 4 | 8 | 3.50 | 3.75 |" in paper.table()
