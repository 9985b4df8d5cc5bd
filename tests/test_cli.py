"""The command: what it accepts, prints, writes and refuses."""

from __future__ import annotations

import errno
import io
import json
import os
import pty
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from PIL import Image

import driffusion_trt
from driffusion_trt import Pipeline
from driffusion_trt.benchmark.compare import JUDGED
from driffusion_trt.cli import main, parse
from driffusion_trt.commands import COMMANDS, _options, _pictures, bench
from driffusion_trt.commands._output import places, slug
from driffusion_trt.engines.manifest import BUNDLED, ModelFolder
from driffusion_trt.pictures import psnr, read_settings, save_png
from driffusion_trt.runtime.devices import choose_devices
from driffusion_trt.sampling.options import CLASSES
from driffusion_trt.sampling.plan import BASELINES, MODES

FEW = ("--steps", "10", "--mode", "aggressive")
COMMAND = [sys.executable, "-m", "driffusion_trt"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny.make_model_folder(tmp_path_factory.mktemp("models") / "tiny"))


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every test has a working folder of its own."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def pixels(path: str | Path) -> bytes:
    with Image.open(path) as image:
        return image.tobytes()


# Help, version, completion


@pytest.mark.parametrize(
    "words", [["--help"], ["--version"], *([name, "--help"] for name in COMMANDS)], ids=" ".join
)
def test_help_needs_the_standard_library_only_and_is_quick(words: list[str]) -> None:
    # -S leaves site-packages out. Processor time, since other work may be going on.
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-S", *COMMAND[1:], *words], capture_output=True, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0 and done.stderr == ""
    assert done.stdout.startswith(("usage: driffusion-trt", f"driffusion-trt {driffusion_trt.__version__}"))
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.5


def test_help_fits_a_terminal_and_names_every_command(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    for words in (["--help"], *([name, "--help"] for name in COMMANDS)):
        with pytest.raises(SystemExit):
            main(words)
        text = capsys.readouterr().out
        assert max(map(len, text.splitlines())) <= 100
        if words == ["--help"]:
            assert all(f"\n  {name} " in text for name in COMMANDS)
        if words[0] == "run":
            assert "--num-inference-steps" not in text, "aliases are kept out"
            assert "window, tolerance, skip, paradigms (default: auto)" in " ".join(text.split())


@pytest.mark.parametrize(
    "words", ["run x --lanes two", "plan --steps few", "serve --port x", "completion tcsh"]
)
def test_hints_name_a_command_that_works(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Of argparse's own errors, which it words with the name that it gave the command."""
    assert main(words.split()) == 2
    (hinted,) = re.findall(r"`driffusion-trt (.*)` lists what there is", capsys.readouterr().err)
    assert hinted == f"{words.split()[0]} --help"
    with pytest.raises(SystemExit) as done:
        main(hinted.split())
    assert not done.value.code


def test_names_in_the_help_are_those_of_the_library() -> None:
    assert (_options.MODES, _options.BASELINES) == (MODES, BASELINES)
    assert _options.DEMOS == BUNDLED
    assert bench.JUDGED == JUDGED
    assert set(_options.SCHEDULERS) == set(CLASSES)


def test_shells_are_told_how_to_complete(capsys: pytest.CaptureFixture[str]) -> None:
    for shell in ("bash", "zsh", "fish"):
        assert main(["completion", shell]) == 0
        out = capsys.readouterr().out
        assert "driffusion-trt" in out and "_ARGCOMPLETE" in out
    assert main(["completion", "tcsh"]) == 2
    assert "invalid choice: 'tcsh'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("driffusion-trt ", {"run", "plan", "completion"}),
        ("driffusion-trt run --mod", {"--mode", "--model"}),
        ("driffusion-trt run --mode a", {"aggressive", "auto"}),
        ("driffusion-trt plan --scheduler d", {"ddpm", "ddim", "dpmsolver++"}),
        ("driffusion-trt run --model demo-", {"demo-xl", "demo-sd3"}),
    ],
)
def test_completion_knows_commands_options_and_names(here: Path, line: str, expected: set[str]) -> None:
    environment = os.environ | {
        "_ARGCOMPLETE": "1",
        "_ARGCOMPLETE_STDOUT_FILENAME": str(here / "answer"),
        "_ARGCOMPLETE_SUPPRESS_SPACE": "1",
        "_ARGCOMPLETE_IFS": "\n",
        "COMP_LINE": line,
        "COMP_POINT": str(len(line)),
        "COMP_TYPE": "9",
    }
    subprocess.run(COMMAND, env=environment, check=True, capture_output=True)
    answer = {word.strip() for word in (here / "answer").read_text().split("\n")}
    assert expected <= answer and (line.endswith(" ") or answer <= expected)


# Parsing


