"""What the report of the kernels reads out of ptxas' log."""

from __future__ import annotations

from typing import Any

import pytest

from bench import kernels_report

LOG = """\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'linear' for 'sm_75'
ptxas info    : Function properties for linear
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 112 registers, used 0 barriers, 4072 bytes cmem[0]
ptxas info    : Compile time = 152.658 ms
ptxas info    : Compiling entry function 'gram_partial' for 'sm_120'
ptxas info    : Function properties for gram_partial
    8 bytes stack frame, 12 bytes spill stores, 16 bytes spill loads
ptxas info    : Used 96 registers, used 0 barriers, 8 bytes cumulative stack size
"""


def row(
    kernel: str, architecture: int, stack: int, stores: int, loads: int, registers: int
) -> dict[str, Any]:
    return {
        "kernel": kernel,
        "architecture": architecture,
        "stack_bytes": stack,
        "spill_store_bytes": stores,
        "spill_load_bytes": loads,
        "registers": registers,
    }


def test_the_log_is_read() -> None:
    expected = [row("linear", 75, 0, 0, 0, 112), row("gram_partial", 120, 8, 12, 16, 96)]
    assert kernels_report.parse(LOG) == expected


@pytest.mark.parametrize(("stores", "status"), [(0, 0), (8, 1)])
def test_spills_make_it_fail(
    stores: int, status: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [row("linear", a, 0, stores, 0, 40) for a in kernels_report.ARCHITECTURES]
    seconds = {"wall_s": 2.0, "processors_s": 3.0}
    build = {"one_thread": seconds, "threads_0": seconds, "fatbin_bytes": 9, "nvrtc_s": {"sm_75": 1.0}}
    monkeypatch.setattr(kernels_report, "_version", lambda: "13.0.88")
    monkeypatch.setattr(kernels_report, "compiled", lambda folder: (rows, LOG))
    monkeypatch.setattr(kernels_report, "build_times", lambda folder: build)
    assert kernels_report.main(["--no-write"]) == status
    assert f"spills: {7 if stores else 0} of 7 kernels" in capsys.readouterr().out
