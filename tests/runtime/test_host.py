"""CPU lanes: right noises on any lane, from any thread, through failures and to the end."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from driffusion_trt import InputError, LaneError, ModelError, Schedule, make_plan
from driffusion_trt.engines.manifest import ModelFolder
from driffusion_trt.engines.onnx_session import OnnxSession
from driffusion_trt.runtime import host, host_job
from driffusion_trt.runtime.host import HostJob, HostLanes, auto_lanes
from driffusion_trt.sampling.noise import noise_streams
from driffusion_trt.sampling.plan import MODES
from driffusion_trt.sampling.recording import Recorder

Floats = NDArray[np.float32]


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make_denoiser(tmp_path_factory.mktemp("onnx") / "denoiser.onnx")


@pytest.fixture
def lanes(network: Path) -> Iterator[HostLanes]:
    with HostLanes(network, 2) as lanes:
        yield lanes


def normal(seed: int, *shape: int) -> Floats:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def latents(seed: int, batch: int = 1, side: int = 16) -> Floats:
    return normal(seed, batch, 4, side, side)


def make_job(
    lanes: HostLanes, seed: int = 0, batch: int = 1, guidance_scale: float = 3.0, split: bool = False
) -> HostJob:
    text, empty = normal(seed, batch, 16, 96), normal(seed + 100, batch, 16, 96)
    return lanes.job(text, guidance_scale, empty, split_guidance=split)


def watch(job: HostJob, told: Callable[[int, float, int], object]) -> None:
    """Tell of each of the job's network calls right before it, on its lane's thread."""
    new_call = job._new_call

    def make(lane: int, part: int, shape: tuple[int, ...]) -> Any:
        call = new_call(lane, part, shape)
        work = call.work

        def noted(lane: int) -> None:
            told(part, call._timestep, lane)
            work(lane)

        call.work = noted  # type: ignore[method-assign]
        return call

    job._new_call = make  # type: ignore[method-assign]


def literal(
    network: Path, x: Floats, timestep: float, text: Floats, guidance_scale: float, empty: Floats
) -> Floats:
    """Guidance by two calls of the network, each with a session of its own making."""

    def call(embeddings: Floats) -> Any:
        with OnnxSession(network) as session:
            time = np.full(len(x), timestep, np.float32)
            given = {"sample": x, "timestep": time, "encoder_hidden_states": embeddings}
            return session.run(given)["out_sample"].astype(np.float64)

    u, c = call(empty), call(text)
    return np.asarray(u + guidance_scale * (c - u), np.float32)


@pytest.mark.parametrize("guidance_scale", [0.0, 1.0, 3.0, 7.5])
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("split", [False, True])
def test_predictions_equal_two_plain_calls(
    network: Path, lanes: HostLanes, batch: int, guidance_scale: float, split: bool
) -> None:
    text, empty = normal(1, batch, 16, 96), normal(2, batch, 16, 96)
    requests = [(latents(k, batch), 900.0 - 100 * k) for k in range(3)]
    got = lanes.job(text, guidance_scale, empty, split_guidance=split).predict(requests)
    for out, (x, timestep) in zip(got, requests, strict=True):
        assert out.shape == x.shape and out.dtype == np.float32
        wanted = literal(network, x, timestep, text, guidance_scale, empty)
        np.testing.assert_allclose(out, wanted, rtol=1e-4, atol=1e-5)


def test_guidance_of_one_needs_no_unconditional_and_half_the_batch(lanes: HostLanes) -> None:
    text = normal(0, 1, 16, 96)
    plain = lanes.job(text, 1.0)
    np.testing.assert_array_equal(
        plain.predict([(latents(0), 5.0)])[0], lanes.job(text, 1.0, 0 * text).predict([(latents(0), 5.0)])[0]
    )
    assert plain._calls[0][0, (1, 4, 16, 16)][0]._run.inputs["sample"].shape[0] == 1
    split = lanes.job(text, 1.0, 0 * text, split_guidance=True)
    np.testing.assert_array_equal(split.predict([(latents(0), 5.0)]), plain.predict([(latents(0), 5.0)]))
    assert len(split._told) == 1


@pytest.mark.parametrize(("count", "threads"), [(1, 1), (2, 1), (3, 1), (2, 2)])
def test_the_same_request_gives_the_same_bits_on_any_lane(network: Path, count: int, threads: int) -> None:
    with HostLanes(network, 1) as one, HostLanes(network, count, threads) as lanes:
        wanted = make_job(one).predict([(latents(0), 500.0)])[0]
        for out in make_job(lanes).predict([(latents(0), 500.0)] * 7):
            np.testing.assert_array_equal(out, wanted)


def test_requests_go_to_the_lanes_in_turn(network: Path) -> None:
    with HostLanes(network, 3) as lanes:
        job = make_job(lanes)
        seen: dict[int, list[float]] = {}

        def note(part: int, timestep: float, lane: int) -> None:
            seen.setdefault(lane, []).append(timestep)
            own = "MainThread" if lane == 0 else f"driffusion-lane-{lane}"  # the caller works the first one
            assert threading.current_thread().name == own

        watch(job, note)
        job.predict([(latents(0), float(k)) for k in range(7)])
    assert seen == {0: [0.0, 3.0, 6.0], 1: [1.0, 4.0], 2: [2.0, 5.0]}


def test_users_with_one_request_each_share_the_lanes(network: Path) -> None:
    """A second sequential caller does not wait behind the first one's lane."""
    with HostLanes(network, 2) as lanes:
        both = threading.Barrier(2, timeout=30)  # broken unless the two calls run at once

        def one_call(lane: int) -> int:
            both.wait()
            return lane

        with ThreadPoolExecutor(2) as callers:
            used = [callers.submit(lanes._threads.run, [one_call]) for _ in range(2)]
            assert sorted(future.result()[0] for future in used) == [0, 1]
        assert lanes._threads._state.waiting == [0, 0]


