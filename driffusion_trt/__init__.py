"""One diffusion picture faster, by drafting several future states and predicting their noises in parallel.

The names below are loaded at first use, so that `import driffusion_trt` costs no more than numpy.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ._errors import (
        CancelledError,
        ConfigError,
        DeadlineError,
        DeviceError,
        DrainingError,
        DriffusionError,
        EngineError,
        InputError,
        LaneError,
        MissingExtraError,
        ModelError,
        NoDeviceError,
        NonFiniteError,
        QueueFullError,
        RefusedError,
    )
    from .models import ModelSpec
    from .pipeline import Pipeline
    from .planning.candidates import Choice
    from .planning.costs import Costs
    from .sampling.plan import Plan, make_plan
    from .sampling.recording import Recorder
    from .sampling.sample import sample
    from .sampling.schedule import Schedule
    from .server.engine import Engine

__version__ = "0.1.0.dev0"

# ONNX Runtime's builds send statistics of use to Microsoft unless this is said before it is imported.
# Processes that are started from here inherit it.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

__all__ = [
    "CancelledError",
    "Choice",
    "ConfigError",
    "Costs",
    "DeadlineError",
    "DeviceError",
    "DrainingError",
    "DriffusionError",
    "Engine",
    "EngineError",
    "InputError",
    "LaneError",
    "MissingExtraError",
    "ModelError",
    "ModelSpec",
    "NoDeviceError",
    "NonFiniteError",
    "Pipeline",
    "Plan",
    "QueueFullError",
    "Recorder",
    "RefusedError",
    "Schedule",
    "__version__",
    "make_plan",
    "sample",
]

_HOME = {
    "CancelledError": "._errors",
    "ConfigError": "._errors",
    "DeadlineError": "._errors",
    "DeviceError": "._errors",
    "DrainingError": "._errors",
    "DriffusionError": "._errors",
    "EngineError": "._errors",
    "InputError": "._errors",
    "LaneError": "._errors",
    "MissingExtraError": "._errors",
    "ModelError": "._errors",
    "NoDeviceError": "._errors",
    "NonFiniteError": "._errors",
    "QueueFullError": "._errors",
    "RefusedError": "._errors",
    "ModelSpec": ".models",
    "Choice": ".planning.candidates",
    "Costs": ".planning.costs",
    "Engine": ".server.engine",
    "Pipeline": ".pipeline",
    "Plan": ".sampling.plan",
    "Recorder": ".sampling.recording",
    "Schedule": ".sampling.schedule",
    "make_plan": ".sampling.plan",
    "sample": ".sampling.sample",
}


def __getattr__(name: str) -> object:
    """Load a public name from its module, once (PEP 562)."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(importlib.import_module(_HOME[name], __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """The public names, loaded or not, beside the module's own."""
    return sorted({*globals(), *__all__})
