"""What an error of the CUDA driver means for whoever reads it."""

from __future__ import annotations

from typing import Any

from .._errors import DeviceError, EngineError

__all__ = ["LOST", "NO_DRIVER", "device_error", "short_of_memory"]

NO_DRIVER = (
    "no NVIDIA driver was found; install the one for this GPU (it must support CUDA 13), or run on the "
    "CPU lanes, which need none"
)

_DOCTOR = "run `driffusion-trt doctor` to see the state of the GPUs"
_CONTEXT_LOST = "what was computed on it is lost and this process cannot use it again: restart, without it"
_UPDATE = "update the NVIDIA driver: it must support CUDA 13"
_BUG = "this is a mistake in the program: please report it with this message"

_ADVICE = {
    "CUDA_ERROR_OUT_OF_MEMORY": "free memory on it (nvidia-smi shows who holds it), or ask for a smaller "
    "batch or picture",
    "CUDA_ERROR_NO_DEVICE": "the driver finds no GPU: check nvidia-smi and CUDA_VISIBLE_DEVICES",
    "CUDA_ERROR_INVALID_DEVICE": "check CUDA_VISIBLE_DEVICES; GPUs are numbered from 0",
    "CUDA_ERROR_DEVICE_UNAVAILABLE": "another process holds it, or it failed: check nvidia-smi",
    "CUDA_ERROR_SYSTEM_NOT_READY": "start nvidia-fabricmanager, which machines with NVSwitch need",
    "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH": "the driver's library and its kernel module differ: reboot",
    "CUDA_ERROR_STUB_LIBRARY": "a stub of libcuda was loaded: take the toolkit's stubs folder out of "
    "LD_LIBRARY_PATH",
    "CUDA_ERROR_UNSUPPORTED_PTX_VERSION": _UPDATE,
    "CUDA_ERROR_INVALID_IMAGE": "the kernels cannot be read: reinstall driffusion-trt",
    "CUDA_ERROR_NO_BINARY_FOR_GPU": "the kernels have no code for this GPU: install nvidia-cuda-nvrtc, "
    "which compiles them here",
    "CUDA_ERROR_ILLEGAL_ADDRESS": _CONTEXT_LOST,
    "CUDA_ERROR_MISALIGNED_ADDRESS": _CONTEXT_LOST,
    "CUDA_ERROR_ILLEGAL_INSTRUCTION": _CONTEXT_LOST,
    "CUDA_ERROR_INVALID_ADDRESS_SPACE": _CONTEXT_LOST,
    "CUDA_ERROR_INVALID_PC": _CONTEXT_LOST,
    "CUDA_ERROR_HARDWARE_STACK_ERROR": _CONTEXT_LOST,
    "CUDA_ERROR_LAUNCH_FAILED": _CONTEXT_LOST,
    "CUDA_ERROR_LAUNCH_TIMEOUT": "a kernel ran longer than the display's watchdog allows; " + _CONTEXT_LOST,
    "CUDA_ERROR_ASSERT": _CONTEXT_LOST,
    "CUDA_ERROR_ECC_UNCORRECTABLE": "its memory is failing; " + _CONTEXT_LOST,
    "CUDA_ERROR_NVLINK_UNCORRECTABLE": "a link between GPUs is failing; " + _CONTEXT_LOST,
    "CUDA_ERROR_CONTAINED": _CONTEXT_LOST,
    "CUDA_ERROR_UNKNOWN": "the kernel's log (dmesg) may say more; " + _DOCTOR,
    "CUDA_ERROR_PEER_ACCESS_UNSUPPORTED": "the two GPUs cannot reach each other's memory: copies have to "
    "go by way of the host",
    "CUDA_ERROR_INVALID_VALUE": _BUG,
    "CUDA_ERROR_INVALID_HANDLE": _BUG,
    "CUDA_ERROR_INVALID_CONTEXT": _BUG,
    "CUDA_ERROR_NOT_FOUND": _BUG,
}

# After one of these no call on the device succeeds any more.
LOST = frozenset(code for code, advice in _ADVICE.items() if advice.endswith(_CONTEXT_LOST))


def device_error(status: Any, call: str, device: str | None, words: str) -> DeviceError:
    """The error of a call that came back with `status`, one of cuda-python's enumerations."""
    code = str(getattr(status, "name", status))
    says = f": {words}" if words else ""
    where = f" on {device}" if device else ""
    return DeviceError(f"{call}{where} failed with {code}{says}; {_ADVICE.get(code, _DOCTOR)}", code)


def short_of_memory(error: BaseException | None) -> bool:
    """Whether a device had no room: less may do, and the device is as good as it was."""
    if isinstance(error, DeviceError):
        return error.code == "CUDA_ERROR_OUT_OF_MEMORY"
    # TensorRT says it in words only.
    return isinstance(error, EngineError) and "out of memory" in str(error).lower()