def test_lanes_run_at_the_same_time(lanes: HostLanes) -> None:
    both = threading.Barrier(2, timeout=30)  # broken, and raised as LaneError, unless both are there
    assert lanes._threads.run([lambda lane: both.wait() >= 0] * 2) == [True, True]


def test_results_stay_as_they_are_and_inputs_too(lanes: HostLanes) -> None:
    job = make_job(lanes)
    x = latents(0)
    first = job.predict([(x, 500.0)])[0]
    kept = first.copy()
    job.predict([(latents(1), 100.0)] * 4)
    np.testing.assert_array_equal(first, kept)
    np.testing.assert_array_equal(x, latents(0))


def test_embeddings_are_copied(lanes: HostLanes) -> None:
    text, empty = normal(0, 1, 16, 96), normal(100, 1, 16, 96)
    for guidance_scale in (1.0, 3.0):
        job = lanes.job(text.copy(), guidance_scale, empty)
        altered = text.copy()
        other = lanes.job(altered, guidance_scale, empty)
        altered[:] = 0
        np.testing.assert_array_equal(
            job.predict([(latents(0), 5.0)])[0], other.predict([(latents(0), 5.0)])[0]
        )


def test_embeddings_of_any_memory_order(lanes: HostLanes) -> None:
    text, empty = normal(0, 2, 16, 96), normal(1, 2, 16, 96)
    for guidance_scale in (1.0, 3.0):
        wanted = lanes.job(text, guidance_scale, empty).predict([(latents(0, 2), 5.0)])[0]
        turned = lanes.job(np.asfortranarray(text), guidance_scale, np.asfortranarray(empty))
        np.testing.assert_array_equal(turned.predict([(latents(0, 2), 5.0)])[0], wanted)


def test_a_job_takes_latents_of_several_sizes(network: Path, lanes: HostLanes) -> None:
    job = make_job(lanes)
    for side in (16, 8, 16):
        out = job.predict([(latents(0, side=side), 5.0)])[0]
        wanted = literal(
            network, latents(0, side=side), 5.0, normal(0, 1, 16, 96), 3.0, normal(100, 1, 16, 96)
        )
        np.testing.assert_allclose(out, wanted, rtol=1e-4, atol=1e-5)


def test_nothing_to_predict(lanes: HostLanes) -> None:
    assert make_job(lanes).predict([]) == []


def test_many_threads_with_jobs_of_their_own_are_not_mixed_up(lanes: HostLanes) -> None:
    wanted = {seed: make_job(lanes, seed, 1 + seed % 2).predict(requests(seed)) for seed in range(6)}
    wrong: list[int] = []

    def work(seed: int) -> None:
        job = make_job(lanes, seed, 1 + seed % 2)
        for _ in range(25):
            got = job.predict(requests(seed))
            if not all(np.array_equal(a, b) for a, b in zip(got, wanted[seed], strict=True)):
                wrong.append(seed)

    in_threads([partial(work, seed) for seed in wanted])
    assert wrong == []


