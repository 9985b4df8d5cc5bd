"""What a terminal shows while a command works."""

from __future__ import annotations

import io
import re
import sys

import pytest

from driffusion_trt.commands._building_output import Meter
from driffusion_trt.commands._console import Console


class Screen(io.StringIO):
    """A terminal of 80 columns, as far as rich can tell."""

    def isatty(self) -> bool:
        return True


def made_stderr(monkeypatch: pytest.MonkeyPatch) -> Screen:
    made = Screen()
    monkeypatch.setattr(sys, "stderr", made)
    for name, value in {"TERM": "xterm", "COLUMNS": "80", "LINES": "24"}.items():
        monkeypatch.setenv(name, value)
    return made


def last_line(screen: Screen) -> str:
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen.getvalue())
    return [line for line in re.split(r"[\r\n]+", plain) if line.strip()][-1]


def test_the_bar_stays_whole_beside_a_long_text_of_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = made_stderr(monkeypatch)
    with Console().progress(10) as tick:
        tick(5, "what it is at [x] " * 20)
    shown = last_line(screen)
    assert len(shown.rstrip()) == 80 and shown.rstrip().endswith("…")
    assert shown.count("━") + shown.count("╸") + shown.count("╺") == 24
    assert "what it is at [x] what" in shown, "text is shown as it is, and starts beside the bar"


def test_a_network_is_named_without_its_list_of_targets() -> None:
    said: list[str] = []
    meter = Meter([0.0, 10.0, 10.0])
    meter.tick = lambda done, text: said.append(text)
    meter.phase("denoiser for sm80, sm86, sm89, sm120, sm121", "Building engine")
    meter.phase("vae_decoder for sm80, sm86, sm89, sm120, sm121", "starting")
    assert said[-1] == "under a minute left  denoiser: Building engine; vae_decoder: starting"
