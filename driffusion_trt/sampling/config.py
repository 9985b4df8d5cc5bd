"""A diffusers scheduler_config.json, read, checked and completed.

Every option is honoured, or refused by name: none is dropped in silence. The names, the
defaults and what is passed over when a scheduler is switched are those of diffusers.
"""

from __future__ import annotations

import json
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .._errors import ConfigError, InputError, did_you_mean
from .options import CLASSES, DEFAULTS, FLAG, IDLE, NEUTRAL, NOT_LINEAR, PNDM, SOLVERS, TESTS, TESTS_OF


@dataclass(frozen=True, slots=True)
class Options:
    """`values` has every option of the solver's diffusers class; `notices` is what a user should know."""

    solver: str
    values: dict[str, Any]
    notices: tuple[str, ...]


def load_config(config: object) -> dict[str, Any]:
    if isinstance(config, Mapping):
        return dict(config)
    if not isinstance(config, (str, Path)):
        raise InputError(f"config must be a dict or the path of a scheduler_config.json, not {config!r}")
    path = Path(config)
    if path.is_dir():
        path = path / "scheduler_config.json"
    try:
        loaded = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"the scheduler config {path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(f"{path} is not a JSON file: {error}") from error
    if not isinstance(loaded, dict):
        raise ConfigError(f"{path} holds {type(loaded).__name__}, not an object with options")
    return loaded


def read_options(config: Mapping[str, Any], scheduler: str | None) -> Options:
    """Check a config and fill in what it leaves out; `scheduler` switches to another solver.

    Raises InputError for an unknown `scheduler`, and ConfigError for a class or an option
    that is not supported, each by name.
    """
    origin = config.get("_class_name")
    solver = _solver(origin, scheduler)
    # A diffusers scheduler's own config marks what nobody set, so that a switch forgets it.
    unset = config.get("_use_default_values", ())
    given = {key: value for key, value in config.items() if not key.startswith("_") and key not in unset}
    notices: list[str] = []
    if origin == PNDM and solver == "ddim":
        given.setdefault("clip_sample", False)  # PNDM never clips
        if scheduler is None:
            notices.append("the config names PNDMScheduler; it is sampled by DDIM over the same levels")
    values = dict(DEFAULTS[solver])
    for key, value in given.items():
        if key in values:
            values[key] = value
        else:
            notices += _passed_over(key, value, solver, switched=CLASSES[solver] != origin and origin != PNDM)
    for key, value in values.items():
        _check(key, value, solver, absent=key not in given)
    _check_together(solver, values)
    return Options(solver, values, tuple(notices))


def _solver(origin: object, scheduler: str | None) -> str:
    known = ", ".join(CLASSES)
    if scheduler is None:
        if origin is None:
            raise ConfigError(
                "the config has no _class_name, as a scheduler_config.json has; add it, or choose a "
                f"scheduler: {known}"
            )
        if not isinstance(origin, str) or origin not in SOLVERS:
            raise ConfigError(
                f"the config names {origin!r}, which is not supported{did_you_mean(str(origin), SOLVERS)} "
                f"(or choose a scheduler: {known})"
            )
        return SOLVERS[origin]
    if scheduler not in CLASSES:
        raise InputError(f"there is no scheduler {scheduler!r}{did_you_mean(str(scheduler), CLASSES)}")
    if origin is not None and str(origin).startswith("FlowMatch") != (scheduler == "flow"):
        raise InputError(
            f"scheduler {scheduler!r} does not go with a config of {origin}: a flow-matching model takes "
            "'flow' and other models take one of the others; leave the scheduler out"
        )
    return scheduler


def _passed_over(key: str, value: object, solver: str, *, switched: bool) -> list[str]:
    """A notice for an option that this solver does not have, or none; an error if it asks for something."""
    name = CLASSES[solver]
    others = IDLE | NEUTRAL.keys() if solver != "flow" else frozenset[str]()
    if key not in others:
        raise ConfigError(
            f"{name} has no option {key!r}{did_you_mean(key, DEFAULTS[solver].keys() | others)}"
        )
    if key in IDLE or value in NEUTRAL[key]:
        return []
    if not switched or key == "variance_type":
        raise ConfigError(
            f"{key}={value!r} is not an option of {name}, which would pass over it; remove it from the "
            "config, or choose a scheduler that has it"
        )
    return [f"{key}={value!r} is not an option of {name} and is left out"]


def _check(key: str, value: object, solver: str, *, absent: bool) -> None:
    said = f"{key}={reprlib.repr(value)} of {CLASSES[solver]}"
    if absent:
        said += " (so it is where the config does not say)"
    if key in NOT_LINEAR:
        allowed, advice = NOT_LINEAR[key]
        if not any(type(value) is type(good) and value == good for good in allowed):
            raise ConfigError(f"{said} is not supported: {advice}")
        return
    fits, expected = TESTS_OF.get(solver, {}).get(key) or TESTS.get(key, FLAG)
    if not fits(value):
        raise ConfigError(f"{said} is not supported; it must be {expected}")


def _check_together(solver: str, values: Mapping[str, Any]) -> None:
    """Options that contradict one another."""
    ladders = [
        key
        for key in values
        if key.startswith("use_") and key.endswith(("_sigmas", "_lambdas")) and values[key]
    ]
    if len(ladders) > 1:
        raise ConfigError(f"only one of {', '.join(ladders)} can be true; set the others to false")
    low, high = values.get("sigma_min"), values.get("sigma_max")
    if low is not None and high is not None and low >= high:
        raise ConfigError(f"sigma_min={low} must be below sigma_max={high}")
    betas, steps = values.get("trained_betas"), values["num_train_timesteps"]
    if betas is not None and len(betas) != steps:
        raise ConfigError(f"trained_betas has {len(betas)} values; num_train_timesteps={steps} wants as many")
    if solver == "dpmsolver++":
        kind, flow = values["prediction_type"], values["use_flow_sigmas"]
        if kind == "flow_prediction" and not flow:
            raise ConfigError("prediction_type='flow_prediction' needs use_flow_sigmas=true")
        if kind == "v_prediction" and flow:
            raise ConfigError("use_flow_sigmas=true does not go with v_prediction; is it 'flow_prediction'?")
