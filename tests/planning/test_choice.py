"""The choice of a plan against brute force, on simulated machines; their costs are measured as real ones."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import driffusion_trt as dt
from driffusion_trt.planning.candidates import Candidate, Wanted
from driffusion_trt.planning.choice import QUALITIES, choose, least_ms, tolerance_of
from driffusion_trt.planning.costs import Costs
from driffusion_trt.planning.measuring import ROUNDS, Shape, measured
from driffusion_trt.sampling.noise import noise_streams
from driffusion_trt.sampling.sample import Stats, run_plan

STEPS = 50
BETAS = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "clip_sample": False}
CENTRES = np.random.default_rng(5).standard_normal((6, 12))
Floats = NDArray[np.float32]
# Mean rounds of the demo at guidance 3 and tolerance 0.01: bench/results/drift.json.
DEMO = {1: 50.0, 2: 26.6, 3: 19.3, 4: 15.9, 8: 11.1}


def demo_rounds(lanes: int, tolerance: float) -> float:
    """As the demo's, between the numbers of lanes that were measured; fewer with a larger tolerance."""
    below = max(known for known in DEMO if known <= lanes)
    above = min((known for known in DEMO if known >= lanes), default=8)
    share = (lanes - below) / (above - below) if above > below else 0.0
    rounds = DEMO[below] + share * (DEMO[above] - DEMO[below])
    return min(STEPS, rounds * (0.01 / tolerance) ** 0.2)


@dataclass(frozen=True)
class Machine:
    """Devices that work through what they are given, and a lead that sends and receives.

    call_ms: of a network call, which starts with `launch_ms` whatever its rows; copy_ms: of one latents to
    another device or back, one after another on the lead's link; host_ms: of a round; look_ms: of a look.
    """

    devices: int
    row_ms: float
    launch_ms: float
    copy_ms: float
    host_ms: float
    look_ms: float
    crowding: float
    batches: bool

    def round_ms(self, drafts: int, *, guided: bool, split: bool, pictures: int = 1) -> float:
        """Event by event: when each device has its work, is done with it, and has given it back."""
        places = self.devices // 2 if split else self.devices
        work: dict[int, list[int]] = {}
        for draft in range(drafts):
            place = draft % places
            rows = pictures * (2 if guided and not split else 1)
            for device in (2 * place, 2 * place + 1) if split else (place,):
                work.setdefault(device, []).append(rows)
        slower = 1 + self.crowding * (len(work) - 1)
        sent = ended = 0.0
        for device, calls in work.items():
            if device:
                sent += self.copy_ms
            if self.batches:
                calls = [sum(calls)]
            ready = sent + slower * sum(self.launch_ms + rows * self.row_ms for rows in calls)
            ended = max(ended, ready + (self.copy_ms if device else 0.0))
        return ended + self.host_ms

    def timed(self, shape: Shape) -> float:
        first, each = (
            self.round_ms(drafts, guided=shape.guided, split=False) + (self.look_ms if shape.looks else 0.0)
            for drafts in (1, shape.drafts)
        )
        return first + ROUNDS * each

    def picture_ms(self, one: Candidate, *, guided: bool) -> float:
        looks = self.look_ms if one.drafts else 0.0
        first, each = (
            self.round_ms(drafts, guided=guided, split=one.split) + looks for drafts in (1, one.lanes)
        )
        return first + (one.rounds - 1) * each

    def costs(self) -> Costs:
        return measured(self.timed, self.devices, picture_ms=0.0, rows=(1, 32 if self.batches else 0))


def machines() -> st.SearchStrategy[Machine]:
    """Calls of 0.3 ms to 3 s, copies from a ten-thousandth to a tenth of that."""

    def made(
        devices: int,
        row: float,
        launch: float,
        copy: float,
        host: float,
        look: float,
        crowd: float,
        batches: bool,
    ) -> Machine:
        row_ms = 10**row
        return Machine(
            devices,
            row_ms,
            row_ms * launch,
            row_ms * 10**copy,
            row_ms * 10**host,
            row_ms * 10**look,
            crowd,
            batches,
        )

    return st.builds(
        made,
        devices=st.integers(1, 8),
        row=st.floats(-0.5, 3.5),
        launch=st.floats(0, 3),
        copy=st.floats(-4, -1),
        host=st.floats(-4, -1),
        look=st.floats(-4, -1),
        crowd=st.floats(0, 0.2),
        batches=st.booleans(),
    )


