"""The Dockerfile and the systemd unit call the command as it is."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from driffusion_trt.cli import parse
from driffusion_trt.server.engine import ENDING_S
from driffusion_trt.server.serving import LAST_WORDS_S


def longest_end_s(drain_s: float) -> float:
    """From SIGTERM to the end of the process: what was accepted, what is given up, answers, devices."""
    return drain_s + ENDING_S + LAST_WORDS_S


def test_the_docs_say_how_long_the_end_can_take(root: Path) -> None:
    text = " ".join((root / "docs" / "serving.md").read_text(encoding="utf-8").split())
    assert f"the end may take {longest_end_s(0):.0f} seconds more" in text
    assert f"above `--drain-timeout` and {longest_end_s(0):.0f} seconds" in text


def test_the_dockerfile_starts_the_command(root: Path) -> None:
    text = (root / "deploy" / "Dockerfile").read_text(encoding="utf-8")
    entry = re.search(r"^ENTRYPOINT (\[.*\])$", text, flags=re.MULTILINE)
    assert entry
    program, *words = json.loads(entry[1])
    args = parse(words)
    assert (program, args.command, args.host) == ("driffusion-trt", "serve", "0.0.0.0")
    stop = re.search(r"--stop-timeout (\d+) ", text)
    assert stop and longest_end_s(args.drain_timeout) < int(stop[1])
    example = re.search(r"driffusion-trt (--model .*)$", text, flags=re.MULTILINE)
    assert example and parse([*words, *shlex.split(example[1])]).api_key_file == "/run/secrets/keys"
    assert "\nUSER serve\n" in text, "not as root"


def test_the_unit_starts_the_command(root: Path) -> None:
    text = (root / "deploy" / "driffusion-trt.service").read_text(encoding="utf-8").replace("\\\n", " ")
    start = re.search(r"^ExecStart=(.*)$", text, flags=re.MULTILINE)
    assert start
    program, *words = shlex.split(start[1])
    args = parse([word for word in words if word != "$OPTIONS"])
    assert program.endswith("/driffusion-trt") and args.command == "serve"
    stop = re.search(r"^TimeoutStopSec=(\d+)$", text, flags=re.MULTILINE)
    assert stop and longest_end_s(args.drain_timeout) < int(stop[1])


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="there is no systemd here")
def test_systemd_understands_the_unit(root: Path, tmp_path: Path) -> None:
    unit = (root / "deploy" / "driffusion-trt.service").read_text(encoding="utf-8")
    copy = tmp_path / "driffusion-trt.service"
    copy.write_text(unit.replace("/opt/driffusion/bin/driffusion-trt", "/bin/true"), encoding="utf-8")
    done = subprocess.run(["systemd-analyze", "verify", copy], capture_output=True, text=True, timeout=60)
    about_it = [line for line in done.stderr.splitlines() if "driffusion-trt" in line]
    assert (done.returncode, about_it) == (0, [])
