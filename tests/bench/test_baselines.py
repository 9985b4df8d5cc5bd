"""The bench of the baselines: what a call of AsyncDiff counts as, and pictures of the demo."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from rich.progress import Progress

import driffusion_trt as dt
from bench import baselines, drift

PAIRS = range(1100, 1102)


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> drift.Cells:
    return drift.Cells(tmp_path_factory.mktemp("cells"), PAIRS, Progress(disable=True))


def test_calls_are_the_warm_up_and_a_share_for_each_batch() -> None:
    assert baselines.calls(1, 1, 0.5) == 1 + 49 / 2
    assert baselines.calls(9, 2, 0.4) == pytest.approx(9 + 21 * 0.4)
    assert baselines.calls(drift.STEPS, 1, 0.4) == drift.STEPS


def test_paradigms_has_the_rounds_of_aggressive() -> None:
    schedule = dt.Schedule.from_config({"_class_name": "FlowMatchEulerDiscreteScheduler"}, drift.STEPS)
    for lanes in (2, 3, 4, 8):
        paper = dt.make_plan(schedule, **drift.asked("aggressive", lanes))
        picard = dt.make_plan(schedule, **drift.asked("paradigms", lanes))
        assert picard.sequential_calls == paper.sequential_calls
    assert drift.asked("tolerance 0.01", 4) == {"mode": "tolerance", "lanes": 4, "tolerance": 0.01}


def test_components_are_measured_against_the_network(cells: drift.Cells) -> None:
    found = baselines.shares(cells.demo, 3)
    assert sum(found["work"]) == pytest.approx(1, abs=0.02)
    assert len(found["time"]) == 3 and 0.7 < sum(found["time"]) < 1.5


def test_asyncdiff_makes_the_pictures_of_the_prompts_that_were_asked(cells: drift.Cells) -> None:
    """With a warm-up of all steps they are the sequential ones, in their order."""
    wanted = cells(3.0, mode="sequential")["latents"]
    exact = baselines.asyncdiff(cells.demo, PAIRS, 3.0, 2, drift.STEPS, 1)
    assert drift.compared(exact, wanted)["worst"] < 1e-4
    stale = baselines.asyncdiff(cells.demo, PAIRS, 3.0, 2, 1, 1)
    assert 1e-4 < drift.compared(stale, wanted)["mean"] < 1
    assert not np.array_equal(wanted[0], wanted[1])


def test_a_cell_that_is_stored_is_not_made_again(tmp_path: Path) -> None:
    cells = drift.Cells(tmp_path, PAIRS, Progress(disable=True))
    first = cells.stored("name", lambda: {"latents": np.arange(3)})
    again = cells.stored("name", lambda: pytest.fail("it was made again"))
    np.testing.assert_array_equal(first["latents"], again["latents"])
