"""What a diffusers scheduler_config.json says: its options read, checked and completed.

Every option is honoured, or refused by name: none is dropped in silence. The names, the
defaults and what is passed over when a scheduler is switched are those of diffusers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from .._errors import ConfigError, InputError, did_you_mean

CLASSES = {
    "ddpm": "DDPMScheduler",
    "ddim": "DDIMScheduler",
    "euler": "EulerDiscreteScheduler",
    "dpmsolver++": "DPMSolverMultistepScheduler",
    "flow": "FlowMatchEulerDiscreteScheduler",
}
_PNDM = "PNDMScheduler"
_SOLVERS = {name: solver for solver, name in CLASSES.items()} | {_PNDM: "ddim"}

_BETAS = {
    "num_train_timesteps": 1000,
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "trained_betas": None,
    "prediction_type": "epsilon",
    "steps_offset": 0,
    "rescale_betas_zero_snr": False,
}
_CLIPPING = {
    "thresholding": False,
    "dynamic_thresholding_ratio": 0.995,
    "sample_max_value": 1.0,
}
_LADDERS = {
    "use_karras_sigmas": False,
    "use_exponential_sigmas": False,
    "use_beta_sigmas": False,
    # Arguments of the Euler scheduler alone; the other two read them from the config all the same.
    "sigma_min": None,
    "sigma_max": None,
}
_DDIM = _BETAS | _CLIPPING | {"clip_sample": True, "clip_sample_range": 1.0, "timestep_spacing": "leading"}

# Every option of a scheduler, with its default in diffusers.
DEFAULTS: dict[str, dict[str, Any]] = {
    "ddim": _DDIM | {"set_alpha_to_one": True},
    "ddpm": _DDIM | {"variance_type": "fixed_small"},
    "euler": _BETAS
    | _LADDERS
    | {
        "timestep_spacing": "linspace",
        "timestep_type": "discrete",
        "interpolation_type": "linear",
        "final_sigmas_type": "zero",
    },
    "dpmsolver++": _BETAS
    | _CLIPPING
    | _LADDERS
    | {
        "timestep_spacing": "linspace",
        "algorithm_type": "dpmsolver++",
        "solver_order": 2,
        "solver_type": "midpoint",
        "lower_order_final": True,
        "euler_at_final": False,
        "final_sigmas_type": "zero",
        "use_lu_lambdas": False,
        "use_flow_sigmas": False,
        "flow_shift": 1.0,
        "lambda_min_clipped": -math.inf,
        "variance_type": None,
        "use_dynamic_shifting": False,
        "time_shift_type": "exponential",
    },
    "flow": _LADDERS
    | {
        "num_train_timesteps": 1000,
        "shift": 1.0,
        "use_dynamic_shifting": False,
        "base_shift": 0.5,
        "max_shift": 1.15,
        "base_image_seq_len": 256,
        "max_image_seq_len": 4096,
        "invert_sigmas": False,
        "shift_terminal": None,
        "time_shift_type": "exponential",
        "stochastic_sampling": False,
    },
}

# Options of other schedulers, which diffusers passes over. These change nothing whatever they say ...
_IDLE = frozenset(
    "skip_prk_steps set_alpha_to_one clip_sample_range sample_max_value dynamic_thresholding_ratio solver_order "
    "solver_type algorithm_type lower_order_final euler_at_final final_sigmas_type lambda_min_clipped flow_shift "
    "time_shift_type sigma_min sigma_max predict_x0 solver_p disable_corrector".split()
)
_FIXED = (None, "fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log")
# ... and these ask for something, unless they have one of these values.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "clip_sample": (False,),
    "thresholding": (False,),
    "use_karras_sigmas": (False,),
    "use_exponential_sigmas": (False,),
    "use_beta_sigmas": (False,),
    "use_lu_lambdas": (False,),
    "use_flow_sigmas": (False,),
    "use_dynamic_shifting": (False,),
    "interpolation_type": ("linear",),
    "timestep_type": ("discrete",),
    "variance_type": _FIXED,
}

# What the tables of a plan cannot hold, with what to do instead.
_NOT_LINEAR: dict[str, tuple[tuple[Any, ...], str]] = {
    "clip_sample": (
        (False,),
        "clipping is not linear in the latents; latent models are sampled without it, so write "
        "'clip_sample': false into the config if yours is one",
    ),
    "thresholding": ((False,), "dynamic thresholding is not linear in the latents; set it to false"),
    "stochastic_sampling": ((False,), "only the deterministic flow is supported; set it to false"),
    "algorithm_type": (
        ("dpmsolver++", "deis"),  # diffusers reads deis as dpmsolver++
        "only the deterministic DPM-Solver++ is supported; set it to 'dpmsolver++'",
    ),
    "solver_order": ((1, 2), "only orders 1 and 2 are supported; set it to 2"),
}

_Test = tuple[Callable[[Any], bool], str]


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and not math.isnan(value)


def _number(low: float, high: float = math.inf, *, optional: bool = False, closed: bool = False) -> _Test:
    def fits(value: Any) -> bool:
        if value is None:
            return optional
        return _is_number(value) and (low <= value < high if closed else low < value < high)

    span = "" if (low, high) == (-math.inf, math.inf) else f" {'from' if closed else 'above'} {low:g}"
    span += f" and below {high:g}" if high < math.inf else ""
    return fits, f"a number{span}{' or null' if optional else ''}"


def _whole(least: int) -> _Test:
    return (
        lambda value: isinstance(value, int) and not isinstance(value, bool) and value >= least,
        f"a whole number, {least} or more",
    )


def _one_of(*names: str | None) -> _Test:
    return lambda value: value in names, f"one of {', '.join(map(repr, names))}"


_FLAG: _Test = (lambda value: isinstance(value, bool), "true or false")
_PREDICTIONS = ("epsilon", "sample", "v_prediction")
_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2")
_TESTS: dict[str, _Test] = {
    "num_train_timesteps": _whole(2),
    "beta_start": _number(0, 1),
    "beta_end": _number(0, 1),
    "beta_schedule": _one_of(*_SCHEDULES),
    "prediction_type": _one_of(*_PREDICTIONS),
    "steps_offset": _whole(0),
    "variance_type": _one_of(*_FIXED),
    "timestep_spacing": _one_of("leading", "linspace", "trailing"),
    "timestep_type": _one_of("discrete", "continuous"),
    "interpolation_type": _one_of("linear", "log_linear"),
    "final_sigmas_type": _one_of("zero", "sigma_min"),
    "time_shift_type": _one_of("exponential", "linear"),
    "solver_type": _one_of("midpoint", "heun", "logrho", "bh1", "bh2"),
    "lambda_min_clipped": (lambda value: _is_number(value) and value < math.inf, "a number"),
    "shift": _number(0),
    "flow_shift": _number(0),
    "sigma_min": _number(0, optional=True),
    "sigma_max": _number(0, optional=True),
    "shift_terminal": _number(0, 1, optional=True, closed=True),
    **{name: _whole(1) for name in ("base_image_seq_len", "max_image_seq_len", "solver_order")},
    **{name: _number(-math.inf, optional=True) for name in ("base_shift", "max_shift")},
    **{name: _number(0) for name in ("dynamic_thresholding_ratio", "sample_max_value", "clip_sample_range")},
}
_TESTS_OF: dict[str, dict[str, _Test]] = {
    "ddpm": {
        "beta_schedule": _one_of(*_SCHEDULES, "laplace", "sigmoid"),
        "variance_type": _one_of("fixed_small"),
    },
    "dpmsolver++": {
        "prediction_type": _one_of(*_PREDICTIONS, "flow_prediction"),
        "time_shift_type": _one_of("exponential"),
    },
}


@dataclass(frozen=True, slots=True)
class Options:
    """`values` has every option of the solver's diffusers class; `notices` is what a user should know."""

    solver: str
    values: dict[str, Any]
    notices: tuple[str, ...]


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
    if origin == _PNDM and solver == "ddim":
        given.setdefault("clip_sample", False)  # PNDM never clips
        if scheduler is None:
            notices.append("the config names PNDMScheduler; it is sampled by DDIM over the same levels")
    values = dict(DEFAULTS[solver])
    for key, value in given.items():
        if key in values:
            values[key] = value
        else:
            notices += _passed_over(
                key, value, solver, switched=CLASSES[solver] != origin and origin != _PNDM
            )
    for key, value in values.items():
        _check(key, value, solver, absent=key not in given)
    _check_together(solver, values)
    return Options(solver, values, tuple(notices))


