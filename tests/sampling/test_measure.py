"""What a measuring walk finds, against the same windows written out; and that it leaves the picture alone."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from test_window import CONFIGS, DDIM, Network, run, start

import driffusion_trt as dt
from driffusion_trt.sampling.measure import Case, MeasuringPlan, stops

Array = np.ndarray


class Literal:
    """Tracks of windows with G carried and first differences, in float64 and without tables."""

    def __init__(self, schedule: dt.Schedule, noise: Array) -> None:
        self.schedule, self.network = schedule, Network(schedule)
        self.tried: dict[Case, Array] = {}
        self.states = [noise.astype(np.float64) * schedule.initial_sigma]
        for i in range(schedule.steps):
            x0, eps = self.predict(i, self.states[i])
            self.states.append(schedule.a_next[i] * x0 + schedule.s_next[i] * eps)

    def predict(self, i: int, x: Array) -> tuple[Array, Array]:
        a, s, scale = (float(v[i]) for v in (self.schedule.a, self.schedule.s, self.schedule.input_scale))
        seen = (scale * x).astype(np.float32)
        out = self.network(seen, np.full(len(x), self.schedule.timesteps[i], np.float32)).astype(np.float64)
        if self.schedule.prediction_type == "flow_prediction":
            return x - s * out, x + a * out
        if self.schedule.prediction_type == "v_prediction":
            return a * x - s * out, s * x + a * out
        return (x - s * out) / a, out

    def quantity(self, i: int, x: Array) -> Array:
        x0, eps = self.predict(i, x)
        return eps - x0

    def step(self, i: int, x: Array, g: Array) -> Array:
        a, s = float(self.schedule.a[i]), float(self.schedule.s[i])
        x0, eps = (x - s * g) / (a + s), (x + a * g) / (a + s)
        return self.schedule.a_next[i] * x0 + self.schedule.s_next[i] * eps

    def track(self, lanes: int, stride: int, windows: tuple[int, ...]) -> dict[Case, Array]:
        """Root mean squares of what each window comes to less the exact state; `tried` has the states."""
        found: dict[Case, Array] = {}
        known, theta = {0: self.quantity(0, self.states[0])}, 0.5
        for at in windows:
            last = max(known)
            end = min(at + lanes, self.schedule.steps)
            drafts, rise = {at: self.states[at]}, known[last] - known[last - 1] if last - 1 in known else 0.0
            for i in range(at, end - 1):
                g = known[i] if i in known else known[last] + theta * (i - last) * rise
                drafts[i + 1] = self.step(i, drafts[i], g)
            fresh = {i: self.quantity(i, x) for i, x in drafts.items()}
            now = known | fresh
            if last - 1 in known and end - 1 > last:
                rise, new = now[last] - now[last - 1], range(last + 1, end)
                up = sum((i - last) * ((now[i] - now[last]) * rise).sum(1) for i in new)
                down = sum((i - last) ** 2 for i in new) * (rise**2).sum(1)
                theta = np.rint(1024 * np.clip(up / down, 0, 1))[:, None] / 1024
            x = self.states[at]
            for i in range(at, min(at + stride, end)):
                x = self.step(i, x, fresh[i])
                if i > at:
                    off = x - self.states[i + 1]
                    self.tried[stride, at, i + 1 - at] = x
                    found[stride, at, i + 1 - at] = np.sqrt((off**2).mean(1))
            known = {i: g for i, g in now.items() if i >= at - 2}
        return found


@pytest.mark.parametrize("config", ["ddim", "euler", "flow"])
@pytest.mark.parametrize(("lanes", "offset"), [(2, 0), (3, 1), (4, 3), (5, 7)])
def test_local_errors_are_those_of_windows_written_out(config: str, lanes: int, offset: int) -> None:
    schedule, noise = dt.Schedule.from_config(CONFIGS[config], 14), start(2)
    plan = MeasuringPlan.of(schedule, lanes, "G", 1, offset)
    dt.sample(plan, Network(schedule), noise)
    literal, wanted = Literal(schedule, noise), {}
    for stride in range(2, lanes + 1):
        wanted |= literal.track(lanes, stride, stops(14, stride, offset % stride))
    assert plan.found.keys() == wanted.keys()
    levels = np.hypot(np.append(schedule.a, 1.0), np.append(schedule.s, 0.0))
    for (stride, at, taken), off in wanted.items():
        size = levels[at + taken]
        np.testing.assert_allclose(plan.found[stride, at, taken], off / size, rtol=0.02, atol=2e-6)


@pytest.mark.parametrize("config", ["ddim", "euler", "flow"])
@pytest.mark.parametrize("offset", [0, 2, 5])
def test_an_error_is_followed_to_the_end(config: str, offset: int) -> None:
    schedule, noise, lanes = dt.Schedule.from_config(CONFIGS[config], 20), start(2), 3
    plan = MeasuringPlan.of(schedule, lanes, "G", 1, offset)
    dt.sample(plan, Network(schedule), noise)
    literal = Literal(schedule, noise)
    literal.track(lanes, lanes, stops(20, lanes, offset % lanes))
    assert plan.echo is not None
    _, at, taken = plan.echo
    x = literal.tried[plan.echo]
    for i in range(at + taken, 20):
        x = literal.step(i, x, literal.quantity(i, x))
    off = np.sqrt(((x - literal.states[20]) ** 2).mean(1))
    np.testing.assert_allclose(plan.grown[at + taken] * plan.found[plan.echo], off, rtol=0.05, atol=3e-6)
    assert list(plan.grown) == [at + taken]


def test_echoes_begin_all_over_the_picture() -> None:
    schedule = dt.Schedule.from_config(DDIM, 50)
    echoes = [MeasuringPlan.of(schedule, 4, "G", 1, k).echo for k in range(6)]
    begun = [at + taken for _, at, taken in filter(None, echoes)]
    assert len(begun) == 6 and begun == sorted(begun) and begun[0] <= 8 and 35 <= begun[-1] <= 42


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("lanes", [2, 5])
def test_the_picture_is_the_sequential_one(config: str, lanes: int) -> None:
    schedule = dt.Schedule.from_config(CONFIGS[config], 11)
    plan = MeasuringPlan.of(schedule, lanes, "x0", 0, 1)
    network = Network(schedule)
    made = dt.sample(plan, network, start(), seed=[0, 1, 2], return_stats=True)
    assert np.array_equal(made.latents, run(schedule).latents)
    assert (made.stats.rounds, made.stats.predictions) == (plan.sequential_calls, plan.model_calls)
    assert all(one.shape == (3,) for one in plan.found.values())


def test_a_first_window_is_that_of_a_plan_with_its_blocks() -> None:
    """From state 1, where a window has come by exact steps alone: to the bit the plan's own states."""
    schedule = dt.Schedule.from_config(DDIM, 12)
    plan = MeasuringPlan.of(schedule, 4, "G", 1, 0)
    dt.sample(plan, Network(schedule), start())
    states: dict[int, Any] = {}
    for taken in (2, 3, 4):
        blocks = (taken, *[1] * (11 - taken))
        asked = dt.make_plan(schedule, mode="window", lanes=4, blocks=blocks)
        seen: list[Any] = []

        def network(latents: Array, timestep: Array, seen: list[Any] = seen) -> Array:
            seen.append(latents)
            return Network(schedule)(latents, timestep)

        dt.sample(asked, network, start())
        states[taken] = seen[5]  # one in the first round, four in the second
    exact = Literal(schedule, start()).states
    for taken, state in states.items():
        size = np.hypot(schedule.a[1 + taken], schedule.s[1 + taken])
        off = np.sqrt(((state - exact[1 + taken]) ** 2).mean(1)) / size
        for stride in range(taken, 5):
            np.testing.assert_allclose(plan.found[stride, 1, taken], off, rtol=0.01, atol=2e-6)


@pytest.mark.parametrize(("steps", "stride", "offset"), [(12, 3, 0), (12, 3, 1), (12, 4, 3), (3, 2, 0)])
def test_tracks_come_by_every_state(steps: int, stride: int, offset: int) -> None:
    at = stops(steps, stride, offset)
    assert at[0] == 1 and max(at) < steps - 1
    assert all(later - before == stride for before, later in itertools.pairwise(at[1:]))
    everywhere = {state for one in range(stride) for state in stops(steps, stride, one)}
    assert everywhere == set(range(1, steps - 1))


@pytest.mark.parametrize("steps", [1, 2])
def test_where_there_is_nothing_to_measure_nothing_is(steps: int) -> None:
    schedule = dt.Schedule.from_config(DDIM, steps)
    plan = MeasuringPlan.of(schedule, 3, "G", 1, 0)
    made = dt.sample(plan, Network(schedule), start(), return_stats=True)
    assert not plan.found and made.stats.predictions == steps == plan.model_calls


def test_fewer_devices_measure_the_same_lanes() -> None:
    plan = MeasuringPlan.of(dt.Schedule.from_config(DDIM, 8), 4, "G", 1, 0)
    assert plan.with_lanes(2) is plan
