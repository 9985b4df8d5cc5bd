"""The pipeline on a tiny model folder: the same bits again, and refusals before any work."""

from __future__ import annotations

import asyncio
import json
import shutil
import threading
import time
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st

from driffusion_trt import CancelledError, InputError, LaneError, ModelError, NonFiniteError, Pipeline
from driffusion_trt.engines.manifest import ModelFolder, write_manifest
from driffusion_trt.engines.onnx_session import OnnxSession
from driffusion_trt.pictures import to_images
from driffusion_trt.pipeline import PrecisionWarning, PromptWarning, Result
from driffusion_trt.runtime.host import HostJob
from driffusion_trt.sampling.noise import noise_streams
from driffusion_trt.sampling.plan import MODES, default_lanes
from driffusion_trt.sampling.sample import RoundDone

PROMPT = "a red fox"
STEPS = 10
SCHEDULERS = ("ddpm", "ddim", "euler", "dpmsolver++")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make_model_folder(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def pipe(folder: Path) -> Iterator[Pipeline]:
    with Pipeline.load(folder, devices=2) as pipe:
        yield pipe


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder of one's own, to be damaged."""
    return tiny.make_model_folder(tmp_path / "model")


def same(one: Result, other: Result) -> bool:
    """Whether two results agree to the bit, in latents and in pictures."""
    return np.array_equal(one.latents, other.latents) and [image.tobytes() for image in one.images] == [
        image.tobytes() for image in other.images
    ]


def test_bfloat16_is_not_for_cpu_lanes(model: Path) -> None:
    manifest = json.loads((model / "manifest.json").read_text())
    (model / "manifest.json").write_text(json.dumps(manifest | {"precision": "bf16"}))
    with pytest.raises(ModelError, match="is in bf16, which ONNX Runtime cannot multiply in on a CPU"):
        Pipeline.load(model, devices=1)


def test_numbers_of_numpy_are_numbers(pipe: Pipeline) -> None:
    settings: dict[str, Any] = {"steps": 4, "guidance_scale": 2.0, "num_images": 2, "lanes": 2, "height": 64}
    kinds = {int: np.int64, float: np.float32}
    given = {name: kinds[type(value)](value) for name, value in settings.items()}
    made = pipe(PROMPT, mode="aggressive", seed=np.uint32(3), **given)
    wanted = pipe(PROMPT, mode="aggressive", seed=3, **settings)
    assert made.settings == wanted.settings and np.array_equal(made.latents, wanted.latents)
    json.dumps(made.settings)
    with pytest.raises(InputError, match="num_images must be a whole number"):
        pipe(PROMPT, num_images=np.float32(1.5))


@pytest.mark.parametrize("seconds", [float("nan"), float("inf"), 0, -1.0, "1", None])
def test_a_deadline_that_is_none_is_refused(folder: Path, seconds: Any) -> None:
    """With NaN, 0 or less every GPU would be taken to hang at its first picture."""
    with pytest.raises(InputError, match="deadline_s must be a number of seconds above 0, not"):
        Pipeline.load(folder, devices=1, deadline_s=seconds)


# The picture itself


def test_sequential_is_the_loop_of_diffusers(folder: Path, pipe: Pipeline) -> None:
    import diffusers  # both here, since loading them takes longer than the other tests together
    import torch

    model = ModelFolder.open(folder)
    with (
        OnnxSession(model.network("text_encoder")) as text,
        OnnxSession(model.network("denoiser")) as denoiser,
    ):
        tokenizer = tiny.make_tokenizer()
        ids = np.array([tokenizer.encode(prompt).ids for prompt in ("blue", PROMPT)], np.int64)
        embeddings = text.run({"input_ids": ids})["last_hidden_state"]
        scheduler = diffusers.DDIMScheduler.from_config(tiny.SCHEDULER)
        scheduler.set_timesteps(STEPS)
        x = torch.randn((1, 4, 16, 16), generator=torch.Generator().manual_seed(7))
        for t in scheduler.timesteps:
            inputs = {
                "sample": np.concatenate([x.numpy()] * 2),
                "timestep": np.full(2, float(t), np.float32),
                "encoder_hidden_states": embeddings,
            }
            unconditional, conditional = denoiser.run(inputs)["out_sample"]
            guided = unconditional + 5.0 * (conditional - unconditional)
            x = scheduler.step(torch.from_numpy(guided[None]), t, x).prev_sample
    result = pipe(PROMPT, negative_prompt="blue", steps=STEPS, guidance_scale=5.0, seed=7, mode="sequential")
    assert np.linalg.norm(result.latents - x.numpy()) < 1e-5 * np.linalg.norm(x.numpy())


def test_the_decoder_gets_latents_in_its_own_scale(model: Path) -> None:
    manifest = json.loads((model / "manifest.json").read_text())
    manifest |= {"scaling_factor": 0.5, "shift_factor": 0.25}
    (model / "manifest.json").write_text(json.dumps(manifest))
    with Pipeline.load(model, devices=1) as pipe:
        result = pipe(PROMPT, steps=2)
    with OnnxSession(model / "onnx" / "vae_decoder.onnx") as decoder:
        (decoded,) = decoder.run({"latents": result.latents / np.float32(0.5) + np.float32(0.25)}).values()
    (image,) = result.images
    assert image.size == (64, 64)
    assert image.tobytes() == to_images(decoded)[0].tobytes()


@pytest.mark.parametrize("mode", MODES)
def test_a_call_repeated_gives_the_same_bits(folder: Path, pipe: Pipeline, mode: str) -> None:
    one = pipe(PROMPT, steps=STEPS, mode=mode, lanes=3, seed=5)
    assert same(one, pipe(PROMPT, steps=STEPS, mode=mode, lanes=3, seed=5))
    assert not same(one, pipe(PROMPT, steps=STEPS, mode=mode, lanes=3, seed=6))
    with Pipeline.load(folder, devices=1) as other:
        assert same(one, other(PROMPT, steps=STEPS, mode=mode, lanes=3, seed=5)), "devices change nothing"


@pytest.mark.parametrize("devices", [1, 2, 3])
def test_sequential_has_the_same_bits_for_any_lanes_and_devices(
    folder: Path, pipe: Pipeline, devices: int
) -> None:
    expected = pipe(PROMPT, steps=STEPS, mode="sequential", lanes=1)
    with Pipeline.load(folder, devices=devices) as other:
        for lanes in (None, 1, 4):
            assert same(expected, other(PROMPT, steps=STEPS, mode="sequential", lanes=lanes))


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_aggressive_with_one_lane_is_sequential(pipe: Pipeline, scheduler: str) -> None:
    asked: dict[str, Any] = {"steps": STEPS, "lanes": 1, "scheduler": scheduler, "seed": 3}
    assert same(pipe(PROMPT, mode="aggressive", **asked), pipe(PROMPT, mode="sequential", **asked))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_every_scheduler_runs_in_every_mode(pipe: Pipeline, scheduler: str, mode: str) -> None:
    result = pipe(PROMPT, steps=STEPS, scheduler=scheduler, mode=mode, lanes=3)
    assert result.plan.schedule.solver == scheduler
    assert np.isfinite(result.latents).all() and result.latents.std() > 0
    assert same(result, pipe(**result.call()))


def test_two_threads_get_the_bits_of_separate_calls(pipe: Pipeline) -> None:
    asked: list[dict[str, Any]] = [
        {"prompt": "a red fox", "seed": 1, "mode": "aggressive", "steps": 40},
        {"prompt": "a blue star", "seed": 2, "mode": "conservative", "steps": 40, "guidance_scale": 1.0},
    ]
    expected = [pipe(**one) for one in asked]
    barrier = threading.Barrier(2)
    found: dict[int, list[Result]] = {}

    def work(k: int) -> None:
        barrier.wait()
        found[k] = [pipe(**asked[k]) for _ in range(5)]

    threads = [threading.Thread(target=work, args=(k,)) for k in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for k in range(2):
        assert [same(expected[k], result) for result in found[k]] == [True] * 5


# Seeds and batches


def test_a_list_of_seeds_gives_each_picture_its_own_noise(pipe: Pipeline) -> None:
    batch = pipe([PROMPT, "a blue star"], seed=[4, 9], steps=STEPS)
    for k, (prompt, seed) in enumerate([(PROMPT, 4), ("a blue star", 9)]):
        alone = pipe(prompt, seed=seed, steps=STEPS)
        # Not to the bit: in a batch of another size the network may round differently.
        np.testing.assert_allclose(batch.latents[k], alone.latents[0], rtol=1e-4, atol=1e-5)
        assert batch.settings[k]["seed"] == seed and alone.settings[0]["seed"] == seed


def test_an_int_seed_is_one_stream_for_the_batch(pipe: Pipeline) -> None:
    batch = pipe(PROMPT, num_images=2, seed=4, steps=STEPS)
    first = pipe(PROMPT, seed=[4], steps=STEPS)
    assert same(first, pipe(PROMPT, seed=4, steps=STEPS))
    np.testing.assert_allclose(batch.latents[0], first.latents[0], rtol=1e-4, atol=1e-5)
    second = pipe(PROMPT, seed=5, steps=STEPS).latents[0]
    assert np.abs(batch.latents[1] - second).max() > 0.1
    assert [(s["batch_seed"], s["picture"], s["batch"]) for s in batch.settings] == [(4, 0, 2), (4, 1, 2)]
    assert not any("seed" in settings for settings in batch.settings)


def test_pictures_come_prompt_by_prompt(pipe: Pipeline) -> None:
    result = pipe([PROMPT, "a blue star"], num_images=2, seed=range(4), steps=2)
    order = [(settings["prompt"], settings["seed"]) for settings in result.settings]
    assert order == [(PROMPT, 0), (PROMPT, 1), ("a blue star", 2), ("a blue star", 3)]
    assert len(result.images) == 4 and result.latents.shape == (4, 4, 16, 16)


def test_seeds_may_be_numpy_integers_and_settings_are_json(pipe: Pipeline) -> None:
    seeds = np.array([3, 2**64 - 1], np.uint64)
    settings = pipe(PROMPT, num_images=2, seed=seeds, steps=2).settings
    assert [one["seed"] for one in json.loads(json.dumps(settings))] == [3, 2**64 - 1]


@pytest.mark.parametrize("mode", MODES)
def test_recorded_settings_make_the_picture_again(pipe: Pipeline, mode: str) -> None:
    rounds = 5 if mode == "skip" else None
    made = pipe(
        PROMPT,
        negative_prompt="blue",
        steps=STEPS,
        guidance_scale=2.5,
        seed=11,
        mode=mode,
        lanes=3,
        rounds=rounds,
    )
    (settings,) = made.settings
    assert same(made, pipe(**json.loads(json.dumps(made.call(0)))))
    assert settings["model"] == "demo" and settings["sequential_calls"] == made.stats.rounds


def test_defaults_are_recorded_too(pipe: Pipeline) -> None:
    made = pipe(PROMPT, mode="aggressive")
    assert made.settings[0]["steps"] == 50 and made.settings[0]["guidance_scale"] == 3.0
    assert made.settings[0]["lanes"] == 2
    assert same(made, pipe(**made.call()))


# Guidance, progress, timings


def test_without_guidance_there_is_no_unconditional_pass(
    pipe: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = []
    make = pipe._lanes.job

    def spy(conditioning: Any, scale: float, unconditional: Any = None, **named: Any) -> Any:
        jobs.append((scale, unconditional is None))
        return make(conditioning, scale, unconditional, **named)

    monkeypatch.setattr(pipe._lanes, "job", spy)
    plain = pipe(PROMPT, guidance_scale=1, steps=STEPS)
    assert same(plain, pipe(PROMPT, guidance_scale=1, negative_prompt="blue", steps=STEPS))
    assert same(plain, pipe(PROMPT, guidance_scale=0, steps=STEPS)), "less than 1 is none, as in diffusers"
    assert jobs == [(1.0, True)] * 3
    guided = pipe(PROMPT, guidance_scale=3, steps=STEPS)
    assert not same(guided, pipe(PROMPT, guidance_scale=3, negative_prompt="blue", steps=STEPS))
    assert jobs[3:] == [(3.0, False)] * 2


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_split_guidance_makes_the_same_picture_in_every_mode(
    folder: Path, pipe: Pipeline, scheduler: str, mode: str
) -> None:
    """That of a batch but for rounding, and to the bit for any number of devices and when it is replayed."""
    asked: dict[str, Any] = {"steps": STEPS, "scheduler": scheduler, "mode": mode, "lanes": 2, "seed": 4}
    whole, made = pipe(PROMPT, **asked), pipe(PROMPT, **asked, split_guidance=True)
    assert np.linalg.norm(made.latents - whole.latents) < 1e-5 * np.linalg.norm(whole.latents)
    assert not same(made, whole), "in this network a batch of two rounds in another way"
    assert made.plan is whole.plan
    assert made.settings[0]["split_guidance"] is True and "split_guidance" not in whole.settings[0]
    assert same(made, pipe(**json.loads(json.dumps(made.call()))))
    for devices in (1, 3, 4):
        with Pipeline.load(folder, devices=devices) as other:
            assert same(made, other(PROMPT, **asked, split_guidance=True))


def test_split_guidance_without_guidance_changes_nothing(pipe: Pipeline) -> None:
    for guidance_scale in (0, 0.5, 1):
        asked: dict[str, Any] = {"steps": STEPS, "guidance_scale": guidance_scale}
        plain, split = pipe(PROMPT, **asked), pipe(PROMPT, **asked, split_guidance=True)
        assert same(plain, split) and split.plan is plain.plan
        assert split.settings == plain.settings


@given(
    devices=st.integers(1, 9),
    split=st.booleans(),
    scale=st.sampled_from([None, 0, 1, 1.5, 3]),
    steps=st.sampled_from([None, 2, 20, 30, 60]),
)
def test_lanes_by_default_are_those_that_the_devices_make(
    pipe: Pipeline, devices: int, split: bool, scale: float | None, steps: int | None
) -> None:
    """Half as many where guidance is split and there is some, and one at least."""
    lanes = max(1, devices // 2) if split and (scale is None or scale > 1) else devices
    plan = pipe._planner.plan(devices, steps=steps, guidance_scale=scale, split_guidance=split)
    assert plan is pipe._planner.plan(lanes, steps=steps)
    most = default_lanes(devices, plan.steps)
    assert plan.lanes == min(lanes, most) and 1 <= plan.lanes <= most


@pytest.mark.parametrize("devices", [1, 2, 3, 4])
def test_the_plan_that_is_shown_is_the_one_that_is_run(folder: Path, devices: int) -> None:
    with Pipeline.load(folder, devices=devices) as pipe:
        for settings in (
            {"split_guidance": True},
            {"split_guidance": False},
            {"split_guidance": True, "guidance_scale": 1.0},
            {"split_guidance": True, "lanes": 3},
            {"split_guidance": True, "mode": "window", "steps": 20},
        ):
            asked: Any = {"steps": STEPS, "mode": "aggressive", **settings}
            assert pipe(PROMPT, **asked).plan is pipe.plan(**asked)
        split: Any = {"mode": "aggressive", "split_guidance": True}
        assert pipe.plan(**split, guidance_scale=5.0) is pipe.plan(**split)
        assert pipe.plan(**split).lanes == max(1, devices // 2)


def test_calls_with_and_without_split_guidance_share_the_lanes(pipe: Pipeline) -> None:
    asked = [{**one, "split_guidance": bool(k % 2)} for k, one in enumerate([*MANY, *reversed(MANY)])]
    expected = [pipe(**one) for one in asked]
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda one: pipe(**one), asked))
    assert [same(*both) for both in zip(expected, found, strict=True)] == [True] * len(asked)

    async def work() -> list[Result]:
        return await asyncio.gather(*(pipe.generate(**one) for one in asked[:4]))

    awaited = asyncio.run(work())
    assert [same(*both) for both in zip(expected, awaited, strict=False)] == [True] * 4


def test_pictures_of_a_batch_are_exact_with_split_guidance(pipe: Pipeline) -> None:
    batch = pipe([PROMPT, "a blue star"], seed=[4, 9], steps=STEPS, split_guidance=True)
    for k, (prompt, seed) in enumerate([(PROMPT, 4), ("a blue star", 9)]):
        alone = pipe(prompt, seed=seed, steps=STEPS, split_guidance=True)
        np.testing.assert_allclose(batch.latents[k], alone.latents[0], rtol=1e-4, atol=1e-5)
        assert batch.settings[k]["split_guidance"] is True


def test_timings_add_up_and_rounds_are_told(pipe: Pipeline) -> None:
    told: list[RoundDone] = []
    result = pipe(PROMPT, steps=STEPS, mode="aggressive", callback_on_round_end=told.append)
    timings = result.timings
    assert timings.total_ms == timings.encode_ms + timings.denoise_ms + timings.decode_ms
    assert len(timings.rounds_ms) == result.stats.rounds == len(told)
    assert all(ms > 0 for ms in (timings.encode_ms, timings.decode_ms, *timings.rounds_ms))
    assert 0 < sum(timings.rounds_ms) <= timings.denoise_ms
    assert [done.round for done in told] == list(range(1, len(told) + 1))
    assert told[-1] == RoundDone(6, 6, STEPS, STEPS)


def test_what_progress_raises_ends_the_call_and_harms_nothing(pipe: Pipeline) -> None:
    expected = pipe(PROMPT, steps=STEPS)

    def stop(done: RoundDone) -> None:
        if done.round == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pipe(PROMPT, steps=STEPS, callback_on_round_end=stop)
    assert same(expected, pipe(PROMPT, steps=STEPS))


@pytest.mark.parametrize("mode", MODES)
def test_a_round_shows_the_clean_latents_on_demand(pipe: Pipeline, mode: str) -> None:
    seen: list[np.ndarray[Any, Any]] = []
    result = pipe(
        PROMPT,
        steps=STEPS,
        mode=mode,
        lanes=3,
        callback_on_round_end=lambda done: seen.append(done.latents()),
    )
    assert np.array_equal(seen[-1], result.latents) and len(seen) == result.stats.rounds
    distances = [float(np.linalg.norm(one - result.latents)) for one in seen]
    assert distances[-2] < 0.5 * distances[0], "they come closer to the picture"
    seen[0][:] = np.nan  # the caller's own
    small = pipe.preview(seen[-1])
    assert [image.size for image in small] == [(16, 16)]
    with pytest.raises(InputError, match="are none of demo; expected"):
        pipe.preview(seen[-1][0])


def test_the_estimate_is_that_of_the_schedule(pipe: Pipeline) -> None:
    """In sequential mode x̂0 is what DDIM steps from: x_{i+1} = a' x̂0 + s' (x_i - a x̂0) / s."""
    seen: list[np.ndarray[Any, Any]] = []
    result = pipe(
        PROMPT, steps=2, mode="sequential", callback_on_round_end=lambda done: seen.append(done.latents())
    )
    schedule, start = result.plan.schedule, noise_streams(0, 1).draw((4, 16, 16))
    a, s, arrive, left = (float(v[0]) for v in (schedule.a, schedule.s, schedule.a_next, schedule.s_next))
    state = arrive * seen[0] + left * (start - a * seen[0]) / s
    looked = pipe(PROMPT, steps=2, mode="sequential").latents
    assert np.array_equal(looked, result.latents)
    outputs: list[np.ndarray[Any, Any]] = []
    predict = HostJob.predict

    def spy(self: HostJob, requests: Any) -> Any:
        outputs.extend(latents for latents, _ in requests)
        return predict(self, requests)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(HostJob, "predict", spy)
        pipe(PROMPT, steps=2, mode="sequential")
    np.testing.assert_allclose(outputs[1], state, rtol=1e-4, atol=1e-4)


# Cancelling, threads and asyncio


@pytest.mark.parametrize("at", [1, 3])
def test_cancel_ends_the_call_after_the_round_and_harms_nothing(pipe: Pipeline, at: int) -> None:
    expected = pipe(PROMPT, steps=STEPS, mode="aggressive")
    cancel, told = threading.Event(), []

    def watch(done: RoundDone) -> None:
        told.append(done.round)
        if done.round == at:
            cancel.set()

    with pytest.raises(CancelledError, match=f"cancel was set: the call ended after round {at} of 6"):
        pipe(PROMPT, steps=STEPS, mode="aggressive", cancel=cancel, callback_on_round_end=watch)
    assert told == list(range(1, at + 1))
    assert same(expected, pipe(PROMPT, steps=STEPS, mode="aggressive", cancel=threading.Event()))


def test_an_event_that_is_set_already_ends_the_call_before_any_work(
    pipe: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(OnnxSession, "run", lambda *_: pytest.fail("a network ran"))
    cancel = threading.Event()
    cancel.set()
    with pytest.raises(CancelledError, match="before its first round"):
        pipe(PROMPT, steps=STEPS, cancel=cancel)


MANY: list[dict[str, Any]] = [
    {
        "prompt": ("a red fox", "a blue star")[k % 2],
        "seed": k,
        "mode": mode,
        "steps": 6 + k,
        "lanes": 1 + k % 3,
    }
    | ({"scheduler": SCHEDULERS[k % 4]} if k % 2 else {"guidance_scale": 1.0 + k})
    for k, mode in enumerate([*MODES, *MODES])
]


def test_many_threads_and_settings_get_the_bits_of_one_after_another(pipe: Pipeline) -> None:
    expected = [pipe(**one) for one in MANY]
    with ThreadPoolExecutor(len(MANY)) as pool:
        found = list(pool.map(lambda one: [pipe(**one) for _ in range(2)], MANY))
    for wanted, results in zip(expected, found, strict=True):
        assert [same(wanted, result) for result in results] == [True, True]


def test_awaiting_leaves_the_loop_free(pipe: Pipeline) -> None:
    expected = [pipe(**one) for one in MANY[:3]]

    freed = threading.Event()

    async def work() -> list[Result]:
        def hold(done: RoundDone) -> None:
            assert freed.wait(10), "only the loop sets it, while the pictures are made"

        asked = [asyncio.ensure_future(pipe.generate(**one, callback_on_round_end=hold)) for one in MANY[:3]]
        await asyncio.sleep(0.02)
        assert not any(task.done() for task in asked)
        freed.set()
        return await asyncio.gather(*asked)

    results = asyncio.run(work())
    assert [same(*both) for both in zip(expected, results, strict=True)] == [True] * 3


@pytest.mark.parametrize("own", [True, False])
def test_a_cancelled_task_leaves_the_lanes_free(pipe: Pipeline, own: bool) -> None:
    expected = pipe(PROMPT, steps=STEPS)
    told: list[int] = []
    event = threading.Event()

    async def work() -> None:
        begun = asyncio.Event()
        loop = asyncio.get_running_loop()

        def watch(done: RoundDone) -> None:
            told.append(done.round)
            loop.call_soon_threadsafe(begun.set)
            time.sleep(0.02)

        given: dict[str, Any] = {"cancel": event} if own else {}
        task = asyncio.ensure_future(
            pipe.generate(PROMPT, steps=500, lanes=1, callback_on_round_end=watch, **given)
        )
        await asyncio.wait_for(begun.wait(), 10)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        ended = len(told)
        assert pipe._lanes._threads._state.waiting == [0, 0]
        await asyncio.sleep(0.1)
        assert len(told) == ended < 500, "nothing goes on behind the task's back"
        assert same(expected, await pipe.generate(PROMPT, steps=STEPS))

    asyncio.run(work())
    assert event.is_set() == own


def test_a_task_is_cancelled_while_many_others_are_at_work(pipe: Pipeline) -> None:
    """More of them than a pool of threads has by default."""
    begun, go_on = threading.Semaphore(0), threading.Event()

    def hold(done: RoundDone) -> None:
        begun.release()
        assert go_on.wait(30)

    async def work() -> None:
        others = [
            asyncio.ensure_future(pipe.generate(PROMPT, steps=2, callback_on_round_end=hold))
            for _ in range(40)
        ]
        for _ in others:
            assert await asyncio.to_thread(begun.acquire, timeout=30)
        task = asyncio.ensure_future(pipe.generate(PROMPT, steps=500, lanes=1))
        await asyncio.sleep(0.02)
        task.cancel()
        await asyncio.wait([task], timeout=10)
        assert task.cancelled() and not any(other.done() for other in others)
        go_on.set()
        await asyncio.gather(*others)

    asyncio.run(work())


def test_what_a_call_refuses_is_refused_when_awaited(pipe: Pipeline) -> None:
    with pytest.raises(InputError, match="steps=0"):
        asyncio.run(pipe.generate(PROMPT, steps=0))


def test_unknown_words_are_a_warning_and_the_picture_is_made(pipe: Pipeline) -> None:
    with pytest.warns(PromptWarning, match="'a zebra': the model does not know 'zebra'") as caught:
        assert pipe("a zebra", steps=2).images
    assert caught[0].filename == __file__, "the warning points at the call"
    with pytest.warns(PromptWarning, match="'gnu'"):
        pipe(PROMPT, negative_prompt="gnu", steps=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pipe(PROMPT, negative_prompt="blue", steps=2)


def test_warm_up_predicts_on_every_lane(pipe: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    lanes: list[int] = []
    run = pipe._lanes._threads.run_made

    def spy(count: int, make: Any) -> Any:
        lanes.append(count)
        return run(count, make)

    monkeypatch.setattr(pipe._lanes._threads, "run_made", spy)
    assert pipe.warm_up(batch=2) > 0
    assert lanes == [pipe.devices] == [2]
    assert pipe.warm_up(split_guidance=True) > 0
    assert lanes == [2, 4]
    with pytest.raises(InputError, match="split_guidance must be True or False, not 3"):
        pipe.warm_up(split_guidance=3)  # type: ignore[arg-type]


# What is refused, before any work


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"mode": "agressive"}, "no mode 'agressive'; did you mean 'aggressive'"),
    (
        {"mode": None},
        "mode must be one of sequential, aggressive, conservative, window, tolerance, skip, paradigms, not",
    ),
    ({"mode": ["skip"]}, "mode must be one of"),
    ({"lanes": 0}, "lanes=0 was asked; it must be at least 1"),
    ({"lanes": True}, "lanes must be a whole number"),
    ({"lanes": 2.0}, "lanes must be a whole number"),
    ({"steps": 0}, "steps=0 was asked; it must be from 1 to 1000"),
    ({"steps": -3}, "steps=-3 was asked; it must be from 1 to 1000"),
    ({"steps": 7.5}, "steps must be a whole number from 1 to 1000, not 7.5"),
    ({"steps": True}, "steps must be a whole number from 1 to 1000, not True"),
    ({"steps": 1001}, "steps=1001 was asked; it must be from 1 to 1000"),
    ({"mode": "aggressive", "rounds": 4}, "mode 'aggressive' has a fixed number; leave it out"),
    ({"mode": "skip", "rounds": 51}, "rounds=51 was asked; it must be from 1 to 50"),
    ({"mode": "skip", "rounds": 0}, "rounds=0"),
    ({"scheduler": "dim"}, "no scheduler 'dim'; did you mean 'ddim'"),
    ({"scheduler": 3}, "scheduler must be a name, not 3"),
    ({"scheduler": "flow"}, "does not go with a config of DDIMScheduler"),
    ({"guidance_scale": float("nan")}, "guidance_scale=nan was asked"),
    ({"guidance_scale": float("inf")}, "guidance_scale=inf was asked"),
    ({"guidance_scale": -1}, "guidance_scale=-1 was asked"),
    ({"guidance_scale": "3"}, "guidance_scale must be a number, not '3'"),
    ({"split_guidance": 1}, "split_guidance must be True or False, not 1"),
    ({"split_guidance": None}, "split_guidance must be True or False, not None"),
    ({"split_guidance": "yes", "guidance_scale": 1}, "split_guidance must be True or False, not 'yes'"),
    ({"split_guidence": True}, "no setting 'split_guidence'; did you mean 'split_guidance'"),
    ({"seed": -1}, "seed must be a whole number from 0"),
    ({"seed": 2**64}, "seed must be a whole number from 0"),
    ({"seed": 1.5}, "seed must be a whole number"),
    ({"seed": True}, "seed must be a whole number"),
    ({"seed": "7"}, "seed must be a whole number"),
    ({"seed": [1, 2]}, "2 seeds were given for 1 pictures"),
    ({"seed": []}, "0 seeds were given for 1 pictures"),
    ({"seed": [1.5]}, "seed must be a whole number"),
    ({"num_images": 0}, "num_images must be a whole number of at least 1"),
    ({"num_images": 1.0}, "num_images must be a whole number of at least 1"),
    ({"prompt": []}, "no prompt was given"),
    ({"prompt": 5}, "prompt must be a text, not 5"),
    ({"prompt": None}, "prompt must be a text, not None"),
    ({"prompt": b"a fox"}, "prompt must be a text, not b'a fox'"),
    ({"prompt": ["a fox", 5]}, "prompt must be a text, not 5"),
    ({"prompt": "a \udcff fox"}, "not valid Unicode"),
    ({"negative_prompt": 5}, "negative_prompt must be a text, not 5"),
    ({"callback_on_round_end": 5}, "callback_on_round_end must be a function"),
    ({"clip_skip": -1}, "clip_skip must be a whole number of at least 0"),
    ({"clip_skip": 1}, "was built without its inner layers; leave it out"),
    ({"cancel": True}, "cancel must be a threading.Event, not True"),
    ({"mode": "tolerance", "tolerance": np.ones(2)}, "tolerance must be a number of at least 0, not array"),
    ({"tolerance": np.ones(2)}, "tolerance must be a number of at least 0, not array"),
    ({"mode": "window", "order": np.arange(2)}, "order must be 0, 1, 2 or 'auto', not array"),
    ({"order": np.arange(2)}, "was given, and mode 'auto' chooses it"),
    ({"mode": "window", "carry": np.arange(2)}, "carry must be one of G, x0 or 'auto', not array"),
    ({"clip_skip": np.arange(2)}, "clip_skip must be a whole number of at least 0, not array"),
    ({"negative_prompt": np.arange(2)}, "negative_prompt must be a text, not array"),
    ({"negative_prompt": {}}, "negative_prompt must be a text, not {}"),
    ({"seed": np.array(1.5)}, "seed must be a whole number"),
    *(
        ({"mode": "tolerance", name: 10**digits}, f"{name} is a number of {(10**digits).bit_length()} bits")
        for name in (
            "guidance_scale",
            "tolerance",
            "eta",
            "height",
            "seed",
            "num_images",
            "lanes",
        )
        for digits in (20, 400, 5000)
    ),
]


@pytest.mark.parametrize(("wrong", "message"), REFUSED, ids=[message[:60] for _, message in REFUSED])
def test_a_wrong_argument_is_refused_before_any_work(
    pipe: Pipeline, monkeypatch: pytest.MonkeyPatch, wrong: dict[str, Any], message: str
) -> None:
    pipe.plan(steps=50, lanes=1), pipe.plan(steps=50, lanes=2)  # a plan that is kept must not let it pass
    monkeypatch.setattr(OnnxSession, "run", lambda *_: pytest.fail("a network ran"))
    monkeypatch.setattr(pipe._lanes, "job", lambda *_, **__: pytest.fail("the lanes were asked"))
    with pytest.raises(InputError) as refused:
        pipe(**{"prompt": PROMPT, "steps": 50, **wrong})
    assert message in str(refused.value)


@pytest.mark.parametrize("devices", [0, -1, True, 2.0, "two", [], ["cuda:0"], ["cpu", "gpu"], None, 100_000])
def test_devices_that_cannot_be_had_are_refused(folder: Path, devices: Any) -> None:
    with pytest.raises(InputError, match="devices="):
        Pipeline.load(folder, devices=devices)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"split_guidance": 0}, "split_guidance must be True or False, not 0"),
        ({"guidance_scale": "3"}, "guidance_scale must be a number, not '3'"),
        ({"guidance_scale": -1.0}, "guidance_scale=-1.0 was asked; it must be finite and at least 0"),
        ({"guidance_scle": 3.0}, "no setting 'guidance_scle'; did you mean 'guidance_scale'"),
    ],
)
def test_a_plan_that_cannot_be_is_refused(pipe: Pipeline, settings: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        pipe.plan(**settings)


def test_loading_does_not_fix_how_guidance_is_predicted(folder: Path) -> None:
    with pytest.raises(TypeError, match="split_guidance"):
        Pipeline.load(folder, split_guidance=True)  # type: ignore[call-arg]


def test_devices_may_be_a_number_a_list_or_auto(folder: Path) -> None:
    for devices, count in ((3, 3), (["cpu", "cpu"], 2), (("cpu",), 1)):
        with Pipeline.load(folder, devices=devices) as pipe:
            assert pipe.devices == count
            assert pipe.plan(mode="aggressive").lanes == count
    with Pipeline.load(folder) as pipe:
        assert 1 <= pipe.devices <= 256


def test_a_missing_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no folder"):
        Pipeline.load(str(tmp_path / "none"))
    with pytest.raises(ModelError, match="did you mean 'demo'"):
        Pipeline.load("dmo")
    with pytest.raises(ModelError, match="is not a model folder"):
        Pipeline.load(tmp_path)


@pytest.mark.parametrize("name", ["denoiser", "text_encoder", "vae_decoder"])
def test_a_truncated_network_is_refused(model: Path, name: str) -> None:
    path = model / "onnx" / f"{name}.onnx"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ModelError, match=f"{name}.onnx has .* cut short or was altered; reinstall"):
        Pipeline.load(model)