# Guidance split over lanes


@given(
    counts=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    batch=st.integers(1, 3),
    requests=st.integers(1, 6),
    guidance_scale=st.sampled_from([0.0, 0.5, 3.0, 7.5, -2.0]),
    seed=st.integers(0, 99),
)
@settings(max_examples=30)
def test_split_guidance_predicts_what_a_batch_of_both_does(
    network: Path, counts: tuple[int, int], batch: int, requests: int, guidance_scale: float, seed: int
) -> None:
    """The same bits for any number of lanes and again; those of the batch but for rounding."""
    asked = [(latents(seed + k, batch), 990.0 - 150 * k) for k in range(requests)]
    with HostLanes(network, counts[0]) as lanes, HostLanes(network, counts[1]) as others:
        job = make_job(lanes, seed, batch, guidance_scale, split=True)
        made = job.predict(asked)
        np.testing.assert_array_equal(made, job.predict(asked))
        np.testing.assert_array_equal(
            made, make_job(others, seed, batch, guidance_scale, split=True).predict(asked)
        )
        wanted = make_job(lanes, seed, batch, guidance_scale).predict(asked)
    for one, other in zip(made, wanted, strict=True):
        # Both branches are sums of some 40 float32 terms, added up in another order: a few roundings of
        # 6e-8, which the guidance scale makes larger by |1 - g| + |g|.
        atol = 5e-7 * (abs(1 - guidance_scale) + abs(guidance_scale)) * np.abs(other).max()
        np.testing.assert_allclose(one, other, rtol=0, atol=atol)


@pytest.mark.parametrize(
    ("count", "requests", "most"), [(2, 1, 1), (4, 2, 1), (4, 3, 2), (3, 3, 2), (1, 2, 4)]
)
def test_split_guidance_keeps_all_lanes_busy(network: Path, count: int, requests: int, most: int) -> None:
    """The two calls of each prediction go to the lanes in turn, and none has more than its share."""
    with HostLanes(network, count) as lanes:
        job = make_job(lanes, split=True)
        seen: dict[int, list[int]] = {}
        watch(job, lambda part, timestep, lane: seen.setdefault(lane, []).append(part))
        job.predict([(latents(k), 5.0) for k in range(requests)])
        assert sum(len(calls) for calls in seen.values()) == 2 * requests
        assert max(len(calls) for calls in seen.values()) == most
        assert len(seen) == min(count, 2 * requests)
        if count % 2 == 0:  # and then a lane has buffers of one branch only
            assert all(len(calls) <= 1 for calls in job._calls)


def test_both_branches_run_at_the_same_time(lanes: HostLanes) -> None:
    both = threading.Barrier(2, timeout=30)  # broken, and raised as LaneError, unless both are there
    job = make_job(lanes, split=True)
    watch(job, lambda part, timestep, lane: both.wait())
    assert len(job.predict([(latents(0), 5.0)])) == 1


def test_split_and_whole_jobs_are_not_mixed_up(lanes: HostLanes) -> None:
    """From several threads at once, of several sizes, on the same lanes."""
    kinds = [(seed, split) for seed in range(3) for split in (False, True)]
    wanted = {
        kind: make_job(lanes, kind[0], 1 + kind[0], split=kind[1]).predict(sizes(kind[0])) for kind in kinds
    }
    wrong: list[tuple[int, bool]] = []

    def work(kind: tuple[int, bool]) -> None:
        job = make_job(lanes, kind[0], 1 + kind[0], split=kind[1])
        for _ in range(25):
            if not all(map(np.array_equal, job.predict(sizes(kind[0])), wanted[kind])):
                wrong.append(kind)

    in_threads([partial(work, kind) for kind in kinds])
    assert wrong == []


def sizes(seed: int) -> list[tuple[Floats, float]]:
    return [(latents(10 * seed + k, 1 + seed, 8 + 8 * (k % 2)), 7.0 * seed + k) for k in range(3)]


