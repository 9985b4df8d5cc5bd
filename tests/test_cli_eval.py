"""`driffusion-trt eval`: from prompts to tables, what it refuses before any work, going on after a kill."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scorers
import tiny
from PIL import Image

from driffusion_trt import Pipeline
from driffusion_trt.cli import main
from driffusion_trt.commands import _evaluating as evaluating
from driffusion_trt.commands import eval as command
from driffusion_trt.evaluation import metrics
from driffusion_trt.evaluation.metrics import METRICS
from driffusion_trt.pictures import psnr, read_settings

PROMPTS = ["a red fox", "a cat above a star", "a blue square on a green background", "a circle", "an owl"]
FEW = ("--steps", "8", "--devices", "2")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny.make_model_folder(tmp_path_factory.mktemp("models") / "tiny"))


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The options that name small random networks, and statistics to compare with."""
    folder = tmp_path_factory.mktemp("weights")
    clip = scorers.save_clip(folder / "clip")
    pick = scorers.save_clip(folder / "pick", seed=1)
    hps = folder / "hps"
    hps.mkdir()
    scorers.save_hps(hps / "HPS_v2.1_compressed.pt")
    scorers.tokenizer().save_pretrained(hps)
    inception = folder / "pt_inception-2015-12-05-6726825d.pth"
    scorers.save_inception(inception)
    scorers.save_statistics(folder / "real.npz")
    given = {"clip": clip, "pickscore": pick, "hpsv2": hps, "inception": inception}
    words = [word for name, path in given.items() for word in (f"--{name}", str(path))]
    return [*words, "--reference", str(folder / "real.npz"), "--score-device", "cpu"]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    notes = [{"image_id": 100 + k, "id": k, "caption": text} for k, text in enumerate(PROMPTS)]
    data = {"images": [{"id": 100 + k} for k in range(len(PROMPTS))], "annotations": notes}
    (tmp_path / "captions_val2017.json").write_text(json.dumps(data))
    return tmp_path


def words(model: str, *more: str) -> list[str]:
    return ["eval", "--model", model, "--work", "work", *FEW, *more]


def results(folder: Path, work: str = "work") -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / work / "results.json").read_text("utf-8"))
    return found


def test_names_in_the_help_are_those_of_the_library() -> None:
    assert set(command.METRICS) == set(METRICS)