@pytest.mark.parametrize(
    ("words", "name", "value"),
    [
        ("--negative-prompt blue", "negative_prompt", "blue"),
        ("--negative_prompt blue", "negative_prompt", "blue"),
        ("--negative_prompt=a_b", "negative_prompt", "a_b"),
        ("--guidance_scale 2.5", "guidance_scale", 2.5),
        ("--steps 7", "steps", 7),
        ("--denoising-steps 7", "steps", 7),
        ("--denoising_steps=7", "steps", 7),
        ("--num-inference-steps 7", "steps", 7),
        ("--num_inference_steps 7", "steps", 7),
        ("--num_images_per_prompt 7", "num_images", 7),
        ("--prompts_file a_b.txt", "prompts_file", "a_b.txt"),
        ("-o out_put.png", "output", "out_put.png"),
        ("--output out_put.png", "output", "out_put.png"),
        ("--devices 2", "devices", 2),
        ("--devices auto", "devices", "auto"),
        ("--devices cpu,cpu", "devices", ["cpu", "cpu"]),
        ("--seed -1", "seed", -1),
        ("--compare", "compare", True),
        ("-v", "verbose", True),
    ],
)
def test_options_and_their_spellings(words: str, name: str, value: object) -> None:
    args = parse(["run", "a fox", *words.split()])
    assert getattr(args, name) == value
    assert args.words == ["a fox"]


@pytest.mark.parametrize(
    ("words", "prompts"),
    [
        (["a", "b"], ["a", "b"]),
        (["a", "--steps", "3", "b", "-q", "c"], ["a", "b", "c"]),
        (["--steps", "3", "a"], ["a"]),
        (["--steps", "3", "--", "--a_b", "-c"], ["--a_b", "-c"]),
        (["a", "--", "--", "b"], ["a", "--", "b"]),
        ([], []),
    ],
)
def test_prompts_may_stand_among_the_options(words: list[str], prompts: list[str]) -> None:
    assert parse(["run", *words]).words == prompts


# What is refused. Nothing is loaded, nothing is written, one paragraph says what to do.

REFUSED: list[tuple[str, str]] = [
    ("", "no command was given; the first is: driffusion-trt run PROMPT"),
    ("rum", "no command 'rum'; did you mean 'run'"),
    ("plan fox", "plan takes no 'fox'"),
    ("run", 'no prompt was given; try: driffusion-trt run "a red circle"'),
    ("run fox --stepz 3", "run has no option --stepz; did you mean '--steps'"),
    ("run fox --num_image 3", "run has no option --num-image; did you mean '--num-images'"),
    ("run fox --neg blue", "run has no option --neg"),
    ("run fox --compare=yes", "--compare"),
    ("run fox --steps", "argument --steps: expected one argument"),
    ("run fox --steps ten", "argument --steps: 'ten' is not a whole number"),
    ("run fox --guidance-scale high", "'high' is not a number"),
    ("run fox --mode agressive", "no mode 'agressive'; did you mean 'aggressive'"),
    ("run fox --lanes 0", "lanes=0 was asked; it must be at least 1"),
    ("run fox --lanes -2", "lanes=-2"),
    ("run fox --steps 0", "steps=0 was asked; it must be from 1 to 1000"),
    ("run fox --steps 1001", "steps=1001 was asked; it must be from 1 to 1000"),
    ("run fox --mode aggressive --rounds 3", "mode 'aggressive' has a fixed number"),
    ("run fox --rounds 3", "rounds=3 was given, and mode 'auto' chooses it"),
    (
        "run fox --quality hihg",
        "quality must be one of exact, high, balanced, fast, not 'hihg'; did you mean 'high'?",
    ),
    ("run fox --quality high --mode window", "quality='high' was given; it goes with mode 'auto'"),
    ("run fox --quality high --deadline-ms 9", "quality and deadline_ms were given; mode 'auto' goes by one"),
    ("run fox --deadline-ms 0", "deadline_ms must be a number of milliseconds above 0, not 0.0"),
    ("run fox --explain --mode skip", "it is for mode auto"),
    ("run fox --mode skip --rounds 51", "rounds=51 was asked; it must be from 1 to 50"),
    ("run fox --blocks 4,x", "argument --blocks: 'x' is not a whole number"),
    ("run fox --mode window --lanes 4 --blocks 4,4", "the 2 blocks sum to 8"),
    ("run fox --mode sequential --blocks 49", "it goes with mode 'window' or 'aggressive'"),
    ("run fox --scheduler dim", "no scheduler 'dim'; did you mean 'ddim'"),
    ("run fox --seed -1", "seed must be a whole number from 0"),
    ("run fox --seed 18446744073709551616", "seed must be a whole number from 0"),
    ("run fox --seed 18446744073709551615 --num-images 2", "not 18446744073709551616"),
    ("run fox --guidance-scale nan", "guidance_scale=nan was asked"),
    ("run fox --guidance-scale -1", "guidance_scale=-1.0 was asked"),
    ("run fox --num-images 0", "num_images must be a whole number of at least 1"),
    ("run fox --batch-size 0", "batch-size=0 was asked"),
    ("run fox --devices 0", "devices=0 was asked"),
    ("run fox --devices -1", "devices=-1 was asked"),
    ("run fox --devices many", "devices=['many'] was asked; give a number"),
    ("run fox --devices cpu,cuda:0", "devices=['cpu', 'cuda:0'] was asked, and no GPU was found"),
    ("run fox --compare --mode sequential", "--compare compares a mode with sequential"),
    ("run --prompts-file empty.txt", "empty.txt has no prompts"),
    ("run --prompts-file missing.txt", "missing.txt cannot be read (No such file"),
    ("run --prompts-file latin.txt", "latin.txt is not UTF-8 text"),
    ("run fox -o fox.jpg", "neither a .png file nor a folder; pictures are written as PNG: give fox.png"),
    ("run fox -o fox", "give fox.png, or fox/ for a folder"),
    ("run fox -o no/such/fox.png", "the output folder no/such does not exist; make it first"),
    ("run fox -o new/fox.png", "the output folder new does not exist; make it first"),
    ("run fox -o no/such/", "the output folder no/such does not exist"),
    ("run fox -o empty.txt/fox.png", "the output folder empty.txt is not a folder"),
    ("run fox -o empty.txt/", "the output folder empty.txt is not a folder"),
    ("run fox -o /proc/fox.png", "the output folder /proc cannot be written to"),
    ("run fox -o /proc/foxes/", "the output folder /proc/foxes cannot be made"),
    ("run fox fox -o folder.png", "the output folder.png-0.png is a folder"),
    ("run fox --compare -o fox.png", "the output fox-compare.png is a folder"),
    (f"run fox -o {'x' * 300}.png", "cannot be written (File name too long)"),
    ("run --from-picture empty.txt", "empty.txt cannot be read as a picture"),
    ("run --from-picture plain.png", "plain.png has no settings in it"),
    ("plan --mode agressive", "no mode 'agressive'; did you mean 'aggressive'"),
    ("plan --mode aggressive --rounds 3", "has a fixed number; leave it out"),
    ("plan --rounds 3", "--rounds 3 was given without a mode; name the --mode"),
    ("plan --lanes 0", "lanes=0 was asked"),
    ("plan --steps 1001", "steps=1001 was asked"),
    ("plan --model empty.json", "empty.json cannot be read as a scheduler config"),
    ("plan --model list.json", "list.json is not a scheduler config"),
]