def every(machine: Machine, guided: bool, tolerance: float) -> list[Candidate]:
    """All plans that there are, with their true times."""
    found = []
    for split in (False, True) if guided and machine.devices > 1 else (False,):
        for lanes in range(1, 17):
            if lanes > 1 and not tolerance:
                continue
            fewest = 1 + math.ceil((STEPS - 1) / lanes)
            rounds = STEPS if lanes == 1 else max(demo_rounds(lanes, tolerance), fewest)
            one = Candidate(lanes, split, tolerance, rounds, 0.0)
            found.append(replace(one, ms=machine.picture_ms(one, guided=guided)))
    return found


@given(machine=machines(), guided=st.booleans(), quality=st.sampled_from(list(QUALITIES)))
@settings(max_examples=400, deadline=None)
def test_the_choice_is_as_fast_as_the_best_plan_and_never_slower_than_sequential(
    machine: Machine, guided: bool, quality: str
) -> None:
    tolerance = tolerance_of(quality)
    choice = choose(machine.costs(), Wanted(STEPS, guided, tolerance=tolerance), demo_rounds)
    took = machine.picture_ms(choice.chosen, guided=guided)
    all_plans = every(machine, guided, tolerance)
    assert took <= 1.03 * min(one.ms for one in all_plans)
    assert took <= machine.picture_ms(choice.sequential, guided=guided) * (1 + 1e-9)
    assert choice.chosen.ms == pytest.approx(took, rel=0.1)


class Clocked:
    """The exact denoiser of a mixture on a machine: what plans take is counted by its clock."""

    def __init__(self, machine: Machine, *, guided: bool) -> None:
        self.machine, self.guided = machine, guided
        self.schedule = dt.Schedule.from_config({"_class_name": "DDIMScheduler", **BETAS}, STEPS)
        keys = [float(np.float32(t)) for t in self.schedule.timesteps]
        self._at = dict(zip(keys, zip(self.schedule.a, self.schedule.s, strict=True), strict=True))

    def sample(self, seed: int, one: Candidate) -> tuple[float, Stats]:
        """Milliseconds, and what was run."""
        took = 0.0
        asked = {k: v for k, v in one.settings().items() if k != "split_guidance"}
        plan = dt.make_plan(self.schedule, **asked)

        def predict(requests: Sequence[tuple[Floats, float]]) -> list[Floats]:
            nonlocal took
            took += self.machine.round_ms(len(requests), guided=self.guided, split=one.split)
            took += self.machine.look_ms if one.drafts else 0.0
            return [self._predict(latents, *self._at[float(np.float32(t))]) for latents, t in requests]

        noise = np.random.default_rng(seed).standard_normal((1, 12)).astype(np.float32)
        stats = run_plan(plan, predict, noise, noise_streams(seed, 1)).stats
        return took, stats

    def _predict(self, latents: Floats, a: float, s: float) -> Floats:
        x = latents.astype(np.float64)
        scores = (a * x @ CENTRES.T - 0.5 * a * a * (CENTRES**2).sum(1)) / ((0.3 * a) ** 2 + s**2)
        weight = np.exp(scores - scores.max(1, keepdims=True))
        near = weight / weight.sum(1, keepdims=True) @ CENTRES
        x0 = near + a * 0.09 / ((0.3 * a) ** 2 + s**2) * (x - a * near)
        return np.asarray((x - a * x0) / s, np.float32)


@pytest.fixture(scope="module")
def rounds_of_mixture() -> dict[tuple[int, float], float]:
    """Mean rounds of the mixture's pictures, as a calibration has them."""
    free = Machine(16, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, False)
    clocked, seeds = Clocked(free, guided=True), range(100, 104)
    return {
        (lanes, tolerance): float(
            np.mean(
                [clocked.sample(seed, Candidate(lanes, False, tolerance, 0, 0))[1].rounds for seed in seeds]
            )
        )
        for lanes in range(2, 17)
        for tolerance in QUALITIES.values()
        if tolerance
    }


