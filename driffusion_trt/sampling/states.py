"""The noise levels of every state and step, by solver, as diffusers has them."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .._errors import ConfigError
from . import levels
from .config import Options

Float64 = NDArray[np.float64]


class States(NamedTuple):
    timesteps: ArrayLike
    a: Float64
    s: Float64
    a_next: Float64
    s_next: Float64
    initial_sigma: float = 1.0


def _ddim(values: levels.Values, steps: int, mu: float | None) -> States:
    products, timesteps = _trained(values, steps)
    earlier = timesteps - values["num_train_timesteps"] // steps
    final = np.float32(1) if values["set_alpha_to_one"] else products[0]
    arrive = np.where(earlier >= 0, products[np.maximum(earlier, 0)], final)
    return States(timesteps, *levels.vp_levels(products[timesteps]), *levels.vp_levels(arrive))


def _ddpm(values: levels.Values, steps: int, mu: float | None) -> States:
    """The posterior mean c0·x̂0 + c1·x (DDPM eq. 7), put as levels where it arrives.

    diffusers rounds the step's α to float32, which is up to 1e-3 of β where steps are
    small. The levels of arrival are those that give the coefficients it ends up with.
    """
    products, timesteps = _trained(values, steps)
    here = products[timesteps]
    arrive = np.append(here[1:], np.float32(1))
    alpha = (here / arrive).astype(np.float64)
    (a, s), (a_next, s_next) = levels.vp_levels(here), levels.vp_levels(arrive)
    c0 = a_next * (1 - alpha) / s**2
    c1 = np.sqrt(alpha) * s_next**2 / s**2
    rounded = c0 + a * c1
    s_next = np.where(a > 0, np.sqrt(c1 * rounded * s**2 / np.where(a > 0, a, 1)), s_next)
    return States(timesteps, a, s, rounded, s_next)


def _trained(values: levels.Values, steps: int) -> tuple[levels.Float32, NDArray[np.int64]]:
    """ᾱ and the whole timesteps, all of them trained ones."""
    timesteps = levels.spaced_timesteps(values, steps)
    timesteps = timesteps[timesteps >= 0]
    _check_timesteps(timesteps, values)
    return levels.alphas_cumprod(values), timesteps


def _check_timesteps(timesteps: NDArray[Any], values: levels.Values) -> None:
    last = values["num_train_timesteps"] - 1
    if len(timesteps) == 0 or timesteps.max() > last:
        first = f"begin at timestep {timesteps.max():g}" if len(timesteps) else "come to nothing"
        raise ConfigError(
            f"with timestep_spacing={values['timestep_spacing']!r} and steps_offset={values['steps_offset']} "
            f"so many steps {first}, but the training ends at {last}; take fewer steps or another spacing"
        )


def _euler(values: levels.Values, steps: int, mu: float | None) -> States:
    products = levels.finite_alphas_cumprod(values)
    trained = levels.sigmas_of(products)
    if values["timestep_spacing"] == "linspace":
        timesteps = np.linspace(0, values["num_train_timesteps"] - 1, steps, dtype=np.float32)[::-1]
    else:
        timesteps = levels.spaced_timesteps(values, steps).astype(np.float32)
    if values["interpolation_type"] == "linear":
        sigmas = np.interp(timesteps, np.arange(len(trained)), trained)
    else:  # one sigma more than steps: the last of them is where the last step arrives
        ends = np.log(trained[[-1, 0]])
        sigmas = np.exp(levels.linspace32(ends[0], ends[1], steps + 1)).astype(np.float64)
    converted = levels.ladder(values, sigmas[0], sigmas[-1], steps)
    if converted is not None:
        sigmas = converted
        timesteps = levels.timesteps_of(sigmas, np.log(trained)).astype(np.float32)
    elif timesteps[-1] < 0:
        timesteps = timesteps[:-1]
        sigmas = sigmas[: len(sigmas) - (values["interpolation_type"] == "linear")]
    if values["timestep_type"] == "continuous" and values["prediction_type"] == "v_prediction":
        timesteps = np.float32(0.25) * np.log(sigmas.astype(np.float32))
    else:
        _check_timesteps(timesteps, values)
    sigmas = _ended(sigmas, values, trained)
    highest = sigmas.max()
    if values["timestep_spacing"] == "leading":
        highest = math.sqrt(highest**2 + 1)
    s, s_next = sigmas[: len(timesteps)], sigmas[1 : len(timesteps) + 1]
    return States(timesteps, np.ones_like(s), s, np.ones_like(s), s_next, float(highest))


def _ended(sigmas: Float64, values: levels.Values, trained: levels.Float32) -> Float64:
    """The sigmas and the final one, rounded to float32."""
    final = trained[0] if values["final_sigmas_type"] == "sigma_min" else 0.0
    return np.append(sigmas, final).astype(np.float32).astype(np.float64)


def _dpm(values: levels.Values, steps: int, mu: float | None) -> States:
    products = levels.finite_alphas_cumprod(values)
    trained = levels.sigmas_of(products)
    sigmas, fractional = _dpm_sigmas(values, steps, mu, trained)
    if sigmas is None:
        timesteps = levels.dpm_timesteps(values, steps, products)
        timesteps = timesteps[timesteps >= 0]
        sigmas = np.interp(timesteps, np.arange(len(trained)), trained)
    else:
        timesteps = fractional.astype(np.int64)
    _check_timesteps(timesteps, values)
    ended = _ended(sigmas, values, trained)
    a, s = 1 - ended, ended
    if not values["use_flow_sigmas"]:
        a = 1 / np.sqrt(ended**2 + 1)
        s = ended * a
    return States(timesteps, a[:-1], s[:-1], a[1:], s[1:])


def _dpm_sigmas(
    values: levels.Values, steps: int, mu: float | None, trained: levels.Float32
) -> tuple[Float64 | None, Float64]:
    """Sigmas that the config asks for in place of the training's own, and their timesteps."""
    log_sigmas = np.log(trained)
    if values["use_flow_sigmas"]:
        shift = values["flow_shift"] if mu is None else math.exp(mu)
        sigmas = 1 - np.linspace(1, 1 / values["num_train_timesteps"], steps + 1)
        sigmas = (shift * sigmas / (1 + (shift - 1) * sigmas))[::-1][:-1]
        return sigmas, sigmas * values["num_train_timesteps"]
    if values["use_lu_lambdas"]:  # uniform in log σ
        high, low = float(log_sigmas[-1]), float(log_sigmas[0])
        converted: Float64 | None = np.exp(high + np.linspace(0, 1, steps) * (low - high))
    else:
        converted = levels.ladder(values, float(trained[-1]), float(trained[0]), steps)
    if converted is None:
        return None, np.empty(0)
    timesteps = levels.timesteps_of(converted, log_sigmas)
    if (values["use_karras_sigmas"] or values["use_lu_lambdas"]) and values[
        "beta_schedule"
    ] != "squaredcos_cap_v2":
        timesteps = timesteps.round()
    return converted, timesteps