@pytest.mark.parametrize(("line", "message"), REFUSED, ids=[line[:60] for line, _ in REFUSED])
def test_misuse_is_refused_before_any_work(
    here: Path,
    model: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    line: str,
    message: str,
) -> None:
    (here / "empty.txt").write_text("# only a comment\n\n   \n")
    (here / "empty.json").write_text("")
    (here / "list.json").write_text("[]")
    (here / "latin.txt").write_bytes("füchse".encode("latin-1"))
    (here / "folder.png-0.png").mkdir()
    (here / "fox-compare.png").mkdir()
    Image.new("RGB", (8, 8)).save(here / "plain.png")
    before = sorted(path for path in here.rglob("*"))
    monkeypatch.setattr(Pipeline, "load", lambda *_, **__: pytest.fail("the model was loaded"))
    words = line.split()
    if words and words[0] in ("run", "plan") and "--model" not in words:
        words += ["--model", model]
    if "folder.png" in words:
        words[words.index("folder.png")] = "folder.png.png"
    assert main(words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("driffusion-trt: error: ") and err.count("\n") == 1
    assert message in err
    assert sorted(path for path in here.rglob("*")) == before


def test_a_forgotten_command_is_guessed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["a red fox"]) == 2
    assert 'for a picture: driffusion-trt run "a red fox"' in capsys.readouterr().err


def test_an_unwritable_folder_is_refused(
    here: Path, model: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk's own answer counts, whatever the permissions say (tests may run as root)."""

    def refuse(**_: Any) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    assert main(["run", "fox", "--model", model]) == 2
    assert "the output folder . cannot be written to (Read-only file system)" in capsys.readouterr().err


# What fails, with status 1


def test_a_missing_or_damaged_model_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "fox", "--model", str(tmp_path / "none")]) == 1
    assert "there is no folder" in capsys.readouterr().err
    folder = tiny.make_model_folder(tmp_path / "model")
    path = folder / "onnx" / "denoiser.onnx"
    path.write_bytes(path.read_bytes()[:-1])
    assert main(["run", "fox", "--model", str(folder)]) == 1
    out, err = capsys.readouterr()
    assert out == "" and "cut short or was altered" in err and err.count("\n") == 1
    assert os.listdir() == []


def test_a_failing_lane_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tiny.make_model_folder(tmp_path / "model", tiny.SCHEDULER | {"num_train_timesteps": 2000})
    assert (
        main(["run", "fox", "--mode", "aggressive", "--model", str(folder), "--devices", "2", "--json"]) == 1
    )
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1
    assert err.startswith("driffusion-trt: error: lane 0 of 2 failed: ModelError")
    assert "Traceback" not in err and os.listdir() == []
    assert main(["run", "fox", "--mode", "aggressive", "--model", str(folder), "-v"]) == 1
    err = capsys.readouterr().err
    assert "Traceback" in err and err.splitlines()[-1].startswith("driffusion-trt: error: lane 0")


