"""ONNX Runtime's telemetry is off wherever the package or its benchmarks load it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

MODEL = Path(__file__).resolve().parent.parent / "driffusion_trt/demo/onnx/text_encoder.onnx"
LOADERS = {
    "a session": f"from driffusion_trt.engines.onnx_session import OnnxSession; OnnxSession({str(MODEL)!r})",
    "an export": "import driffusion_trt.export.parity",
    "a benchmark": "import bench.crowd",
}


def child(code: str, folder: Path, **variables: str) -> str:
    """What the code prints, in a process that has no word on telemetry but `variables`."""
    env = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    env |= {"XDG_CACHE_HOME": str(folder), "HOME": str(folder), **variables}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("what", LOADERS)
def test_nothing_is_gathered(tmp_path: Path, what: str) -> None:
    """Where it is on, ONNX Runtime keeps an id of the machine and a queue of events from its import on."""
    code = f"{LOADERS[what]}; import sys; print('onnxruntime' in sys.modules)"
    assert child(code, tmp_path).split() == ["True"]
    assert [path.name for path in tmp_path.rglob("*") if "onnxruntime" in path.name] == []


def test_a_word_that_was_given_counts(tmp_path: Path) -> None:
    code = "import driffusion_trt, os; print(os.environ['ORT_DISABLE_TELEMETRY'])"
    assert child(code, tmp_path) == "1\n"
    assert child(code, tmp_path, ORT_DISABLE_TELEMETRY="0") == "0\n"