@given(machine=machines(), guided=st.booleans(), quality=st.sampled_from(list(QUALITIES)))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_pictures_are_never_slower_than_sequential_ones(
    machine: Machine, guided: bool, quality: str, rounds_of_mixture: dict[tuple[int, float], float]
) -> None:
    """The rounds are those that the pictures take, not those that were expected."""
    clocked = Clocked(machine, guided=guided)
    wanted = Wanted(STEPS, guided, tolerance=tolerance_of(quality))
    choice = choose(machine.costs(), wanted, lambda lanes, tolerance: rounds_of_mixture[lanes, tolerance])
    took = [clocked.sample(seed, choice.chosen)[0] for seed in range(4)]
    sequential = machine.picture_ms(choice.sequential, guided=guided)
    assert np.mean(took) <= sequential * (1 + 1e-9)
    assert np.mean(took) == pytest.approx(choice.chosen.ms, rel=0.15)


@given(machine=machines(), guided=st.booleans(), share=st.floats(0.05, 1.2))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_picture_is_there_by_its_deadline(
    machine: Machine, guided: bool, share: float, rounds_of_mixture: dict[tuple[int, float], float]
) -> None:
    clocked, costs = Clocked(machine, guided=guided), machine.costs()
    deadline_ms = share * STEPS * machine.round_ms(1, guided=guided, split=False)
    wanted = Wanted(STEPS, guided, deadline_ms=deadline_ms)
    try:
        choice = choose(costs, wanted, lambda lanes, tolerance: rounds_of_mixture[lanes, tolerance])
    except dt.InputError as error:
        assert f"deadline_ms={deadline_ms:g} was asked; the fastest plan for 50 steps" in str(error)
        assert min(one.ms for one in fewest(machine, guided)) > 0.97 * deadline_ms
        return
    for seed in range(3):
        assert clocked.sample(seed, choice.chosen)[0] <= 1.03 * deadline_ms


def fewest(machine: Machine, guided: bool) -> list[Candidate]:
    """All plans, with no more rounds than they must have."""
    plans = every(machine, guided, 1.0)
    least = [replace(one, rounds=1 + math.ceil((STEPS - 1) / one.lanes)) for one in plans]
    return [replace(one, ms=machine.picture_ms(one, guided=guided)) for one in least]


COSTS = Costs(4, (10.0, 17.0, 25.0, 33.0), 1.02, (0.1, 0.2), 0.05, 30.0, (1, 16))


@pytest.mark.parametrize(
    ("deadline_ms", "wanted"),
    [
        (900, "sequential, guidance split over two devices: 50 rounds, 538 ms expected"),
        (500, "tolerance 0.003, 4 lanes, guidance split over two devices: about 20.2 (at most 27) rounds"),
        (320, "tolerance 0.01, 4 lanes, guidance split over two devices: about 15.9 (at most 16) rounds"),
        (285, "tolerance 0.03, 4 lanes, guidance split over two devices: 14 (at most 14) rounds"),
    ],
)
def test_more_time_is_a_nearer_picture(deadline_ms: float, wanted: str) -> None:
    asked = Wanted(STEPS, True, deadline_ms=deadline_ms)
    assert str(choose(COSTS, asked, demo_rounds)).startswith(wanted)


def test_where_no_tolerance_has_the_time_there_are_as_many_rounds_as_can_be() -> None:
    asked = Wanted(STEPS, True, deadline_ms=400)
    chosen = choose(COSTS, asked, lambda lanes, tolerance: 49.0).chosen
    assert (chosen.lanes, chosen.split, chosen.most_rounds) == (2, True, 35)