def test_a_full_disk_fails_and_keeps_what_was_written(
    here: Path, model: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    save = save_png

    def full(image: Any, path: Path, settings: Any) -> None:
        if path.name == "fox-1.png":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        save(image, path, settings)

    monkeypatch.setattr(_pictures, "save_png", full)
    assert main(["run", "fox", "--num-images", "3", "--steps", "2", "--model", model]) == 1
    out, err = capsys.readouterr()
    assert out == "fox-0.png\n" and "No space left on device" in err
    assert os.listdir() == ["fox-0.png"]


def test_interrupting_says_so_and_leaves_nothing_half_written(here: Path, model: str) -> None:
    words = ["run", "fox", "--num-images", "3000", "--mode", "aggressive", "--model", model]
    process = subprocess.Popen(
        [*COMMAND, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell starts what it puts into the background with SIGINT ignored, this test's process too.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 120
    while not (here / "fox-1.png").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 130
    assert err == "driffusion-trt: interrupted\n"
    written = sorted(os.listdir())
    assert sorted(out.split()) == written and len(written) >= 2
    assert all(read_settings(name)["prompt"] == "fox" for name in written)


# What is printed and written


def test_a_run_prints_the_path_and_the_timings(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "A red Fox!", *FEW, "--lanes", "2", "--seed", "7", "--model", model]) == 0
    out, err = capsys.readouterr()
    assert out == "a-red-fox-7.png\n"
    (line,) = err.splitlines()
    for word in ("load ", "encode ", "denoise ", "(6 rounds, median ", "decode ", "total "):
        assert word in line
    settings = read_settings("a-red-fox-7.png")
    assert settings["prompt"] == "A red Fox!" and settings["seed"] == 7
    assert settings["mode"] == "aggressive" and settings["steps"] == 10 and settings["lanes"] == 2


def test_auto_says_what_it_chose_and_the_picture_can_be_made_again(
    model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", "fox", "--steps", "10", "--model", model, "--explain", "-o", "x.png"]) == 0
    lines = capsys.readouterr().err.splitlines()
    assert re.match(
        r"auto: (sequential|tolerance 0\.01).*: (about )?[0-9.]+ rounds, \d+ ms expected", lines[0]
    )
    assert "calls with guidance take" in lines[1] and "measured on these devices" in lines[2]
    assert sum(line.startswith("  * ") for line in lines) == 1
    settings = read_settings("x.png")
    assert settings["mode"] in ("sequential", "tolerance") and "quality" not in settings
    assert main(["run", "--from-picture", "x.png", "--model", model, "-q", "-o", "y.png"]) == 0
    assert Path("x.png").read_bytes() == Path("y.png").read_bytes()


def test_a_deadline_that_no_plan_keeps_is_refused_with_what_could_be(
    model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", "fox", "--model", model, "--deadline-ms", "0.001"]) == 2
    assert "the fastest plan for 50 steps on these" in capsys.readouterr().err
    assert not list(Path().glob("*.png"))
    assert main(["run", "fox", "--model", model, "--deadline-ms", "1e9", "-q"]) == 0


def test_the_picture_is_that_of_the_library(model: str) -> None:
    words = (
        "run fox --steps 10 --seed 3 --mode conservative --lanes 3 --guidance-scale 2 --negative-prompt blue"
    )
    assert main([*words.split(), "--scheduler", "euler", "--model", model, "-o", "x.png"]) == 0
    with Pipeline.load(model, devices=2) as pipe:
        result = pipe(
            "fox",
            steps=10,
            seed=3,
            mode="conservative",
            lanes=3,
            guidance_scale=2,
            negative_prompt="blue",
            scheduler="euler",
        )
    assert pixels("x.png") == result.images[0].tobytes()
    assert read_settings("x.png") == result.settings[0]


def test_the_bundled_model_knows_the_words_of_the_examples(capsys: pytest.CaptureFixture[str]) -> None:
    prompt = "a red fox left of a blue star on a yellow background"
    assert main(["run", prompt, "--steps", "4", "--lanes", "2", "--seed", "7", "-o", "fox.png"]) == 0
    assert "warning" not in capsys.readouterr().err
    with Pipeline.load(devices=1) as pipe:
        (image,) = pipe(prompt, steps=4, lanes=2, seed=7).images
    assert image.size == (64, 64) and image.tobytes() == pixels("fox.png")


def test_every_picture_of_a_run_can_be_made_alone(model: str) -> None:
    more = ["--steps", "5", "--model", model, "-q"]
    assert main(["run", "fox", "cat", "--num-images", "2", "--seed", "5", "-o", "all/", *more]) == 0
    assert sorted(os.listdir("all")) == ["cat-7.png", "cat-8.png", "fox-5.png", "fox-6.png"]
    for name in os.listdir("all"):
        prompt, seed = name.removesuffix(".png").split("-")
        assert main(["run", prompt, "--seed", seed, "-o", "one.png", *more]) == 0
        assert pixels(f"all/{name}") == pixels("one.png")


def test_a_picture_can_be_replayed_from_its_file(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = "run fox --steps 9 --seed 3 --mode skip --rounds 4 --lanes 2 --guidance-scale 2 -o first.png"
    assert main([*words.split(), "--model", model, "--negative-prompt", "blue"]) == 0
    assert main(["run", "--from-picture", "first.png", "--model", model, "-o", "again.png"]) == 0
    assert pixels("again.png") == pixels("first.png")
    assert read_settings("again.png") == read_settings("first.png")
    words = "run cat --from-picture first.png --mode sequential --seed 4 -o other.png"
    assert main([*words.split(), "--model", model]) == 0
    other = read_settings("other.png")
    assert (other["prompt"], other["seed"], other["mode"], other["steps"]) == ("cat", 4, "sequential", 9)


def test_split_guidance_is_replayed_and_can_be_left_out(
    model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = f"--model {model} --devices 2 -q"
    assert main(f"run fox --steps 9 --mode aggressive --split-guidance {words} -o first.png".split()) == 0
    assert main(f"run --from-picture first.png {words} -o again.png".split()) == 0
    assert main(f"run --from-picture first.png --no-split-guidance {words} -o whole.png".split()) == 0
    first, again, whole = (read_settings(f"{name}.png") for name in ("first", "again", "whole"))
    assert pixels("again.png") == pixels("first.png") and again == first
    assert first["split_guidance"] is True and first["lanes"] == 1
    assert whole == {name: value for name, value in first.items() if name != "split_guidance"}
    words = f"run fox --steps 9 --mode window --split-guidance --guidance-scale 1 {words} --json -o plain.png"
    capsys.readouterr()
    assert main(words.split()) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["plan"]["lanes"] == facts["plan"]["devices"] == 2
    assert "split_guidance" not in read_settings("plain.png")


def test_split_guidance_compares_with_sequential(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = "run fox --steps 9 --mode aggressive --split-guidance --lanes 2 --devices 4 --compare --json -q"
    assert main([*words.split(), "--model", model]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["plan"]["lanes"], facts["plan"]["devices"]) == (2, 4)
    assert facts["compare"]["pictures"][0]["relative_l2"] < 0.5


@pytest.mark.parametrize(
    ("altered", "message"),
    [
        ({"seed": [1]}, "has seed=[1]"),
        ({"split_guidance": 1}, "has split_guidance=1"),
        ({"split_guidance": None}, "has split_guidance=None"),
        ({"mode": 3}, "has mode=3"),
        ({"model": 5}, "has model=5"),
        ({"steps": True}, "has steps=True"),
        ({"model": "/elsewhere"}, "give its folder by --model"),
        ({"model": "sd21"}, "give its folder by --model"),
    ],
)
def test_nothing_in_a_picture_is_trusted(
    altered: dict[str, object], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {"prompt": "fox", "seed": 1, "mode": "sequential", "steps": 4, "model": "demo"} | altered
    save_png(Image.new("RGB", (8, 8)), Path("from.png"), settings)
    assert main(["run", "--from-picture", "from.png", "-o", "again.png"]) == 2
    assert message in capsys.readouterr().err.replace("\n", " ")
    assert not Path("again.png").exists()


def test_another_model_or_version_is_told(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    settings = {"prompt": "fox", "seed": 1, "steps": 4, "model_hash": "deadbeef00", "version": "0.0.1"}
    save_png(Image.new("RGB", (8, 8)), Path("from.png"), settings)
    assert main(["run", "--from-picture", "from.png", "--model", model, "-o", "again.png"]) == 0
    said = capsys.readouterr().err
    assert "model hash 'deadbeef00'" in said and "version '0.0.1'" in said


def test_batches_hold_several_pictures(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = "run fox --num-images 3 --batch-size 2 --steps 4 --mode aggressive --lanes 2 --json -o x.png"
    assert main([*words.split(), "--model", model]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert [len(rounds) for rounds in facts["timings"]["rounds_ms"]] == [3, 3]
    assert [p["settings"].get("batch") for p in facts["pictures"]] == [2, 2, None]
    assert [p["path"] for p in facts["pictures"]] == ["x-0.png", "x-1.png", "x-2.png"]
    assert (
        main(
            [
                "run",
                "fox",
                "--seed",
                "1",
                "--steps",
                "4",
                "--mode",
                "aggressive",
                "--model",
                model,
                "-o",
                "y.png",
            ]
        )
        == 0
    )
    with Image.open("x-1.png") as one, Image.open("y.png") as other:
        assert psnr(one, other) > 45, "the same noise, whatever the batch"


def test_json_is_all_that_goes_to_stdout(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "zebra", *FEW, "--lanes", "3", "--model", model, "--json", "--devices", "1"]) == 0
    out, err = capsys.readouterr()
    facts = json.loads(out)
    assert facts["pictures"][0]["path"] == "zebra-0.png"
    assert facts["pictures"][0]["settings"] == read_settings("zebra-0.png")
    assert facts["plan"] == {
        "mode": "aggressive",
        "lanes": 3,
        "devices": 1,
        "steps": 10,
        "sequential_calls": 4,
        "model_calls": 10,
        "ideal_speedup": 2.5,
    }
    timings = facts["timings"]
    assert timings["rounds"] == 4 == len(timings["rounds_ms"][0])
    parts = [timings[f"{name}_ms"] for name in ("load", "encode", "denoise", "decode")]
    assert all(part > 0 for part in parts) and sum(parts) <= timings["total_ms"]
    assert err.startswith("warning: 'zebra': the model does not know 'zebra'")


def test_json_says_what_a_plan_that_adapts_took(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = "run fox cat --mode tolerance --tolerance 0.005 --steps 20 --lanes 4 --devices 1 --json"
    assert main([*words.split(), "--model", model]) == 0
    facts = json.loads(capsys.readouterr().out)
    with Pipeline.load(model, devices=1) as pipe:
        stats = [
            pipe(name, seed=seed, mode="tolerance", tolerance=0.005, steps=20, lanes=4).stats
            for seed, name in enumerate(("fox", "cat"))
        ]
    wanted = [{"sequential_calls": one.rounds, "model_calls": one.predictions} for one in stats]
    assert facts["taken"] == wanted
    assert min(one.rounds for one in stats) > facts["plan"]["sequential_calls"], "a plan knows the least only"


@pytest.mark.parametrize("words", ["--clip-skip 1", "--clip-skip 1 --compare", "--height 12"])
def test_a_folder_is_made_only_for_a_picture(
    here: Path, model: str, capsys: pytest.CaptureFixture[str], words: str
) -> None:
    """What the networks refuse shows once they are loaded."""
    line = ["run", "fox", "--steps", "2", "--model", model, "-o", "new/"]
    assert main([*line, *words.split()]) == 2
    assert "error: " in capsys.readouterr().err and not (here / "new").exists()
    assert main(line) == 0
    assert [path.name for path in (here / "new").iterdir()] == ["fox-0.png"]


def test_quiet_prints_paths_and_warnings_only(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "zebra", "fox zebra", "zebra", "--steps", "2", "--model", model, "-q"]) == 0
    out, err = capsys.readouterr()
    assert out.split() == ["zebra-0.png", "fox-zebra-1.png", "zebra-2.png"]
    assert [line.split(":")[0] for line in err.splitlines()] == ["warning", "warning"], "each once"


def test_verbose_says_what_is_planned(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["run", "fox", *FEW, "--lanes", "2", "--devices", "1", "--model", model, "-v"]
    assert main(words) == 0
    line = capsys.readouterr().err.splitlines()[0]
    assert line == (
        "aggressive, 10 steps of ddim, 2 lanes on 1 CPU threads: "
        "6 rounds, 10 predictions, ideal speed-up 1.67"
    )


def test_a_config_with_a_notice_is_a_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = {key: value for key, value in tiny.SCHEDULER.items() if key != "clip_sample"}
    config |= {"_class_name": "PNDMScheduler", "skip_prk_steps": True}
    folder = tiny.make_model_folder(tmp_path / "model", config)
    assert main(["run", "fox", "--steps", "2", "--model", str(folder), "-q"]) == 0
    assert "warning: the config names PNDMScheduler" in capsys.readouterr().err


def test_compare_measures_against_sequential(
    model: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    warmed: list[int] = []
    monkeypatch.setattr(Pipeline, "warm_up", lambda _, batch, **named: warmed.append(batch))
    words = ["run", "fox", "cat", *FEW, "--lanes", "4", "--model", model, "--compare", "--json"]
    assert main([*words, "-o", "x.png"]) == 0
    out, err = capsys.readouterr()
    facts = json.loads(out)
    assert warmed == [1]
    with Pipeline.load(model, devices=1) as pipe:
        made = pipe("cat", seed=1, steps=10, mode="aggressive", lanes=4)
        exact = pipe("cat", seed=1, steps=10, mode="sequential")
    assert pixels("x-1.png") == made.images[0].tobytes()
    compared = facts["compare"]["pictures"][1]
    assert compared["path"] == "x-1-compare.png"
    assert compared["psnr_db"] == psnr(made.images[0], exact.images[0])
    distance = np.linalg.norm(made.latents - exact.latents) / np.linalg.norm(exact.latents)
    assert compared["relative_l2"] == pytest.approx(distance) and distance > 0
    assert compared["measured_speedup"] == compared["sequential_ms"] / compared["denoise_ms"] > 0
    assert "warm-up" in facts["compare"]["measured"]
    assert f"x-1-compare.png: PSNR {compared['psnr_db']:.1f} dB" in err and "warm-up" in err
    assert sorted(os.listdir()) == ["x-0-compare.png", "x-0.png", "x-1-compare.png", "x-1.png"]
    with Image.open("x-1-compare.png") as image:
        shown = np.asarray(image)
    for picture, x in ((made.images[0], 8), (exact.images[0], 336)):
        assert np.array_equal(shown[-328:-8:5, x : x + 320 : 5], np.asarray(picture))


def test_compare_of_equal_pictures_is_valid_json(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["run", "fox", *FEW, "--lanes", "1", "--model", model, "--compare", "--json"]
    assert main(words) == 0
    (compared,) = json.loads(capsys.readouterr().out)["compare"]["pictures"]
    assert compared["psnr_db"] is None and compared["relative_l2"] == 0


def test_a_sequential_plan_is_not_compared_with_itself(
    model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["run", "fox", "--steps", "4", "--devices", "1", "--model", model, "--compare", "--json"]
    assert main(words) == 0
    out, err = capsys.readouterr()
    facts = json.loads(out)
    assert "compare" not in facts and facts["timings"]["choose_ms"] > 0
    assert "nothing to compare" in err and len(list(Path().glob("*.png"))) == 1


def test_one_device_is_not_measured(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is one plan for it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    words = ["run", "fox", "--steps", "4", "--model", model, "-q"]
    assert main([*words, "--devices", "1"]) == 0
    assert not (tmp_path / "cache").exists()
    assert main([*words, "--devices", "2"]) == 0
    assert list((tmp_path / "cache").rglob("costs/*.json"))


def test_what_is_for_mode_auto_opens_the_mode_of_a_picture(
    model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--model", model, "-q"]
    assert main(["run", "fox", *FEW, "--lanes", "3", *words, "-o", "one.png"]) == 0
    assert main(["run", "--from-picture", "one.png", "--quality", "exact", *words, "-o", "two.png"]) == 0
    settings = read_settings("two.png")
    assert settings["mode"] == "sequential" and settings["lanes"] == 1 and settings["steps"] == 10


def test_progress_is_shown_on_a_terminal_and_taken_away(model: str) -> None:
    screen, terminal = pty.openpty()
    words = ["run", "fox", "--num-images", "2", "--steps", "200", "--model", model]
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "100"}
    process = subprocess.Popen([*COMMAND, *words], stdout=subprocess.PIPE, stderr=terminal, env=environment)
    os.close(terminal)
    shown = b""
    while True:
        try:
            shown += os.read(screen, 65536)
        except OSError:  # the other side is closed
            break
    os.close(screen)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert out == b"fox-0.png\nfox-1.png\n"
    assert b"batch 2 of 2, round " in shown
    after = shown[shown.rindex(b" of 2, round ") :]
    assert b"\x1b[1A\x1b[2K" in after, "the bar is gone in the end"
    assert shown.rstrip().endswith(b"ms")


def test_a_reader_that_goes_away_does_not_stop_the_work(here: Path, model: str) -> None:
    words = ["run", "fox", "--num-images", "2", "--steps", "2", "--model", model]
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    for call, files in ((words, {"fox-0.png", "fox-1.png"}), (["run", "--help"], set())):
        process = subprocess.Popen(
            [*COMMAND, *call], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=buffered
        )
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        errors = process.stderr.read()
        process.stderr.close()
        assert process.wait(120) == 0
        assert b"Traceback" not in errors and b"BrokenPipe" not in errors
        assert files <= set(os.listdir())


# Prompts and places


def test_prompts_from_a_file_follow_those_of_the_line(
    here: Path, model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "prompts.txt").write_text("\ufeffa cat\n\n# not this\n  a fox  \r\n", encoding="utf-8")
    words = ["run", "star", "--prompts-file", "prompts.txt", "--steps", "2", "--model", model, "-q"]
    assert main(words) == 0
    names = capsys.readouterr().out.split()
    assert names == ["star-0.png", "a-cat-1.png", "a-fox-2.png"]
    assert [read_settings(name)["prompt"] for name in names] == ["star", "a cat", "a fox"]


def test_prompts_from_standard_input(
    model: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"cat\nfox\n")))
    assert main(["run", "--prompts-file", "-", "--steps", "2", "--model", model, "-q"]) == 0
    assert capsys.readouterr().out.split() == ["cat-0.png", "fox-1.png"]


@pytest.mark.parametrize(
    ("prompt", "name"),
    [
        ("A red fox, left of a blue star!", "a-red-fox-left-of-a-blue-star"),
        ("../../etc/passwd", "etc-passwd"),
        ("ein Füchslein 狐", "ein-füchslein-狐"),
        ("", "picture"),
        ("?!", "picture"),
        ("word " * 30, "word" + "-word" * 11),
        ("x" * 100, "x" * 60),
        ("狐" * 30, "狐" * 20),
    ],
)
def test_names_come_from_prompts(prompt: str, name: str) -> None:
    assert slug(prompt) == name


def test_places(here: Path) -> None:
    one, two = [("a fox", 7)], [("a fox", 7), ("a cat", 8)]

    def found(output: str | None, pictures: list[tuple[str, int]]) -> list[str]:
        return [str(path) for path in places(output, pictures)]

    (here / "there").mkdir()
    assert found(None, two) == ["a-fox-7.png", "a-cat-8.png"]
    assert found("x.png", one) == ["x.png"]
    assert found("there/x.PNG", one) == ["there/x.PNG"]
    assert found("there/x.y.png", two) == ["there/x.y-0.png", "there/x.y-1.png"]
    assert found("there", one) == found("there/", one) == ["there/a-fox-7.png"]
    assert found("new/", two) == ["new/a-fox-7.png", "new/a-cat-8.png"]


def test_a_file_that_is_there_is_replaced(here: Path, model: str) -> None:
    (here / "fox-0.png").write_text("old")
    assert main(["run", "fox", "--steps", "2", "--model", model, "-q"]) == 0
    assert read_settings("fox-0.png")["prompt"] == "fox"


@pytest.mark.parametrize(
    ("lanes", "devices", "each", "width"),
    [
        (None, None, 1, (4, 4)),
        (2, None, 1, (2, 2)),
        (2, "auto", 1, (2, 2)),
        (100, None, 1, (100, 64)),
        (2, 5, 1, (2, 5)),
        (None, 3, 1, (3, 3)),
        (None, ["cpu"], 1, (1, ["cpu"])),
        (None, None, 2, (4, 8)),
        (2, None, 2, (2, 4)),
        (100, None, 2, (100, 64)),
        (None, 5, 2, (2, 5)),
        (None, 1, 2, (1, 1)),
        (None, ["cpu"], 2, (1, ["cpu"])),
    ],
)
def test_no_more_threads_than_lanes_need_unless_told(
    monkeypatch: pytest.MonkeyPatch, lanes: int | None, devices: Any, each: int, width: tuple[int, Any]
) -> None:
    monkeypatch.setattr("driffusion_trt.runtime.devices.auto_lanes", lambda: 64)
    asked = "auto" if devices is None else devices
    count = choose_devices(asked, ModelFolder.open("demo")).count
    assert _pictures._width(lanes, asked, count, 50, each) == width


def test_one_core_is_enough_for_split_guidance() -> None:
    """And no device is asked for that is not there."""
    for cores, width in ((1, (1, 1)), (2, (1, 2)), (3, (1, 2))):
        assert _pictures._width(None, "auto", cores, 50, 2) == width


# plan


def test_plan_shows_the_counts_of_the_paper(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--steps", "50", "--model", model]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert rows[0] == ["50", "steps", "of", "ddim"]
    planned = [row[:5] for row in rows]
    assert ["sequential", "1", "50", "50", "1.00x"] in planned
    assert ["aggressive", "4", "14", "50", "3.57x"] in planned
    assert ["conservative", "8", "12", "50", "4.17x"] in planned
    assert not any(row and row[0] in _options.BASELINES for row in rows)


@pytest.mark.parametrize(
    ("words", "row"),
    [
        ("skip --lanes 2", ["skip", "2", "26", "26", "1.92x"]),
        ("skip --rounds 10 --lanes 2", ["skip", "2", "10", "10", "5.00x"]),
        ("paradigms --lanes 4", ["paradigms", "4", "13+", "50+", "at", "most", "3.85x"]),
        ("paradigms --lanes 4 --rounds 14", ["paradigms", "4", "14", "56", "3.57x"]),
    ],
)
def test_plan_shows_a_baseline_that_is_asked_for(
    model: str, capsys: pytest.CaptureFixture[str], words: str, row: list[str]
) -> None:
    assert main(["plan", "--steps", "50", "--model", model, "--mode", *words.split()]) == 0
    rows = [line.split() for line in capsys.readouterr().out.split("\n\n")[1].splitlines()[1:]]
    assert [shown[: len(row)] for shown in rows] == [row]


def test_plan_as_json_of_a_bare_config(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "scheduler_config.json").write_text(json.dumps(tiny.SCHEDULER))
    words = "plan --model scheduler_config.json --steps 30 --mode aggressive --lanes 3 --json"
    assert main([*words.split(), "--scheduler", "dpmsolver++"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "scheduler": "dpmsolver++",
        "steps": 30,
        "plans": [
            {
                "mode": "aggressive",
                "lanes": 3,
                "rounds": 11,
                "predictions": 30,
                "ideal_speedup": 30 / 11,
                "adapts": False,
            }
        ],
    }


@pytest.mark.parametrize(
    "words",
    [
        ["--mode", "window", "--lanes", "3", "--rounds", "6", "--carry", "x0", "--order", "0"],
        ["--mode", "tolerance", "--lanes", "3", "--tolerance", "0.2", "--carry", "G"],
        ["--mode", "paradigms", "--lanes", "3", "--tolerance", "0.2"],
        ["--mode", "paradigms", "--lanes", "3", "--rounds", "6"],
        ["--mode", "window", "--lanes", "3", "--blocks", "3,1,2,3,2"],
        ["--mode", "aggressive", "--lanes", "4", "--blocks", "1,4,4,2"],
    ],
    ids=["window", "tolerance", "paradigms", "paradigms-rounds", "window-blocks", "aggressive-blocks"],
)
def test_from_picture_takes_what_belongs_to_the_mode(model: str, tmp_path: Path, words: list[str]) -> None:
    first, again = tmp_path / "first.png", tmp_path / "again.png"
    assert main(["run", "a red fox", "--model", model, "--steps", "12", *words, "-o", str(first)]) == 0
    assert main(["run", "--from-picture", str(first), "--model", model, "-o", str(again)]) == 0
    one, other = (np.asarray(Image.open(path)) for path in (first, again))
    np.testing.assert_array_equal(one, other)
    assert read_settings(first) == read_settings(again)
    if "--blocks" in words:
        assert ",".join(map(str, read_settings(first)["blocks"])) == words[-1]


def test_rounds_on_the_line_count_and_not_the_blocks_of_the_picture(model: str) -> None:
    words = ["--model", model, "--steps", "8", "--mode", "window", "--lanes", "3"]
    assert main(["run", "a red fox", *words, "--rounds", "4", "-o", "one.png"]) == 0
    assert read_settings("one.png")["blocks"] == [2, 2, 3]
    assert main(["run", "--from-picture", "one.png", "--model", model, "--rounds", "6", "-o", "two.png"]) == 0
    assert read_settings("two.png")["blocks"] == [1, 1, 1, 2, 2]


def test_a_picture_with_settings_that_have_no_option_is_refused(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "picture.png"
    assert main(["run", "a red fox", "--model", model, "--steps", "2", "-o", str(path)]) == 0
    settings = {**read_settings(path), "vae_tiling": 32}
    save_png(Image.open(path), path, settings)
    assert main(["run", "--from-picture", str(path), "--model", model, "-o", str(path)]) == 2
    assert "was made with vae_tiling, for which" in capsys.readouterr().err


def test_more_lanes_than_windows_take_leave_the_other_plans(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--lanes", "17"]) == 0
    shown = capsys.readouterr().out
    assert "aggressive" in shown and "window" not in shown
    assert main(["plan", "--lanes", "17", "--mode", "window"]) == 2
