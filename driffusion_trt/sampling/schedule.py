"""Noise schedules, read from a diffusers scheduler_config.json.

What the fields mean and how the levels are used: docs/method.md sections 1 and 2. The solvers
are DDPM (2006.11239), DDIM (2010.02502), Euler in Karras' form (2206.00364),
DPM-Solver++ 2M (2211.01095) and Euler on the rectified flow (2403.03206).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._errors import InputError
from .config import Options, load_config, read_options
from .states import states_of

Float64 = NDArray[np.float64]
_ARRAYS = ("timesteps", "a", "s", "a_next", "s_next", "input_scale")


@dataclass(frozen=True, slots=True, eq=False)
class Schedule:
    """The noise levels of one sampling run, state by state. All arrays are float64, read-only, of length T.

    solver: ddpm, ddim, euler, dpmsolver++ or flow.
    prediction_type: what the network returns: epsilon, v_prediction, sample or flow_prediction.
    timesteps: what the network is given at state i; whole numbers but for Euler and flow.
    a, s: levels where state i is read, x_i = a[i]·x0 + s[i]·ε. VP: √ᾱ and √(1 − ᾱ);
        Euler: 1 and σ; flow: 1 − σ and σ. With `invert_sigmas` σ rises, and a and s have
        changed their roles, as the network's velocity has.
    a_next, s_next: levels where step i → i+1 arrives. For DDIM these are not always
        a[i+1], s[i+1]: diffusers goes down by a whole number of timesteps, whatever the next one is.
    input_scale: factor on the latents before the network sees them.
    initial_sigma: factor on unit normal noise that gives state 0.
    eta: share of fresh noise in a step; 1 for DDPM, the `eta` of DDIM, else 0.
    orders: of the solver, 1 or 2, for every step.
    solver_type: of second-order steps, midpoint or heun.
    train_steps: timesteps of the training schedule.
    config, scheduler, mu: what the schedule was made from.
    notices: what the user should know about this config.
    first: the state of the whole schedule that state 0 is, where the run does not begin with
        noise; see `starting_at`.
    """

    solver: str
    prediction_type: str
    timesteps: Float64
    a: Float64
    s: Float64
    a_next: Float64
    s_next: Float64
    input_scale: Float64
    initial_sigma: float
    eta: float
    orders: tuple[int, ...]
    solver_type: str
    train_steps: int
    config: dict[str, Any] = field(repr=False)
    notices: tuple[str, ...] = ()
    scheduler: str | None = None
    mu: float | None = None
    first: int | None = None

    def __post_init__(self) -> None:
        for name in _ARRAYS:
            array = np.array(getattr(self, name), np.float64)
            array.setflags(write=False)
            object.__setattr__(self, name, array)

    @property
    def steps(self) -> int:
        """T, the number of network calls of a sequential run."""
        return len(self.timesteps)

    @classmethod
    def from_config(
        cls,
        config: Mapping[str, Any] | str | Path,
        steps: int,
        *,
        eta: float | None = None,
        scheduler: str | None = None,
        mu: float | None = None,
    ) -> Schedule:
        """Read a diffusers scheduler config.

        config: a scheduler_config.json, the folder it is in, or what it holds.
        steps: of the sampling run, from 1 to the config's num_train_timesteps.
        eta: of DDIM, from 0 (the default) to 1.
        scheduler: another solver than the config's own: ddpm, ddim, euler or dpmsolver++.
            What the config does not say is then the default of that solver's diffusers class.
        mu: shift of a flow config with `use_dynamic_shifting`.

        Raises InputError for arguments that cannot be, and ConfigError for an option that
        is not supported, by its name.
        """
        given = load_config(config)
        options = read_options(given, scheduler)
        values = options.values
        _check_steps(steps, values["num_train_timesteps"])
        eta = _checked_eta(eta, options.solver)
        _check_mu(mu, options)
        built, orders = states_of(options, steps, mu)
        euler = options.solver == "euler"
        return cls(
            solver=options.solver,
            prediction_type=values.get("prediction_type", "flow_prediction"),
            timesteps=np.asarray(built.timesteps, np.float64),
            a=built.a,
            s=built.s,
            a_next=built.a_next,
            s_next=built.s_next,
            input_scale=1 / np.sqrt(built.s**2 + 1) if euler else np.ones_like(built.s),
            initial_sigma=built.initial_sigma,
            eta=eta,
            orders=orders,
            solver_type="heun" if values.get("solver_type") == "heun" else "midpoint",
            train_steps=values["num_train_timesteps"],
            config=given,
            notices=options.notices + _about_steps(steps, len(built.s)),
            scheduler=scheduler,
            mu=mu,
        )

    def with_steps(self, steps: int) -> Schedule:
        """The same config with another number of steps. Raises InputError as `from_config` does.

        A schedule that starts later keeps its share of the whole, as far as whole steps allow.
        """
        eta = self.eta if self.solver == "ddim" else None
        whole = steps
        if self.first is not None:
            whole = min(round(steps * (self.first + self.steps) / self.steps), self.train_steps)
        made = Schedule.from_config(self.config, whole, eta=eta, scheduler=self.scheduler, mu=self.mu)
        return made if self.first is None else made.starting_at(made.steps - steps)

    def starting_at(self, state: int) -> Schedule:
        """The rest of this schedule from one of its states on, as after diffusers' `set_begin_index`.

        It is a schedule like any other. Its state 0 is not noise but a picture with noise,
        a[0]·x0 + s[0]·ε (SDEdit, 2108.01073), so `initial_sigma` is 1: the executor is given the
        state as it is. The first step of a second-order solver has no history, so it is of first order.

        state: from 0 to T − 1.

        Raises InputError for a state that there is not, or a schedule that starts later already.
        """
        if isinstance(state, bool) or not isinstance(state, int) or not 0 <= state < self.steps:
            raise InputError(
                f"state={state!r} was asked; it must be a whole number from 0 to {self.steps - 1}"
            )
        if self.first is not None:
            raise InputError(f"this schedule starts at state {self.first} already; take the whole one")
        return replace(
            self,
            **{name: getattr(self, name)[state:] for name in _ARRAYS},
            initial_sigma=1.0,
            orders=(1, *self.orders[state + 1 :]),
            first=state,
        )


def dynamic_mu(config: Mapping[str, Any], tokens: int) -> float | None:
    """The `mu` of pictures of so many tokens, as diffusers' StableDiffusion3Pipeline has it.

    Linear in the tokens (2403.03206, section 5.3.2). None for a config without `use_dynamic_shifting`.
    """
    if not config.get("use_dynamic_shifting"):
        return None
    few, many = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
    low, high = config.get("base_shift", 0.5), config.get("max_shift", 1.16)
    slope = (high - low) / (many - few)
    return float(tokens * slope + (low - slope * few))


def _check_steps(steps: object, train: int) -> None:
    if isinstance(steps, bool) or not isinstance(steps, int):
        raise InputError(f"steps must be a whole number from 1 to {train}, not {steps!r}")
    if not 1 <= steps <= train:
        raise InputError(f"steps={steps} was asked; it must be from 1 to {train}, the steps of the training")


def _checked_eta(eta: object, solver: str) -> float:
    if eta is None:
        return 1.0 if solver == "ddpm" else 0.0
    if isinstance(eta, bool) or not isinstance(eta, (int, float)) or not 0 <= eta <= 1:
        raise InputError(f"eta must be a number from 0 to 1, not {eta!r}")
    if solver != "ddim":
        raise InputError(f"eta={eta} was given, but only ddim has it and this is {solver}; leave it out")
    return float(eta)


def _check_mu(mu: object, options: Options) -> None:
    flow, values = options.solver == "flow", options.values
    dynamic = values.get("use_dynamic_shifting", False)
    if mu is None:
        if flow and dynamic:
            raise InputError(
                "the config has use_dynamic_shifting, so the shift `mu` of this picture size is needed"
            )
        return
    linear = dynamic and values["time_shift_type"] == "linear"
    if (
        isinstance(mu, bool)
        or not isinstance(mu, (int, float))
        or not math.isfinite(mu)
        or (linear and mu <= 0)
    ):
        raise InputError(f"mu must be a {'positive' if linear else 'finite'} number, not {mu!r}")
    if not dynamic or not (flow or values.get("use_flow_sigmas")):
        raise InputError(
            f"mu={mu} was given, but the config has no use_dynamic_shifting of a flow; leave it out"
        )


def _about_steps(asked: int, got: int) -> tuple[str, ...]:
    return (
        () if asked == got else (f"{asked} steps were asked; diffusers makes {got} of them with this config",)
    )
