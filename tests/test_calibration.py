"""calibration.json: what it keeps, when it is refused, and what the plans of a model make of it."""

from __future__ import annotations

import itertools
import json
import os
import threading
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny

import driffusion_trt as dt
from driffusion_trt import calibration
from driffusion_trt._calibrate import TOLERANCES, _weights, costs_of, growth_of, measure, share_of
from driffusion_trt._manifest import write_manifest
from driffusion_trt._planner import Planner
from driffusion_trt.calibration import Calibration, CalibrationWarning, Entry, Growth, Spent, add_entries
from driffusion_trt.cli import main
from driffusion_trt.engines.lock import lock_folder
from driffusion_trt.engines.manifest import ModelFolder
from driffusion_trt.pictures import read_settings
from driffusion_trt.sampling.measure import MeasuringPlan
from driffusion_trt.sampling.sample import Stats
from driffusion_trt.sampling.window import strides

STEPS = 9


@pytest.fixture
def folder(tmp_path: Path) -> ModelFolder:
    return ModelFolder.open(tiny.make_model_folder(tmp_path / "tiny"))


KEPT = {4: (3, 3, 2), 5: (1, 3, 3, 1), 9: (1,) * 8}


def entry(**changed: Any) -> Entry:
    """Of 9 steps on 3 lanes, with blocks that even strides are not."""
    made = Entry(
        "ddim",
        STEPS,
        3.0,
        3,
        32,
        "G",
        1,
        KEPT,
        {4: 0.02, 5: 0.01, 9: 0.0},
        {4: 0.03, 5: 0.015, 9: 0.0},
        {0.003: Spent(8.5, 9.0), 0.01: Spent(6.25, 7.0), 0.05: Spent(6.5, 6.75)},
        Growth(1.2, 0.5),
    )
    return replace(made, **changed)


def test_what_is_written_is_read(folder: ModelFolder) -> None:
    assert Calibration.read(folder) == Calibration()
    first, other = entry(), entry(guidance_scale=7.5, pairs=8)
    add_entries(folder, [other])
    add_entries(folder, [first])
    assert Calibration.read(folder).entries == (first, other)
    newer = entry(pairs=64)
    add_entries(folder, [newer])
    assert Calibration.read(folder).entries == (newer, other), "over the older one of the same request"
    assert [path.name for path in folder.path.iterdir() if "calibration" in path.name] == ["calibration.json"]
    assert not (folder.path / ".build.lock").exists()
    assert os.stat(folder.path / "calibration.json").st_mode & 0o777 == 0o644


def test_two_writers_lose_nothing(folder: ModelFolder) -> None:
    """The second waits its turn by hand: a lock that is held is refused, and nothing is lost."""
    with lock_folder(folder.path), pytest.raises(dt.ModelError, match="is being built by another"):
        in_thread(lambda: add_entries(folder, [entry()]))
    add_entries(folder, [entry()])
    assert len(Calibration.read(folder).entries) == 1


def in_thread(work: Any) -> None:
    failure: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if failure:
        raise failure[0]


