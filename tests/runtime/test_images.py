"""Where the kernels' machine code comes from: the fatbin, NVRTC and its cache, and errors without them."""

from __future__ import annotations

import re
import shutil
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from driffusion_trt import DeviceError, InputError, MissingExtraError, _cache
from driffusion_trt.runtime import _images
from driffusion_trt.runtime._images import ARCHITECTURES, compile_kernels, find_kernels

ELF = b"\x7fELF"
NEEDS_NVRTC = pytest.mark.skipif(sys.platform != "linux", reason="the test extra brings NVRTC on Linux alone")


def test_cmake_builds_for_the_same_architectures(root: Path) -> None:
    text = (root / "CMakeLists.txt").read_text()
    (listed,) = re.findall(r"set\(DRIFFUSION_ARCHITECTURES ([\d ]+)\)", text)
    assert tuple(map(int, listed.split())) == ARCHITECTURES


@NEEDS_NVRTC
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_nvrtc_compiles_for_every_architecture(architecture: int) -> None:
    image = compile_kernels(f"sm_{architecture}")
    assert image.startswith(ELF)
    for name in (b"linear", b"gram_partial", b"gram_total", b"nonfinite", b"to_pixels", b"fill_timestep"):
        assert b".text." + name in image
    # In the flags of a cubin's ELF header: the whole word of old ABIs, its second byte in new ones.
    (flags,) = struct.unpack_from("<I", image, 48)
    assert architecture in (flags & 0xFF, flags >> 8 & 0xFF)


def entries(fatbin: bytes) -> list[tuple[str, int]]:
    """(kind, architecture) of what is in a fatbin, from its headers."""
    magic, _, header, size = struct.unpack_from("<IHHQ", fatbin)
    assert magic == 0xBA55ED50
    found, at = [], header
    while at < header + size:
        kind, _, entry, payload = struct.unpack_from("<HHIQ", fatbin, at)
        (architecture,) = struct.unpack_from("<I", fatbin, at + 28)
        found.append(({1: "ptx", 2: "cubin"}[kind], architecture))
        at += entry + payload
    return found


def nvcc() -> bool:
    return shutil.which("nvcc") is not None or Path("/usr/local/cuda/bin/nvcc").exists()


@pytest.mark.skipif(shutil.which("cmake") is None or not nvcc(), reason="needs CMake and nvcc")
def test_the_fatbin_has_every_architecture_and_is_installed(root: Path, tmp_path: Path) -> None:
    build, there = tmp_path / "build", tmp_path / "there"
    for command in (
        ["cmake", "-S", str(root), "-B", str(build)],
        ["cmake", "--install", str(build), "--prefix", str(there)],
    ):
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    fatbin = there / "driffusion_trt/csrc/kernels.fatbin"
    wanted = [("cubin", architecture) for architecture in ARCHITECTURES] + [("ptx", ARCHITECTURES[-1])]
    assert sorted(entries(fatbin.read_bytes())) == sorted(wanted)


@pytest.mark.skipif(shutil.which("cmake") is None, reason="needs CMake")
@pytest.mark.parametrize("compiler", ["NOTFOUND", "/bin/false"])
def test_an_install_without_a_working_nvcc_has_no_kernels(root: Path, tmp_path: Path, compiler: str) -> None:
    for command in (
        ["cmake", "-S", str(root), "-B", str(tmp_path / "build"), f"-DDRIFFUSION_NVCC={compiler}"],
        ["cmake", "--install", str(tmp_path / "build"), "--prefix", str(tmp_path / "there")],
    ):
        if compiler == "NOTFOUND":  # find_program would look again
            command += ["-DDRIFFUSION_FATBIN=OFF"] if "-S" in command else []
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        if "-S" in command and compiler != "NOTFOUND":
            assert "the wheel gets no kernels" in done.stdout
    assert list(tmp_path.rglob("*.fatbin")) == []


# -- the choice


