"""Where the kernels' machine code comes from: the package, or NVRTC and a folder that keeps its work."""

from __future__ import annotations

import contextlib
import hashlib
import os
from pathlib import Path
from typing import Any

from .._cache import cache_folder, keep
from .._errors import DeviceError, InputError, MissingExtraError
from ._driver import nvrtc

__all__ = ["ARCHITECTURES", "IMAGE_VARIABLE", "compile_kernels", "find_kernels"]

# What CMakeLists.txt builds the fatbin for: machine code of each, and PTX of the last.
ARCHITECTURES = (75, 80, 86, 89, 90, 100, 120)
IMAGE_VARIABLE = "DRIFFUSION_KERNELS"
_CSRC = Path(__file__).resolve().parent.parent / "csrc"
_OPTIONS = (b"--std=c++17",)


def find_kernels(
    compute_capability: tuple[int, int], *, fatbin: Path | None = None, cache: Path | None = None
) -> bytes:
    """An image of the kernels that a GPU of this compute capability can load.

    The file that the environment variable DRIFFUSION_KERNELS names, if it is set; else the
    package's fatbin where it has code for the GPU; else NVRTC's, from the cache folder if it
    was compiled before.

    Args:
        fatbin: where the package's is.
        cache: folder of what NVRTC compiled.

    Raises:
        InputError: DRIFFUSION_KERNELS names a file that cannot be read.
        DeviceError: the GPU is older than Turing, or NVRTC refused the kernels.
        MissingExtraError: there is no fatbin for it and NVRTC is not installed.
    """
    named = os.environ.get(IMAGE_VARIABLE)
    if named:
        try:
            return Path(named).read_bytes()
        except OSError as error:
            raise InputError(f"{IMAGE_VARIABLE} names {named}, which cannot be read ({error})") from error
    major, minor = compute_capability
    gpu = 10 * major + minor
    if gpu < ARCHITECTURES[0]:
        raise DeviceError(
            f"this GPU has compute capability {major}.{minor}; 7.5 (Turing, 2018) is the least that works",
            "CUDA_ERROR_NO_BINARY_FOR_GPU",
        )
    fatbin = fatbin or _CSRC / "kernels.fatbin"
    if _covers(gpu) and fatbin.is_file():
        return fatbin.read_bytes()
    return _compiled(gpu, cache or cache_folder("kernels"))


def _covers(gpu: int) -> bool:
    """Machine code runs on later GPUs of its generation, PTX on every later one."""
    same = any(built // 10 == gpu // 10 and built <= gpu for built in ARCHITECTURES)
    return same or gpu > ARCHITECTURES[-1]


def _sources() -> dict[str, bytes]:
    """kernels.cu and the headers that a GPU's compiler needs, by name."""
    names = ("kernels.cu", "arguments.h", "device.h", "values.h")
    return {name: (_CSRC / name).read_bytes() for name in names}


def _compiled(gpu: int, cache: Path | None) -> bytes:
    module = nvrtc()
    version, architecture = _best(module, gpu)
    sources = _sources()
    key = hashlib.sha256(repr((version, architecture, _OPTIONS, sorted(sources.items()))).encode())
    path = None if cache is None else cache / f"{architecture}-{key.hexdigest()[:32]}.image"
    with contextlib.suppress(OSError):
        if path is not None:
            return path.read_bytes()
    image = compile_kernels(architecture)
    keep(path, image)  # a folder that cannot be written to costs a second at every start, no more
    return image


def _best(module: Any, gpu: int) -> tuple[tuple[int, int], str]:
    """NVRTC's version, and sm_NN (or compute_NN, for a GPU that it does not know) that serves the GPU."""
    try:
        status, *version = module.nvrtcVersion()
        supported = module.nvrtcGetSupportedArchs()[-1] if not status else []
    except RuntimeError as error:  # cuda-bindings found no library
        raise MissingExtraError(
            "nvidia-cuda-nvrtc, to compile the kernels for this GPU,",
            "tensorrt",
            command="pip install nvidia-cuda-nvrtc",
        ) from error
    usable = [known for known in supported if known <= gpu]
    if not usable:
        raise DeviceError(
            f"NVRTC {'.'.join(map(str, version))} compiles for no GPU as old as compute capability "
            f"{gpu / 10}; install an older nvidia-cuda-nvrtc"
        )
    best = max(usable)
    return (version[0], version[1]), f"{'sm' if best // 10 == gpu // 10 else 'compute'}_{best}"


def compile_kernels(architecture: str) -> bytes:
    """Compile the kernels with NVRTC: machine code for sm_NN, PTX for compute_NN.

    Raises:
        DeviceError: NVRTC refused; the message has its log.
        MissingExtraError: cuda-bindings is not installed.
    """
    module = nvrtc()
    sources = _sources()
    main = sources.pop("kernels.cu")
    program = _done(
        module.nvrtcCreateProgram(
            main,
            b"kernels.cu",
            len(sources),
            list(sources.values()),
            [name.encode() for name in sources],
        ),
        "nvrtcCreateProgram",
    )
    try:
        options = [*_OPTIONS, f"--gpu-architecture={architecture}".encode()]
        (status,) = module.nvrtcCompileProgram(program, len(options), options)
        if status:
            log = _text(module.nvrtcGetProgramLogSize, module.nvrtcGetProgramLog, program)
            raise DeviceError(
                f"NVRTC cannot compile the kernels for {architecture} ({status.name}): "
                f"{log.decode(errors='replace').strip(chr(0)).strip()}",
                status.name,
            )
        if architecture.startswith("sm_"):
            return _text(module.nvrtcGetCUBINSize, module.nvrtcGetCUBIN, program)
        return _text(module.nvrtcGetPTXSize, module.nvrtcGetPTX, program)
    finally:
        module.nvrtcDestroyProgram(program)


def _text(size_of: Any, get: Any, program: Any) -> bytes:
    """What NVRTC writes into a buffer of the size that it names; cuda-python takes bytes for buffers."""
    buffer: bytes = b" " * _done(size_of(program), "NVRTC's size of a result")
    _done(get(program, buffer), "NVRTC's result")
    return buffer


def _done(result: Any, call: str) -> Any:
    status, *values = result
    if status:
        raise DeviceError(f"{call} failed with {status.name}; reinstall nvidia-cuda-nvrtc", status.name)
    return values[0] if values else None
