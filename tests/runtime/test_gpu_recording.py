"""What a recorder takes down of pictures on simulated GPUs, and what their buffers take."""

from __future__ import annotations

import json
import warnings
from collections import Counter, defaultdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import gpulanes
import numpy as np
import pytest

import driffusion_trt as dt
from driffusion_trt.benchmark.memory import peaks
from driffusion_trt.benchmark.stages import split
from driffusion_trt.cli import main
from driffusion_trt.sampling.recording import LEAD, Recorder, Span

pytest_plugins = ("cudasim.fixtures",)

PROMPT, STEPS = "a red fox left of a blue star", 8
DELAY_US = 400
SLACK_S = 5e-3  # until the host of a busy machine notices that an event came, which sets a device's clock


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return gpulanes.planned_model(tmp_path_factory.mktemp("planned") / "model")


@pytest.fixture(autouse=True)
def machine(gpu_machine: Any) -> Any:
    gpu_machine.configure(2, delays=1, delay_us=DELAY_US)
    return gpu_machine


def recorded(pipe: dt.Pipeline, **options: Any) -> tuple[Any, Recorder]:
    recorder = Recorder()
    settings = {"steps": STEPS, "seed": 3, "mode": "aggressive", "lanes": 2, **options}
    return pipe(PROMPT, recorder=recorder, **settings), recorder


def by_track(recorder: Recorder, name: str) -> dict[str, list[Span]]:
    found: defaultdict[str, list[Span]] = defaultdict(list)
    for one in recorder.spans:
        if one.name == name:
            found[one.track].append(one)
    return found


@pytest.mark.parametrize(
    ("options", "tracks"),
    [
        ({"mode": "sequential", "lanes": 1}, ["lane 0"]),
        ({}, ["lane 0", "lane 1"]),
        ({"mode": "tolerance"}, ["lane 0", "lane 1"]),
        ({"lanes": 4}, ["lane 0", "lane 1"]),
        ({"mode": "sequential", "lanes": 1, "split_guidance": True}, ["lane 0.0", "lane 0.1"]),
    ],
    ids=str,
)
def test_spans_of_a_picture(planned: Path, options: dict[str, Any], tracks: list[str]) -> None:
    with dt.Pipeline.load(planned, devices="cuda") as pipe:
        result, recorder = recorded(pipe, **options)
        plain = pipe(PROMPT, **{"steps": STEPS, "seed": 3, "mode": "aggressive", "lanes": 2, **options})
    np.testing.assert_array_equal(result.latents, plain.latents)
    predicted = by_track(recorder, "predict")
    assert set(predicted) == set(tracks)
    rounds = range(1, result.stats.rounds + 1)
    for name in ("draft", "wait", "refine"):
        assert [one.round for one in by_track(recorder, name)[LEAD]] == list(rounds)
    looks = by_track(recorder, "look").get(LEAD, [])
    assert bool(looks) == (options.get("mode") == "tolerance")
    for look in looks:
        (refine,) = [one for one in by_track(recorder, "refine")[LEAD] if one.round == look.round]
        assert refine.end_s == look.start_s < look.end_s
        (draft,) = [one for one in by_track(recorder, "draft")[LEAD] if one.round == look.round + 1]
        assert draft.start_s == look.end_s
    for spans in predicted.values():
        assert all(one.end_s <= other.start_s for one, other in pairwise(spans)), "one at a time"
    drafts = {one.round: one for one in by_track(recorder, "draft")[LEAD]}
    refines = {one.round: one for one in by_track(recorder, "refine")[LEAD]}
    for track, spans in predicted.items():
        parts = [by_track(recorder, name)[track] for name in ("fetch", "network", "send")]
        for whole, *inner in zip(spans, *parts, strict=True):
            assert whole.start_s <= inner[0].start_s and inner[-1].end_s <= whole.end_s
            assert all(one.end_s <= other.start_s + 1e-9 for one, other in pairwise(inner))
            assert drafts[whole.round].end_s <= whole.start_s + SLACK_S
            assert whole.end_s <= refines[whole.round].start_s + SLACK_S


def test_the_stages_add_up(planned: Path) -> None:
    with dt.Pipeline.load(planned, devices="cuda") as pipe:
        result, recorder = recorded(pipe)
    found = split(recorder, result.timings.total_ms)
    assert len(found.rounds_ms) == result.stats.rounds and min(found.rounds_ms) > 0
    assert sum(found.stages.values()) == pytest.approx(result.timings.total_ms)
    assert all(found.stages[name] > 0 for name in ("tokenize", "encode", "draft", "network", "decode"))
    assert found.stages["exchange"] > 0, "every copy is delayed"
    assert found.stages["look"] == 0