@pytest.fixture
def fatbin(tmp_path: Path) -> Path:
    path = tmp_path / "kernels.fatbin"
    path.write_bytes(b"fatbin")
    return path


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """NVRTC, which is slow, replaced by a note of what it was asked for."""
    asked: list[str] = []

    def compile_one(architecture: str) -> bytes:
        asked.append(architecture)
        return b"image of " + architecture.encode()

    monkeypatch.setattr(_images, "compile_kernels", compile_one)
    monkeypatch.setattr(_images, "_best", lambda module, gpu: ((13, 0), f"sm_{gpu}"))
    monkeypatch.setattr(_images, "nvrtc", lambda: None)
    return asked


@pytest.mark.parametrize(
    ("capability", "from_package"),
    [
        ((7, 5), True),
        ((8, 0), True),
        ((8, 7), True),  # machine code of 8.6 runs on it
        ((9, 0), True),
        ((10, 3), True),
        ((11, 0), False),  # a generation of its own, older than the PTX
        ((12, 1), True),
        ((13, 0), True),  # by the PTX
    ],
)
def test_the_package_serves_what_it_was_built_for(
    capability: tuple[int, int], from_package: bool, fatbin: Path, tmp_path: Path, compiled: list[str]
) -> None:
    image = find_kernels(capability, fatbin=fatbin, cache=tmp_path / "cache")
    assert (image == b"fatbin") is from_package
    assert bool(compiled) is not from_package


def test_what_nvrtc_made_is_kept(tmp_path: Path, compiled: list[str]) -> None:
    cache = tmp_path / "deep" / "cache"
    for _ in range(2):
        assert find_kernels((8, 9), fatbin=tmp_path / "none", cache=cache) == b"image of sm_89"
        assert find_kernels((9, 0), fatbin=tmp_path / "none", cache=cache) == b"image of sm_90"
    assert compiled == ["sm_89", "sm_90"]
    assert len(list(cache.iterdir())) == 2


