"""One builder at a time, and none for ever."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from driffusion_trt import ModelError
from driffusion_trt.engines.lock import lock_folder, lock_path

HOLD = """
import sys, time
from pathlib import Path
from driffusion_trt.engines.lock import lock_folder
with lock_folder(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def holder(folder: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


def test_a_second_builder_is_told_who_is_there(tmp_path: Path) -> None:
    folder = tmp_path / "models" / "sdxl"
    with holder(folder) as process:
        try:
            with pytest.raises(
                ModelError, match=rf"being built by another \(process {process.pid} on .*since"
            ):
                lock_folder(folder).__enter__()
        finally:
            process.kill()


def test_a_killed_builder_holds_nothing(tmp_path: Path) -> None:
    with holder(tmp_path / "sdxl") as process:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        with lock_folder(tmp_path / "sdxl"):
            pass


def test_the_lock_leaves_nothing_behind_and_can_be_taken_again(tmp_path: Path) -> None:
    folder = tmp_path / "sdxl"
    for _ in range(2):
        with lock_folder(folder):
            assert lock_path(folder).exists()
        assert list(tmp_path.iterdir()) == []


def test_other_folders_are_free(tmp_path: Path) -> None:
    with lock_folder(tmp_path / "a"), lock_folder(tmp_path / "b"):
        pass


def test_a_lock_that_its_holder_removes_is_not_taken_for_the_new_one(tmp_path: Path) -> None:
    """Whoever opened the old file and then gets its lock must notice that nobody else will see it."""
    folder = tmp_path / "sdxl"
    with lock_folder(folder):
        old = open(lock_path(folder), "a+")  # noqa: SIM115
    with old, lock_folder(folder), pytest.raises(ModelError):
        lock_folder(folder).__enter__()
