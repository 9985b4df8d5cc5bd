"""`driffusion-trt plan`: the lanes over time as text and as SVG, and rows that cannot be."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import calibrated
import pytest
import tiny

from driffusion_trt._kept_costs import KeptCosts
from driffusion_trt.calibration import add_entries
from driffusion_trt.cli import main
from driffusion_trt.engines.manifest import ModelFolder
from driffusion_trt.planning.costs import Costs

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny.make_model_folder(tmp_path_factory.mktemp("models") / "tiny"))


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    return tmp_path


def test_a_timeline_as_text(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = "plan --timeline --mode window --lanes 3 --steps 9 --blocks 1,2,3,2"
    assert main([*words.split(), "--model", model]) == 0
    assert capsys.readouterr().out == (
        "window, 3 lanes: 9 steps of ddim in 5 rounds\n"
        "\n"
        "round   1   2   3   4   5\n"
        "lane 0 [0] [1] [2] [4] [7]\n"
        "lane 1  .  (2)  3   5   8\n"
        "lane 2  .  (3) (4)  6   .\n"
        "state   1   2   4   7   9\n"
        "       +1  +1  +2  +3  +2\n"
        "\n"
        "[i] at the exact state\n"
        " i  at a draft; its step is taken with this prediction\n"
        "(i) at a draft, to draft better: a later round predicts this state again\n"
        "state: where the round arrives; +: steps it takes\n"
    )


def test_a_long_timeline_is_folded_to_the_terminal(
    model: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    words = "plan --timeline --mode window --lanes 8 --steps 50 --rounds 50"
    assert main([*words.split(), "--model", model]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = [line for line in lines if line.startswith(("round", "lane", "state  "))]
    assert max(map(len, rows)) <= 60
    rounds = [number for line in rows if line.startswith("round") for number in line.split()[1:]]
    assert rounds == [str(k) for k in range(1, 51)]
    exact = [word.strip("[] ") for line in rows if line.startswith("lane 0") for word in line[7:].split("]")]
    assert [word for word in exact if word] == [str(k) for k in range(50)]


def test_a_tolerance_is_shown_at_its_fewest(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--timeline", "--mode", "tolerance", "--steps", "9", "--model", model]) == 0
    first = capsys.readouterr().out.splitlines()[0]
    assert first == "tolerance, 4 lanes: 9 steps of ddim in 3 rounds at the fewest, with every draft near"


def test_a_timeline_as_a_picture(model: str, capsys: pytest.CaptureFixture[str], here: Path) -> None:
    words = "plan --mode window --lanes 8 --steps 50 --rounds 20 -o lanes.svg"
    assert main([*words.split(), "--model", model]) == 0
    assert capsys.readouterr().out == "lanes.svg\n"
    assert [path.name for path in here.iterdir()] == ["lanes.svg"]
    root = ET.parse(here / "lanes.svg").getroot()
    width, height = (float(root.attrib[name]) for name in ("width", "height"))
    assert root.attrib["viewBox"] == f"0 0 {width:g} {height:g}"
    for box in root.iter(f"{SVG}rect"):
        sides = {name: float(box.attrib.get(name, 0)) for name in ("x", "y", "width", "height")}
        assert sides["x"] >= 0 and sides["x"] + sides["width"] <= width
        assert sides["y"] >= 0 and sides["y"] + sides["height"] <= height
    notes = [title.text or "" for title in root.iter(f"{SVG}title")]
    assert notes[0] == "window, 8 lanes: 50 steps of ddim in 20 rounds"
    assert "round 2, lane 0: state 1, at the exact state" in notes
    assert len(notes) == 1 + sum(len(turn["lanes"]) for turn in turns(model, words, capsys))


def turns(model: str, words: str, capsys: pytest.CaptureFixture[str]) -> list[dict[str, list[object]]]:
    assert main([*words.split(), "--json", "--model", model]) == 0
    found: list[dict[str, list[object]]] = json.loads(capsys.readouterr().out)["timeline"]
    return found


def test_a_timeline_as_json(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = turns(model, "plan --timeline --steps 4 --lanes 3", capsys)
    assert found[0] == {"lanes": [{"state": 0, "kind": "exact"}], "before": 0, "after": 0}
    assert [cell["state"] for cell in found[1]["lanes"]] == [1, 2, 3]  # type: ignore[index]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("-o lanes.png", "output 'lanes.png' is no .svg file; give lanes.svg"),
        ("-o no/lanes.svg", "the output folder no does not exist"),
        ("--timeline --mode window --rounds 3", "rounds=3 was asked; it must be from 14 to 50"),
        ("--timeline --rounds 20", "mode 'aggressive' has a fixed number"),
        ("--timeline --mode skip --blocks 1,2", "it goes with mode 'window' or 'aggressive'"),
        ("--blocks 1,2", "--blocks was given; it goes with --mode window or aggressive"),
        ("--mode window --rounds 3", "rounds=3 was asked; it must be from 8 to 50"),
        ("--mode window --lanes 2 --rounds 10", "rounds=10 was asked; it must be from 26 to 50"),
    ],
)
def test_what_cannot_be_is_refused(
    model: str, words: str, message: str, capsys: pytest.CaptureFixture[str], here: Path
) -> None:
    assert main(["plan", *words.split(), "--steps", "50", "--model", model]) == 2
    out, err = capsys.readouterr()
    assert not out and message in err and not list(here.iterdir())


def test_lanes_that_nobody_asked_for_are_left_out_where_they_cannot_be(
    model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for rounds, wanted in ((10, ["8"]), (18, ["3", "4", "8"]), (26, ["2", "3", "4", "8"])):
        words = f"plan --mode window --rounds {rounds} --steps 50"
        assert main([*words.split(), "--model", model]) == 0
        rows = [line.split() for line in capsys.readouterr().out.splitlines()]
        assert [row[1] for row in rows if row[:1] == ["window"]] == wanted


def test_what_is_expected_on_this_machine_is_in_the_table(
    model: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    words = ["plan", "--model", model, "--steps", "20", "--devices", "4"]
    assert main(words) == 0
    out = capsys.readouterr().out
    assert "nothing was measured on 4 CPU threads yet" in out and "auto:" not in out
    monkeypatch.setattr(KeptCosts, "read", lambda *_: Costs(4, (10.0, 19.0), 1.0, (0.0, 0.0), 1.0, 5.0))
    add_entries(ModelFolder.open(model), [calibrated.ENTRY])
    assert main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = {tuple(line.split()[:2]): line.split()[2:] for line in lines[3:]}
    assert rows["sequential", "1"] == ["20", "20", "1.00x", "20", "385", "1.00x", "–"]
    # 1 + ⌈19/4⌉ rounds of 19 ms; with a tolerance 7.5, each with a look of 1 ms, as a window's has.
    assert rows["aggressive", "4"][3:] == ["6", "119", "3.24x", "–"]
    assert rows["tolerance", "4"][-4:] == ["7.5", "155", "2.48x", "–"]
    assert rows["window", "4"][3:] == ["6", "125", "3.08x", "0.0200"]
    basis = "rounds as calibrated with 20 steps of ddim, guidance 3"
    assert lines[-2] == f"expected on 4 CPU threads, guidance 3; {basis}"
    assert lines[-1].startswith(
        "auto: tolerance 0.01, 2 lanes, guidance split over two devices: about 11.6 rounds"
    )
    assert main([*words, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["auto"]["mode"] == "tolerance" and facts["auto"]["split_guidance"] is True
    assert next(row for row in facts["plans"] if row["mode"] == "tolerance")["expected_rounds"] is not None


def figures(here: Path, **changes: object) -> str:
    path = here / "one-gpu.json"
    given: dict[str, object] = {"call_ms": [10.0, 19.0], "host_us": [0, 0], "encode_ms": 5.0, "rows": [1, 4]}
    path.write_text(json.dumps(given | {"copy_us": 100.0, "source": "a made-up GPU"} | changes))
    return str(path)


def test_what_more_devices_would_take_from_the_figures_of_one(
    model: str, capsys: pytest.CaptureFixture[str], here: Path
) -> None:
    words = ["plan", "--model", model, "--steps", "20", "--costs", figures(here), "--devices", "4"]
    assert main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = {
        (line[:7].strip(), line[9:30].strip()): line[30:].split() for line in lines[3:] if line[:1] == " "
    }
    # The steps, guidance in one batch, and what is beside: 20 * 19 + 5.
    assert rows["1", "sequential"][:4] == ["20", "385.0", "1.00x", "1.00x"]
    # 20 * (10 + 0.2) + 5, and 2 single rounds (the first, and the last step but one) of the 1 + 19 / 4.
    assert rows["2", "sequential + split"][:4] == ["20", "209.0", "1.84x", "1.86x"]
    assert rows["4", "aggressive"][:2] == ["6", "120.0"]
    assert rows["4", "aggressive + split"][:2] == ["11", "117.2"]
    assert not [key for key in rows if key[0] not in ("1", "2", "4")]
    assert "expected from the figures of one device: a made-up GPU" in lines
    assert any(line.startswith("auto, 4 devices: ") for line in lines)
    assert main([*words, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    one = next(row for row in facts["plans"] if row["mode"] == "conservative" and row["devices"] == 4)
    assert sum(one["terms_ms"].values()) == pytest.approx(one["expected_ms"])
    assert set(facts["pays_up_to_devices"]) == {"aggressive", "conservative", "window", "tolerance"}


def test_what_pays_is_said_of_all_devices_that_were_asked_for(
    model: str, capsys: pytest.CaptureFixture[str], here: Path
) -> None:
    """Calls of 60 ms, nothing else: of 41 steps 20 devices take 3 rounds, 19 and 17 take 4, 40 take 2."""
    words = ["plan", "--model", model, "--steps", "41", "--costs", figures(here), "--mode", "aggressive"]

    def said(*more: str) -> tuple[str, int]:
        assert main([*words, *more]) == 0
        lines = [line for line in capsys.readouterr().out.splitlines() if "brings less than" in line]
        assert main([*words, *more, "--json"]) == 0
        pays: dict[str, int] = json.loads(capsys.readouterr().out)["pays_up_to_devices"]
        return " ".join(lines), pays["aggressive"]

    line, devices = said("--devices", "17")
    assert devices == 14 and line == (
        "aggressive, guidance in one batch: of up to 17 devices each after 14 devices brings less than 5 %"
    )
    assert said("--devices", "4") == (line.replace("17", "16"), 14)
    line, devices = said("--devices", "30", "--guidance-scale", "1")
    assert devices == 20 and line.startswith(
        "aggressive, without guidance: of up to 30 devices each after 20"
    )
    assert said("--devices", "40")[1] == 40


def test_a_bare_scheduler_has_no_tolerance_to_expect(
    model: str, capsys: pytest.CaptureFixture[str], here: Path
) -> None:
    config = str(Path(model) / "scheduler" / "scheduler_config.json")
    assert main(["plan", "--model", config, "--costs", figures(here), "--mode", "window"]) == 0
    assert "auto" not in capsys.readouterr().out
    assert main(["plan", "--model", config, "--costs", figures(here)]) == 0
    assert "tolerance is left out" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--lanes 4", "--lanes was given; it does not go with --costs: lanes follow from the devices"),
        ("--timeline", "--timeline was given; it does not go with --costs"),
        ("-o lanes.svg", "--output was given; it does not go with --costs"),
        ("--devices cuda", "with --costs it is a number"),
        ("--devices 0", "with --costs it is a number"),
        ("--devices 10000000000", "the most devices, up to 100000"),
        ("--lanes 0", "--lanes was given; it does not go with --costs"),
        ("--mode window --rounds 3", "rounds=3 was asked; it must be from"),
    ],
)
def test_what_does_not_go_with_costs_is_refused(
    model: str, words: str, message: str, capsys: pytest.CaptureFixture[str], here: Path
) -> None:
    assert main(["plan", "--model", model, "--costs", figures(here), *words.split()]) == 2
    out, err = capsys.readouterr()
    assert not out and message in err


def test_figures_that_cannot_be_are_refused_with_their_file(
    model: str, capsys: pytest.CaptureFixture[str], here: Path
) -> None:
    assert main(["plan", "--model", model, "--costs", figures(here, copy_gbs=4)]) == 2
    assert "one-gpu.json: there is no figure 'copy_gbs'; did you mean 'copy_gb_s'?" in capsys.readouterr().err
    assert main(["plan", "--model", model, "--costs", figures(here, rows=[4, 4])]) == 2
    assert "calls take (4, 4) rows" in capsys.readouterr().err


def test_the_docs_show_what_the_command_prints(
    root: Path, capsys: pytest.CaptureFixture[str], here: Path
) -> None:
    text = (root / "docs" / "performance.md").read_text("utf-8")
    (given,) = re.findall(r"```json\n(.*?)```", text, re.DOTALL)
    (shown,) = (
        block for block in re.findall(r"```text\n(.*?)```", text, re.DOTALL) if "devices  mode" in block
    )
    (here / "one-gpu.json").write_text(given)
    (words,) = re.findall(r"`driffusion-trt (plan --costs one-gpu\.json.*?)`", text)
    assert main(words.split()) == 0
    assert shown in capsys.readouterr().out


def test_the_docs_have_the_papers_figures_as_they_are_computed(root: Path) -> None:
    from bench import paper

    assert paper.table() in (root / "docs" / "performance.md").read_text("utf-8")
