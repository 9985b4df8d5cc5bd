"""`make bench-gpu`'s program as a whole on two simulated GPUs, with stand-in engines of a tiny model."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gpulanes
import pytest
import tiny

pytest.importorskip("cuda.bindings.driver", reason="cuda-bindings is not installed")

from bench import cells, gpu, gpu_diffusers, gpu_figures, gpu_model
from bench.parts import Parts
from driffusion_trt import EngineError, InputError
from driffusion_trt.cli import main as command
from driffusion_trt.engines.manifest import BUNDLED
from driffusion_trt.planning.machine import Machine
from driffusion_trt.runtime import _peer_trial

pytest_plugins = ("cudasim.fixtures",)

WORDS = ["--steps", "5", "--iterations", "2"]


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return gpulanes.planned_model(tmp_path_factory.mktemp("planned") / "tiny")


@pytest.fixture(autouse=True)
def machine(gpu_machine: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(_peer_trial, "_SIZE", 8192)
    monkeypatch.setattr(_peer_trial, "_CUTS", ((0, 0, 4096), (3, 1021, 5003)))
    return gpu_machine


def test_the_whole_program(planned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [str(planned), *WORDS, "--out", str(tmp_path)]
    assert gpu.main(words) == 0
    out = capsys.readouterr().out
    begun = re.search(r"tiny on .* begun after 60 minutes.*\nestimate: [\d.]+ minutes", out, re.DOTALL)
    assert begun and begun.end() < out.index("tiny-figures: "), "before anything long"
    assert "pictures 0." in out and "driffusion-trt bench 0." in out
    whole = json.loads((tmp_path / "bench-gpu.json").read_text())
    assert {"date", "commit", "machine", "versions", "gpus", "peers", "models", "left_out"} <= set(whole)
    assert {(link["source"], link["target"]) for link in whole["peers"]} == {(0, 1), (1, 0)}
    assert all(link["verified"] and link["latency_us"] > 0 for link in whole["peers"])
    model = whole["models"]["tiny"]
    assert [row["cell"] for row in model["pictures"]["1"]["rows"]] == ["sequential, 1 device"]
    rows = {row["cell"]: row for row in model["pictures"]["2"]["rows"]}
    assert {"aggressive, 2 devices", "sequential, 2 devices, split guidance"} < set(rows)
    assert rows["sequential, 1 device"]["drift"]["high"] == 0
    assert 0 < rows["aggressive, 2 devices"]["drift"]["median"] < 1
    for row in rows.values():
        assert sum(row["terms_ms"].values()) == pytest.approx(row["predicted_ms"])
        assert row["predicted_over_measured"]["median"] > 0
    assert set(model["pictures"]["2"]["memory_bytes"]) == {"GPU 0", "GPU 1"}
    assert min(model["pictures"]["2"]["memory_bytes"].values()) > 0
    left_out = " ".join(whole["left_out"])
    assert "no checkpoint of this model" in left_out
    assert set(model["bench"]) == {"1", "2"}
    # What was kept is not measured again; and the figures are what `plan --costs` reads.
    assert gpu.main(words) == 0
    assert "tiny-pictures-2: kept from before" in capsys.readouterr().out
    figures = tmp_path / "tiny.machine.json"
    assert Machine.read(figures).rows == (1, 16)
    assert command(["plan", "--model", str(planned), "--costs", str(figures), "--steps", "5"]) == 0


def test_the_figures_are_of_what_they_say(planned: Path) -> None:
    call = {"prompt": "a red fox", "steps": 5, "guidance_scale": 3.0}
    found = gpu_figures.figures(str(planned), call, gpu_figures.peers(2), "simulated")
    assert found.latents_bytes == 4 * tiny.CHANNELS * tiny.SIDE**2
    assert len(found.call_ms) == 4 and found.call_ms[0] <= found.call_ms[1] <= found.call_ms[3]
    assert found.copy_us > 0 and found.copy_gb_s is not None and found.ahead
    assert min(found.host_us) >= 0 and found.encode_ms > 0 and found.decode_ms > 0


def test_one_gpu_leaves_copies_out(planned: Path, tmp_path: Path) -> None:
    assert gpu.main([str(planned), *WORDS, "--gpus", "1", "--out", str(tmp_path)]) == 0
    whole = json.loads((tmp_path / "bench-gpu.json").read_text())
    assert "copies: left out: they need two GPUs, and there is one" in whole["left_out"]
    assert whole["models"]["tiny"]["figures"]["copy_gb_s"] is None
    assert set(whole["models"]["tiny"]["pictures"]) == {"1"}


def test_nothing_is_begun_without_time(
    planned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu, "command", None)  # nothing is built either
    assert gpu.main(["demo", str(planned), *WORDS, "--minutes", "0", "--out", str(tmp_path)]) == 1
    assert "nothing was measured" in capsys.readouterr().err
    whole = json.loads((tmp_path / "bench-gpu.json").read_text())
    assert whole["models"]["tiny"]["pictures"] == {}
    assert any("tiny-figures: left out: the 0 minutes are over" in line for line in whole["left_out"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["no/such/model"], "no/such/model"),
        (["demo", "--iterations", "0"], "--iterations 0 was given; it must be at least 1"),
        (["demo", "--checkpoints", "a", "b"], "2 checkpoints for 1 models"),
        (["demo", "--checkpoints", "."], "is no diffusers folder"),
        (["demo", "some/folder/demo/"], "two models are called demo"),
    ],
)
def test_what_cannot_be_is_refused_before_any_work(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert gpu.main([*words, "--out", str(tmp_path / "out")]) == 1
    assert message in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_a_model_that_cannot_be_built_is_left_out(
    planned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the demo is where its plans are for other GPUs; the other model is measured."""
    monkeypatch.setattr(gpu, "command", lambda words: 1)
    assert gpu.main(["demo", str(planned), *WORDS, "--gpus", "1", "--out", str(tmp_path)]) == 0
    whole = json.loads((tmp_path / "bench-gpu.json").read_text())
    assert "demo: left out: it could not be built for these GPUs; see above" in whole["left_out"]
    assert set(whole["models"]) == {"tiny"}


