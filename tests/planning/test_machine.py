"""Latencies from physical figures: never better than the ideal, monotone in all of them, those of `Costs`."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import driffusion_trt as dt
from driffusion_trt.planning.costs import Costs
from driffusion_trt.planning.latency import TERMS, Work, latency_ms, pays_up_to, terms_ms
from driffusion_trt.planning.machine import Machine

STEPS = 30
SCHEDULE = dt.Schedule.from_config(
    {"_class_name": "EulerDiscreteScheduler", "beta_schedule": "scaled_linear"}, STEPS
)
MODES = ("sequential", "aggressive", "conservative", "window", "tolerance")
TIMES = st.floats(0, 1000)


@st.composite
def machines(draw: st.DrawFn) -> Machine:
    """Calls of 0.1 ms to 3 s; everything else from nothing to more than a call."""
    one = 10 ** draw(st.floats(-1, 3.5))
    return Machine(
        (one, one * draw(st.floats(1, 2))),
        latents_bytes=draw(st.integers(0, 1 << 24)),
        copy_us=draw(TIMES),
        copy_gb_s=draw(st.none() | st.floats(0.1, 900)),
        host_us=(draw(TIMES), draw(TIMES)),
        ahead=draw(st.booleans()),
        look_us=draw(TIMES),
        encode_ms=draw(TIMES),
        decode_ms=draw(TIMES),
        crowded=draw(st.floats(1, 1.5)),
        rows=(1, draw(st.sampled_from([0, 8]))),
    )


@st.composite
def asked(draw: st.DrawFn) -> tuple[int, Work, dict[str, Any], dt.Plan]:
    """Devices, what a plan asks of them, how it is asked, and the plan."""
    devices, guided = draw(st.integers(1, 8)), draw(st.booleans())
    split = guided and devices > 1 and draw(st.booleans())
    lanes = devices // 2 if split else devices
    mode = draw(st.sampled_from(MODES)) if lanes > 1 else "sequential"
    plan = dt.make_plan(SCHEDULE, mode=mode, lanes=lanes)
    rounds = draw(st.floats(plan.sequential_calls, STEPS)) if mode == "tolerance" else None
    return devices, Work.of(plan, rounds), {"guided": guided, "split": split}, plan


@given(machine=machines(), case=asked())
def test_never_better_than_the_ideal(
    machine: Machine, case: tuple[int, Work, dict[str, Any], dt.Plan]
) -> None:
    devices, work, how, plan = case
    costs = machine.costs(devices)
    rows = 2 if how["guided"] and not how["split"] else 1
    got = latency_ms(costs, work, **how)
    assert got >= work.count * costs.rows_ms(rows) * (1 - 1e-12) + machine.encode_ms + machine.decode_ms
    sequential = latency_ms(machine.costs(1), Work.of(dt.make_plan(SCHEDULE)), guided=how["guided"])
    batch = costs.rows_ms(2) / costs.rows_ms(1) if how["split"] else 1.0
    assert sequential / got <= batch * max(1.0, plan.ideal_speedup) * (1 + 1e-9)


@given(machine=machines(), case=asked())
def test_terms_add_up_and_none_is_negative(
    machine: Machine, case: tuple[int, Work, dict[str, Any], dt.Plan]
) -> None:
    devices, work, how, _ = case
    costs = machine.costs(devices)
    terms = terms_ms(costs, work, **how)
    assert set(terms) == set(TERMS)
    total = latency_ms(costs, work, **how)
    assert sum(terms.values()) == pytest.approx(total)
    assert min(terms.values()) >= -1e-9 * total
    assert terms["beside"] == pytest.approx(machine.encode_ms + machine.decode_ms, abs=1e-9 * total)
    rows = 2 if how["guided"] and not how["split"] else 1
    assert terms["network"] == pytest.approx(work.count * costs.rows_ms(rows))


@given(machine=machines(), case=asked(), more=st.floats(0, 500), share=st.floats(0.01, 1))
def test_no_figure_makes_a_picture_faster_by_being_larger(
    machine: Machine, case: tuple[int, Work, dict[str, Any], dt.Plan], more: float, share: float
) -> None:
    devices, work, how, _ = case

    def took(**changes: Any) -> float:
        return latency_ms(replace(machine, **changes).costs(devices), work, **how)

    before = took() * (1 - 1e-12)
    assert took(copy_us=machine.copy_us + more) >= before
    assert took(latents_bytes=machine.latents_bytes + int(more)) >= before
    assert took(host_us=(machine.host_us[0] + more, machine.host_us[1])) >= before
    assert took(host_us=(machine.host_us[0], machine.host_us[1] + more)) >= before
    assert took(look_us=machine.look_us + more) >= before
    assert took(encode_ms=machine.encode_ms + more) >= before
    assert took(crowded=machine.crowded + share) >= before
    if machine.copy_gb_s is not None:
        assert took(copy_gb_s=share * machine.copy_gb_s) >= before
        assert took(copy_gb_s=None) <= took()


@given(machine=machines(), devices=st.integers(1, 8), drafts=st.integers(1, 16), guided=st.booleans())
def test_without_copies_and_host_it_is_costs_alone(
    machine: Machine, devices: int, drafts: int, guided: bool
) -> None:
    nil = replace(machine, latents_bytes=0, copy_us=0.0, host_us=(0.0, 0.0), look_us=0.0)
    beside = machine.encode_ms + machine.decode_ms
    plain = Costs(devices, machine.call_ms, machine.crowded, picture_ms=beside, rows=machine.rows)
    for split in (False, True) if guided and devices > 1 else (False,):
        assert nil.costs(devices).round_ms(drafts, guided=guided, split=split) == plain.round_ms(
            drafts, guided=guided, split=split
        )


def test_figures_by_hand() -> None:
    """4 devices, 1 MB of latents at 10 GB/s: 0.1 ms each way and device, 10 µs a copy."""
    machine = Machine(
        (40.0, 70.0), 1_000_000, 10.0, 10.0, (10.0, 5.0), look_us=20.0, encode_ms=5, decode_ms=25
    )
    costs = machine.costs(4)
    assert costs.exchange_ms == pytest.approx((0.22, 0.62))
    assert costs.round_ms(4, guided=True, split=False) == pytest.approx(70.62)
    assert costs.round_ms(3, guided=True, split=False) == pytest.approx(70.42)
    assert costs.round_ms(2, guided=True, split=True) == pytest.approx(40.62)  # four devices at work
    aggressive = Work.of(dt.make_plan(SCHEDULE, mode="aggressive", lanes=4))
    assert aggressive == Work(((1, 2.0), (4, 7.0)))  # 1 + 28 + the last one: 30 steps in 9 rounds
    assert latency_ms(costs, aggressive, guided=True) == pytest.approx(30 + 2 * 70 + 7 * 70.62)
    looking = Work.of(dt.make_plan(SCHEDULE, mode="tolerance", lanes=4), 11.5)
    looks = 10.5 * (0.02 + 0.01 + 4 * 0.005) + 0.02 + 0.01 + 0.005  # the first round is on one device
    assert latency_ms(costs, looking, guided=True) == pytest.approx(30 + 70 + 10.5 * 70.62 + looks)
    assert costs.times_ms(4, guided=True, split=False) == pytest.approx((70.035, 70.67))


def test_the_host_of_a_round_that_is_looked_at_counts_once() -> None:
    """It works ahead else, and is the longer one here: 3 ms for 1 ms of network."""
    costs = Machine((1.0,), host_us=(1000.0, 500.0), look_us=100.0).costs(4)
    work = Work(((4, 10.0),))
    assert latency_ms(costs, work, guided=False) == pytest.approx(30)
    looked = replace(work, looks=True)
    assert latency_ms(costs, looked, guided=False) == pytest.approx(10 * (1 + 3 + 0.1))
    terms = terms_ms(costs, looked, guided=False)
    assert (terms["looks"], terms["host"], terms["network"]) == pytest.approx((11, 20, 10))


def test_the_host_is_a_floor_where_it_works_ahead_and_comes_on_top_where_it_does_not() -> None:
    machine = Machine((1.0, 2.0), host_us=(1000.0, 500.0))
    assert machine.costs(2).round_ms(2, guided=True, split=False) == 2.0
    assert machine.costs(4).round_ms(4, guided=True, split=False) == 3.0
    behind = replace(machine, ahead=False)
    assert behind.costs(2).round_ms(2, guided=True, split=False) == 4.0
    assert behind.costs(2).round_ms(1, guided=False, split=False) == 2.5


def test_where_more_devices_stop_to_pay() -> None:
    assert pays_up_to({1: 100.0, 2: 60.0, 3: 58.0, 4: 40.0, 5: 39.0, 6: 38.5}) == 4
    assert pays_up_to({1: 100.0, 2: 120.0}) == 1
    assert pays_up_to({1: 100.0, 2: 99.0, 3: 98.0}, 0.005) == 3


def test_machines_are_stored_and_read(tmp_path: Path) -> None:
    machine = Machine((40.0, 70.0), 1000, 10.0, 10.0, (10.0, 5.0), rows=(1, 8), source="a test")
    path = tmp_path / "machine.json"
    path.write_text(json.dumps(machine.to_json()))
    assert Machine.read(path) == machine
    assert Machine.from_json({"call_ms": [3]}) == Machine((3,))


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        ({"call_ms": [1], "copy_gbs": 2}, "there is no figure 'copy_gbs'; did you mean 'copy_gb_s'"),
        ({}, "call_ms is missing"),
        ([], "are a JSON object"),
        ({"call_ms": 4}, "call_ms must be a list of numbers, not 4"),
        ({"call_ms": []}, "call_ms must have times, one for each number of rows"),
        ({"call_ms": [0.0]}, "call_ms must be a finite number of at least 1e-06, and 1e12 at most, not 0.0"),
        ({"call_ms": [-1]}, "call_ms must be a finite number of at least 1e-06, and 1e12 at most, not -1"),
        ({"call_ms": [10**400]}, "and 1e12 at most, not 1000"),
        ({"call_ms": [1e308]}, "and 1e12 at most, not 1e+308"),
        ({"call_ms": [[1]]}, "call_ms must be a finite number"),
        ({"call_ms": [1], "rows": [1.5, 2.5]}, "rows must be a whole number of at least 0"),
        ({"call_ms": [1], "latents_bytes": 1.5}, "latents_bytes must be a whole number"),
        ({"call_ms": [1], "source": 3}, "source is a text"),
        ({"call_ms": [1], "\x1b[2J": 3}, r"there is no figure '\x1b[2J'"),
        ({"call_ms": [True]}, "call_ms must be a finite number"),
        ({"call_ms": [1], "copy_us": math.nan}, "NaN is no number of JSON"),
        ({"call_ms": [1], "copy_us": math.inf}, "Infinity is no number of JSON"),
        (
            {"call_ms": [1], "copy_us": "3"},
            "copy_us must be a finite number of at least 0, and 1e12 at most, not '3'",
        ),
        ({"call_ms": [1], "copy_gb_s": 0}, "copy_gb_s must be above 0 GB/s, not 0; leave it out"),
        ({"call_ms": [1], "copy_gb_s": "9"}, "copy_gb_s"),
        (
            {"call_ms": [1], "crowded": 0.9},
            "crowded must be a finite number of at least 1, and 1e12 at most, not 0.9",
        ),
        ({"call_ms": [1], "host_us": [1]}, "host_us and rows are pairs"),
        ({"call_ms": [1], "ahead": "no"}, "ahead true or false"),
    ],
)
def test_figures_that_cannot_be_are_refused(stored: Any, message: str, tmp_path: Path) -> None:
    path = tmp_path / "machine.json"
    path.write_text(json.dumps(stored))
    with pytest.raises(dt.InputError, match=r"machine\.json") as refused:
        Machine.read(path)
    assert message in str(refused.value)


def test_the_largest_and_smallest_figures_have_finite_latencies() -> None:
    small, large = 1e-6, 1e12
    for call, bandwidth in ((small, large), (large, small)):
        machine = Machine(
            (call, large), int(large), large, bandwidth, (large, large), True, large, large, large
        )
        for looks in (False, True):
            terms = terms_ms(replace(machine, crowded=large).costs(8), Work(((8, 50.0),), looks), guided=True)
            assert all(math.isfinite(one) for one in terms.values())


def test_what_a_file_says_of_its_source_is_shown_without_escapes() -> None:
    assert Machine.from_json({"call_ms": [3], "source": "a\x1b[2Jb\n\u202ec"}).source == "a[2Jbc"


def test_a_file_that_is_none_is_refused(tmp_path: Path) -> None:
    deep = tmp_path / "deep.json"
    deep.write_text("[" * 100_000)
    with pytest.raises(dt.InputError, match="too deep"):
        Machine.read(deep)
    with pytest.raises(dt.InputError, match="cannot be read as figures of a machine"):
        Machine.read(tmp_path / "none.json")