def test_a_branch_that_fails_fails_the_prediction_and_nothing_else(lanes: HostLanes) -> None:
    job = make_job(lanes, split=True)
    failing = False

    def refuse(part: int, timestep: float, lane: int) -> None:
        if failing and part == 1:
            raise ModelError("no memory")

    watch(job, refuse)
    wanted = job.predict([(latents(0), 5.0)])
    failing = True
    with pytest.raises(LaneError, match=r"lane 1 of 2 failed: ModelError: no memory"):
        job.predict([(latents(0), 5.0)])
    failing = False
    np.testing.assert_array_equal(job.predict([(latents(0), 5.0)]), wanted)


@pytest.mark.parametrize("mode", MODES)
def test_the_demos_pictures_with_split_guidance(mode: str) -> None:
    """In every mode, on more and on fewer lanes than the plan has."""
    demo = ModelFolder.open("demo")
    plan = make_plan(Schedule.from_config(demo.scheduler_config(), 6), mode=mode, lanes=2)
    text, empty, noise = normal(0, 1, 16, 96), normal(1, 1, 16, 96), latents(2)
    made: dict[tuple[int, bool], Floats] = {}
    for count, split in ((1, False), (1, True), (3, True), (4, True)):
        with HostLanes(demo.network("denoiser"), count) as lanes:
            job = lanes.job(text, 3.0, empty, split_guidance=split)
            made[count, split] = job.sample(plan, noise, noise_streams(0, 1)).latents
    np.testing.assert_array_equal(made[1, True], made[3, True])
    np.testing.assert_array_equal(made[1, True], made[4, True])
    wanted = made[1, False]
    assert np.linalg.norm(made[1, True] - wanted) < 1e-5 * np.linalg.norm(wanted)


def test_many_threads_with_one_job_are_not_mixed_up(lanes: HostLanes) -> None:
    job = make_job(lanes)
    wanted = {seed: job.predict([(latents(seed), 5.0 + seed)] * 3) for seed in range(4)}
    wrong: list[int] = []

    def work(seed: int) -> None:
        for _ in range(25):
            got = job.predict([(latents(seed), 5.0 + seed)] * 3)
            if not np.array_equal(got, wanted[seed]):
                wrong.append(seed)

    in_threads([partial(work, seed) for seed in wanted])
    assert wrong == []


