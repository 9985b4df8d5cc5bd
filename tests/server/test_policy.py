"""Lanes by the load, on simulated machines: against all lanes for each request, and against one."""

from __future__ import annotations

import statistics
from typing import Any

import pytest
import queueing
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from queueing import Asked, capacity, median_ms, poisson, profile, serve, throughput

from driffusion_trt.server.policy import (
    Machine,
    Offered,
    Profile,
    Running,
    forecast,
    lanes_for_next,
    per_second,
    reserved,
)

MACHINES = st.fixed_dictionaries(
    {
        "lanes": st.integers(1, 8),
        "steps": st.integers(8, 50),
        "beside_ms": st.floats(0, 100),
        "over": st.floats(0, 0.2),
    }
)


def loaded(
    machine: dict[str, Any], load: float, each: int | None, seed: int, count: int = 250
) -> list[Asked]:
    """What becomes of requests at so many times the capacity of one lane each."""
    lanes, one = machine["lanes"], profile(**machine)
    return serve(Machine(lanes, each=each), poisson(load * capacity(lanes, one), count, one, seed))


@settings(max_examples=25)
@given(MACHINES, st.integers(0, 1000))
def test_at_low_load_it_is_as_fast_as_all_lanes_for_each(machine: dict[str, Any], seed: int) -> None:
    elastic, fixed = (loaded(machine, 0.1, each, seed) for each in (None, machine["lanes"]))
    assert median_ms(elastic) <= median_ms(fixed) * (1 + 1e-9)


@settings(max_examples=25)
@given(MACHINES, st.integers(0, 1000))
def test_at_saturation_it_makes_as_many_as_one_lane_each(machine: dict[str, Any], seed: int) -> None:
    elastic, one = (loaded(machine, 3.0, each, seed, 600) for each in (None, 1))
    end = max(asked.at_ms for asked in elastic)
    # The first few, before the queue is full, have more lanes than is best in the long run.
    slack = machine["lanes"] / len(one)
    assert throughput(elastic, end) >= throughput(one, end) * (1 - slack)


@pytest.mark.parametrize("lanes", [2, 4])
@pytest.mark.parametrize("load", [0.1, 0.3, 0.5, 0.7, 0.8, 1.0, 3.0])
def test_where_lanes_cost_rounds_it_is_near_the_better_of_both_at_any_load(load: float, lanes: int) -> None:
    machine = {"lanes": lanes, "steps": 50, "beside_ms": 20.0, "over": 0.06}
    found = {
        each: [median_ms(loaded(machine, load, each, seed, 500)) for seed in range(5)]
        for each in (None, lanes, 1)
    }
    elastic, all_, one = (statistics.median(found[each]) for each in (None, lanes, 1))
    assert elastic <= 1.15 * min(all_, one), "of what only hindsight can choose"


def test_work_that_arrives_is_counted_over_the_last_while() -> None:
    offered = Offered(1000.0)
    assert offered.at(0.0) == 0.0
    for now in range(0, 20_000, 50):
        offered.add(float(now), 100.0)
    assert offered.at(19_950.0) == pytest.approx(2.0, rel=0.05), "100 ms of work every 50 ms"
    assert offered.at(30_000.0) < 1e-3


def test_the_more_work_arrives_the_fewer_the_lanes() -> None:
    one = profile(4, over=0.1)
    given_ = [lanes_for_next(Machine(4), one, 1, offered=share) for share in (0.0, 1.0, 2.0, 3.0, 5.0)]
    assert given_ == sorted(given_, reverse=True)
    assert given_[0] == 4 and given_[-1] == 1


@settings(max_examples=25)
@given(MACHINES, st.floats(0.1, 3.0), st.integers(0, 1000))
def test_nobody_starves(machine: dict[str, Any], load: float, seed: int) -> None:
    """Whoever was taken waits for no longer than those before it would take one by one, on one lane."""
    served = loaded(machine, load, None, seed)
    slowest = profile(**machine).ms_on(1)
    assert max(one.start_ms - one.at_ms for one in served) <= 66 * slowest


