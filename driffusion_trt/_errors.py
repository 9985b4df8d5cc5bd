"""Every error that the package raises on purpose.

    DriffusionError
    ├── InputError (ValueError)            an argument that cannot work
    │   └── ConfigError                    an option of a scheduler or model config that is not supported
    ├── ModelError (RuntimeError)          a model folder that is missing, incomplete or altered
    │   └── NonFiniteError                 a network gave infinities or NaN
    ├── EngineError (RuntimeError)         TensorRT refused or failed; its own words are in the message
    ├── DeviceError (RuntimeError)         the CUDA driver refused a call, or a GPU failed; names both
    ├── LaneError (RuntimeError)           a lane failed while it predicted; its cause is chained
    │   └── NoDeviceError                  every device of an `Engine` has failed
    ├── CancelledError                     the caller's event was set while pictures were made
    ├── RefusedError (RuntimeError)        an `Engine` did not take a request, or gave it back before any work
    │   ├── QueueFullError                 as many requests wait as may; says when to come again
    │   ├── DeadlineError                  it cannot be there in time; says when it could be
    │   └── DrainingError                  the engine ends, and takes no more requests
    └── MissingExtraError (ImportError)    an optional package is missing; the message has the pip command

Messages say what was asked, what was found and what to do. They carry no traceback
advice: the command line shows them as one paragraph.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = [
    "CancelledError",
    "ConfigError",
    "DeadlineError",
    "DeviceError",
    "DrainingError",
    "DriffusionError",
    "EngineError",
    "InputError",
    "LaneError",
    "MissingExtraError",
    "ModelError",
    "NoDeviceError",
    "NonFiniteError",
    "QueueFullError",
    "RefusedError",
    "did_you_mean",
]


class DriffusionError(Exception):
    """Base of every error raised on purpose."""


class InputError(DriffusionError, ValueError):
    """An argument that cannot work; raised before any work is done."""


class ConfigError(InputError):
    """An option of a scheduler or model config that is not supported."""


class ModelError(DriffusionError, RuntimeError):
    """A model folder that is missing, incomplete or altered."""


class NonFiniteError(ModelError):
    """A network gave infinities or NaN: out of its precision's range, or with settings that explode."""


class EngineError(DriffusionError, RuntimeError):
    """TensorRT refused a network or a call, or failed; the message has its own words."""


class DeviceError(DriffusionError, RuntimeError):
    """The CUDA driver refused a call, or a GPU failed; `code` is the driver's own name of the error."""

    def __init__(self, message: str, code: str = "") -> None:
        super().__init__(message)
        self.code = code


class LaneError(DriffusionError, RuntimeError):
    """A lane failed while it predicted; the original error is its ``__cause__``.

    `lanes_left` is how many of them can still be used; 0 where all are gone, or nothing is known.
    """

    def __init__(self, message: str, *, lanes_left: int = 0) -> None:
        super().__init__(message)
        self.lanes_left = lanes_left


class NoDeviceError(LaneError):
    """Every device of an engine has failed; it makes no more pictures."""


class CancelledError(DriffusionError):
    """The caller set the event that it gave as `cancel`; what was under way is given up, and nothing else."""


class RefusedError(DriffusionError, RuntimeError):
    """An engine did not take a request, or gave it back while it waited; nothing has run for it."""


class QueueFullError(RefusedError):
    """As many requests wait as may; `retry_after_s` is when a place for this one is expected."""

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class DeadlineError(RefusedError):
    """A request cannot be there by its deadline; `expected_ms` is how long after its arrival it could be."""

    def __init__(self, message: str, expected_ms: float) -> None:
        super().__init__(message)
        self.expected_ms = expected_ms


class DrainingError(RefusedError):
    """The engine finishes what it took, and takes no more."""


class MissingExtraError(DriffusionError, ImportError):
    """An optional package is not installed; `command` is what to run where the extra alone will not do."""

    def __init__(self, package: str, extra: str, *, command: str | None = None) -> None:
        # Not by its name: the package index does not have it.
        command = command or f"pip install '.[{extra}]' in a clone of driffusion-trt"
        super().__init__(f"{package} is needed here and is not installed; run: {command}")


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """`"; did you mean 'window'?"`, or the list of what is known where nothing is close."""
    known = sorted(known)
    close = difflib.get_close_matches(given, known, n=1)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; known: {', '.join(known)}"