def test_figures_that_are_left_out_are_not_for_good(
    planned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str(planned), *WORDS, "--out", str(tmp_path)]

    def fails(*given: Any) -> Any:
        raise EngineError("out of memory")

    monkeypatch.setattr(gpu_model.Model, "_benched", lambda *given: {})
    with monkeypatch.context() as patched:
        patched.setattr(gpu_figures, "figures", fails)
        patched.setattr(gpu_figures, "peers", fails)
        assert gpu.main(words) == 0
    out = capsys.readouterr().out
    (row,) = [line for line in out.splitlines() if line.startswith("| aggressive, 2 devices |")]
    assert row.split("|")[3].strip() == row.split("|")[5].strip() == row.split("|")[7].strip() == "-"
    model = json.loads((tmp_path / "bench-gpu.json").read_text())["models"]["tiny"]
    assert model["figures"] is None and model["pictures"]["2"]["rows"][1]["predicted_ms"] is None
    with monkeypatch.context() as patched:
        patched.setattr(gpu_figures, "peers", fails)
        assert gpu.main(words) == 0
    model = json.loads((tmp_path / "bench-gpu.json").read_text())["models"]["tiny"]
    assert model["figures"]["copy_us"] == 0 and model["pictures"]["2"]["rows"][1]["predicted_ms"] > 0
    assert gpu.main(words) == 0
    model = json.loads((tmp_path / "bench-gpu.json").read_text())["models"]["tiny"]
    assert model["figures"]["copy_us"] > 0 and model["pictures"]["2"]["rows"][1]["predicted_ms"] > 0
    capsys.readouterr()
    assert gpu.main(words) == 0
    assert {f"tiny-{name}: kept from before" for name in ("figures", "pictures-2")} < set(
        capsys.readouterr().out.splitlines()
    )


