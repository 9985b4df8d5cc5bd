"""The kernels in their host build: against Table.apply to the bit, against float64, and what they touch."""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st

from driffusion_trt import InputError
from driffusion_trt.pictures import to_images
from driffusion_trt.runtime import _arguments as packed
from driffusion_trt.runtime import kernels as k
from driffusion_trt.runtime.kernels import Kernels, Launch, Source, Target
from driffusion_trt.sampling.known import Known
from driffusion_trt.sampling.schedule import Schedule
from driffusion_trt.sampling.tables import Column, Table

NAMES = {
    "linear": packed.LinearArguments,
    "gram_partial": packed.GramPartialArguments,
    "gram_total": packed.GramTotalArguments,
    "nonfinite": packed.NonfiniteArguments,
    "to_pixels": packed.ToPixelsArguments,
    "keep": packed.KeepArguments,
    "fill_timestep": packed.FillTimestepArguments,
}
DTYPES = ("float32", "float16", "bfloat16")
REPORT = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
Bytes = np.ndarray[Any, np.dtype[np.uint8]]


@dataclass
class HostModule:
    """In the driver's place: a launch runs the host build at once. It keeps the ranges of the last one."""

    library: ctypes.CDLL
    grid: tuple[int, int, int] | None = None  # instead of what the launch asks for
    reads: list[tuple[int, int]] = field(default_factory=list)
    writes: list[tuple[int, int]] = field(default_factory=list)

    def function(self, name: str) -> HostFunction:
        return HostFunction(self, name)


@dataclass
class HostFunction:
    module: HostModule
    name: str

    def launch(self, grid: Any, block: Any, stream: Any, parameters: int) -> None:
        sizes = (ctypes.c_uint * 3)(*(self.module.grid or grid)), (ctypes.c_uint * 3)(*block)
        self.module.reads, self.module.writes = [], []

        def report(context: Any, address: int, size: int, written: int) -> None:
            (self.module.writes if written else self.module.reads).append((address, size))

        library = self.module.library
        getattr(library, f"{self.name}_ranges")(*sizes, ctypes.c_void_p(parameters), REPORT(report), None)
        getattr(library, f"{self.name}_host")(*sizes, ctypes.c_void_p(parameters))


@pytest.fixture(scope="session")
def library(kernels_library: Path) -> ctypes.CDLL:
    return ctypes.CDLL(str(kernels_library))


@pytest.fixture
def module(library: ctypes.CDLL) -> HostModule:
    return HostModule(library)


@pytest.fixture(scope="session")
def shared(library: ctypes.CDLL) -> HostModule:
    """For hypothesis, which runs many examples with one fixture."""
    return HostModule(library)


def kernels(module: HostModule) -> Kernels:
    return Kernels(module)  # type: ignore[arg-type]


def run(launch: Launch) -> None:
    launch(None)  # type: ignore[arg-type]