def test_the_cache_knows_sources_and_versions(
    tmp_path: Path, compiled: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    call = {"fatbin": tmp_path / "none", "cache": tmp_path}
    find_kernels((8, 9), **call)
    monkeypatch.setattr(_images, "_best", lambda module, gpu: ((13, 1), f"sm_{gpu}"))
    find_kernels((8, 9), **call)
    changed = _images._sources() | {"values.h": b"// other"}
    monkeypatch.setattr(_images, "_sources", lambda: changed)
    find_kernels((8, 9), **call)
    assert compiled == ["sm_89"] * 3


def test_a_cache_that_cannot_be_written_costs_time_only(tmp_path: Path, compiled: list[str]) -> None:
    blocked = tmp_path / "file"
    blocked.write_bytes(b"")
    for _ in range(2):
        image = find_kernels((8, 9), fatbin=tmp_path / "none", cache=blocked / "cache")
        assert image == b"image of sm_89"
    assert compiled == ["sm_89", "sm_89"]


def test_a_write_that_fails_leaves_nothing(
    tmp_path: Path, compiled: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_rename(*_: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(_images.os, "replace", no_rename)
    assert find_kernels((8, 9), fatbin=tmp_path / "none", cache=tmp_path) == b"image of sm_89"
    assert list(tmp_path.iterdir()) == []


def test_an_image_can_be_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "image"
    path.write_bytes(b"CUDASIM\0/there.so\0")
    monkeypatch.setenv(_images.IMAGE_VARIABLE, str(path))
    assert find_kernels((1, 0)) == b"CUDASIM\0/there.so\0"
    path.unlink()
    with pytest.raises(InputError, match=f"DRIFFUSION_KERNELS names {re.escape(str(path))}"):
        find_kernels((8, 0))


def test_old_gpus_are_refused(fatbin: Path) -> None:
    with pytest.raises(DeviceError, match=r"compute capability 7\.0; 7\.5 \(Turing"):
        find_kernels((7, 0), fatbin=fatbin)


def test_without_cuda_python_the_command_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    with pytest.raises(MissingExtraError, match=r"pip install '\.\[tensorrt\]'"):
        find_kernels((8, 0), fatbin=tmp_path / "none", cache=tmp_path)


class Nvrtc:
    """NVRTC at the seam: a version, what it can, and how it fails."""

    class Status(int):
        name = "NVRTC_ERROR_COMPILATION"

    def __init__(self, supported: list[int], missing: bool = False) -> None:
        self.supported, self.missing = supported, missing

    def nvrtcVersion(self) -> Any:
        if self.missing:
            raise RuntimeError('Failure finding "nvrtc"')
        return 0, 13, 0

    def nvrtcGetSupportedArchs(self) -> Any:
        return 0, self.supported

    def nvrtcCreateProgram(self, *_: Any) -> Any:
        return 0, "program"

    def nvrtcCompileProgram(self, *_: Any) -> Any:
        return (self.Status(6),)

    def nvrtcGetProgramLogSize(self, _: Any) -> Any:
        return 0, 1

    def nvrtcGetProgramLog(self, *_: Any) -> Any:
        return (0,)

    def nvrtcDestroyProgram(self, _: Any) -> None:
        self.destroyed = True


def test_without_nvrtc_the_command_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_images, "nvrtc", lambda: Nvrtc([], missing=True))
    with pytest.raises(MissingExtraError, match="run: pip install nvidia-cuda-nvrtc"):
        find_kernels((8, 0), fatbin=tmp_path / "none", cache=tmp_path)


@pytest.mark.parametrize(
    ("gpu", "architecture"),
    [(90, "sm_90"), (89, "sm_89"), (87, "sm_86"), (110, "compute_100"), (121, "sm_120")],
)
def test_nvrtc_is_asked_for_the_nearest_it_knows(gpu: int, architecture: str) -> None:
    assert _images._best(Nvrtc(list(ARCHITECTURES)), gpu) == ((13, 0), architecture)


def test_a_gpu_that_nvrtc_dropped_is_refused() -> None:
    with pytest.raises(
        DeviceError, match=r"NVRTC 13\.0 compiles for no GPU as old as compute capability 7\.5"
    ):
        _images._best(Nvrtc([80, 90]), 75)


def test_what_nvrtc_refuses_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = Nvrtc([80])
    monkeypatch.setattr(_images, "nvrtc", lambda: fake)
    with pytest.raises(DeviceError, match="cannot compile the kernels for sm_80") as caught:
        compile_kernels("sm_80")
    assert caught.value.code == "NVRTC_ERROR_COMPILATION"
    assert fake.destroyed


@NEEDS_NVRTC
def test_the_real_nvrtc_tells_its_log(monkeypatch: pytest.MonkeyPatch) -> None:
    sources = _images._sources()
    broken = sources | {"kernels.cu": sources["kernels.cu"] + b"\nthis is no code\n"}
    monkeypatch.setattr(_images, "_sources", lambda: dict(broken))
    with pytest.raises(DeviceError, match=r"kernels\.cu.*error"):
        compile_kernels("sm_80")


@pytest.mark.parametrize(
    ("platform", "name", "variables", "expected"),
    [
        ("linux", "posix", {"XDG_CACHE_HOME": "/x"}, "/x/driffusion-trt/kernels"),
        ("linux", "posix", {"XDG_CACHE_HOME": ""}, "/home/a/.cache/driffusion-trt/kernels"),
        ("darwin", "posix", {}, "/home/a/Library/Caches/driffusion-trt/kernels"),
    ],
)
def test_the_cache_is_where_the_system_keeps_caches(
    platform: str, name: str, variables: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_cache.sys, "platform", platform)
    monkeypatch.setenv("HOME", "/home/a")
    for variable, value in variables.items():
        monkeypatch.setenv(variable, value)
    assert _cache.cache_folder("kernels") == Path(expected)