def test_looks_are_a_stage_of_their_own(planned: Path) -> None:
    with dt.Pipeline.load(planned, devices="cuda") as pipe:
        recorded(pipe, mode="tolerance")
        result, recorder = recorded(pipe, mode="tolerance")
    found = split(recorder, result.timings.total_ms)
    assert found.stages["look"] == pytest.approx(sum(one.ms for one in by_track(recorder, "look")[LEAD]))
    assert found.stages["look"] > 0 and sum(found.stages.values()) == pytest.approx(result.timings.total_ms)


def test_without_a_recorder_nothing_is_timed(planned: Path, machine: Any) -> None:
    """Events with timing cost time on the device, and each is a call of the driver."""

    def calls(recorder: Recorder | None) -> Counter[str]:
        before = Counter(machine.calls())
        pipe(PROMPT, steps=STEPS, mode="aggressive", lanes=2, recorder=recorder)
        return Counter(machine.calls()) - before

    with dt.Pipeline.load(planned, devices="cuda") as pipe:
        calls(None)
        plain, timed = calls(None), calls(Recorder())
    assert plain["cuEventElapsedTime"] == plain["cuEventCreate"] == 0
    assert timed["cuEventElapsedTime"] > 0 and timed["cuEventCreate"] == timed["cuEventDestroy"] > 0
    assert {kind: count for kind, count in machine.live_objects().items() if count} == {}


def test_a_device_that_fails_leaves_the_spans_of_the_picture_that_was_made(
    planned: Path, machine: Any
) -> None:
    with dt.Pipeline.load(planned, devices="cuda") as pipe:
        recorded(pipe)
        machine.fail("cuGraphLaunch", 719, call=3, device=1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", dt.pipeline.LaneWarning)  # type: ignore[attr-defined]
            result, recorder = recorded(pipe)
    assert set(by_track(recorder, "predict")) == {"lane 0"}
    assert len(by_track(recorder, "draft")[LEAD]) == result.stats.rounds
    assert len(by_track(recorder, "decode")["host"]) == 1


def test_what_buffers_take(planned: Path) -> None:
    settings = {"steps": STEPS, "seed": 3, "mode": "sequential", "lanes": 1}
    found = peaks(str(planned), ["cuda:0", "cuda:1"], {}, PROMPT, settings)
    assert found["process_peak_resident_bytes"] > 1 << 20
    lead, other = found["gpus"].values()
    assert 0 < lead["buffers_peak_bytes"] <= lead["in_use_bytes"]
    assert lead["buffers_peak_bytes"] > other["buffers_peak_bytes"], "one lane works on the lead alone"
    settings |= {"mode": "aggressive", "lanes": 2}
    _, both = peaks(str(planned), ["cuda:0", "cuda:1"], {}, PROMPT, settings)["gpus"].values()
    assert both["buffers_peak_bytes"] > other["buffers_peak_bytes"]


def test_bench_on_gpus(planned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["bench", "--model", str(planned), "--devices", "cuda", "--steps", "6", "--lanes", "2", "-q"]
    files = [f"--{name}={tmp_path / name}" for name in ("json", "trace")]
    assert main([*words, "--modes", "aggressive,split", "--iterations", "2", "--no-memory", *files]) == 0
    found = json.loads((tmp_path / "json").read_text("utf-8"))
    assert found["settings"]["devices"] == "GPU 0 (Simulated GPU), GPU 1 (Simulated GPU)"
    assert [gpu["name"] for gpu in found["machine"]["gpus"]] == ["Simulated GPU"] * 2
    for cell in found["cells"]:
        assert cell["round_network_ms"]["p50"] > 0 and cell["memory"] is None
    assert found["cells"][2]["drift"]["relative_l2"]["worst"] < 1e-4, "split is exact"
    events = json.loads((tmp_path / "trace").read_text("utf-8"))["traceEvents"]
    tracks = [one["args"]["name"] for one in events if one["name"] == "thread_name"]
    assert tracks[-4:] == ["host", "lead", "lane 0.0", "lane 0.1"]
    assert main([*words, "--modes", "sequential:threads=2"]) == 2
    assert "threads are of CPU lanes" in capsys.readouterr().err