def test_what_a_caller_fixes_stays_fixed() -> None:
    def chosen(**fixed: Any) -> Candidate:
        return choose(COSTS, Wanted(STEPS, True, **fixed), demo_rounds).chosen

    assert chosen(split=False).split is False and chosen(split=True).split is True
    assert chosen(most_lanes=2).lanes <= 2 and chosen(most_lanes=1).lanes == 1
    assert chosen(tolerance=0.0).settings() == {"mode": "sequential", "lanes": 1, "split_guidance": True}
    assert choose(COSTS, Wanted(STEPS, False), demo_rounds).chosen.split is False
    one = choose(Costs.assumed(1), Wanted(STEPS, True), demo_rounds)
    assert one.chosen == one.sequential and one.speedup == 1


def test_one_device_drafts_where_that_was_measured_to_be_faster() -> None:
    """Where a call of eight rows takes little longer than one of two, drafts on one device are worth it."""
    flat = Costs(1, (10.0, 10.5, 11.0, 11.5), rows=(1, 8))
    assert choose(flat, Wanted(STEPS, True), demo_rounds).chosen.lanes == 4  # more do not fit into one call
    steep = replace(flat, call_ms=(10.0, 20.0, 30.0, 40.0))
    assert not choose(steep, Wanted(STEPS, True), demo_rounds).chosen.drafts


def test_the_reasons_name_what_was_considered() -> None:
    choice = choose(COSTS, Wanted(STEPS, True), demo_rounds)
    lines = choice.explained()
    assert "calls with guidance take 1.70 times those without" in lines[0]
    assert sum(line.startswith("* ") for line in lines) == 1 and len(lines) == 6
    assert "were not measured" not in lines[1]
    assert "assumed" in choose(Costs.assumed(2), Wanted(STEPS, True), demo_rounds).explained()[1]


def test_costs_are_stored_and_read() -> None:
    assert Costs.from_json(json.loads(json.dumps(COSTS.to_json()))) == COSTS
    for broken in ({}, None, 5, {**COSTS.to_json(), "call_ms": "x"}, {**COSTS.to_json(), "more": 1}):
        with pytest.raises(dt.InputError):
            Costs.from_json(broken)


@pytest.mark.parametrize(
    "wrong",
    [
        {"devices": 0},
        {"call_ms": ()},
        {"call_ms": (0.0,)},
        {"crowded": 0.5},
        {"look_ms": math.nan},
        {"picture_ms": -1.0},
    ],
)
def test_costs_that_cannot_be_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(dt.InputError):
        replace(COSTS, **wrong)


def test_what_is_wrong_is_said() -> None:
    with pytest.raises(
        dt.InputError, match=r"quality must be one of exact, high, balanced, fast, not 'hihg'"
    ):
        tolerance_of("hihg")
    with pytest.raises(dt.InputError, match="was not measured"):
        choose(Costs.assumed(4), Wanted(STEPS, True, deadline_ms=100), demo_rounds)
    with pytest.raises(dt.InputError, match="take fewer steps, or more devices"):
        choose(COSTS, Wanted(STEPS, True, deadline_ms=50), demo_rounds)


def test_a_share_of_devices_is_as_slow_as_they_are_while_all_are_at_work() -> None:
    costs = replace(COSTS, crowded=1.5)
    assert costs.share(4) is costs
    one, two = costs.share(1), costs.share(2)
    assert one.devices == 1 and one.round_ms(1, guided=True, split=False) == pytest.approx(1.5 * 17.0)
    # Two devices of four: the exchange of two, as much slower as with all four at work.
    assert two.round_ms(2, guided=True, split=False) == pytest.approx(1.5 * 17.0 + 0.1)
    assert costs.share(3).exchange_ms == pytest.approx((0.1, 0.15))
    for devices in (0, 5):
        with pytest.raises(dt.InputError, match=f"a share of {devices} devices was asked, and there are 4"):
            costs.share(devices)


def test_the_least_time_is_that_of_the_nearest_deadline_that_is_not_refused() -> None:
    wanted = Wanted(50, True)
    least = least_ms(COSTS, wanted)
    assert choose(COSTS, replace(wanted, deadline_ms=least + 1e-6), demo_rounds).chosen.ms <= least + 1e-6
    with pytest.raises(dt.InputError, match=f"expected to take {least:.0f} ms"):
        choose(COSTS, replace(wanted, deadline_ms=least - 0.01), demo_rounds)