def test_a_file_of_the_right_size_that_was_altered_is_refused(model: Path) -> None:
    path = model / "onnx" / "denoiser.onnx"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(ModelError, match=r"denoiser\.onnx was altered"):
        Pipeline.load(model)


def test_a_missing_file_is_refused(model: Path) -> None:
    (model / "tokenizer" / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match=r"tokenizer\.json is missing"):
        Pipeline.load(model)


def test_a_network_that_cannot_be_loaded_closes_what_was(model: Path) -> None:
    before = threading.active_count()
    (model / "onnx" / "denoiser.onnx").write_bytes(b"not a network")
    rewrite_manifest(model)
    with pytest.raises(ModelError, match=r"denoiser\.onnx cannot be loaded"):
        Pipeline.load(model)
    assert threading.active_count() == before


def rewrite_manifest(model: Path) -> None:
    """As if the folder had been built as it is now."""
    shapes = json.loads((model / "manifest.json").read_text())["shapes"]
    write_manifest(model, family="demo", precision="", versions={}, shapes=shapes, scaling_factor=1.0)


def test_a_manifest_without_a_shape_is_refused(model: Path) -> None:
    manifest = json.loads((model / "manifest.json").read_text())
    del manifest["shapes"]["picture"]
    (model / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ModelError, match=r"manifest\.json has no shape 'picture' under 'shapes'; reinstall"):
        Pipeline.load(model)


