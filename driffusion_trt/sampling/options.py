"""The options of diffusers' schedulers: their names, defaults and values, and what is not supported."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

CLASSES = {
    "ddpm": "DDPMScheduler",
    "ddim": "DDIMScheduler",
    "euler": "EulerDiscreteScheduler",
    "dpmsolver++": "DPMSolverMultistepScheduler",
    "flow": "FlowMatchEulerDiscreteScheduler",
}
PNDM = "PNDMScheduler"
SOLVERS: dict[str, str] = {name: solver for solver, name in CLASSES.items()} | {PNDM: "ddim"}

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
IDLE = frozenset(
    {
        *("skip_prk_steps", "set_alpha_to_one", "final_sigmas_type", "sigma_min", "sigma_max", "flow_shift"),
        *("clip_sample_range", "sample_max_value", "dynamic_thresholding_ratio", "time_shift_type"),
        *("algorithm_type", "solver_order", "solver_type", "lower_order_final", "euler_at_final"),
        *("lambda_min_clipped", "predict_x0", "solver_p", "disable_corrector"),
    }
)
_FIXED = (None, "fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log")
_OFF = (False, None)
# ... and these ask for something, unless they have one of these values.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "clip_sample": _OFF,
    "thresholding": _OFF,
    "use_karras_sigmas": _OFF,
    "use_exponential_sigmas": _OFF,
    "use_beta_sigmas": _OFF,
    "use_lu_lambdas": _OFF,
    "use_flow_sigmas": _OFF,
    "use_dynamic_shifting": _OFF,
    "shift_terminal": _OFF,
    "interpolation_type": ("linear",),
    "timestep_type": ("discrete",),
    "variance_type": _FIXED,
}

# What the tables of a plan cannot hold, with what to do instead.
NOT_LINEAR: dict[str, tuple[tuple[Any, ...], str]] = {
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


FLAG: _Test = (lambda value: isinstance(value, bool), "true or false")
_PREDICTIONS = ("epsilon", "sample", "v_prediction")
_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2")
TESTS: dict[str, _Test] = {
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
    "trained_betas": (
        lambda value: (
            value is None or (isinstance(value, (list, tuple)) and all(map(_number(0, 1)[0], value)))
        ),
        "null or a list of numbers above 0 and below 1",
    ),
    **{name: _whole(1) for name in ("base_image_seq_len", "max_image_seq_len")},
    **{name: _number(-math.inf, optional=True) for name in ("base_shift", "max_shift")},
    **{name: _number(0) for name in ("dynamic_thresholding_ratio", "sample_max_value", "clip_sample_range")},
}
TESTS_OF: dict[str, dict[str, _Test]] = {
    "ddpm": {
        "beta_schedule": _one_of(*_SCHEDULES, "laplace", "sigmoid"),
        "variance_type": _one_of("fixed_small"),
    },
    "dpmsolver++": {
        "prediction_type": _one_of(*_PREDICTIONS, "flow_prediction"),
        "time_shift_type": _one_of("exponential"),
    },
}