def test_every_metric_of_every_mode(
    model: str, weights: list[str], here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["--captions", "captions_val2017.json", "--modes", "aggressive,skip", "--lanes", "2"]
    assert main(words(model, *asked, *weights)) == 0
    shown = capsys.readouterr()
    found = results(here)
    rows = {row["name"]: row for row in found["rows"]}
    assert list(rows) == ["sequential", "aggressive-n2", "skip-5"]
    names = ["relative_l2", "psnr_db", "fid", "clip", "pickscore", "hpsv2"]
    assert list(found["metrics"]) == names
    assert all(list(row["metrics"]) == names for row in rows.values())
    assert found["settings"]["prompts"] == "captions_val2017.json"
    assert found["metrics"]["fid"]["reference"] == "real.npz"
    assert {"date", "machine", "versions", "commit"} <= set(found)
    # The table has the same figures, and sequential has no difference from itself.
    head, *body = shown.out.split("\n\n")[0].splitlines()
    for title in ("FID ↓", "CLIP score ↑", "PickScore ↑", "HPSv2.1 ↑", "calls"):
        assert title in head
    for line, row in zip(body, rows.values(), strict=True):
        assert line.startswith(row["name"]) and f"{row['metrics']['fid']['value']:.2f}" in line
    assert "difference from sequential" in shown.out.split("\n\n")[1]
    # CSV has a line for each figure.
    with (here / "work" / "results.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == len(rows) * len(names)
    one = next(line for line in lines if (line["row"], line["metric"]) == ("skip-5", "hpsv2"))
    assert float(one["value"]) == rows["skip-5"]["metrics"]["hpsv2"]["value"]
    assert float(one["difference"]) == rows["skip-5"]["metrics"]["hpsv2"]["difference"]["value"]


def test_pictures_are_those_of_the_pipeline_and_drift_is_from_sequential(model: str, here: Path) -> None:
    asked = ["--captions", "captions_val2017.json", "--count", "2", "--seed", "7", "--metrics", "drift"]
    assert main(words(model, *asked, "--modes", "aggressive", "--lanes", "4")) == 0
    records = (here / "work" / "aggressive-n4" / "pictures.jsonl").read_text().splitlines()
    with Pipeline.load(model, devices=2) as pipe:
        for k, line in enumerate(records):
            record, path = json.loads(line), here / "work" / "aggressive-n4" / f"{k:05}.png"
            fast = pipe(PROMPTS[k], seed=[7 + k], steps=8, mode="aggressive", lanes=4)
            exact = pipe(PROMPTS[k], seed=[7 + k], steps=8, mode="sequential")
            with Image.open(path) as image:
                assert image.tobytes() == fast.images[0].tobytes()
            assert read_settings(path) == record["settings"]
            assert (record["settings"]["prompt"], record["settings"]["seed"]) == (PROMPTS[k], 7 + k)
            drift = np.linalg.norm(fast.latents - exact.latents) / np.linalg.norm(exact.latents)
            assert record["relative_l2"] == pytest.approx(float(drift), rel=1e-5)
            assert record["psnr_db"] == pytest.approx(psnr(fast.images[0], exact.images[0]))
            assert record["calls"] == fast.stats.rounds == 3
    row = results(here)["rows"][1]
    values = [json.loads(line)["relative_l2"] for line in records]
    assert row["metrics"]["relative_l2"]["value"] == pytest.approx(np.mean(values))
    assert row["metrics"]["relative_l2"]["worst"] == max(values)


def test_more_modes_metrics_and_pictures_come_later(
    model: str, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics, "REAL_PICTURES", 150)  # a distance takes long to draw the others
    asked = ["--modes", "aggressive", "--lanes", "2", "--metrics", "drift"]
    assert main(words(model, *asked, "--count", "2")) == 0
    first = here / "work" / "aggressive-n2" / "00000.png"
    before = first.stat().st_mtime_ns
    assert main(words(model, "--modes", "aggressive,tolerance", "--lanes", "2,3", "--count", "3")) == 0
    assert first.stat().st_mtime_ns == before
    rows = {row["name"]: row for row in results(here)["rows"]}
    assert list(rows) == [
        "sequential",
        *(f"{mode}-n{n}" for mode in ("aggressive", "tolerance") for n in (2, 3)),
    ]
    assert all(row["pictures"] == 3 and "alignment" in row["metrics"] for row in rows.values())
    assert set(rows["tolerance-n2"]["metrics"]) == {"relative_l2", "psnr_db", "alignment", "frechet"}


def test_results_have_every_row_and_metric_that_there_is(
    model: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["--lanes", "2", "--count", "2"]
    assert main(words(model, *asked, "--modes", "aggressive", "--metrics", "drift,alignment")) == 0
    first = {row["name"]: row for row in results(here)["rows"]}
    capsys.readouterr()
    assert main(words(model, *asked, "--modes", "skip", "--metrics", "drift")) == 0
    found = results(here)
    rows = {row["name"]: row for row in found["rows"]}
    assert list(rows) == ["sequential", "skip-5", "aggressive-n2"]
    assert rows["aggressive-n2"] == first["aggressive-n2"] and rows["sequential"] == first["sequential"]
    assert list(found["metrics"]) == ["relative_l2", "psnr_db", "alignment"]
    table = capsys.readouterr().out.split("\n\n")[0].splitlines()
    assert table[2].split()[0] == "skip-5" and table[2].split()[-1] == "–"
    assert "%" in table[0] and table[3].split()[0] == "aggressive-n2" and table[3].split()[-1] != "–"
    with (here / "work" / "results.csv").open() as file:
        lines = {(line["row"], line["metric"]) for line in csv.DictReader(file)}
    assert {("aggressive-n2", "alignment"), ("skip-5", "psnr_db")} <= lines
    # Of more pictures, what has fewer is named and left out; asked for again it is back.
    more = ["--lanes", "2", "--count", "3", "--metrics", "drift"]
    assert main(words(model, *more, "--modes", "skip")) == 0
    assert [row["name"] for row in results(here)["rows"]] == ["sequential", "skip-5"]
    assert list(results(here)["metrics"]) == ["relative_l2", "psnr_db"]
    error = capsys.readouterr().err
    assert "left out: aggressive-n2; add them by --modes" in error
    assert "left out: alignment; ask by --metrics" in error
    assert main(words(model, *more, "--modes", "aggressive")) == 0
    assert [row["name"] for row in results(here)["rows"]] == ["sequential", "aggressive-n2", "skip-5"]


def test_more_pictures_in_batches_are_those_of_a_fresh_run(model: str, here: Path) -> None:
    """In mode tolerance a batch goes as far as its least patient picture."""
    asked = [
        *FEW,
        "--modes",
        "tolerance",
        "--lanes",
        "3",
        "--metrics",
        "drift,alignment",
        "--batch-size",
        "2",
    ]
    start = ["eval", "--model", model, *asked]
    assert main([*start, "--work", "work", "--count", "3"]) == 0
    assert main([*start, "--work", "work", "--count", "4"]) == 0
    assert main([*start, "--work", "fresh", "--count", "4"]) == 0
    for name in ("sequential", "tolerance-n3"):
        for k in range(4):
            one, other = ((here / work / name / f"{k:05}.png").read_bytes() for work in ("work", "fresh"))
            assert one == other, (name, k)
    assert results(here)["rows"] == results(here, "fresh")["rows"]


def test_equal_pictures_are_called_equal(model: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["--modes", "skip", "--rounds", "8", "--count", "1", "--metrics", "drift"]
    assert main(words(model, *asked)) == 0
    line = capsys.readouterr().out.splitlines()[2]
    assert line.split()[0] == "skip-8" and line.split()[-1] == "equal"
    assert results(here)["rows"][1]["metrics"]["psnr_db"]["equal_pictures"] == 1


def test_a_folder_is_of_all_files_of_the_model_and_of_its_devices(
    model: str, here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = ["--modes", "sequential", "--count", "1", "--metrics", "drift"]
    other = here / "other"
    shutil.copytree(model, other)
    assert main(words(str(other), *asked)) == 0
    capsys.readouterr()
    manifest = json.loads((other / "manifest.json").read_text())
    decoder = next(name for name in manifest["files"] if "vae_decoder" in name)
    manifest["files"][decoder]["sha256"] = "0" * 64
    (other / "manifest.json").write_text(json.dumps(manifest))
    assert main(words(str(other), *asked)) == 2
    error = capsys.readouterr().err
    assert "made with model_sha256" in error and "model_hash" not in error
    monkeypatch.setattr(evaluating, "devices_facts", lambda *_: {"device": "NVIDIA L4 (sm89)"})
    assert main(words(model, *asked)) == 2
    assert "device 'CPU' (now 'NVIDIA L4 (sm89)')" in capsys.readouterr().err


def test_batches_are_the_same_pictures(model: str, here: Path) -> None:
    asked = ["--modes", "window", "--lanes", "2", "--metrics", "drift", "--count", "3"]
    assert main(words(model, *asked)) == 0
    batched = ["eval", "--model", model, "--work", "batched", *FEW, *asked, "--batch-size", "2"]
    assert main(batched) == 0
    for k in range(3):
        one, other = (Image.open(here / work / "window-n2" / f"{k:05}.png") for work in ("work", "batched"))
        assert np.abs(np.asarray(one, np.int16) - np.asarray(other, np.int16)).max() <= 1
    # Of a batch that was stopped half way only the rest is written.
    folder = here / "batched" / "window-n2"
    before, pixels = (folder / "00000.png").stat().st_mtime_ns, (folder / "00001.png").read_bytes()
    (folder / "00001.png").unlink()
    assert main(batched) == 0
    assert (folder / "00000.png").stat().st_mtime_ns == before
    assert (folder / "00001.png").read_bytes() == pixels


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--metrics", "clip"], "clip: openai/clip-vit-large-patch14 is not in the hub's cache"),
        (["--metrics", "hpsv2,pickscore"], "2 cannot be had; .*hpsv2: xswu.*pickscore: yuvalkirstain"),
        (["--metrics", "fid"], "fid: it needs --reference"),
        (["--metrics", "drift", "--reference", "none"], "--reference was given, and goes with fid"),
        (["--metrics", "fud"], "there is no such metric; did you mean 'fid'"),
        (["--metrics", "drift,,fid"], "has an empty name"),
        (["--modes", "auto"], "--modes 'auto': there is no such mode"),
        (["--captions", "none.json"], "none.json cannot be read as captions"),
        (["--captions", "a", "--prompts-file", "b"], "were both given"),
        (["--count", "0"], "count=0 was asked"),
        (["--batch-size", "0"], "batch-size=0 was asked"),
        (["--lanes", "99", "--modes", "window"], "99"),
        (["--guidance-scale", "-1"], "guidance_scale=-1"),
        (["--height", "63"], "height 63 does not suit"),
        (["--seed", "-1"], "seed"),
        (
            ["--captions", "captions_val2017.json", "--metrics", "alignment"],
            "captions_val2017.json was asked",
        ),
        (["--metrics", "clip", "--clip", "WEIGHTS", "--score-device", "cuda:7"], "'cuda:7' cannot be used"),
        (["extra"], "eval takes no 'extra'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_is_refused_before_any_work(
    model: str,
    here: Path,
    weights: list[str],
    more: Sequence[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(here / "hub"))
    more = [weights[1] if word == "WEIGHTS" else word for word in more]
    assert main(words(model, *more)) == 2
    error = capsys.readouterr().err
    assert re.search(message, error), error
    assert not (here / "work").exists()


def test_a_work_folder_is_needed_and_kept_to_its_settings(
    model: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["eval", "--model", model]) == 2
    assert "eval needs --work FOLDER" in capsys.readouterr().err
    asked = ["--modes", "aggressive", "--lanes", "2", "--metrics", "drift", "--count", "1"]
    assert main(words(model, *asked)) == 0
    capsys.readouterr()
    assert main(words(model, *asked, "--guidance-scale", "5")) == 2
    assert "were made with guidance_scale 3.0 (now 5.0)" in capsys.readouterr().err
    assert main(words(model, *asked, "--captions", "captions_val2017.json")) == 2
    assert "prompts 'held-out' (now 'captions_val2017.json')" in capsys.readouterr().err


def test_json_goes_to_stdout_alone(model: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["--modes", "sequential", "--metrics", "drift", "--count", "1"]
    assert main(words(model, *asked, "--json")) == 0
    assert json.loads(capsys.readouterr().out) == results(here)


def test_a_killed_evaluation_goes_on_where_it_was(model: str, here: Path) -> None:
    """`kill -9` in the middle of a row; pictures that were there are not made again, and all are the same."""
    asked = ["--modes", "aggressive", "--lanes", "2", "--count", "16", "--metrics", "drift,alignment"]
    line = [sys.executable, "-m", "driffusion_trt", *words(model, *asked)]
    process = subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    log = here / "work" / "aggressive-n2" / "pictures.jsonl"
    deadline = time.monotonic() + 60
    while not log.exists() or log.read_bytes().count(b"\n") < 2:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    done = log.read_bytes().count(b"\n")
    assert done < 16, "it was killed too late to show anything"
    kept = {path: path.stat().st_mtime_ns for path in (here / "work").glob("sequential/*.png")}
    assert main(words(model, *asked)) == 0
    assert kept and all(path.stat().st_mtime_ns == stamp for path, stamp in kept.items())
    assert main(["eval", "--model", model, "--work", "whole", *FEW, *asked]) == 0
    assert [row["metrics"] for row in results(here)["rows"]] == [
        row["metrics"] for row in results(here, "whole")["rows"]
    ]
    lines = [(here / work / "aggressive-n2" / "pictures.jsonl").read_text() for work in ("work", "whole")]
    assert lines[0] == lines[1]


def test_the_bundled_models_test_needs_the_base_install_alone(model: str, here: Path) -> None:
    """Without torch and transformers it runs, and metrics that need them are refused with the pip command."""
    blocked = ["torch", "transformers", "safetensors", "huggingface_hub", "scipy"]
    start = (
        f"import sys; sys.modules.update(dict.fromkeys({blocked!r})); from driffusion_trt.cli import main; "
    )
    asked = ["--modes", "sequential", "--count", "2"]

    def run(*more: str) -> subprocess.CompletedProcess[str]:
        code = f"{start}sys.exit(main({words(model, *asked, *more)!r}))"
        return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)

    refused = run("--metrics", "drift,clip,fid")
    assert refused.returncode == 2 and not (here / "work").exists()
    assert "clip: torch is needed here and is not installed; run: pip install" in refused.stderr
    assert "fid: torch is needed" in refused.stderr
    done = run("--metrics", "drift,alignment")
    assert done.returncode == 0, done.stderr
    assert "alignment" in results(here)["rows"][0]["metrics"]