@settings(max_examples=20)
@given(MACHINES, st.integers(0, 1000))
def test_a_client_that_floods_does_not_keep_another_waiting(machine: dict[str, Any], seed: int) -> None:
    lanes, one = machine["lanes"], profile(**machine)
    most = capacity(lanes, one)
    flood = poisson(3 * most, 300, one, seed, "flood")
    quiet = poisson(0.05 * most, 5, one, seed + 1, "quiet")
    arrivals = sorted([*flood, *quiet], key=lambda asked: asked.at_ms)
    served = [asked for asked in serve(Machine(lanes), arrivals, 1000) if asked.client == "quiet"]
    # One picture under way, and one of the other client's turn before its own.
    assert max(asked.start_ms - asked.at_ms for asked in served) <= 3 * one.ms_on(1)


def test_lanes_are_kept_for_a_request_that_needs_more_than_are_free() -> None:
    one, machine = profile(4, steps=100), Machine(4)  # 1000, 505, 340, 258 ms
    under_way = [Running(1, 0.0, 150.0), Running(1, 0.0, 100.0)]
    found = reserved(machine, under_way, one, 420.0, one.least_ms)
    assert found is not None and (found.in_ms, found.spare) == (150.0, 0), "four lanes when both are over"
    found = reserved(machine, under_way, one, 450.0, one.least_ms)
    assert found is not None and (found.in_ms, found.spare) == (100.0, 0), "three, sooner"
    assert reserved(machine, under_way, one, 300.0, one.least_ms) is None
    found = reserved(machine, under_way, one, 300.0, 90.0)
    assert found is not None and found.in_ms == 150.0, "with all lanes there is a plan in time"
    found = reserved(machine, under_way, one, 900.0, one.least_ms)
    assert found is not None and (found.in_ms, found.spare) == (100.0, 1)
    short, long = profile(4, steps=10), profile(4, steps=90)
    assert found.leaves(machine, short, 2) == 2, "it is over by then"
    assert found.leaves(machine, long, 2) == 1, "beside it"
    assert found.leaves(machine, long, 0) == 0


@settings(max_examples=60)
@given(
    st.integers(2, 8),
    st.lists(st.tuples(st.integers(1, 4), st.floats(1, 1000)), min_size=1, max_size=6),
    st.floats(100, 3000),
    st.lists(st.integers(1, 60), max_size=12),
)
def test_those_let_past_do_not_delay_who_waits_for_more_lanes(
    lanes: int, busy: list[tuple[int, float]], within_ms: float, others: list[int]
) -> None:
    machine, head, under_way = Machine(lanes), profile(lanes, steps=50), []
    for keeps, left_ms in busy:
        if sum(one.keeps for one in under_way) + keeps <= lanes:
            under_way.append(Running(keeps, 0.0, left_ms))
    first = reserved(machine, under_way, head, within_ms, head.least_ms)
    assume(first is not None and under_way)
    for steps in others:
        other, free = profile(lanes, steps=steps), machine.free(sum(one.keeps for one in under_way))
        now = reserved(machine, under_way, head, within_ms, head.least_ms)
        assert first is not None and now is not None and now.in_ms <= first.in_ms
        if given_ := now.leaves(machine, other, free):
            under_way.append(Running(other.kept_of(given_), 0.0, other.ms_on(given_)))


def wide(least: int, ms: float = 100.0) -> Profile:
    """Of a plan that has so many devices or waits."""
    return Profile((least * ms, *[ms] * 7)[:8], (least,) * 8, least)


@settings(max_examples=25)
@given(st.integers(1, 8), st.sampled_from([None, 1, 8]), st.floats(0.2, 2.0), st.integers(0, 1000))
def test_a_plan_that_needs_its_lanes_has_them_or_waits(
    lanes: int, each: int | None, load: float, seed: int
) -> None:
    """However many come: it is served in its turn, with no fewer lanes, but for those that are not there."""
    kinds = [profile(lanes), wide(1), wide(3), wide(8)]
    arrivals = poisson(load * capacity(lanes, kinds[0]), 200, kinds[0], seed)
    for number, asked in enumerate(arrivals):
        asked.profile = kinds[number % 4]
    served = serve(Machine(lanes, each=each), arrivals, 1000)
    assert len(served) == 200
    for asked in served:
        assert asked.lanes >= min(asked.profile.least, lanes)
    starts = [asked.start_ms for asked in served]
    assert starts == sorted(starts), "nobody overtakes, so nobody starves"