# Closing, and lanes that fail


def test_closing_twice_is_fine_and_a_closed_pipeline_refuses(folder: Path) -> None:
    pipe = Pipeline.load(folder, devices=2)
    pipe(PROMPT, steps=2)
    pipe.close()
    pipe.close()
    with pytest.raises(LaneError, match="the pipeline is closed"):
        pipe(PROMPT, steps=2)
    with pytest.raises(LaneError, match="the pipeline is closed"):
        pipe.warm_up()


@pytest.mark.parametrize("at", [2, 6])
def test_closing_during_a_call_ends_it_as_a_failure_of_the_lanes(folder: Path, at: int) -> None:
    """In the middle, and after the last round, where only the decoder is still to come."""
    pipe = Pipeline.load(folder, devices=2)

    def close(done: RoundDone) -> None:
        if done.round == at:
            pipe.close()

    with pytest.raises(LaneError, match="closed"):
        pipe(PROMPT, steps=STEPS, mode="aggressive", callback_on_round_end=close)


def test_a_failing_lane_reaches_the_caller_and_the_next_call_works(tmp_path: Path) -> None:
    # The tiny denoiser has no embedding for timesteps of 1000 and more.
    config = tiny.SCHEDULER | {"num_train_timesteps": 2000}
    with Pipeline.load(tiny.make_model_folder(tmp_path / "model", config), devices=2) as pipe:
        with pytest.raises(LaneError, match="lane 0 of 2 failed") as failed:
            pipe(PROMPT, steps=STEPS)
        assert isinstance(failed.value.__cause__, ModelError)
        pipe._planner._config = tiny.SCHEDULER
        pipe._planner._plans.clear()
        assert pipe(PROMPT, steps=STEPS).images