def _solver(origin: object, scheduler: str | None) -> str:
    known = ", ".join(CLASSES)
    if scheduler is None:
        if origin is None:
            raise ConfigError(
                f"the config has no _class_name; add it, or choose a scheduler ({known}). Is it a scheduler_config.json?"
            )
        if origin not in _SOLVERS:
            raise ConfigError(
                f"the config names {origin!r}, which is not supported{did_you_mean(str(origin), _SOLVERS)} "
                f"(or choose a scheduler: {known})"
            )
        return _SOLVERS[str(origin)]
    if scheduler not in CLASSES:
        raise InputError(f"there is no scheduler {scheduler!r}{did_you_mean(str(scheduler), CLASSES)}")
    if origin is not None and (origin == CLASSES["flow"]) != (scheduler == "flow"):
        raise InputError(
            f"scheduler {scheduler!r} does not go with a config of {origin}: a flow-matching model takes 'flow' "
            "and other models take one of the others; leave the scheduler out"
        )
    return scheduler


def _passed_over(key: str, value: object, solver: str, *, switched: bool) -> list[str]:
    """A notice for an option that this solver does not have, or none; an error if it asks for something."""
    name = CLASSES[solver]
    others = _IDLE | _NEUTRAL.keys() | _BETAS.keys() if solver != "flow" else frozenset[str]()
    if key not in others:
        raise ConfigError(
            f"{name} has no option {key!r}{did_you_mean(key, DEFAULTS[solver].keys() | others)}"
        )
    if key in _IDLE or value in _NEUTRAL[key]:
        return []
    if not switched or key == "variance_type":
        raise ConfigError(
            f"{key}={value!r} is not an option of {name}, which would pass over it; remove it from the config, "
            "or choose a scheduler that has it"
        )
    return [f"{key}={value!r} is not an option of {name} and is left out"]


def _check(key: str, value: object, solver: str, *, absent: bool) -> None:
    said = f"{key}={value!r} of {CLASSES[solver]}"
    if absent:
        said += " (what it is where the config does not say)"
    if key in _NOT_LINEAR and isinstance(value, (bool, int, str)):
        allowed, advice = _NOT_LINEAR[key]
        if value not in allowed or (isinstance(value, bool) != isinstance(allowed[0], bool)):
            raise ConfigError(f"{said} is not supported: {advice}")
    elif key == "trained_betas":
        _check_betas(value)
    if key == "trained_betas" or key in ("algorithm_type",):
        return
    fits, expected = _TESTS_OF.get(solver, {}).get(key) or _TESTS.get(key, _FLAG)
    if not fits(value):
        raise ConfigError(f"{said} is not supported; it must be {expected}")


def _check_betas(value: object) -> None:
    if value is None:
        return
    if not isinstance(value, (list, tuple)) or not all(_is_number(beta) and 0 < beta < 1 for beta in value):
        raise ConfigError("trained_betas must be null or a list of numbers above 0 and below 1")


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
