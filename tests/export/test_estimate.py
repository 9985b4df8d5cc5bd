"""What an export will take, and the refusal where there is not enough of it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from driffusion_trt import ModelError
from driffusion_trt.export import estimate
from driffusion_trt.export.checkpoint import Checkpoint, Component, read_checkpoint
from driffusion_trt.export.estimate import Estimate, available_memory_bytes, check_room, estimate_export
from driffusion_trt.export.parts import parts_of
from driffusion_trt.models import get_spec

# Parameters of the published checkpoints.
SDXL = {"text_encoder": 123e6, "text_encoder_2": 695e6, "unet": 2567e6, "vae": 84e6}
NETWORKS = ("text_encoder", "text_encoder_2", "denoiser", "vae_decoder", "vae_encoder")


def sdxl(tmp_path: Path) -> Checkpoint:
    spec = get_spec("sdxl")
    parts = {
        part.name: Component(part, tmp_path, {}, (), (), None, False, int(SDXL[part.name]))
        for part in parts_of(spec)
    }
    return Checkpoint(tmp_path, spec, parts)


def test_full_size_sdxl(tmp_path: Path) -> None:
    whole = estimate_export(sdxl(tmp_path), "fp16", export=NETWORKS, verify=NETWORKS)
    weights = 2 * (123e6 + 695e6 + 2567e6) + 4 * 84e6  # the autoencoder in float32
    assert weights < whole.disk_bytes < 1.2 * weights
    assert 16.0e9 < whole.memory_bytes < 1.1 * 16.0e9  # what its comparison was seen to take
    assert whole.largest == "denoiser"
    unchecked = estimate_export(sdxl(tmp_path), "fp16", export=NETWORKS, verify=())
    assert unchecked.memory_bytes < 8e9
    assert unchecked.seconds < whole.seconds
    one = estimate_export(sdxl(tmp_path), "fp16", export=["text_encoder"], verify=())
    assert one.disk_bytes < 0.3e9 and one.memory_bytes < 2e9
    assert estimate_export(sdxl(tmp_path), "fp16", export=(), verify=()) == Estimate(0.0, 0, 0, "")


def test_precision_halves_the_disk(tmp_path: Path) -> None:
    disk = {
        precision: estimate_export(sdxl(tmp_path), precision, export=["denoiser"], verify=()).disk_bytes
        for precision in ("fp32", "fp16", "bf16")
    }
    assert disk["fp16"] == disk["bf16"]
    assert disk["fp32"] == pytest.approx(2 * disk["fp16"], rel=0.01)


def test_the_check_of_bfloat16_writes_a_copy_in_float32(tmp_path: Path) -> None:
    checked, unchecked = (
        estimate_export(sdxl(tmp_path), "bf16", export=NETWORKS, verify=verify) for verify in (NETWORKS, ())
    )
    assert checked.disk_bytes - unchecked.disk_bytes == pytest.approx(1.1 * 4 * 2567e6, rel=1e-3)


def test_it_is_close_to_what_an_export_writes(checkpoints: Callable[[str], Path], tmp_path: Path) -> None:
    """The reduced checkpoint's own weights, in float32: as many bytes as its files hold."""
    checkpoint = read_checkpoint(checkpoints("sd21"), get_spec("sd21"))
    stored = sum(path.stat().st_size for part in checkpoint.components.values() for path in part.weights)
    names = ("text_encoder", "denoiser", "vae_decoder", "vae_encoder")
    assert estimate_export(checkpoint, "fp32", export=names, verify=()).disk_bytes > stored


class Usage(NamedTuple):
    total: int
    used: int
    free: int


def test_too_little_disk_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**12, 0, 3 * 10**9))
    with pytest.raises(ModelError, match=r"needs 8\.0 GB of disk, and .* has 3\.0 GB free; make room"):
        check_room(Estimate(1, 8 * 10**9, 0, "denoiser"), tmp_path / "not" / "yet" / "there")
    check_room(Estimate(1, 2 * 10**9, 0, "denoiser"), tmp_path)


def test_too_little_memory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimate, "available_memory_bytes", lambda: 6 * 10**9)
    with pytest.raises(ModelError, match=r"denoiser needs 12\.0 GB of memory, and 6\.0 GB are free"):
        check_room(Estimate(1, 0, 12 * 10**9, "denoiser"), tmp_path)
    with pytest.raises(ModelError, match="skip text_encoder_3, which SD3 can do without"):
        check_room(Estimate(1, 0, 24 * 10**9, "text_encoder_3"), tmp_path)
    check_room(Estimate(1, 0, 5 * 10**9, "denoiser"), tmp_path)
    monkeypatch.setattr(estimate, "available_memory_bytes", lambda: None)
    check_room(Estimate(1, 0, 10**15, "denoiser"), tmp_path)


def container(folder: Path, **files: str) -> Path:
    folder.mkdir()
    for name, text in files.items():
        (folder / f"memory.{name}").write_text(text)
    return folder


def test_memory_of_the_system_and_of_a_container(tmp_path: Path) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal: 24000 kB\nMemAvailable: 16000 kB\n")
    free = {"current": "9000000", "stat": "anon 1\ninactive_file 1000000\nactive_file 2000000"}
    small = container(tmp_path / "small", max="10000000", **free)
    assert available_memory_bytes(meminfo, small) == 10_000_000 - 9_000_000 + 3_000_000
    unlimited = container(tmp_path / "unlimited", max="max", **free)
    assert available_memory_bytes(meminfo, unlimited) == 16_000 * 1024
    assert available_memory_bytes(meminfo, tmp_path / "none") == 16_000 * 1024


def test_this_machine_has_some_memory() -> None:
    free = available_memory_bytes()
    assert free is None or 10**7 < free < 10**14


@pytest.mark.parametrize(
    ("seconds", "text"), [(20, "under a minute"), (150, "about 2 min"), (3600, "about 60 min")]
)
def test_text(seconds: float, text: str) -> None:
    assert (
        str(Estimate(seconds, 5_100_000_000, 50_000_000, "x")) == f"{text}, 5.1 GB of disk, 50 MB of memory"
    )