@pytest.mark.filterwarnings("ignore:overflow encountered", "ignore:invalid value encountered")
def test_numbers_that_are_not_finite_are_an_error_and_no_picture(pipe: Pipeline) -> None:
    with pytest.raises(ModelError, match="left the range of numbers; lower the guidance scale"):
        pipe(PROMPT, steps=STEPS, guidance_scale=1e38)


def test_plans_are_kept_but_not_for_ever(pipe: Pipeline) -> None:
    assert pipe.plan(steps=7) is pipe.plan(steps=7)
    for steps in range(1, 100):
        pipe.plan(steps=steps, mode="skip", rounds=1)
    assert len(pipe._planner._plans) <= 64
    assert pipe.plan(steps=7).steps == 7


# Numbers that are not finite


def edited(source: Path, target: Path, **entries: Any) -> Path:
    """A copy of a model folder with other entries in its manifest."""
    shutil.copytree(source, target)
    path = target / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))
    return target


def test_a_decoder_that_overflows_is_an_error_and_no_black_picture(folder: Path, tmp_path: Path) -> None:
    broken = edited(folder, tmp_path / "model", scaling_factor=1e-38)
    said = pytest.raises(NonFiniteError, match="the decoder gave numbers that are not finite")
    with Pipeline.load(broken, devices=1) as pipe, said:
        pipe(PROMPT, steps=STEPS)


