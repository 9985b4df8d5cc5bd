"""Pictures of plans: who predicts which state in which round, and where rounds arrive."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_window import DDIM, Network, start

import driffusion_trt as dt
from driffusion_trt.sampling.plan import MODES
from driffusion_trt.sampling.timeline import timeline


def plan_of(steps: int, **options: Any) -> dt.Plan:
    return dt.make_plan(dt.Schedule.from_config(DDIM, steps), **options)


@given(steps=st.integers(1, 24), lanes=st.integers(1, 6), mode=st.sampled_from(MODES))
def test_a_timeline_is_what_a_run_does(steps: int, lanes: int, mode: str) -> None:
    plan = plan_of(steps, mode=mode, lanes=lanes)
    told: list[tuple[int, int]] = []
    shown = timeline(plan)
    assert len(shown) == plan.sequential_calls and max(len(turn.cells) for turn in shown) <= lanes
    assert [turn.after for turn in shown[:-1]] == [turn.before for turn in shown[1:]]
    assert (shown[0].before, shown[-1].after) == (0, plan.schedule.steps)
    if "tolerance" not in plan.asked():  # which takes more rounds where drafts are not near
        assert sum(len(turn.cells) for turn in shown) == plan.model_calls
        dt.sample(
            plan,
            Network(plan.schedule),
            start(1),
            on_round=lambda done: told.append((done.round, done.state)),
        )
        assert told == [(k, turn.after) for k, turn in enumerate(shown, 1)]
    # Every step is taken once: by the last prediction of its state.
    taken = [cell.state for turn in shown for cell in turn.cells if cell.kind != "ahead"]
    assert taken == list(range(plan.schedule.steps))


def test_kinds_of_a_window() -> None:
    first, second, third, *_ = timeline(plan_of(12, mode="window", lanes=4, blocks=(2, 3, 3, 3)))
    assert [(cell.state, cell.kind) for cell in first.cells] == [(0, "exact")]
    kinds = [(1, "exact"), (2, "taken"), (3, "ahead"), (4, "ahead")]
    assert [(cell.state, cell.kind) for cell in second.cells] == kinds
    kinds = [(3, "exact"), (4, "taken"), (5, "taken"), (6, "ahead")]
    assert [(cell.state, cell.kind) for cell in third.cells] == kinds
    assert [(turn.before, turn.after) for turn in (first, second, third)] == [(0, 1), (1, 3), (3, 6)]


@pytest.mark.parametrize(
    ("mode", "wanted"), [("aggressive", [0, 4, 8, 12]), ("conservative", [0, 5, 5, 10, 10, 12])]
)
def test_rounds_of_the_papers_modes_that_take_no_step(mode: str, wanted: list[int]) -> None:
    assert [turn.after for turn in timeline(plan_of(12, mode=mode, lanes=4))] == wanted
