"""What a plan keeps of its rounds, and θ by tape, against forms that are made anew every round."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_window import CONFIGS, Floats, Network, run, start

import driffusion_trt as dt
from driffusion_trt.sampling import places, window
from driffusion_trt.sampling.carry import Theta, fitted, weights
from driffusion_trt.sampling.plan import WindowPlan
from driffusion_trt.sampling.rounds import Observation, Round
from driffusion_trt.sampling.tables import Column, Float64, Table
from driffusion_trt.sampling.traced import Tape, TapedTable


class Literal(window.Window):
    """The rounds with θ as arrays in all of their forms, and nothing kept from one to the next."""

    _literal = Theta()

    def next_round(self) -> Round:
        known, exact = self._carried.known, self._settings.strides is None and not self._settings.tolerance
        ahead = self._lanes if known and not exact else 1
        self._predict = range(self.at, min(self.at + ahead, self._schedule.steps))
        differences = self._carried.differences() if known else []
        drafts = self._drafts(differences, self._literal)
        self._asked = self._observed(differences)
        drafted = self._asked.drafted
        self._sizes = window.norms(self._schedule, drafted) / window.effects(self._schedule, drafted)
        draft, refine = Table.of(drafts), Table.of(self._refined())
        item = Round(tuple(self._predict), draft, refine, observe=self._asked.tables)
        kept = {Column(kind, i) for i in known for kind in ("input", "output")}
        keep = frozenset(item.reads() | kept)
        return Round(item.predict, draft, refine, keep, item.observe)

    def _learned(self, observation: Observation) -> Observation:
        if not self._asked.fitted:
            return observation
        self._literal = literal_fitted(observation[0], self._asked.fitted, self._literal)
        return observation[1:]


def literal_fitted(gram: Float64, distances: tuple[int, ...], before: Theta) -> Theta:
    """The least squares of docs/method.md section 4 over arrays of pictures."""
    pairs = np.array([weights(d) for d in distances])
    (w11, w12), (_, w22) = pairs.T @ pairs
    count = gram.shape[-1] // 2
    a11, b1 = w11 * gram[:, 0, 0], gram[:, 0, count]
    second: Float64 = np.zeros(len(gram))
    a12 = second
    if count > 1:
        a12, a22, b2 = w12 * gram[:, 0, 1], w22 * gram[:, 1, 1], gram[:, 1, 3]
        determinant = a11 * a22 - a12 * a12
        solvable = determinant > 1e-9 * a11 * a22
        second = np.where(solvable, (a11 * b2 - a12 * b1) / np.where(solvable, determinant, 1.0), 0.0)
        second = second.clip(0.0, 1.0)
    first = np.where(a11 > 0, (b1 - second * a12) / np.where(a11 > 0, a11, 1.0), before.first).clip(0.0, 1.0)
    first, second = np.rint(1024 * first) / 1024, np.rint(1024 * second) / 1024
    return Theta(first, second if count > 1 else before.second)


def grams(rng: np.random.Generator, item: Round, batch: int) -> Observation:
    """Something that rounds could observe; now and then nothing moved."""
    found = []
    for table in item.observe:
        rows = rng.standard_normal((batch, len(table.targets), 9)) * rng.choice([0, 1e-3, 0.05, 1])
        found.append(rows @ rows.swapaxes(1, 2) / 9)
    return tuple(found)


def told(item: Round) -> list[Any]:
    """All that executors see of a round."""
    tables = (item.draft, item.refine, *item.observe)
    shown = [(t.targets, t.columns, t.coefficients.shape, t.coefficients.tobytes()) for t in tables]
    return [item.predict, item.keep, shown]


@given(
    config=st.sampled_from(list(CONFIGS)),
    steps=st.integers(1, 20),
    lanes=st.integers(1, 6),
    tolerance=st.sampled_from([None, 0.0, 0.01, 0.1]),
    order=st.integers(0, 2),
    carry=st.sampled_from(["G", "x0"]),
    batch=st.integers(1, 3),
    seed=st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_rounds_are_those_of_forms_made_anew(
    config: str,
    steps: int,
    lanes: int,
    tolerance: float | None,
    order: int,
    carry: str,
    batch: int,
    seed: int,
) -> None:
    """To the bit, for the first picture of a plan and for those after it, which find what was kept."""
    schedule = dt.Schedule.from_config(CONFIGS[config], steps)
    options: dict[str, Any] = {"lanes": lanes, "order": order, "carry": carry}
    if tolerance is None:
        plan = dt.make_plan(schedule, mode="window", **options)
    else:
        plan = dt.make_plan(schedule, mode="tolerance", tolerance=tolerance, **options)
    assert isinstance(plan, WindowPlan)
    for picture in range(3):
        rng, literal = np.random.default_rng(seed + picture), Literal(schedule, lanes, plan.settings)
        walk = plan.walk()
        item = next(walk)
        while True:
            wanted = literal.next_round()
            assert told(item) == told(wanted)
            observation = grams(rng, item, batch)
            literal.ended(observation)
            try:
                item = walk.send(observation or None)
            except StopIteration as end:
                assert literal.at == schedule.steps
                np.testing.assert_array_equal(end.value, literal.drift)
                break


@given(
    count=st.integers(1, 2),
    distances=st.lists(st.integers(1, 16), min_size=1, max_size=5, unique=True),
    zeros=st.lists(st.integers(0, 8), max_size=3),
    seed=st.integers(0, 9999),
)
@settings(max_examples=200, deadline=None)
def test_shares_in_floats_are_those_of_arrays(
    count: int, distances: list[int], zeros: list[int], seed: int
) -> None:
    def same() -> None:
        firsts, seconds = fitted(gram, tuple(distances), before.tolist())
        wanted = literal_fitted(gram, tuple(distances), Theta(before, before))
        np.testing.assert_array_equal(firsts, wanted.first)
        np.testing.assert_array_equal(seconds, wanted.second if count > 1 else [])

    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((4, 2 * count, 9)) * rng.choice([1e-5, 1, 1e3], (4, 1, 1))
    rows[:, :, zeros] = 0
    rows[0, 0] = 0  # nothing to learn from
    rows[1, count - 1] = rows[1, 0]  # two differences that are one
    gram = rows @ rows.swapaxes(1, 2)
    before = rng.random(4)
    same()
    gram[2, 0, count] = np.nan
    same()  # a NaN is one in both


def test_a_tape_does_again_what_was_done() -> None:
    tape = Tape()
    share: Any = tape.input()
    one, other = Column("input", 0), Column("output", 0)
    made = TapedTable(tape, {one: {one: 0.3 * (0.0 + share * 0.7) + share, other: 2.0}})
    for theta in (np.array([0.1]), np.array([0.1, 0.9])):
        table = made.table([theta.tolist()])
        wanted = np.stack([0.3 * (0.0 + theta * 0.7) + theta, np.full(len(theta), 2.0)], 1)[:, None]
        np.testing.assert_array_equal(table.coefficients, wanted)


@given(
    factors=st.lists(st.sampled_from([1.0, -1.0, 0.3, -2.5, 1e-60]), min_size=1, max_size=6),
    batched=st.sampled_from([0, 1, 3]),
    seed=st.integers(0, 999),
)
@settings(max_examples=100, deadline=None)
def test_sums_are_those_of_terms_one_by_one(factors: list[float], batched: int, seed: int) -> None:
    """Also of ±1, which are not multiplied; and nothing that was given is written to."""
    columns = tuple(Column("input", k) for k in range(len(factors)))
    rng = np.random.default_rng(seed)
    latents: dict[Column, Floats] = {c: rng.standard_normal((3, 2, 5)).astype(np.float32) for c in columns}
    for latent in latents.values():
        latent[rng.random(latent.shape) < 0.2] = rng.choice([0.0, -0.0])
        latent.setflags(write=False)
    coefficients = np.array([factors])
    if batched:
        coefficients = np.repeat(coefficients[None], batched, 0)
    (made,) = Table((Column("state", 1),), columns, coefficients).apply(latents)
    wanted = latents[columns[0]] * np.float32(factors[0])
    for column, factor in zip(columns[1:], factors[1:], strict=True):
        wanted = wanted + latents[column] * np.float32(factor)
    assert made.tobytes() == wanted.tobytes()


def test_a_table_of_one_picture_is_that_of_its_coefficients() -> None:
    """CPU lanes apply its terms, GPU lanes read its coefficients; a share of 0 leaves its column out."""
    tape = Tape()
    share: Any = tape.input()
    one, other, third = Column("input", 0), Column("output", 0), Column("output", 1)
    taped = TapedTable(tape, {one: {third: -1.0, other: share * 0.3, one: share}, other: {one: 1.0}})
    rng = np.random.default_rng(0)
    latents: dict[Column, Floats] = {
        c: rng.standard_normal((1, 2, 5)).astype(np.float32) for c in taped.plain.columns
    }
    for theta in (0.7, 1.0, 0.0):
        table = taped.table([[theta]])
        wanted = np.array([[[theta, theta * 0.3, -1.0], [1.0, 0.0, 0.0]]])
        np.testing.assert_array_equal(table.coefficients, wanted)
        assert not table.coefficients.flags.writeable
        applied = Table(table.targets, table.columns, wanted).apply(latents)
        assert [a.tobytes() for a in table.apply(latents)] == [a.tobytes() for a in applied]


def test_what_is_kept_is_bounded_and_used_again(monkeypatch: pytest.MonkeyPatch) -> None:
    schedule = dt.Schedule.from_config(CONFIGS["ddim"], 12)
    plan = dt.make_plan(schedule, mode="window", lanes=3, order=0)
    one, other = (list(plan.walk()) for _ in range(2))
    assert len(one) > 1 and all(a is b for a, b in zip(one, other, strict=True)), "there is no θ in them"
    plan = dt.make_plan(schedule, mode="tolerance", lanes=3)
    assert isinstance(plan, WindowPlan)
    sizes, wanted = [], run(schedule, mode="tolerance", lanes=3)
    monkeypatch.setattr(places, "PLACES_KEPT", 2)
    made = dt.sample(
        plan, Network(schedule), start(), on_round=lambda done: sizes.append(len(plan._places._found))
    )
    np.testing.assert_array_equal(made, wanted.latents)
    assert max(sizes) == 2 < len(sizes)