def test_retry_in_fp32_makes_the_picture_with_the_other_folder(folder: Path, tmp_path: Path) -> None:
    broken = edited(folder, tmp_path / "model", scaling_factor=1e-38)
    single = edited(folder, tmp_path / "model-fp32", precision="fp32")
    with Pipeline.load(single, devices=1) as pipe:
        wanted = pipe(PROMPT, steps=STEPS)
    with Pipeline.load(broken, devices=1, nan_policy="retry-fp32") as pipe:
        for _ in range(2):
            with pytest.warns(PrecisionWarning, match=f"made again with {single}"):
                got = pipe(PROMPT, steps=STEPS)
            assert got.images[0].tobytes() == wanted.images[0].tobytes()
    pipe.close()


def test_a_picture_that_was_made_again_names_the_weights_that_made_it(folder: Path, tmp_path: Path) -> None:
    broken = edited(folder, tmp_path / "model", scaling_factor=1e-38)
    files = json.loads((folder / "manifest.json").read_text())["files"]
    files["onnx/denoiser.onnx"]["sha256"] = "5" * 64
    edited(folder, tmp_path / "model-fp32", precision="fp32", files=files)
    with Pipeline.load(broken, devices=1, nan_policy="retry-fp32") as pipe:
        with pytest.warns(PrecisionWarning):
            got = pipe(PROMPT, steps=STEPS)
        assert got.settings[0]["model_hash"] == "5" * 10 != pipe.model_hash


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"nan_policy": "retry"}, "there is no nan_policy 'retry'; did you mean 'retry-fp32'"),
        ({"fp32_model": "x"}, "it goes with nan_policy 'retry-fp32'"),
        (
            {"nan_policy": "retry-fp32", "fp32_model": "SELF"},
            "build the same checkpoint with --precision fp32",
        ),
    ],
)
def test_what_cannot_be_retried_is_refused_at_load(folder: Path, options: dict[str, str], said: str) -> None:
    given = {name: str(folder) if value == "SELF" else value for name, value in options.items()}
    with pytest.raises(InputError, match=said):
        Pipeline.load(folder, devices=1, **given)
