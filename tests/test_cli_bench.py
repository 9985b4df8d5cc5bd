"""`driffusion-trt bench`: what it measures, writes and refuses, and what Ctrl-C leaves."""

from __future__ import annotations

import csv
import importlib.util
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st

from driffusion_trt import DeviceError
from driffusion_trt.benchmark import measuring, memory
from driffusion_trt.benchmark.cells import SEQUENTIAL
from driffusion_trt.benchmark.measuring import Measured, order
from driffusion_trt.benchmark.report import _memory
from driffusion_trt.benchmark.stages import STAGES
from driffusion_trt.cli import main
from driffusion_trt.commands import _benchmarking

Found = dict[str, Any]
GUIDE = Path(__file__).resolve().parent.parent / "docs" / "benchmarking.md"
FEW = ("--steps", "6", "--iterations", "3", "--no-memory")
SIX = ("--steps", "6", "--iterations", "6", "--no-memory")  # from which there are intervals


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny.make_model_folder(tmp_path_factory.mktemp("models") / "tiny"))


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def bench(model: str, *words: str) -> int:
    return main(["bench", "--model", model, "--devices", "cpu,cpu", *words])


@pytest.fixture(scope="module")
def ran(model: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the results of one run; not to be changed."""
    folder = tmp_path_factory.mktemp("ran")
    (folder / "prompts.txt").write_text("a red fox\n# not this\na blue star\n", "utf-8")
    modes = "aggressive,skip:rounds=4,split,sequential:threads=2,auto:quality=exact"
    files = [f"--{name}={folder / f'run.{name}'}" for name in ("json", "csv", "trace")]
    words = ["--modes", modes, "--lanes", "2,3", "--prompts", str(folder / "prompts.txt"), "--seed", "5"]
    assert bench(model, *SIX, *words, *files) == 0
    return folder


@pytest.fixture
def found(ran: Path) -> Found:
    read: Found = json.loads((ran / "run.json").read_text("utf-8"))
    return read


def named(found: Found) -> dict[str, Found]:
    return {cell["name"]: cell for cell in found["cells"]}


# What is measured


def test_ratios_are_of_one_repetition(found: Found) -> None:
    cells = named(found)
    sequential = cells["sequential"]["raw"]["latency_ms"]
    assert list(cells) == [
        *("sequential", "aggressive:lanes=2", "aggressive:lanes=3", "skip:rounds=4", "split"),
        *("sequential:threads=2", "auto:quality=exact:lanes=2", "auto:quality=exact:lanes=3"),
    ]
    for cell in cells.values():
        raw = cell["raw"]
        assert len(raw["latency_ms"]) == len(raw["speedup"]) == len(raw["relative_l2"]) == 6
        ratios = np.divide(sequential, raw["latency_ms"])
        np.testing.assert_allclose(raw["speedup"], ratios)
        assert cell["speedup"]["median"] == pytest.approx(np.median(ratios))
        assert cell["speedup"]["low"] <= cell["speedup"]["median"] <= cell["speedup"]["high"]
        assert cell["latency_ms"]["p50"] == pytest.approx(np.median(raw["latency_ms"]))
        assert 0 < cell["denoise_ms"]["p50"] < cell["latency_ms"]["p50"]


def test_plans_rounds_and_drift(found: Found) -> None:
    cells = named(found)
    assert cells["sequential"]["rounds"] == {"mean": 6, "least": 6, "most": 6}
    assert cells["aggressive:lanes=3"]["rounds"]["mean"] == 3 < cells["aggressive:lanes=2"]["rounds"]["mean"]
    assert cells["aggressive:lanes=3"]["predictions"]["mean"] == 6
    assert cells["skip:rounds=4"]["rounds"]["mean"] == cells["skip:rounds=4"]["predictions"]["mean"] == 4
    assert cells["aggressive:lanes=2"]["plan"]["ideal_speedup"] == pytest.approx(6 / 4)
    assert cells["split"]["plan"]["split_guidance"] is True
    assert cells["auto:quality=exact:lanes=2"]["plan"]["mode"] == "sequential"
    for name, cell in cells.items():
        drift = cell["drift"]["relative_l2"]
        assert drift["worst"] == max(cell["raw"]["relative_l2"]) >= drift["mean"]
        exact = name.startswith(("sequential", "split", "auto"))
        assert drift["worst"] < 1e-4 if exact else drift["worst"] > 1e-3, name
    assert cells["sequential"]["drift"]["relative_l2"] == {"mean": 0.0, "worst": 0.0}
    assert len(set(cells["skip:rounds=4"]["raw"]["relative_l2"])) == 6, "another picture each time"


def keys_of(title: str) -> set[str]:
    """The keys in the first column of a table of the guide, from the line `title` on."""
    text = GUIDE.read_text("utf-8")
    table = text[text.index(title) :].split("\n\n")[1 if title.startswith("Each") else 2]
    rows = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    return {name for row in rows for name in re.findall(r"`(\w+)`", row)}


def test_the_json_is_as_its_guide_says(found: Found) -> None:
    assert set(found) == keys_of("## The JSON")
    for cell in found["cells"]:
        assert set(cell) == keys_of("Each cell:")
        assert set(cell["stages_ms"]) == set(STAGES)
        for name in ("latency_ms", "denoise_ms", "round_network_ms"):
            assert set(cell[name]) == {"p50", "p90", "p99"}
    assert (found["kind"], found["format"], found["complete"]) == ("driffusion-trt bench", 1, True)
    assert found["iterations"] == found["repetitions"] == 6
    wanted = {"steps": 6, "seed": 5, "batch_size": 1, "prompts": ["a red fox", "a blue star"]}
    assert wanted.items() <= found["settings"].items() and found["settings"]["devices"] == "2 CPU threads"
    assert found["machine"]["cores"] >= 1 and found["machine"]["processor"] and found["machine"]["gpus"] == []
    assert {"python", "numpy", "onnxruntime"} <= set(found["versions"])
    assert found["model"].keys() == {"family", "model_hash", "precision"}


def test_every_stage_is_named_in_the_guide() -> None:
    rows = [line.split("|")[1] for line in GUIDE.read_text("utf-8").splitlines() if line.startswith("  | `")]
    assert {name for row in rows for name in re.findall(r"`(\w+)`", row)} == {*STAGES}


def test_the_csv_has_the_figures_of_the_json(ran: Path, found: Found) -> None:
    with (ran / "run.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == list(named(found))
    for row, cell in zip(rows, found["cells"], strict=True):
        assert float(row["latency_p99_ms"]) == cell["latency_ms"]["p99"]
        assert float(row["speedup_low"]) == cell["speedup"]["low"]
        assert float(row["relative_l2_worst"]) == cell["drift"]["relative_l2"]["worst"]
        assert float(row["network_p50_ms"]) == cell["stages_ms"]["network"]["p50"]
        assert row["process_peak_resident_bytes"] == row["gpu_in_use_bytes"] == ""
    assert rows[0]["psnr_db_mean"] == "" and float(rows[3]["psnr_db_mean"]) > 0


def test_the_trace_has_a_process_for_each(ran: Path, found: Found) -> None:
    events = json.loads((ran / "run.trace").read_text("utf-8"))["traceEvents"]
    processes = [one["args"]["name"] for one in events if one["name"] == "process_name"]
    assert processes == list(named(found))
    lanes = [one for one in events if one["name"] == "thread_name" and one["args"]["name"] == "lane 1"]
    assert len(lanes) == 3, "of aggressive twice, and of split"
    count = sum(one["name"] == "predict" and one["pid"] == 2 for one in events)
    assert count == named(found)["aggressive:lanes=2"]["predictions"]["mean"]


def test_the_bundled_model_by_default(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = "bench --modes aggressive --lanes 2 --steps 4 --iterations 2 --no-memory --batch-size 2"
    assert main([*words.split(), "--json", "out.json"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("demo (") and "4 steps of ddim" in out and "repetitions: 2\n" in out
    table = [line for line in out.splitlines() if line.startswith("aggressive")]
    assert len(table) == 2 and "network/round" in out, "speed, and stages"
    assert "repetitions: 2; from 6 on there are intervals" in err
    assert "written to out.json" in err and "does not know" not in err
    found = json.loads((here / "out.json").read_text("utf-8"))
    assert found["cells"][1]["speedup"]["low"] is None, "two repetitions have no interval"
    assert len(found["cells"][1]["raw"]["relative_l2"]) == 4 and len(found["settings"]["prompts"]) >= 8


@given(st.integers(1, 12))
def test_the_order_is_of_all_cells_and_the_same_in_every_run(cells: int) -> None:
    turns = [order(cells, k) for k in range(cells)]
    assert all(sorted(turn) == list(range(cells)) for turn in turns)
    assert turns == [order(cells, k) for k in range(cells)]


def test_no_cell_always_follows_the_same_one() -> None:
    turns = [order(6, k) for k in range(20)]
    assert {turn[0] for turn in turns} == set(range(6))
    for cell in range(6):
        after = {turn[turn.index(cell) - 1] for turn in turns if turn[0] != cell}
        assert len(after) >= 4, "a rotation would give it one neighbour"


def test_cells_take_turns_on_the_same_picture(
    model: str, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[str, int]] = []
    pictures: list[tuple[str, int]] = []
    make = measuring._call

    def noted(job: Any, cell: Any, pipe: Any, repetition: int) -> Any:
        calls.append((cell.spelt, repetition))
        once = make(job, cell, pipe, repetition)
        (settings,) = once.result.settings
        pictures.append((settings["prompt"], settings["seed"]))
        return once

    monkeypatch.setattr(measuring, "_call", noted)
    (here / "two.txt").write_text("a red fox\na blue star\n", "utf-8")
    words = ("--modes", "aggressive,skip", "--lanes", "2", "--prompts", "two.txt", "--seed", "7")
    assert bench(model, *FEW, *words) == 0
    wanted = [("a red fox", 7), ("a blue star", 8), ("a red fox", 9)]
    assert pictures == [one for one in (wanted[0], *wanted) for _ in range(3)]
    names = ["sequential", "aggressive", "skip"]
    turns = [[(names[cell], k) for cell in order(3, k)] for k in range(3)]
    assert calls == [(name, 0) for name in names] + [one for turn in turns for one in turn]


# Memory


def test_memory_is_that_of_a_process_of_its_own(model: str, here: Path) -> None:
    words = ("--steps", "4", "--iterations", "1", "--modes", "aggressive", "--lanes", "2", "-q")
    assert bench(model, *words, "--json", "out.json") == 0
    sequential, aggressive = json.loads((here / "out.json").read_text("utf-8"))["cells"]
    held = [cell["memory"]["process_peak_resident_bytes"] for cell in (sequential, aggressive)]
    assert all(20 << 20 < value < 1 << 30 for value in held)
    over = aggressive["memory"]["process_peak_resident_bytes_over_sequential"]
    assert over == held[1] - held[0] and sequential["memory"]["gpus"] == {}


def test_a_process_that_fails_costs_its_figures_only(
    model: str, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def ask(asked: Mapping[str, Any]) -> memory.Peaks:
        if asked["settings"]["mode"] == "skip":
            return memory.in_own_process({**asked, "model": "gone"})
        return {"process_peak_resident_bytes": 7_000_000, "gpus": {}}

    monkeypatch.setattr(measuring, "in_own_process", ask)
    words = ("--steps", "4", "--iterations", "1", "--modes", "skip", "--lanes", "2", "--json", "out.json")
    assert bench(model, *words) == 0
    out, err = capsys.readouterr()
    assert "skip:lanes=2: no figures of memory; a process of its own could not make the picture" in err
    assert re.search(r"sequential +1 +7\.0$", out, re.MULTILINE)
    found = json.loads((here / "out.json").read_text("utf-8"))
    assert found["cells"][1]["memory"] is None and re.search("no figures of .*gone", found["notes"][-1])


def test_a_process_of_its_own_runs_no_code_of_the_working_folder(model: str, here: Path) -> None:
    (here / "dataclasses.py").write_text("raise SystemExit('code of the working folder was run')\n")
    settings = {"mode": "sequential", "steps": 2, "seed": [0]}
    asked = {"model": model, "devices": ["cpu"], "options": {}, "prompt": "a red fox", "settings": settings}
    assert memory.in_own_process(asked)["gpus"] == {}


def test_where_sequential_failed_nothing_is_above_it(
    model: str, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ask(asked: Mapping[str, Any]) -> memory.Peaks:
        if asked["settings"]["mode"] == "sequential":
            raise DeviceError("out of memory")
        held = {"buffers_peak_bytes": 5, "in_use_bytes": 9}
        return {"process_peak_resident_bytes": 7_000_000, "gpus": {"GPU 0": held}}

    monkeypatch.setattr(measuring, "in_own_process", ask)
    words = ("--steps", "4", "--iterations", "1", "--modes", "skip", "--lanes", "2", "--json", "out.json")
    assert bench(model, *words) == 0
    found = json.loads((here / "out.json").read_text("utf-8"))["cells"][1]["memory"]
    assert found["process_peak_resident_bytes_over_sequential"] is None
    assert found["gpus"]["GPU 0"]["in_use_bytes_over_sequential"] is None


def test_a_gpu_that_sequential_does_not_use_counts_from_nothing() -> None:
    held = {"buffers_peak_bytes": 5, "in_use_bytes": 9}
    sequential, both = Measured(SEQUENTIAL), Measured(SEQUENTIAL)
    sequential.memory = {"process_peak_resident_bytes": None, "gpus": {"GPU 0": held}}
    both.memory = {"process_peak_resident_bytes": 3, "gpus": {"GPU 0": held, "GPU 1": held}}
    found = _memory(both, sequential) or {}
    assert found["process_peak_resident_bytes_over_sequential"] is None
    assert [gpu["in_use_bytes_over_sequential"] for gpu in found["gpus"].values()] == [0, 9]


# Ctrl-C


def interrupted(monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    """Ctrl-C in this call, counted from 0 with those of the warm-up."""
    make, calls = measuring._call, iter(range(1000))

    def call(*given: Any) -> Any:
        if next(calls) == at:
            raise KeyboardInterrupt
        return make(*given)

    monkeypatch.setattr(measuring, "_call", call)


def test_ctrl_c_leaves_the_repetitions_that_are_whole(
    model: str, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    interrupted(monkeypatch, 2 + 2 * 2 + 1)  # in the middle of the third
    words = ("--modes", "aggressive", "--lanes", "2", "--json", "out.json", "--csv", "out.csv")
    assert bench(model, *FEW, *words) == 130
    out, err = capsys.readouterr()
    assert "repetitions: 2 of 3" in out and err.rstrip().endswith("interrupted")
    found = json.loads((here / "out.json").read_text("utf-8"))
    assert (found["repetitions"], found["complete"]) == (2, False)
    assert all(len(cell["raw"]["latency_ms"]) == 2 for cell in found["cells"])
    assert (here / "out.csv").exists() and not list(here.glob(".*"))


def test_ctrl_c_before_anything_is_measured(
    model: str, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    interrupted(monkeypatch, 1)
    assert bench(model, *FEW, "--modes", "aggressive", "--lanes", "2", "--json", "out.json") == 130
    out, err = capsys.readouterr()
    assert out == "" and "there is nothing to show" in err and not list(here.iterdir())


def test_ctrl_c_while_a_repetition_is_kept_leaves_none_of_it(
    model: str, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In what comes after the calls, between the first cell of a repetition and the second."""
    splits, count = measuring.split, iter(range(1000))

    def split(*given: Any) -> Any:
        if next(count) == 2 * 1 + 1:
            raise KeyboardInterrupt
        return splits(*given)

    monkeypatch.setattr(measuring, "split", split)
    words = ("--modes", "aggressive", "--lanes", "2", "--json", "out.json", "--trace", "t.json")
    assert bench(model, *FEW, *words) == 130
    found = json.loads((here / "out.json").read_text("utf-8"))
    assert found["repetitions"] == 1
    assert all(len(cell["raw"]["latency_ms"]) == 1 for cell in found["cells"])
    events = json.loads((here / "t.json").read_text("utf-8"))["traceEvents"]
    assert sum(one["name"] == "process_name" for one in events) == 2


def failing(monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    make, calls = measuring._call, iter(range(1000))

    def call(*given: Any) -> Any:
        if next(calls) == at:
            raise DeviceError("GPU 1 has fallen off the bus")
        return make(*given)

    monkeypatch.setattr(measuring, "_call", call)


def test_an_error_leaves_the_repetitions_that_are_whole(
    model: str, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    failing(monkeypatch, 2 + 2 * 2 + 1)
    assert bench(model, *FEW, "--modes", "aggressive", "--lanes", "2", "--json", "out.json") == 1
    out, err = capsys.readouterr()
    assert "repetitions: 2 of 3" in out and "error: GPU 1 has fallen off the bus" in err
    found = json.loads((here / "out.json").read_text("utf-8"))
    assert (found["repetitions"], found["complete"]) == (2, False)
    assert "ended by an error after 2 of 3 repetitions: GPU 1 has fallen off the bus" in found["notes"]
    assert all(len(cell["raw"]["speedup"]) == 2 for cell in found["cells"])


def test_an_error_before_anything_is_measured_is_one(
    model: str, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    failing(monkeypatch, 1)
    assert bench(model, *FEW, "--modes", "aggressive", "--lanes", "2", "--json", "out.json") == 1
    assert capsys.readouterr().out == "" and not list(here.iterdir())


# Plots, LPIPS


def test_a_plot(ran: Path, found: Found, here: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    from driffusion_trt.benchmark.plot import drawn, plot

    (axes,) = drawn(found).axes
    cells = found["cells"][1:]
    points = [(cell["drift"]["relative_l2"]["mean"], cell["speedup"]["median"]) for cell in cells]
    assert [(int(mark.get_text()), *mark.xy) for mark in axes.texts] == [
        (cell["lanes"], *point) for cell, point in zip(cells, points, strict=True)
    ]
    legend = [text.get_text() for text in axes.get_legend().get_texts()]
    assert legend == list(dict.fromkeys(cell["mode"] for cell in cells))
    plot(found, here / "out.svg")
    assert "<svg" in (here / "out.svg").read_text("utf-8")
    assert [path.name for path in here.iterdir()] == ["out.svg"]


def test_a_plot_without_matplotlib_is_refused(
    model: str, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "matplotlib" else find(name, *rest)
    )
    monkeypatch.setattr(_benchmarking, "measure", None)
    assert bench(model, *FEW, "--plot", "out.svg") == 1
    assert "run: pip install '.[bench]'" in capsys.readouterr().err


def test_ssim_that_cannot_be_had_is_said_once(
    model: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "skimage" else find(name, *rest)
    )
    assert bench(model, *FEW, "--modes", "aggressive", "--lanes", "2") == 0
    err = capsys.readouterr().err
    assert err.count("SSIM is left out: run: pip install '.[bench]' in a clone") == 1


# Refused before any work


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--modes agressive", r"there is no mode 'agressive'; did you mean 'aggressive'\?"),
        ("--iterations 0", "--iterations 0 was asked; it must be at least 1"),
        ("--batch-size 0", "--batch-size 0 was asked"),
        ("--steps 0", "steps"),
        ("--seed -1", "seed"),
        ("--lanes 2,x", "'x' is not a whole number"),
        ("--lanes 0", "lanes=0 was asked"),
        ("--modes window:tolerance=0.1", "tolerance"),
        ("--modes window:rounds=2 --lanes 2", "rounds"),
        ("--modes tolerance --lanes 99", "lanes"),
        ("--modes tolerance:tolerance=-1", "tolerance"),
        ("--modes aggressive:quality=fast", "it goes with mode 'auto'"),
        ("--modes auto:quality=best", "best"),
        ("--guidance-scale nan", "guidance_scale"),
        ("--height 20", "height"),
        ("--prompts empty.txt", "empty.txt has no prompts"),
        ("--prompts gone.txt", "gone.txt cannot be read"),
        ("--json gone/out.json", "the output folder gone does not exist"),
        ("--json out.x --csv out.x", "two results were to go to one file"),
        ("--plot out.gif", r"plots are \.svg, \.png, \.pdf"),
        ("--lpips gone.pth", "which has no file ending in"),
        ("--fail-above 5", "it goes with --compare OLD NEW"),
        ("--judge-by latency", "it goes with --compare OLD NEW"),
        ("--json a.x --csv gone/../a.x", "the output folder gone/.. does not exist"),
        ("--json a.x --csv ../here/a.x", "two results were to go to one file"),
        ("--json -", "--json - was given; results go to files: name one, such as out.json"),
        ("--batch-size 1000000000", "they alone take .* GB, and this machine has"),
        ("--height 1048576 --width 1048576", "they alone take .* GB, and this machine has"),
        ("--modes split --guidance-scale 1", "guidance 1 is none that could be split"),
        ("--modes split --devices cpu", "it splits guidance over two devices, and there is one"),
        ("--compare a.json b.json", "--model was given; it does not go with --compare"),
        ("--devices cuda", "no GPU was found"),
        ("--tries 3", "bench has no option --tries"),
    ],
)
def test_misuse_is_refused_before_any_work(
    model: str,
    here: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: str,
    said: str,
) -> None:
    if "--plot" in words:
        monkeypatch.setattr(_benchmarking, "check_plots", lambda: None)
    monkeypatch.setattr(_benchmarking, "measure", None)  # would fail in another way
    (here / "empty.txt").write_text("# nothing\n", "utf-8")
    assert bench(model, *words.split()) == 2
    out, err = capsys.readouterr()
    assert out == "" and re.search(said, err), err
    assert [path.name for path in here.iterdir()] == ["empty.txt"]


# Two runs


def slower(found: Found, factor: float, name: str) -> Found:
    cell = named(found)[name]
    cell["raw"]["latency_ms"] = [factor * value for value in cell["raw"]["latency_ms"]]
    cell["raw"]["speedup"] = [value / factor for value in cell["raw"]["speedup"]]
    return found


def test_two_runs_are_compared(
    ran: Path, found: Found, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old, new = str(ran / "run.json"), str(here / "new.json")
    slow = slower(found, 1e5, "split")
    slow["cells"][4]["raw"]["relative_l2"] = [0.5] * 6
    slow["machine"]["processor"] = "another"
    Path(new).write_text(json.dumps(slow), "utf-8")
    assert main(["bench", "--compare", old, old, "--fail-above", "0"]) == 0
    out, err = capsys.readouterr()
    assert "slower" not in out and "warning" not in err
    assert out.count(" same") == 7, "and sequential is the measure"
    assert main(["bench", "--compare", old, new]) == 0
    out, err = capsys.readouterr()
    (row,) = [line for line in out.splitlines() if line.endswith("slower")]
    assert row.startswith("split") and "100000.000" in row
    assert "warning: machine: processor differs" in err
    assert "warning: drift of split differs" in err
    assert main(["bench", "--compare", old, new, "--fail-above", "20"]) == 1
    said = "slower by more than 20 %, beyond the noise: split with 1 lanes 100000.00 times as long as before"
    assert said in capsys.readouterr().err
    assert main(["bench", "--compare", old, new, "--fail-above", "1e8"]) == 0
    assert main(["bench", "--compare", new, old, "--fail-above", "0"]) == 0, "faster is no failure"
    capsys.readouterr()


def test_a_machine_that_is_slower_fails_by_latency_alone(
    ran: Path, found: Found, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old, new = str(ran / "run.json"), str(here / "new.json")
    for cell in found["cells"]:
        cell["raw"]["latency_ms"] = [1e5 * value for value in cell["raw"]["latency_ms"]]
    Path(new).write_text(json.dumps(found), "utf-8")
    words = ["bench", "--compare", old, new, "--fail-above", "20"]
    assert main(words) == 0
    assert main([*words, "--judge-by", "latency"]) == 1
    assert "beyond the noise: sequential with 1 lanes 100000.00 times" in capsys.readouterr().err
    assert main([*words, "--judge-by", "time"]) == 2
    assert "--judge-by time was given" in capsys.readouterr().err
    assert main([*words, "--seed", "0"]) == 2
    assert "--seed was given; it does not go with --compare" in capsys.readouterr().err


def test_a_mode_that_is_gone_does_not_pass_a_check(
    ran: Path, found: Found, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    del found["cells"][2]
    (here / "new.json").write_text(json.dumps(found), "utf-8")
    words = ["bench", "--compare", str(ran / "run.json"), "new.json"]
    assert main(words) == 0
    assert main([*words, "--fail-above", "500"]) == 1
    assert "the new run has no aggressive:lanes=3" in capsys.readouterr().err


def test_too_few_repetitions_do_not_pass_a_check(
    found: Found, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for cell in found["cells"]:
        cell["raw"] = {name: values[:5] for name, values in cell["raw"].items()}
    found["repetitions"] = 5
    (here / "few.json").write_text(json.dumps(found), "utf-8")
    assert main(["bench", "--compare", "few.json", "few.json", "--fail-above", "5"]) == 1
    assert "7 of 7 modes have fewer than 6 repetitions" in capsys.readouterr().err
    assert main(["bench", "--compare", "few.json", "few.json", "--fail-above", "-1"]) == 2
    assert main(["bench", "--compare", "few.json", "gone.json"]) == 2
    assert main(["bench", "--compare", "few.json"]) == 2
    capsys.readouterr()