def test_whoever_asks_guides_what_all_lanes_predicted(
    lanes: HostLanes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lanes' threads run nothing but the network."""
    guided, threads = host_job._guided, list[int]()

    def noted(*arguments: Any) -> Floats:
        threads.append(threading.get_ident())
        return guided(*arguments)

    monkeypatch.setattr(host_job, "_guided", noted)
    job = make_job(lanes)
    job.predict([(latents(0), 5.0)] * 3)
    assert threads == [threading.get_ident()] * 3


def test_buffers_are_used_again_and_those_of_a_failure_are_not(lanes: HostLanes) -> None:
    """As many as there were calls at once; a call that failed may have left a lane at work in its own."""
    job = make_job(lanes)
    for _ in range(3):
        job.predict([(latents(0), 5.0)] * 3)
    kept = [set(calls[0, (1, 4, 16, 16)]) for calls in job._calls]
    assert [len(calls) for calls in kept] == [2, 1]
    with pytest.raises(LaneError):
        job.predict([(latents(0), 5.0), (latents(0), 1000.0)])
    assert [len(calls[0, (1, 4, 16, 16)]) for calls in job._calls] == [1, 0]
    job.predict([(latents(0), 5.0)] * 3)
    made = [set(calls[0, (1, 4, 16, 16)]) for calls in job._calls]
    assert [len(calls) for calls in made] == [2, 1] and len(made[0] & kept[0]) == 1 and not made[1] & kept[1]


def requests(seed: int) -> list[tuple[Floats, float]]:
    return [(latents(10 * seed + k, 1 + seed % 2), 7.0 * seed + k) for k in range(3)]


def test_buffers_that_wait_for_their_next_use_keep_nothing(lanes: HostLanes) -> None:
    """No picture that was made with them, and nobody who took down when."""
    job, recorder = make_job(lanes), Recorder()
    noted = weakref.ref(recorder)
    made = [weakref.ref(one) for one in job.predict([(latents(0), 5.0)] * 2, recorder)]
    del recorder
    gc.collect()
    assert [one() for one in made] == [None, None] and noted() is None
    assert sum(len(free) for lane in job._calls for free in lane.values()) == 2


def in_threads(works: list[Callable[[], None]]) -> None:
    threads = [threading.Thread(target=work) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_a_failing_lane_is_named_and_its_error_is_whole(lanes: HostLanes) -> None:
    job = make_job(lanes)
    good = job.predict([(latents(0), 5.0)])[0]
    with pytest.raises(LaneError, match=r"lane 1 of 2 failed: ModelError: .*out of data bounds") as caught:
        job.predict([(latents(0), 5.0), (latents(0), 1000.0), (latents(0), 5.0)])
    cause = caught.value.__cause__
    assert isinstance(cause, ModelError) and cause.__cause__ is not None
    for out in job.predict([(latents(0), 5.0)] * 4):  # both lanes are as good as before
        np.testing.assert_array_equal(out, good)


def test_the_lowest_lane_that_failed_is_reported_when_all_are_done(lanes: HostLanes) -> None:
    finished: list[int] = []

    def call(k: int, lane: int) -> None:
        time.sleep(0.05 if k in (2, 3) else 0)
        finished.append(k)
        if k in (1, 2):
            raise KeyError(k)

    with pytest.raises(LaneError, match="lane 0 of 2 failed: KeyError: 2"):
        lanes._threads.run([partial(call, k) for k in range(4)])
    assert sorted(finished) == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (latents(0).astype(np.float64), "latents are float64, expected float32"),
        (latents(0)[0], r"shape \(4, 16, 16\), expected \(B, C, H, W\) with the job's batch 1"),
        (latents(0, 2), r"shape \(2, 4, 16, 16\), expected"),
        (normal(0, 1, 3, 16, 16), r"'sample'.*\(2, 3, 16, 16\), expected \(batch, 4, height, width\)"),
    ],
)
def test_wrong_latents_are_refused_before_any_work(lanes: HostLanes, wrong: Any, message: str) -> None:
    job = make_job(lanes)
    with pytest.raises(InputError, match=message):
        job.predict([(latents(0), 5.0), (wrong, 5.0)])
    assert job._calls == [{}, {}]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((normal(0, 1, 16, 96), 3.0), "guidance_scale 3.0 needs the unconditional embeddings"),
        ((normal(0, 1, 16, 96), float("nan")), "guidance_scale must be finite"),
        (
            (normal(0, 16, 96), 1.0),
            r"conditioning: .* is float32 of shape \(16, 96\), expected float32 with 3",
        ),
        ((normal(0, 0, 16, 96), 1.0), r"shape \(0, 16, 96\)"),
        ((np.zeros((1, 16, 96)), 1.0), "conditioning: .* is float64"),
        ((normal(0, 2, 16, 96), 3.0, normal(0, 1, 16, 96)), "they must be equal"),
        ((normal(0, 2, 16, 96), 3.0, np.zeros((2, 16, 96))), "unconditional: .* is float64"),
    ],
)
def test_wrong_jobs_are_refused(lanes: HostLanes, arguments: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        lanes.job(*arguments)


@pytest.mark.parametrize("wrong", [0, -1, 1.5, True])
def test_wrong_counts_are_refused(network: Path, wrong: Any) -> None:
    with pytest.raises(InputError, match="lanes must be a positive integer"):
        HostLanes(network, wrong)
    with pytest.raises(InputError, match="threads_per_lane must be a positive integer"):
        HostLanes(network, 1, wrong)


def test_a_network_that_is_no_denoiser_is_refused(tmp_path: Path) -> None:
    before = threading.active_count()
    with pytest.raises(ModelError, match="has the inputs latents and 1 outputs; CPU lanes run denoisers"):
        HostLanes(tiny.make_vae_decoder(tmp_path / "vae.onnx"), 2)
    assert threading.active_count() == before


@pytest.mark.parametrize(("threads", "sessions"), [(1, 1), (2, 3)])
def test_one_thread_lanes_share_a_session(network: Path, threads: int, sessions: int) -> None:
    made: list[OnnxSession] = []

    def make() -> OnnxSession:
        made.append(OnnxSession(network, threads))
        return made[-1]

    with HostLanes(make, 3, threads):
        assert len(made) == sessions
    for session in made:
        with pytest.raises(InputError, match="closed"):
            session.run({})


def test_a_session_that_fails_to_load_closes_those_before_it(network: Path) -> None:
    made: list[OnnxSession] = []

    def make() -> OnnxSession:
        if made:
            raise ModelError("no memory")
        made.append(OnnxSession(network, 2))
        return made[-1]

    with pytest.raises(ModelError, match="no memory"):
        HostLanes(make, 2, 2)
    with pytest.raises(InputError, match="closed"):
        made[0].run({})


def test_closing_ends_the_threads_and_refuses_what_comes_later(network: Path) -> None:
    before = threading.active_count()
    lanes = HostLanes(network, 2)
    job = make_job(lanes)
    assert (len(lanes), threading.active_count()) == (2, before + 2)
    lanes.close()
    lanes.close()
    assert threading.active_count() == before
    with pytest.raises(LaneError, match="closed"):
        job.predict([(latents(0), 5.0)])
    with pytest.raises(LaneError, match="closed"):
        make_job(lanes)


def test_closing_in_use_finishes_or_refuses_every_call(network: Path) -> None:
    lanes = HostLanes(network, 2)
    job = make_job(lanes)
    wanted = job.predict([(latents(0), 5.0)])[0]
    started = threading.Barrier(4)
    ends: list[str] = []

    def work() -> None:
        started.wait()
        try:
            while True:
                assert all(np.array_equal(out, wanted) for out in job.predict([(latents(0), 5.0)] * 3))
        except LaneError as error:
            ends.append(str(error))

    def close() -> None:
        started.wait()
        time.sleep(0.02)
        lanes.close()

    in_threads([work, work, close, close])
    assert ends == ["the lanes are closed; make new ones"] * 2


def test_a_waiting_call_is_completed_by_close(lanes: HostLanes) -> None:
    go = threading.Event()
    got: list[int] = []
    user = threading.Thread(target=lambda: got.extend(lanes._threads.run([lambda lane: wait(go)] * 4)))
    user.start()
    while lanes._threads._queues[1].qsize() < 1:  # both lanes are at work and one call waits
        time.sleep(0.001)
    closer = threading.Thread(target=lanes.close)
    closer.start()
    closer.join(0.05)
    assert closer.is_alive()
    go.set()
    closer.join()
    user.join()
    assert got == [1, 1, 1, 1]


def wait(event: threading.Event) -> int:
    return int(event.wait(30))


def test_lanes_that_nobody_holds_are_ended(network: Path) -> None:
    before = threading.active_count()
    lanes = HostLanes(network, 2)
    job = make_job(lanes)
    job.predict([(latents(0), 5.0)] * 2)
    held = weakref.ref(job)
    del job
    gc.collect()
    assert held() is None  # idle lanes keep no job alive
    del lanes
    gc.collect()
    assert threading.active_count() == before


def test_a_process_ends_with_lanes_open(network: Path) -> None:
    code = (
        "import numpy as np, sys\n"
        "from driffusion_trt.runtime.host import HostLanes\n"
        f"lanes = HostLanes({str(network)!r}, 2)\n"
        "job = lanes.job(np.zeros((1, 16, 96), np.float32), 1.0)\n"
        "job.predict([(np.zeros((1, 4, 16, 16), np.float32), 5.0)] * 2)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_round_costs_little_beside_the_network(lanes: HostLanes) -> None:
    """Handing two calls over and back; its goal is 0.2 ms, the bound here is for a busy machine."""
    nothing = [lambda lane: None] * 2
    times = []
    for _ in range(300):
        start = time.perf_counter()
        lanes._threads.run(nothing)
        times.append(time.perf_counter() - start)
    assert sorted(times)[len(times) // 10] < 2e-4


def test_auto_lanes_is_what_the_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "_cpu_quota", lambda path: 1 << 16)
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0, 3, 5}, raising=False)
    assert auto_lanes() == 3
    monkeypatch.setattr(host, "_cpu_quota", lambda path: 2)
    assert auto_lanes() == 2
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0}, raising=False)
    assert auto_lanes() == 1


@pytest.mark.parametrize(
    ("text", "cores"), [("250000 100000", 3), ("50000 100000", 1), ("max 100000", 1 << 16), ("", 1 << 16)]
)
def test_a_containers_quota_is_read(tmp_path: Path, text: str, cores: int) -> None:
    (tmp_path / "cpu.max").write_text(text)
    assert host._cpu_quota(tmp_path / "cpu.max") == cores
    assert host._cpu_quota(tmp_path / "none") == 1 << 16