def test_an_interrupted_write_leaves_the_old_file(
    folder: ModelFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_entries(folder, [entry()])
    before = (folder.path / "calibration.json").read_bytes()
    monkeypatch.setattr(calibration.os, "replace", lambda *_: (_ for _ in ()).throw(OSError("no")))
    with pytest.raises(OSError, match="no"):
        add_entries(folder, [entry(guidance_scale=5.0)])
    assert (folder.path / "calibration.json").read_bytes() == before
    assert not list(folder.path.glob(".calibration*"))


def altered(data: dict[str, Any], **changed: Any) -> dict[str, Any]:
    return {**data, "entries": [{**data["entries"][0], **changed}]}


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda text: text[:-40], "cannot be read"),
        (lambda text: "[]", "has format None, this version reads 1; remove it"),
        (lambda text: text.replace('"format": 1', '"format": 9'), "has format 9"),
        (lambda text: text.replace('"network"', '"net"'), r"is damaged \(KeyError: 'network'\)"),
        (lambda text: text.replace('"lanes": 3', '"lanes": 2'), "blocks of 4 rounds are"),
        (lambda text: text.replace("[3, 3, 2]", "[3, 3, 1]"), "blocks of 4 rounds are"),
        (lambda text: text.replace("[3, 3, 2]", "7"), "is damaged"),
        (lambda text: text.replace('"errors": {"4": 0.02', '"errors": {"6": 0.02'), "errors are not those"),
        (lambda text: text.replace('"4": 0.02', '"4": NaN'), "a figure is not a number of at least 0"),
        (lambda text: text.replace('"0.003"', '"-1"'), "a figure is not a number of at least 0"),
    ],
)
def test_a_damaged_file_is_refused(folder: ModelFolder, spoil: Any, message: str) -> None:
    add_entries(folder, [entry()])
    path = folder.path / "calibration.json"
    path.write_text(spoil(path.read_text()))
    for work in (lambda: Calibration.read(folder), lambda: add_entries(folder, [entry()])):
        with pytest.raises(dt.ModelError, match=message):
            work()
    with pytest.raises(dt.ModelError, match=message):
        Planner(folder).plan(3, mode="window", lanes=3, steps=STEPS)
    assert Planner(folder).plan(3, mode="aggressive", lanes=3, steps=STEPS).sequential_calls == 4, (
        "it is of windows"
    )


def rebuilt(folder: ModelFolder) -> ModelFolder:
    """The folder after its denoiser was built from other weights."""
    tiny.make_denoiser(folder.path / "onnx" / "denoiser.onnx", seed=1)
    manifest = folder.manifest
    write_manifest(
        folder.path,
        family=manifest.family,
        precision=manifest.precision,
        versions=manifest.versions,
        shapes=manifest.shapes,
        scaling_factor=manifest.scaling_factor,
    )
    return ModelFolder.open(folder.path, verify=True)


def test_that_of_another_network_is_told_and_not_used(folder: ModelFolder) -> None:
    add_entries(folder, [entry()])
    other = rebuilt(folder)
    assert "calibration.json" not in other.manifest.files, "it comes and goes without the manifest"
    found = Calibration.read(other)
    assert not found.entries and "was measured with another network" in found.notice
    with pytest.raises(dt.ModelError, match="another network than the folder has; remove it to calibrate"):
        add_entries(other, [entry()])
    with pytest.warns(CalibrationWarning, match="another network .* it is not used"):
        plan = Planner(other).plan(3, mode="window", lanes=3, steps=STEPS)
    assert plan.blocks == strides(STEPS, 4, short_last=False)[1:]