@pytest.mark.parametrize("where", [gpu, gpu_model])
def test_ctrl_c_in_a_command_stops_all(
    where: Any, planned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(where, "command", lambda words: 130)
    models = ["demo"] if where is gpu else [str(planned)]
    assert gpu.main([*models, *WORDS, "--gpus", "1", "--out", str(tmp_path)]) == 130
    assert not (tmp_path / "bench-gpu.json").exists()


def test_the_help_names_the_default(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        gpu.main(["--help"])
    assert f"(default: {', '.join(BUNDLED)})" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("one", "two", "fitted"), [(30, 40, (20, 10)), (10, 40, (0, 18)), (40, 30, (35, 0)), (5, 5, (5, 0))]
)
def test_the_hosts_figures_are_fitted_where_neither_is_negative(
    one: float, two: float, fitted: tuple[float, float]
) -> None:
    assert cells.host_pair(one, two) == pytest.approx(fitted)
    best = sum((fitted[0] + n * fitted[1] - took) ** 2 for n, took in ((1, one), (2, two)))
    for a in (fitted[0], fitted[0] + 0.5, max(0.0, fitted[0] - 0.5)):
        for b in (fitted[1], fitted[1] + 0.5, max(0.0, fitted[1] - 0.5)):
            assert (a + b - one) ** 2 + (a + 2 * b - two) ** 2 >= best - 1e-9


def test_a_plan_that_takes_no_call_of_these_rows_is_left_out() -> None:
    with pytest.raises(EngineError, match="takes no call of 1, 2 or 4 rows"):
        gpu_figures._call_ms({})
    assert gpu_figures._call_ms({4: 9.0}) == (9.0, 9.0, 9.0, 9.0)


def test_parts_share_an_end(tmp_path: Path) -> None:
    parts = Parts(tmp_path, {}, 60, time.monotonic() - 1, told=lambda line: None)
    assert parts("one", lambda: 1) is None and "the 60 minutes are over" in parts.left_out[0]


def test_parts(tmp_path: Path) -> None:
    folder, lines = tmp_path / "parts", list[str]()

    def fails() -> int:
        raise InputError("there is no such thing")

    parts = Parts(folder, {"steps": 5, "gpus": ("a",)}, 60, told=lines.append)
    assert parts("one", lambda: {"a": 1}) == {"a": 1}
    assert parts("one", fails) == {"a": 1}
    assert parts("two", fails) is None and parts.left_out == ["two: left out: there is no such thing"]
    other = Parts(folder, {"steps": 6}, 60, told=lines.append)
    assert other("one", lambda: 2) == 2  # made for another key
    assert other("one", lambda: 4, checkpoint="a") == 4  # or for another of its own
    assert other("one", lambda: 2) == 2
    (folder / "one.json").write_text("{")
    assert other("one", lambda: 3) == 3  # damaged
    assert sorted(path.name for path in folder.iterdir()) == ["one.json"]


def test_diffusers_is_measured_or_says_why_not(
    checkpoints: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str(checkpoints("sd21")), "--steps", "2", "--iterations", "2", "--size", "64"]
    assert gpu_diffusers.main([*words, "--device", "cpu"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert len(found["ms"]) == 2 and min(found["ms"]) > 0 and found["device"] == "cpu"
    assert found["dtype"] == "float32" and found["diffusers"]
    assert gpu_diffusers.main(words) == 0
    assert "finds no GPU" in json.loads(capsys.readouterr().out.splitlines()[-1])["left_out"]


@pytest.mark.slow
def test_without_torch_on_a_gpu_diffusers_is_left_out(
    checkpoints: Callable[[str], Path], planned: Path, tmp_path: Path
) -> None:
    words = [str(planned), *WORDS, "--gpus", "1", "--checkpoints", str(checkpoints("sd21"))]
    assert gpu.main([*words, "--out", str(tmp_path)]) == 0
    left_out = json.loads((tmp_path / "bench-gpu.json").read_text())["left_out"]
    assert any("tiny-diffusers-eager: left out: torch " in line for line in left_out)
