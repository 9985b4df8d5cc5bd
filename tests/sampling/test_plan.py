"""Plans: counts of docs/method.md section 3, widths, and what is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

import driffusion_trt as dt
from driffusion_trt.sampling.plan import default_lanes

DDIM = {"_class_name": "DDIMScheduler", "beta_schedule": "scaled_linear", "clip_sample": False}

# T, mode -> sequential calls for n = 2, 3, 4, 8 (arXiv 2603.25872)
COUNTS = {
    (50, "aggressive"): (26, 18, 14, 8),
    (50, "conservative"): (34, 26, 20, 12),
    (30, "aggressive"): (16, 11, 9, 5),
    (30, "conservative"): (20, 16, 12, 8),
    (28, "aggressive"): (15, 10, 8, 5),
    (28, "conservative"): (19, 14, 12, 7),
}


def plan_of(steps: int, mode: str, lanes: int) -> dt.Plan:
    return dt.make_plan(dt.Schedule.from_config(DDIM, steps), mode=mode, lanes=lanes)


@pytest.mark.parametrize(("steps", "mode"), COUNTS)
def test_calls_are_those_of_the_paper(steps: int, mode: str) -> None:
    got = tuple(plan_of(steps, mode, lanes).sequential_calls for lanes in (2, 3, 4, 8))
    assert got == COUNTS[steps, mode]


@given(st.integers(1, 70), st.integers(1, 9), st.sampled_from(["sequential", "aggressive", "conservative"]))
def test_every_state_is_predicted_once_and_no_round_is_too_wide(steps: int, lanes: int, mode: str) -> None:
    plan = plan_of(steps, mode, lanes)
    predicted = [i for item in plan.rounds for i in item.predict]
    assert sorted(predicted) == list(range(steps))
    assert plan.model_calls == steps
    assert max(len(item.predict) for item in plan.rounds) <= lanes
    q, r = divmod(steps, lanes + 1)
    expected = {
        "sequential": steps,
        "aggressive": 1 + -(-(steps - 1) // lanes),
        "conservative": 2 * q + min(r, 2),
    }
    assert plan.sequential_calls == expected[mode]
    assert plan.ideal_speedup == steps / expected[mode]


@given(st.integers(1, 40), st.integers(1, 5), st.sampled_from(["aggressive", "conservative"]))
def test_a_round_keeps_no_more_than_it_needs(steps: int, lanes: int, mode: str) -> None:
    for item in plan_of(steps, mode, lanes).rounds:
        assert len(item.keep) <= 4, "state, its prediction and input, and no more, pass from round to round"


@given(st.integers(1, 60), st.integers(1, 9))
def test_skip_walks_a_coarse_schedule(steps: int, lanes: int) -> None:
    plan = plan_of(steps, "skip", lanes)
    assert plan.sequential_calls == plan_of(steps, "aggressive", lanes).sequential_calls
    assert plan.schedule.steps == plan.model_calls == plan.sequential_calls
    assert plan.steps == steps


def test_skip_takes_rounds() -> None:
    schedule = dt.Schedule.from_config(DDIM, 50)
    assert dt.make_plan(schedule, mode="skip", rounds=7).sequential_calls == 7


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "agressive"}, "did you mean 'aggressive'"),
        ({"mode": ""}, "there is no mode ''"),
        ({"mode": None}, "mode must be one of"),
        ({"lanes": 0}, "lanes=0 was asked; it must be at least 1"),
        ({"lanes": 2.0}, "lanes must be a whole number at least 1, not 2.0"),
        ({"lanes": True}, "lanes must be a whole number"),
        ({"mode": "skip", "rounds": 0}, "rounds=0 was asked; it must be from 1 to 10"),
        ({"mode": "skip", "rounds": 11}, "rounds=11 was asked; it must be from 1 to 10"),
        ({"mode": "aggressive", "rounds": 5}, "mode 'aggressive' has a fixed number"),
    ],
)
def test_what_cannot_be_is_refused(options: dict[str, object], message: str) -> None:
    schedule = dt.Schedule.from_config(DDIM, 10)
    with pytest.raises(dt.InputError, match=message):
        dt.make_plan(schedule, **options)  # type: ignore[arg-type]


def test_lanes_that_nobody_asked_for_stay_few() -> None:
    assert [default_lanes(devices, 50) for devices in (1, 2, 4, 64)] == [1, 2, 4, 4]
    assert [default_lanes(64, steps) for steps in (1, 9, 20, 30, 1000)] == [2, 2, 2, 3, 4]


def test_a_plan_says_what_it_is() -> None:
    assert repr(plan_of(50, "aggressive", 2)) == (
        "Plan(mode='aggressive', lanes=2, steps=50, sequential_calls=26, model_calls=50)"
    )


# Blocks by hand


@given(st.integers(2, 40), st.integers(2, 6), st.sampled_from(["window", "aggressive"]), st.data())
def test_blocks_are_the_rounds_after_the_first(
    steps: int, lanes: int, mode: str, data: st.DataObject
) -> None:
    blocks, left = [], steps - 1
    while left:
        blocks.append(data.draw(st.integers(1, min(lanes, left))))
        left -= blocks[-1]
    schedule = dt.Schedule.from_config(DDIM, steps)
    plan = dt.make_plan(schedule, mode=mode, lanes=lanes, blocks=blocks)
    assert plan.sequential_calls == 1 + len(blocks) and plan.asked()["blocks"] == blocks
    again = dt.make_plan(schedule, mode=mode, lanes=lanes, **plan.asked())
    assert again.blocks == plan.blocks == tuple(blocks)
    if mode == "aggressive":
        assert [len(item.predict) for item in plan.rounds] == [1, *blocks]
        assert [i for item in plan.rounds for i in item.predict] == list(range(steps))
    fewer = plan.with_lanes(lanes - 1)
    fits = max(blocks) < lanes
    assert (fewer.blocks == plan.blocks) == fits or (not fits and max(fewer.blocks or (1,)) < lanes)
    assert fewer.lanes == lanes - 1


def test_the_default_blocks_of_the_papers_mode_are_as_long_as_there_are_lanes() -> None:
    schedule = dt.Schedule.from_config(DDIM, 12)
    given_by_hand = dt.make_plan(schedule, mode="aggressive", lanes=4, blocks=[4, 4, 3])
    for one, other in zip(given_by_hand.rounds, plan_of(12, "aggressive", 4).rounds, strict=True):
        assert one.predict == other.predict and one.keep == other.keep
        for table, its in ((one.draft, other.draft), (one.refine, other.refine)):
            assert table.columns == its.columns and (table.coefficients == its.coefficients).all()
    assert plan_of(12, "aggressive", 4).asked() == {}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"blocks": [4, 4]}, "the 2 blocks sum to 8; .* so they must sum to 9"),
        ({"blocks": [4, 0, 5]}, "blocks has 0 at place 1; a round takes from 1 to"),
        ({"blocks": [5, 4]}, "blocks has 5 at place 0; .* as many steps as there are lanes, 4"),
        ({"blocks": [4, 4.0, 1]}, "a sequence of whole numbers"),
        ({"blocks": [4, 4, True]}, "a sequence of whole numbers"),
        ({"blocks": "441"}, "a sequence of whole numbers, one for each round, not '441'"),
        ({"blocks": 9}, "a sequence of whole numbers"),
        ({"blocks": [4, 4, 1], "rounds": 4}, "the blocks are the rounds, leave one out"),
        ({"blocks": [4, 4, 1], "mode": "tolerance"}, "it goes with mode 'window' or 'aggressive'"),
        ({"blocks": [4, 4, 1], "mode": "sequential"}, "it goes with mode 'window' or 'aggressive'"),
    ],
)
def test_blocks_that_cannot_be_are_refused(options: dict[str, object], message: str) -> None:
    schedule = dt.Schedule.from_config(DDIM, 10)
    with pytest.raises(dt.InputError, match=message):
        dt.make_plan(schedule, **{"mode": "window", "lanes": 4, **options})  # type: ignore[arg-type]