def test_a_folder_that_cannot_be_written_to_is_refused(
    folder: ModelFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(calibration.tempfile, "mkstemp", refuse)
    with pytest.raises(dt.ModelError, match=r"cannot be written to \(Permission denied\)"):
        add_entries(folder, [entry()])


# Entries


def test_the_nearest_guidance_scale_is_found() -> None:
    made = [entry(guidance_scale=scale) for scale in (1.0, 3.0, 5.0, 7.5)]
    found = Calibration(tuple(made))

    def scale(asked: float, **changed: Any) -> float | None:
        what: dict[str, Any] = {"solver": "ddim", "steps": STEPS, "lanes": 3} | changed
        got = found.find(guidance_scale=asked, **what)
        return None if got is None else got.guidance_scale

    asked = (0.0, 1.0, 1.9, 2.1, 4.0, 6.0, 6.5, 100.0)
    assert [scale(one) for one in asked] == [1.0, 1.0, 1.0, 3.0, 5.0, 5.0, 7.5, 7.5]
    assert scale(3.0, solver="euler") is scale(3.0, steps=10) is scale(3.0, lanes=4) is None


def test_rounds_by_tolerance_fall_and_end_with_what_was_measured() -> None:
    one = entry()
    assert [one.rounds(at) for at in (0.002, 0.0029, 0.051, 1.0)] == [None] * 4
    assert one.rounds(0.003) == 8.5 and one.rounds(0.01) == 6.25
    assert one.rounds(0.05) == 6.25, "a few pictures more at a larger tolerance mean nothing"
    assert one.rounds((0.003 * 0.01) ** 0.5) == pytest.approx((8.5 + 6.25) / 2)
    assert one.most_rounds(0.05) == 6.75
    grid = [one.rounds(at) for at in np.geomspace(0.003, 0.05, 40)[1:-1]]
    assert all(a is not None and b is not None and a >= b for a, b in itertools.pairwise(grid))
    assert entry(spent={}).rounds(0.01) is None
    assert one.blocks(4) == (3, 3, 2) and one.blocks(6) is None


# Measuring


def test_costs_are_by_the_longer_of_two_strides() -> None:
    """Each case a constant by stride and steps, so that smoothing leaves it alone."""
    found = [
        {
            (s, at, m): np.array([0.1 * s + 0.01 * m])
            for s in (2, 3)
            for at in range(1, 8)
            for m in range(2, s + 1)
        }
    ] * 2
    costs = costs_of(found, STEPS, 3)
    assert costs.shape == (3, STEPS, 3) and not costs[:, :, 0].any() and not costs[:, 0].any()
    for before, taken, stride in ((1, 2, 2), (2, 2, 2), (3, 2, 3), (1, 3, 3), (3, 3, 3)):
        wanted = (0.1 * stride + 0.01 * taken) ** 2
        assert costs[before - 1, 1:7, taken - 1] == pytest.approx(wanted)


def test_costs_are_smooth_over_a_stride_and_state_1_stands_alone() -> None:
    values = {1: 3.0, 2: 0.1, 3: 0.2, 4: 0.4, 5: 0.8, 6: 0.4, 7: 0.2}
    found = [{(2, at, 2): np.array([value, value])} for at, value in values.items()]
    costs = costs_of(found, STEPS, 2)
    assert costs[0, 1, 1] == pytest.approx(9.0)
    assert costs[0, 4, 1] == pytest.approx((0.2 * 0.4 * 0.8) ** (2 / 3))
    assert costs[0, 2, 1] == pytest.approx((0.1 * 0.2) ** (2 / 2))


def test_windows_that_diverge_are_dear_and_not_free() -> None:
    found = [
        {(2, at, 2): np.array([np.inf if at == 4 else np.nan if at == 5 else 0.1]) for at in range(1, 8)}
    ]
    costs = costs_of(found, STEPS, 2)
    assert np.isfinite(costs).all() and costs[0, 4, 1] > costs[0, 1, 1] > 0


def test_growth_is_a_power_of_the_share(folder: ModelFolder) -> None:
    schedule = Planner(folder).schedule(steps=30)
    states = (3, 6, 10, 15, 20, 25)

    def fitted(power: float, states: tuple[int, ...] = states) -> Growth:
        grown = [{k: np.array([2 * share_of(schedule, k) ** -power, np.nan])} for k in states]
        return growth_of(schedule, grown)

    assert share_of(schedule, 30) == 1.0 > share_of(schedule, 3)
    for power in (0.0, 0.4, 1.1):
        found = fitted(power)
        assert (found.factor, found.power) == (
            pytest.approx(2.0, rel=1e-3),
            pytest.approx(power, rel=1e-3, abs=1e-6),
        )
    assert fitted(-0.5).power == 0.0 and fitted(3.0).power == 1.5
    assert fitted(0.4, (*states[:5], 26)) == Growth(1.0, 0.0), "one has too few steps left to count"
    assert fitted(0.4, states[:3]) == Growth(1.0, 0.0), "too few to tell"


def test_growth_moves_the_blocks(folder: ModelFolder) -> None:
    """The same local errors everywhere: where early ones grow, long rounds come late."""
    schedule = Planner(folder).schedule(steps=STEPS)

    def blocks(power: float) -> tuple[int, ...]:
        def make(plans: Any) -> list[Stats]:
            for plan in plans:
                if isinstance(plan, MeasuringPlan):
                    cases = [(s, at, m) for s in (2, 3) for at in plan.tracks[s] for m in range(2, s + 1)]
                    plan.found.update({(s, at, m): np.array([0.1 * (m - 1)]) for s, at, m in cases})
                    state = 2 + plan.offset % 6
                    plan.grown[state] = np.array([share_of(schedule, state) ** -power])
            return [Stats(5, 0)] * len(plans)

        return measure(make, schedule, lanes=3, guidance_scale=3.0, pairs=12).strides[6]

    late = blocks(1.2)
    assert late == tuple(sorted(late)) and late[0] == 1 < late[-1]


def test_errors_at_the_end_stay_what_they_are(folder: ModelFolder) -> None:
    schedule = Planner(folder).schedule(steps=30)
    weights = _weights(schedule, 2, Growth(0.25, 0.5))
    assert weights[0, 28, 1] == weights[0, 29, 0] == 1.0
    assert weights[0, 23, 1] == pytest.approx(0.25 * share_of(schedule, 25) ** -0.5)
    assert weights[0, 27, 0] == pytest.approx((0.25 * share_of(schedule, 28) ** -0.5) ** 0.4)


def test_an_entry_is_measured(folder: ModelFolder) -> None:
    schedule = Planner(folder).schedule(steps=STEPS)
    asked: list[Any] = []

    def make(plans: Any) -> list[Stats]:
        asked.append(plans)
        for plan in plans:
            if isinstance(plan, MeasuringPlan):
                starts = plan.tracks[3]
                plan.found.update({(3, at, m): np.array([0.1 * m]) for at in starts for m in (2, 3)})
        return [Stats(5 + k, 0) for k in range(len(plans))]

    made = measure(make, schedule, lanes=3, guidance_scale=0.5, pairs=6)
    assert [plan.offset for plan in asked[0]] == list(range(6))
    assert [plans[0].settings.tolerance for plans in asked[1:]] == list(TOLERANCES)
    assert (made.guidance_scale, made.pairs, made.carry, made.order) == (1.0, 6, "G", 1)
    assert made.spent[0.01] == Spent(7.5, pytest.approx(9.5))
    assert set(made.strides) == {4, 5, 6, 7, 8, 9} == set(made.errors) == set(made.even_errors)
    assert all(made.errors[k] <= made.even_errors[k] for k in made.strides)
    assert made.growth == Growth(1.0, 0.0), "no error was followed"
    # Two steps in a track of stride 2 were free, as far as this knows.
    assert made.strides[5] == (2, 2, 2, 2) and made.errors[5] == 0.0


# Plans


def test_windows_take_what_was_calibrated(folder: ModelFolder) -> None:
    add_entries(folder, [entry(), entry(guidance_scale=7.5, strides=KEPT | {4: (2, 3, 3)})])
    planner = Planner(folder)

    def blocks(**settings: Any) -> Any:
        return planner.plan(3, **{"mode": "window", "lanes": 3, "steps": STEPS, **settings}).blocks

    even = {rounds: strides(STEPS, rounds, short_last=False)[1:] for rounds in (4, 5, 6)}
    assert blocks() == (3, 3, 2), "guidance 3 is the demo's own"
    assert blocks(rounds=5) == (1, 3, 3, 1)
    assert blocks(guidance_scale=9.0) == (2, 3, 3)
    assert blocks(order=1, carry="G", height=64, width=64, eta=0.0) == (3, 3, 2)
    assert blocks(rounds=6) == even[6]
    for other in ({"order": 0}, {"carry": "x0"}, {"height": 128}, {"eta": 0.5}, {"scheduler": "euler"}):
        assert blocks(**other) == even[4]
    assert blocks(blocks=(2, 2, 2, 2)) == (2, 2, 2, 2)
    late = planner.plan(3, mode="window", lanes=3, steps=12, strength=0.75)
    assert late.schedule.steps == STEPS and late.blocks == even[4], (
        "what is left of a schedule is another one"
    )
    assert planner.plan(3, mode="aggressive", steps=STEPS).blocks is None
    with pytest.raises(dt.InputError, match="rounds=3 was asked; it must be from 4"):
        blocks(rounds=3)
    with pytest.raises(dt.InputError, match="guidance_scale must be a number"):
        blocks(guidance_scale="high")


def test_guidance_makes_one_plan_where_it_does_not_matter(folder: ModelFolder) -> None:
    planner = Planner(folder)
    one, other = (planner.plan(2, mode="aggressive", guidance_scale=scale) for scale in (3.0, 5.0))
    assert one is other


def test_a_picture_is_replayed_with_the_blocks_it_had(
    folder: ModelFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the folder has been calibrated since."""
    monkeypatch.chdir(tmp_path)
    words = ["--model", str(folder.path), "--steps", str(STEPS), "--mode", "window", "--lanes", "3"]
    assert main(["run", "a red fox", *words, "-o", "before.png"]) == 0
    add_entries(folder, [entry()])
    again = ["run", "--from-picture", "before.png", "--model", str(folder.path), "-o", "again.png"]
    assert main(again) == 0
    assert read_settings("again.png") == read_settings("before.png")
    assert main(["run", "a red fox", *words, "-o", "after.png"]) == 0
    assert read_settings("after.png")["blocks"] == [3, 3, 2] != read_settings("before.png")["blocks"]


# The command


def test_the_command_measures_prints_and_keeps(
    folder: ModelFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("prompts.txt").write_text("# two of them\na red fox\na blue star\n")
    words = [
        "plan",
        "--calibrate",
        str(folder.path),
        "--prompts",
        "prompts.txt",
        "a green cat",
        "--seeds",
        "2",
    ]
    words += ["--steps", str(STEPS), "--lanes", "3", "--guidance-scale", "2"]
    assert main([*words, "--devices", "2"]) == 0
    out, err = capsys.readouterr()
    assert "pairs of prompt and seed: 6, which is few" in err and "calibration.json" in err
    (made,) = Calibration.read(folder).entries
    assert (made.solver, made.steps, made.guidance_scale, made.lanes, made.pairs) == ("ddim", 9, 2.0, 3, 6)
    assert out.splitlines()[0] == "9 steps of ddim, 3 lanes, guidance 2; 6 pairs"
    rows = {line.split()[0]: line.split()[1:] for line in out.splitlines() if line[:6].strip().isdigit()}
    assert rows["4"] == [
        f"{made.even_errors[4]:.2e}",
        f"{made.errors[4]:.2e}",
        ",".join(map(str, made.strides[4])),
    ]
    assert made.errors[9] == 0.0 and 0 < made.errors[4] <= made.even_errors[4]
    assert all(4 <= one.mean <= one.most <= 9 for one in made.spent.values())
    # One device instead of two, and one thread: the same figures.
    assert main([*words, "--devices", "1", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["path"].endswith("calibration.json") and facts["lanes"] == 3
    assert Calibration.read(folder).entries == (made,)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--calibrate MODEL", "--calibrate needs --prompts"),
        (
            "--calibrate MODEL --prompts a+fox --lanes 1",
            "lanes=1 was asked; windows to be calibrated have 2 to 16",
        ),
        ("--calibrate MODEL --prompts a+fox --lanes 17", "lanes=17 was asked"),
        ("--calibrate MODEL --prompts a+fox --seeds 0", "seeds=0 was asked"),
        (
            "--calibrate MODEL --prompts a+fox --mode window",
            "--mode was given; it does not go with --calibrate",
        ),
        ("--calibrate MODEL --prompts a+fox --timeline", "--timeline was given; it does not go with"),
        (
            "--calibrate MODEL --prompts a+fox --model demo",
            "--model was given; with --calibrate the folder is",
        ),
        ("--calibrate MODEL --prompts a+fox --guidance-scale -1", "guidance_scale=-1.0 was asked"),
        ("--prompts a+fox", "--prompts was given; it goes with --calibrate"),
        ("--force", "--force was given; it goes with --calibrate"),
        (
            "--calibrate MODEL --prompts prompts.txt",
            "there is no file 'prompts.txt', and it looks like the name",
        ),
        ("--calibrate MODEL --prompts a+fox my+prompts.txt", "there is no file 'my prompts.txt'"),
        ("--calibrate MODEL --prompts fox", "there is no file 'fox'"),
        ("--calibrate demo --prompts a+fox", "demo comes with the package"),
        ("--seeds 3", "--seeds was given; it goes with --calibrate"),
    ],
)
def test_misuse_is_refused_before_any_work(
    folder: ModelFolder, words: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = words.replace("MODEL", str(folder.path)).split()
    assert main(["plan", *(word.replace("+", " ") for word in asked)]) == 2
    assert message in capsys.readouterr().err
    assert not (folder.path / "calibration.json").exists()


def test_what_was_measured_on_more_pairs_stays_unless_it_is_forced(
    folder: ModelFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        "plan",
        "--calibrate",
        str(folder.path),
        "--prompts",
        "a red fox",
        "--steps",
        "2",
        "--lanes",
        "2",
    ]
    assert main([*words, "--seeds", "2"]) == 0
    assert main([*words, "--guidance-scale", "2"]) == 0, "of another request"
    kept = Calibration.read(folder).entries
    capsys.readouterr()
    assert main(words) == 2
    said = "pairs of prompt and seed: 1, and what is kept of this request was measured on 2; give more"
    assert said in capsys.readouterr().err and Calibration.read(folder).entries == kept
    assert main([*words, "--force"]) == 0
    assert sorted(one.pairs for one in Calibration.read(folder).entries) == [1, 1]


def test_few_steps_are_calibrated_too(folder: ModelFolder, capsys: pytest.CaptureFixture[str]) -> None:
    for steps in ("1", "2", "3"):
        words = ["plan", "--calibrate", str(folder.path), "--prompts", "a red fox", "--steps", steps]
        assert main([*words, "--lanes", "4"]) == 0
    assert [max(one.strides) for one in Calibration.read(folder).entries] == [1, 2, 3]


@pytest.mark.filterwarnings("ignore:(overflow|invalid value) encountered:RuntimeWarning")
def test_pictures_that_are_not_finite_end_it(folder: ModelFolder, capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "plan",
        "--calibrate",
        str(folder.path),
        "--prompts",
        "a red fox",
        "--steps",
        "9",
        "--lanes",
        "2",
    ]
    assert main([*words, "--guidance-scale", "1e38"]) == 1
    assert "'a red fox' with seed 0 and guidance_scale 1e+38 left the range" in capsys.readouterr().err
    assert not (folder.path / "calibration.json").exists()


def test_a_damaged_or_stale_file_is_told_before_any_work(
    folder: ModelFolder, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from driffusion_trt.commands import _calibrating

    monkeypatch.setattr(_calibrating, "Stages", lambda *_: pytest.fail("the model was loaded"))
    add_entries(folder, [entry()])
    words = ["plan", "--calibrate", str(rebuilt(folder).path), "--prompts", "a fox"]
    assert main(words) == 1
    assert "was measured with another network" in capsys.readouterr().err
    (folder.path / "calibration.json").write_text("{}")
    assert main(words) == 1
    assert "remove it and calibrate again, or restore it" in capsys.readouterr().err


def test_a_copy_of_the_bundled_model_keeps_its_calibration(tmp_path: Path) -> None:
    from driffusion_trt.commands._building import _copy_bundled

    bundled = ModelFolder.open("demo")
    _copy_bundled("demo", tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert Calibration.read(ModelFolder.open(tmp_path)) == Calibration.read(bundled)


def test_the_bundled_model_is_calibrated() -> None:
    folder = ModelFolder.open("demo")
    found = Calibration.read(folder)
    there = {(one.steps, one.guidance_scale, one.lanes) for one in found.entries}
    kinds = itertools.product((10, 20, 30, 50), (1.0, 3.0, 5.0, 7.5), (2, 3, 4, 8))
    assert there == set(kinds) and {(one.solver, one.pairs) for one in found.entries} == {("ddim", 8)}
    for one in (one for one in found.entries if one.steps == 50):
        assert set(one.spent) == set(TOLERANCES)
        assert all(one.errors[rounds] <= one.even_errors[rounds] for rounds in one.strides)
        assert set(one.strides) == set(range(1 + -(-49 // one.lanes), 51))
    plan = Planner(folder).plan(2, mode="window", lanes=4, rounds=20)
    entry = found.find(solver="ddim", steps=50, guidance_scale=3.0, lanes=4)
    assert entry is not None and plan.blocks == entry.blocks(20) != strides(50, 20, short_last=False)[1:]
    assert (folder.path / "calibration.json").stat().st_size < 120_000