class Fenced:
    """A tensor that ends where memory ends, or begins where it begins: one byte outside is a crash."""

    def __init__(self, values: Any, *, at_start: bool = False, shift: int = 0) -> None:
        data = np.ascontiguousarray(values)
        page = mmap.PAGESIZE
        inner = -(-(data.nbytes + shift) // page) * page or page
        self._map = mmap.mmap(-1, inner + 2 * page)
        start = ctypes.addressof(ctypes.c_char.from_buffer(self._map))
        libc = ctypes.CDLL(None, use_errno=True)
        for fence in (start, start + page + inner):
            assert libc.mprotect(ctypes.c_void_p(fence), ctypes.c_size_t(page), 0) == 0
        self.address = start + page + (shift if at_start else inner - data.nbytes - shift)
        memory: Any = (ctypes.c_char * data.nbytes).from_address(self.address)
        memory.owner = self._map  # an array keeps the memory that it looks at
        self.array = np.frombuffer(memory, data.dtype).reshape(data.shape)
        self.array[...] = data

    @property
    def span(self) -> tuple[int, int]:
        return self.address, self.array.nbytes


def stored(values: Any, dtype: str) -> np.ndarray[Any, Any]:
    """float32 values as memory holds them in a dtype; numpy has no bfloat16, so its bits stand for it."""
    single = np.asarray(values, np.float32)
    if dtype == "bfloat16":
        return torch.from_numpy(single.copy()).to(torch.bfloat16).view(torch.int16).numpy().view(np.uint16)
    with np.errstate(over="ignore"):
        return single.astype(dtype)


def loaded(memory: np.ndarray[Any, Any], dtype: str) -> np.ndarray[Any, np.dtype[np.float32]]:
    if dtype == "bfloat16":
        return (memory.astype(np.uint32) << 16).view(np.float32)
    return memory.astype(np.float32)


def same_bits(one: np.ndarray[Any, Any], other: np.ndarray[Any, Any]) -> bool:
    return one.dtype == other.dtype and one.tobytes() == other.tobytes()


def test_structs_are_the_kernels_own(library: ctypes.CDLL) -> None:
    for name, arguments in NAMES.items():
        assert getattr(library, f"{name}_bytes")() == ctypes.sizeof(arguments), name
        assert ctypes.sizeof(arguments) <= 4096


def test_limits_are_those_of_the_header(root: Path) -> None:
    header = (root / "driffusion_trt/csrc/arguments.h").read_text()
    limits = {name: getattr(packed, name) for name in ("MAX_COLUMNS", "MAX_ROWS", "GRAM_ROWS", "STRANDS")} | {
        name: getattr(k, name) for name in k.__all__ if name.startswith("MESSAGE")
    }
    for name, value in limits.items():
        assert f"constexpr int {name} = {value};" in header


# -- linear


@st.composite
def tables(draw: Callable[[Any], Any]) -> dict[str, Any]:
    """Sizes, dtypes, coefficients and placements of one launch."""
    rows, columns = draw(st.integers(1, packed.MAX_ROWS)), draw(st.integers(1, packed.MAX_COLUMNS))
    return {
        "rows": rows,
        "columns": columns,
        "batch": draw(st.integers(1, 3)),
        "elements": draw(st.sampled_from([1, 2, 3, 4, 5, 8, 15, 16, 63, 64, 130, 1027])),
        "own": draw(st.booleans()),
        "sources": draw(st.lists(st.sampled_from(DTYPES), min_size=columns, max_size=columns)),
        "targets": draw(st.lists(st.sampled_from(DTYPES), min_size=rows, max_size=rows)),
        "shift": draw(st.sampled_from([0, 0, 4, 16])),
        "at_start": draw(st.booleans()),
        "density": draw(st.sampled_from([0.0, 0.3, 1.0])),
        "seed": draw(st.integers(0, 2**32 - 1)),
    }


def coefficients_of(case: dict[str, Any], rng: np.random.Generator) -> np.ndarray[Any, Any]:
    shape = (case["rows"], case["columns"])
    lead = (case["batch"],) if case["own"] else ()
    # A picture of a batch may lack a term that another one has.
    out = rng.standard_normal((*lead, *shape)) * (rng.random((*lead, *shape)) < case["density"])
    out[..., np.arange(case["rows"]), rng.integers(0, case["columns"], case["rows"])] = rng.choice(
        [1.0, -0.7]
    )
    return out


@given(tables())
def test_linear_is_table_apply_to_the_bit(shared: HostModule, case: dict[str, Any]) -> None:
    rng = np.random.default_rng(case["seed"])
    shape = case["batch"], case["elements"]
    place = {"at_start": case["at_start"], "shift": case["shift"]}
    latents = [rng.standard_normal(shape) * 10.0 ** rng.integers(-3, 3) for _ in case["sources"]]
    for latent in latents:
        latent[rng.random(shape) < 0.1] = -0.0
    held = [Fenced(stored(x, d), **place) for x, d in zip(latents, case["sources"], strict=True)]
    out = [Fenced(stored(np.full(shape, np.nan), d), **place) for d in case["targets"]]
    coefficients = coefficients_of(case, rng)
    single = Fenced(coefficients.astype(np.float32))
    columns = tuple(Column("noise", c) for c in range(case["columns"]))
    table = Table(tuple(Column("state", r) for r in range(case["rows"])), columns, coefficients)
    expected = table.apply(
        {c: loaded(h.array, d) for c, h, d in zip(columns, held, case["sources"], strict=True)}
    )
    run(
        kernels(shared).linear(
            [Source(h.address, d) for h, d in zip(held, case["sources"], strict=True)],
            [Target(o.address, d) for o, d in zip(out, case["targets"], strict=True)],
            coefficients,
            elements=case["elements"],
            batch=case["batch"],
            coefficients_address=single.address if case["own"] else 0,
        )
    )
    for row, o, dtype in zip(expected, out, case["targets"], strict=True):
        assert same_bits(stored(row, dtype), o.array)
    terms = (coefficients != 0).any(0) if case["own"] else coefficients != 0
    read = [h.span for h, used in zip(held, terms.any(0), strict=True) if used]
    assert shared.reads == read + ([single.span] if case["own"] else [])
    assert shared.writes == [o.span for o in out]


def test_linear_is_near_the_exact_sum(module: HostModule) -> None:
    """The error bound of summing n products in float32: (n + 1) u Σ|c x|, u = 2^-24."""
    rng = np.random.default_rng(0)
    x, c = rng.standard_normal((40, 5000)).astype(np.float32), rng.standard_normal((16, 40))
    out = [Fenced(np.empty(5000, np.float32)) for _ in range(16)]
    held = [Fenced(row) for row in x]
    run(
        kernels(module).linear(
            [Source(h.address) for h in held], [Target(o.address) for o in out], c, elements=5000
        )
    )
    exact, size = c @ x.astype(np.float64), np.abs(c) @ np.abs(x.astype(np.float64))
    got = np.stack([o.array for o in out])
    # One more rounding: that of the coefficients to float32.
    assert (np.abs(got - exact) <= 42 * 2.0**-24 * size).all()
    assert np.abs(got - exact).max() > 0


@pytest.mark.parametrize("grid", [(1, 1, 1), (3, 1, 1), (2, 2, 1), (7, 5, 1)])
def test_linear_gives_the_same_bits_on_any_grid(module: HostModule, grid: tuple[int, int, int]) -> None:
    rng = np.random.default_rng(1)
    x, c = Fenced(rng.standard_normal((3, 2049)).astype(np.float32)), rng.standard_normal((3, 1, 1))
    own = Fenced(c.astype(np.float32))
    out = Fenced(np.zeros((3, 2049), np.float32))
    launch = kernels(module).linear(
        [Source(x.address)],
        [Target(out.address)],
        c,
        elements=2049,
        batch=3,
        coefficients_address=own.address,
    )
    module.grid = grid
    run(launch)
    assert same_bits(out.array, x.array * c.astype(np.float32)[:, 0])


def test_a_state_can_be_refined_in_place(module: HostModule) -> None:
    rng = np.random.default_rng(2)
    state, noise = (Fenced(rng.standard_normal(1001).astype(np.float32)) for _ in range(2))
    expected = state.array * np.float32(0.9) + noise.array * np.float32(-0.3)
    run(
        kernels(module).linear(
            [Source(state.address), Source(noise.address)],
            [Target(state.address)],
            np.array([[0.9, -0.3]]),
            elements=1001,
        )
    )
    assert same_bits(state.array, expected)


def test_a_coefficient_too_small_for_float32_is_still_a_term(module: HostModule) -> None:
    """Table.apply multiplies by the zero that is left of it, which an infinity shows."""
    x = [Fenced(np.array([np.inf, 1], np.float32)), Fenced(np.array([2, 3], np.float32))]
    out = Fenced(np.zeros(2, np.float32))
    sources, target = [Source(h.address) for h in x], [Target(out.address)]
    run(kernels(module).linear(sources, target, np.array([[1e-60, 1.0]]), elements=2))
    assert np.isnan(out.array[0]) and out.array[1] == 3
    run(kernels(module).linear(sources, target, np.array([[0.0, 1.0]]), elements=2))
    assert out.array.tolist() == [2, 3]


@pytest.mark.parametrize("elements", [1, 4, 5, 6, 1024])  # 5: the second half is misaligned
@pytest.mark.parametrize("dtype", DTYPES)
def test_guidance_is_that_of_the_cpu_lanes(module: HostModule, dtype: Any, elements: int) -> None:
    rng = np.random.default_rng(3)
    halves = Fenced(stored(rng.standard_normal((2, 2, elements)), dtype))
    out = Fenced(np.zeros((2, elements), np.float32), at_start=True)
    half = halves.array.nbytes // 2
    header = np.zeros(k.MESSAGE_HEADER_BYTES, np.uint8)
    header[248:252].view(np.float32)[:] = 5.3
    message = Fenced(header)
    run(
        kernels(module).guide(
            halves.address,
            halves.address + half,
            Target(out.address),
            message.address,
            elements=elements,
            batch=2,
            dtype=dtype,
        )
    )
    both = loaded(halves.array, dtype)
    guided = both[1] - both[0]  # HostJob._predict_one
    guided *= np.float32(5.3)
    guided += both[0]
    assert same_bits(out.array, guided)
    assert module.reads == [
        (halves.address, half),
        (halves.address + half, half),
        (message.address + 248, 4),
    ]


@pytest.mark.parametrize("dtype", DTYPES)
def test_input_scaling_serves_both_branches(module: HostModule, dtype: Any) -> None:
    latents = Fenced(np.random.default_rng(4).standard_normal((2, 65)).astype(np.float32))
    both = Fenced(stored(np.zeros((2, 2, 65)), dtype))
    targets = [Target(both.address, dtype), Target(both.address + both.array.nbytes // 2, dtype)]
    run(kernels(module).scale(Source(latents.address), targets, 0.3, elements=65, batch=2))
    expected = stored(latents.array * np.float32(0.3), dtype)
    assert same_bits(both.array, np.stack([expected, expected]))


def test_messages_carry_draft_timestep_guidance_and_round(module: HostModule) -> None:
    rng = np.random.default_rng(5)
    state = Fenced(rng.standard_normal((2, 6)).astype(np.float32))
    size = k.message_bytes(2, 2, 6)
    outboxes = [Fenced(np.full(size, 0xAB, np.uint8), at_start=True) for _ in range(2)]
    targets = [
        Target(
            box.address + k.MESSAGE_HEADER_BYTES + 48 * slot,
            message=box.address,
            slot=slot,
            timestep=10.5 * lane + slot,
        )
        for lane, box in enumerate(outboxes)
        for slot in range(2)
    ]
    factors = np.array([[1.0], [2.0], [3.0], [4.0]])
    launch = kernels(module).linear(
        [Source(state.address)], targets, factors, elements=6, batch=2, guidance_scale=2.5, round=7
    )
    run(launch)
    for lane, box in enumerate(outboxes):
        header, drafts = box.array[:256], box.array[256:].view(np.float32).reshape(2, 2, 6)
        assert header[:8].view(np.float32).tolist() == [10.5 * lane, 10.5 * lane + 1]
        assert header[248:252].view(np.float32).tolist() == [2.5]
        assert header[252:].view(np.int32).tolist() == [7]
        assert (header[8:248] == 0xAB).all()
        assert same_bits(
            drafts, np.stack([state.array * np.float32(2 * lane + 1 + slot) for slot in range(2)])
        )
    written = {(box.address + at, 4) for box in outboxes for at in (0, 4, 248, 252)}
    assert written <= set(module.writes)
    assert len(module.writes) == 4 + 12

    launch.arguments.round = 8
    launch.guide(1.5)
    run(launch)
    assert outboxes[0].array[252:256].view(np.int32).tolist() == [8]
    assert outboxes[0].array[248:252].view(np.float32).tolist() == [1.5]


# -- sums


def gram(
    module: HostModule, x: list[Fenced], c: Any, elements: int, batch: int, **grid: Any
) -> np.ndarray[Any, Any]:
    rows = c.shape[-2]
    partials = Fenced(np.full(k.gram_partials_bytes(batch, rows) // 8, np.nan))
    out = Fenced(np.full((batch, rows, rows), np.nan))
    launches = kernels(module).gram(
        [Source(h.address) for h in x],
        c,
        partials=partials.address,
        target=out.address,
        elements=elements,
        batch=batch,
    )
    ranges = []
    for launch in launches:
        module.grid = grid.get("grid")
        run(launch)
        ranges.append((module.reads, module.writes))
    assert ranges[0] == ([h.span for h in x], [partials.span])
    assert ranges[1] == ([partials.span], [out.span])
    return out.array


@pytest.mark.parametrize("rows", [1, 2, 3, 4])
@pytest.mark.parametrize(("batch", "elements"), [(1, 3), (1, 4096), (2, 5000), (3, 16385), (1, 65536)])
def test_gram_matches_float64(module: HostModule, rows: int, batch: int, elements: int) -> None:
    rng = np.random.default_rng(rows)
    x = [Fenced(rng.standard_normal((batch, elements)).astype(np.float32)) for _ in range(5)]
    c = rng.standard_normal((rows, 5))
    columns = tuple(Column("noise", i) for i in range(5))
    table = Table(tuple(Column("state", r) for r in range(rows)), columns, c)
    lines = np.stack(table.apply({n: h.array for n, h in zip(columns, x, strict=True)}), 1).astype(np.float64)
    got = gram(module, x, c, elements, batch)
    # Two orders of one sum in double: n u Σ|a b|.
    bound = elements * 2.0**-52 * np.einsum("brd,bsd->brs", np.abs(lines), np.abs(lines))
    assert (np.abs(got - np.einsum("brd,bsd->brs", lines, lines)) <= bound).all()
    assert same_bits(got, got.transpose(0, 2, 1).copy())


def test_gram_gives_the_same_bits_on_any_grid_in_any_batch_at_any_address(module: HostModule) -> None:
    rng = np.random.default_rng(6)
    data = rng.standard_normal((2, 3, 5000)).astype(np.float32)
    c = rng.standard_normal((2, 2))
    whole = gram(module, [Fenced(d) for d in data], c, 5000, 3)
    for grid in ((1, 1, 1), (5, 2, 1), (64, 3, 1)):
        assert same_bits(gram(module, [Fenced(d) for d in data], c, 5000, 3, grid=grid), whole)
    for picture in range(3):
        for shift in (0, 4):
            alone = [Fenced(d[picture], shift=shift) for d in data]
            assert same_bits(gram(module, alone, c, 5000, 1)[0], whole[picture])


# -- finite check, pixels, timesteps


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nonfinite_marks_the_picture(module: HostModule, dtype: Any, bad: float) -> None:
    elements = 517
    for at in (0, 1, 255, 515, 516):
        values = np.full((3, elements), 60000.0)
        values[1, at] = bad
        memory, flags = Fenced(stored(values, dtype)), Fenced(np.zeros(3, np.int32))
        mark = Fenced(np.array([9], np.int32))
        call = {"elements": elements, "batch": 3, "dtype": dtype}
        run(kernels(module).nonfinite(memory.address, flags.address, mark=mark.address, **call))
        assert flags.array.tolist() == [0, 9, 0]
        assert module.reads == [memory.span, flags.span, mark.span]
        assert module.writes == [flags.span]
        run(kernels(module).nonfinite(memory.address, flags.address, **call))
        assert flags.array.tolist() == [0, 9, 0], "the first mark stays"


@pytest.mark.parametrize(("height", "width"), [(1, 1), (3, 5), (4, 4), (16, 24)])
@pytest.mark.parametrize("shift", [0, 4])
def test_pixels_are_those_of_pictures(module: HostModule, height: int, width: int, shift: int) -> None:
    rng = np.random.default_rng(7)
    decoded = (rng.standard_normal((2, 3, height, width)) * 0.8).astype(np.float32)
    # Halves of a step, where rounding to even shows, and the ends.
    steps = (np.arange(decoded.size) % 512 / 2 / 127.5 - 1).astype(np.float32)
    for values in (decoded, steps.reshape(decoded.shape), decoded * 100):
        memory, out = Fenced(values, shift=shift), Fenced(np.zeros((2, height, width, 3), np.uint8))
        run(kernels(module).to_pixels(memory.address, out.address, height=height, width=width, batch=2))
        for image, pixels in zip(to_images(values), out.array, strict=True):
            assert np.array_equal(np.asarray(image), pixels)
        assert (module.reads, module.writes) == ([memory.span], [out.span])


def test_timesteps_are_spread_over_branches_and_pictures(module: HostModule) -> None:
    message = Fenced(np.array([981.0, 960.5], np.float32))
    out = Fenced(np.zeros((2, 2, 3), np.float32))
    run(kernels(module).fill_timestep(message.address, out.address, drafts=2, pictures=3, branches=2))
    assert out.array.tolist() == [[[981.0] * 3, [960.5] * 3]] * 2
    assert (module.reads, module.writes) == ([message.span], [out.span])


@pytest.mark.parametrize("elements", [1, 3, 4, 517])
@pytest.mark.parametrize("shift", [0, 4])
def test_what_is_known_is_kept_to_the_bit(module: HostModule, elements: int, shift: int) -> None:
    rng = np.random.default_rng(9)
    schedule = Schedule.from_config(tiny.SCHEDULER, 5)
    latents, noise, first, second = rng.standard_normal((4, 1, elements)).astype(np.float32)
    known = Known(latents, noise, rng.random((1, elements)) < 0.5)
    memory = [Fenced(values, shift=shift) for values in (latents, noise, known.repaint.astype(np.float32))]
    targets = [Fenced(values, shift=shift) for values in (first, second)]
    run(
        kernels(module).keep(
            [target.address for target in targets],
            [(schedule.a[2], schedule.s[2]), (1.0, 0.0)],
            **dict(zip(("latents", "noise", "repaint"), (one.address for one in memory), strict=True)),
            elements=elements,
        )
    )
    assert same_bits(targets[0].array, known.into(schedule, 2, first))
    assert same_bits(targets[1].array, known.into(schedule, 5, second))
    spans = [target.span for target in targets]
    assert sorted(module.reads) == sorted([*spans, *(one.span for one in memory)]) and module.writes == spans


# -- what a launch writes, byte for byte


def launches_of(module: HostModule) -> Iterator[tuple[str, Callable[[int], list[Launch]], int]]:
    """For every kernel: its launch on a block of memory at an address, and how much it may use."""
    made, ones = kernels(module), np.ones((2, 2))
    sources = lambda at: [Source(at), Source(at + 512, "float16")]  # noqa: E731
    yield (
        "linear",
        lambda at: [
            made.linear(
                sources(at),
                [Target(at + 2048, "float16"), Target(at + 1280, message=at + 1024, slot=3)],
                ones,
                elements=33,
                batch=2,
            )
        ],
        4096,
    )
    yield (
        "gram",
        lambda at: list(
            made.gram(sources(at), ones, partials=at + 1024, target=at + 65536, elements=33, batch=2)
        ),
        66000,
    )
    yield "nonfinite", lambda at: [made.nonfinite(at, at + 2048, elements=33, batch=2)], 4096
    yield "to_pixels", lambda at: [made.to_pixels(at, at + 2048, height=5, width=5, batch=2)], 4096
    yield (
        "keep",
        lambda at: [
            made.keep(
                [at + 2048, at + 1024],
                [(1.0, 2.0), (3.0, 4.0)],
                latents=at,
                noise=at + 64,
                repaint=at + 512,
                elements=33,
            )
        ],
        4096,
    )
    yield "fill_timestep", lambda at: [made.fill_timestep(at, at + 1024, pictures=3)], 2048


@pytest.mark.parametrize("name", ["linear", "gram", "nonfinite", "to_pixels", "keep", "fill_timestep"])
def test_the_ranges_are_exactly_the_bytes_that_are_written(module: HostModule, name: str) -> None:
    """What was written no longer depends on what was there before, and all else is as it was."""
    ((_, build, size),) = (case for case in launches_of(module) if case[0] == name)
    inputs = np.random.default_rng(8).integers(0, 0x3C, 1024, np.uint8)  # finite in every dtype
    inputs[512:] *= name != "keep"  # where it is 0 the picture is known
    after, written, background = [], np.zeros(size, bool), (0x00, 0xFF)
    for byte in background:
        block = Fenced(np.full(size, byte, np.uint8))
        memory = block.array
        memory[:1024] = inputs
        if name == "nonfinite":
            memory[2048:2056] = 0
            memory[:1024].view(np.float32)[[5, 40]] = np.nan
        for launch in build(block.address):
            run(launch)
            for address, length in module.writes:
                written[address - block.address : address - block.address + length] = True
        after.append(memory.copy())
    inside = after[0] == after[1]
    inside[:1024] = False  # inputs: as they were, below
    if name == "nonfinite":
        assert after[0][2048:2056].view(np.int32).tolist() == [1, 1]
        assert np.flatnonzero(written).tolist() == list(range(2048, 2056))
    else:
        assert np.array_equal(inside, written)
        assert np.array_equal(after[0][:1024], inputs)
    for byte, memory in zip(background, after, strict=True):
        rest = ~written
        rest[:1024] = False
        assert (memory[rest] == byte).all()


# -- misuse


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"coefficients": np.ones((1, 41)), "sources": [Source(16)] * 41}, "40 columns and 16 rows"),
        ({"coefficients": np.ones((17, 1)), "targets": [Target(16)] * 17}, "40 columns and 16 rows"),
        ({"coefficients": np.ones((1, 2))}, "do not fit 1 columns"),
        ({"coefficients": np.zeros((1, 1))}, "without terms"),
        ({"coefficients": np.ones((2, 1, 1)), "batch": 2}, "need an address"),
        ({"coefficients_address": 256}, "need an address"),
        ({"targets": []}, "0 targets for 1 rows"),
        ({"sources": [Source(16, "float64")]}, "cannot read 'float64'"),
        ({"targets": [Target(16, message=256, slot=32)]}, "32 timesteps"),
        ({"batch": 0}, "batch of 0"),
    ],
)
def test_a_launch_that_cannot_be_is_refused(module: HostModule, change: dict[str, Any], words: str) -> None:
    call = {"sources": [Source(16)], "targets": [Target(32)], "coefficients": np.ones((1, 1)), "elements": 4}
    with pytest.raises(InputError, match=words):
        kernels(module).linear(**(call | change))


def test_other_limits_are_told(module: HostModule) -> None:
    with pytest.raises(InputError, match="5 rows are multiplied; 4"):
        kernels(module).gram([Source(16)], np.ones((5, 1)), partials=0, target=0, elements=4)
    with pytest.raises(InputError, match="17 targets and 1 levels; 16 of both is the most"):
        kernels(module).keep([16] * 17, [(1.0, 0.0)], latents=0, noise=0, repaint=0, elements=4)
    with pytest.raises(InputError, match="1 to 32 drafts, not 33"):
        k.message_bytes(33, 1, 4)