def test_what_waits_for_its_lanes_is_expected_when_they_are_free() -> None:
    machine, under_way = Machine(4), [Running(1, 0.0, 50.0), Running(1, 0.0, 80.0)]
    assert lanes_for_next(machine, wide(2), 3, under_way) == 2
    assert lanes_for_next(machine, wide(3), 3, under_way) == 0
    assert forecast(machine, under_way, [wide(3), wide(4)]) == [(50.0, 150.0), (150.0, 250.0)]
    assert lanes_for_next(Machine(2), wide(3), 1) == 2, "as many as there are"
    assert per_second(machine, wide(2)) == 20.0 and per_second(machine, wide(3)) == 10.0


def test_a_lone_request_gets_the_lanes_that_are_worth_it() -> None:
    assert lanes_for_next(Machine(8), profile(8), 1) == 8
    useful = Profile((100.0, 60.0, 60.0, 60.0), (1, 2, 2, 2))
    assert lanes_for_next(Machine(4), useful, 1) == 2


def test_the_longer_the_queue_the_fewer_the_lanes() -> None:
    one = profile(8, over=0.05)
    given_ = [lanes_for_next(Machine(8), one, waiting) for waiting in range(1, 60)]
    assert given_[0] == 8 and given_[-1] == 1
    assert lanes_for_next(Machine(8), one, 3, crowd=True) == 1


def test_lanes_that_are_had_are_not_given_twice() -> None:
    one = profile(4)
    under_way = [Running(3, 0.0, 500.0)]
    assert lanes_for_next(Machine(4), one, 5, under_way) == 1
    assert lanes_for_next(Machine(4), one, 5, [Running(4, 0.0, 500.0)]) == 0
    assert lanes_for_next(Machine(4, most=1), one, 5, [Running(0, 0.0, 500.0)]) == 0


def test_a_lone_request_waits_where_more_lanes_are_soon_free() -> None:
    one = profile(4)
    soon, late = Running(3, 490.0, 500.0), Running(3, 0.0, 500.0)
    assert lanes_for_next(Machine(4), one, 1, [soon]) == 0
    assert lanes_for_next(Machine(4), one, 1, [late]) == 1
    assert lanes_for_next(Machine(4), one, 2, [soon]) == 1, "where others wait nothing is to idle"


def test_it_does_not_wait_for_ever_for_what_does_not_end() -> None:
    one = profile(4)
    assert lanes_for_next(Machine(4), one, 1, [Running(3, 100_000.0, 500.0)]) == 1


def test_requests_a_second() -> None:
    one = profile(4, over=0.2)
    assert per_second(Machine(4, each=1), one) == pytest.approx(4e3 / one.ms_on(1))
    assert per_second(Machine(4, each=4), one) == pytest.approx(1e3 / one.ms_on(4))
    assert per_second(Machine(4), one) == pytest.approx(4e3 / one.ms_on(1))


@settings(max_examples=30)
@given(MACHINES, st.integers(1, 40), st.sampled_from([None, 1, "all"]))
def test_the_forecast_is_what_happens_then(machine: dict[str, Any], waiting: int, each: Any) -> None:
    lanes, one = machine["lanes"], profile(**machine)
    served = serve(
        Machine(lanes, each=lanes if each == "all" else each), [Asked(0.0, one) for _ in range(waiting)]
    )
    # All are there before the first is started, as in a forecast.
    found = forecast(Machine(lanes, each=lanes if each == "all" else each), [], [one] * waiting)
    assert found[0][0] == 0.0 and len(found) == waiting
    assert max(end for _, end in found) <= max(asked.end_ms for asked in served) + waiting * one.ms_on(1)


def test_a_forecast_counts_what_is_under_way() -> None:
    one = profile(2)
    (start, end), *_ = forecast(Machine(2), [Running(2, 100.0, 300.0)], [one])
    assert (start, end) == (200.0, 200.0 + one.ms_on(2))
    assert forecast(Machine(2), [], []) == []


def test_the_simulation_itself() -> None:
    one = profile(2, steps=11)
    served = serve(Machine(2, each=2), [Asked(0.0, one), Asked(10.0, one)], bound=1)
    assert [asked.start_ms for asked in served] == [0.0, one.ms_on(2)]
    assert queueing.throughput(served, served[-1].end_ms) == pytest.approx(1e3 / one.ms_on(2))
    assert [asked.refused for asked in served] == [False, False]