def _flow(values: levels.Values, steps: int, mu: float | None) -> States:
    train, shift, dynamic = values["num_train_timesteps"], values["shift"], values["use_dynamic_shifting"]
    ends = np.array([train, 1], np.float32) / np.float32(train)
    if not dynamic:  # diffusers shifts the ends, and then all sigmas between them once more
        ends = shift * ends / (1 + (shift - 1) * ends)
    sigmas = np.linspace(float(ends[0]) * train, float(ends[1]) * train, steps) / train
    if not dynamic:
        sigmas = shift * sigmas / (1 + (shift - 1) * sigmas)
    else:
        assert mu is not None
        factor = math.exp(mu) if values["time_shift_type"] == "exponential" else mu
        sigmas = factor / (factor + (1 / sigmas - 1))
    if values["shift_terminal"]:  # stretched so that the last is shift_terminal
        sigmas = 1 - (1 - sigmas) / ((1 - sigmas[-1]) / (1 - values["shift_terminal"]))
    converted = levels.ladder(values, sigmas[0], sigmas[-1], steps)
    rounded = (sigmas if converted is None else converted).astype(np.float32)
    end = np.float32(0)
    if values["invert_sigmas"]:
        rounded, end = np.float32(1) - rounded, np.float32(1)
    ended = np.append(rounded, end).astype(np.float64)
    return States(rounded * np.float32(train), 1 - ended[:-1], ended[:-1], 1 - ended[1:], ended[1:])


_BUILDERS = {"ddpm": _ddpm, "ddim": _ddim, "euler": _euler, "dpmsolver++": _dpm, "flow": _flow}


def states_of(options: Options, steps: int, mu: float | None) -> tuple[States, tuple[int, ...]]:
    """The states of a run and the solver's order at every step.

    `steps` and `mu` have been checked. Raises ConfigError where no step can be computed.
    """
    with np.errstate(all="ignore"):  # what comes out is looked at below
        states = _BUILDERS[options.solver](options.values, steps, mu)
    orders = _orders(options.values, len(states.s))
    _check_finite(states, options, steps)
    _check_distinct(states, orders, options.values)
    return states, orders


def _orders(values: levels.Values, steps: int) -> tuple[int, ...]:
    """A first step has no history, and a last one may be held back to first order."""
    if values.get("solver_order", 1) == 1:
        return (1,) * steps
    held_back = (
        values["euler_at_final"]
        or (values["lower_order_final"] and steps < 15)
        or values["final_sigmas_type"] == "zero"
    )
    return tuple(1 if i == 0 or (i == steps - 1 and held_back) else 2 for i in range(steps))


def _check_finite(states: States, options: Options, steps: int) -> None:
    arrays = [np.asarray(states.timesteps, np.float64), states.a, states.s, states.a_next, states.s_next]
    if not all(np.isfinite(array).all() for array in arrays):
        raise ConfigError(f"the noise levels of {steps} steps are not finite; look at the betas and sigmas")
    if options.solver != "flow" and not (states.s > 0).all():
        raise ConfigError(f"of {steps} steps one begins without any noise; look at the betas and sigmas")
    if (states.a == 0).any() and options.values.get("prediction_type") == "epsilon":
        raise ConfigError(
            "rescale_betas_zero_snr makes the first state pure noise, from which prediction_type='epsilon' "
            "cannot tell the picture; it goes with 'v_prediction', or with timestep_spacing='leading'"
        )


def _check_distinct(states: States, orders: tuple[int, ...], values: levels.Values) -> None:
    """A second-order step divides by its distance from the one before, and Heun's also by its own."""
    if 2 not in orders:
        return
    ratio, following = states.s / states.a, states.s_next / states.a_next
    for i, order in enumerate(orders):
        still = values["solver_type"] == "heun" and following[i] == ratio[i]
        if order == 2 and (ratio[i] == ratio[i - 1] or still):
            raise ConfigError(
                f"steps {i - 1} and {i} are of one noise level, which solver_order=2 cannot take; "
                "take fewer steps, set solver_order to 1, or euler_at_final to true if it is the last"
            )
