"""diffusers' schedulers as references: built from a config, drawn at random, walked step by step."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import diffusers
import numpy as np
import torch
from hypothesis import assume
from hypothesis import strategies as st

from driffusion_trt.sampling.schedule import Schedule

Array = np.ndarray
Config = dict[str, Any]
CONFIGS = Path(__file__).parent / "configs"
CLASSES = {
    "ddim": "DDIMScheduler",
    "pndm": "PNDMScheduler",
    "ddpm": "DDPMScheduler",
    "euler": "EulerDiscreteScheduler",
    "dpmsolver++": "DPMSolverMultistepScheduler",
    "flow": "FlowMatchEulerDiscreteScheduler",
}


def shipped() -> dict[str, Config]:
    """The scheduler configs that real checkpoints come with, by the names of their files."""
    return {path.stem: json.loads(path.read_text()) for path in sorted(CONFIGS.glob("*.json"))}


def _rounded_sqrt(x: torch.Tensor) -> torch.Tensor:
    """√x as IEEE 754 has it. torch's comes from MKL, which on some CPUs is off in the last place for a
    fifth of all numbers; near the clean end 1 − ᾱ is made of such digits, after zero terminal SNR above all.
    """
    return torch.from_numpy(np.sqrt(x.numpy()))


def peer_of(config: Config, steps: int, *, scheduler: str | None = None, mu: float | None = None) -> Any:
    """The diffusers scheduler of a config, ready for a loop; PNDM becomes diffusers' DDIM."""
    name = CLASSES[scheduler] if scheduler else config["_class_name"]
    name = CLASSES["ddim"] if name == CLASSES["pndm"] else name
    with mock.patch.object(torch.Tensor, "sqrt", _rounded_sqrt):
        peer = getattr(diffusers, name).from_config(config)
    with warnings.catch_warnings():  # diffusers hands tensors to np.array, which numpy 2 will refuse one day
        warnings.filterwarnings("ignore", "__array__ implementation doesn't accept", DeprecationWarning)
        peer.set_timesteps(steps, **({} if mu is None else {"mu": mu}))
    if hasattr(peer, "set_begin_index"):
        peer.set_begin_index(0)
    return peer


def initial_sigma(peer: Any) -> float:
    return float(getattr(peer, "init_noise_sigma", 1.0))


def scaled(peer: Any, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    out: torch.Tensor = peer.scale_model_input(x, t) if hasattr(peer, "scale_model_input") else x
    return out


def peer_step(
    peer: Any,
    output: torch.Tensor,
    t: torch.Tensor,
    x: torch.Tensor,
    *,
    eta: float,
    generator: torch.Generator,
) -> torch.Tensor:
    """One `scheduler.step`, its noise drawn from `generator` where it draws any."""
    extra: dict[str, Any] = {}
    if isinstance(peer, diffusers.DDIMScheduler):
        extra = {"eta": eta, "generator": generator}
    elif isinstance(peer, diffusers.DDPMScheduler):
        extra = {"generator": generator}
    result: torch.Tensor = peer.step(output, t, x, return_dict=False, **extra)[0]
    return result


def peer_loop(
    peer: Any,
    denoiser: Callable[[Array, Array], Array],
    shape: tuple[int, ...],
    *,
    seed: int,
    eta: float = 0.0,
) -> Array:
    """What a diffusers pipeline does between text encoder and VAE, with one generator for all noise."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator) * initial_sigma(peer)
    for t in peer.timesteps:
        seen = scaled(peer, x, t).numpy()
        output = torch.from_numpy(denoiser(seen, np.full(len(seen), float(t), np.float32)))
        x = peer_step(peer, output, t, x, eta=eta, generator=generator)
    return x.numpy()


def predicted(schedule: Schedule, i: int, x: Array, output: Array) -> tuple[Array, Array]:
    """x̂0 and ε̂ of state i (docs/method.md section 1), in float64."""
    a, s = schedule.a[i], schedule.s[i]
    match schedule.prediction_type:
        case "epsilon":
            return (x - s * output) / a, output
        case "sample":
            return output, (x - a * output) / s
        case "flow_prediction":
            return x - s * output, x + a * output
    scale = schedule.input_scale[i]
    seen, a_seen, s_seen = x * scale, a * scale, s * scale  # of unit variance, in Karras' form too
    return a_seen * seen - s_seen * output, a_seen * output + s_seen * seen


def one_step(
    schedule: Schedule, i: int, x: Array, output: Array, before: Array | None, z: Array
) -> tuple[Array, Array]:
    """Step i → i+1 from the schedule's numbers alone (docs/method.md section 2), and x̂0 for the next one."""
    x0, eps = predicted(schedule, i, x, output)
    a, s = schedule.a[i], schedule.s[i]
    a_next, s_next = schedule.a_next[i], schedule.s_next[i]
    if schedule.orders[i] == 2:
        assert before is not None
        lam, lam_next = math.log(a / s), math.log(a_next / s_next)
        h, h_before = lam_next - lam, lam - math.log(schedule.a[i - 1] / schedule.s[i - 1])
        slope = (x0 - before) * h / h_before
        decay = math.exp(-h) - 1
        half = -0.5 * decay if schedule.solver_type == "midpoint" else decay / h + 1
        return s_next / s * x - a_next * decay * x0 + a_next * half * slope, x0
    variance = 0.0
    if schedule.eta > 0:
        variance = schedule.eta**2 * s_next**2 * (1 - (a * s_next / (a_next * s)) ** 2)
    variance = max(variance, 0.0)
    return a_next * x0 + math.sqrt(max(s_next**2 - variance, 0)) * eps + math.sqrt(variance) * z, x0


def _some(options: dict[str, st.SearchStrategy[Any]]) -> st.SearchStrategy[Config]:
    """Any of these options, each there or left to its default."""
    return st.fixed_dictionaries({}, optional=options)


def _optional_options(family: str) -> dict[str, st.SearchStrategy[Any]]:
    spacing = st.sampled_from(["leading", "linspace", "trailing"])
    flag, schedules = st.booleans(), ["linear", "scaled_linear", "squaredcos_cap_v2"]
    if family == "ddpm":
        schedules += ["sigmoid", "laplace"]
    betas = {
        "beta_schedule": st.sampled_from(schedules),
        "beta_start": st.floats(1e-4, 2e-3),
        "beta_end": st.floats(0.01, 0.03),
        "timestep_spacing": spacing,
        "steps_offset": st.integers(0, 1),
    }
    sigma_min = {"sigma_min": st.floats(0.01, 0.2), "sigma_max": st.floats(1.0, 20.0)}
    final = {"final_sigmas_type": st.sampled_from(["zero", "sigma_min"])}
    match family:
        case "ddim":
            return betas | {"set_alpha_to_one": flag, "rescale_betas_zero_snr": flag}
        case "pndm":
            return betas | {"set_alpha_to_one": flag, "skip_prk_steps": flag}
        case "ddpm":
            return betas | {"rescale_betas_zero_snr": flag, "variance_type": st.just("fixed_small")}
        case "euler":
            kinds = {"interpolation_type": st.sampled_from(["linear", "log_linear"])}
            kinds["timestep_type"] = st.sampled_from(["discrete", "continuous"])
            return betas | sigma_min | final | kinds | {"rescale_betas_zero_snr": flag}
        case "dpmsolver++":
            return betas | sigma_min | final | {
                "solver_order": st.sampled_from([1, 2]),
                "solver_type": st.sampled_from(["midpoint", "heun"]),
                "lower_order_final": flag,
                "euler_at_final": flag,
                "lambda_min_clipped": st.sampled_from([-math.inf, -5.1, -3.0]),
                "rescale_betas_zero_snr": flag,
                "flow_shift": st.floats(0.5, 5.0),
            }  # fmt: skip
    return {
        "shift": st.floats(0.5, 6.0),
        "shift_terminal": st.sampled_from([None, 0.1, 0.02]),
        "invert_sigmas": flag,
        "time_shift_type": st.sampled_from(["exponential", "linear"]),
        "base_shift": st.floats(0.3, 0.7),
        "max_image_seq_len": st.just(8192),
    }


_LADDERS = {
    "euler": ["use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas"],
    "dpmsolver++": [
        "use_karras_sigmas",
        "use_exponential_sigmas",
        "use_beta_sigmas",
        "use_lu_lambdas",
        "use_flow_sigmas",
    ],
    "flow": ["use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_dynamic_shifting"],
}


@st.composite
def drawn(draw: st.DrawFn, family: str) -> tuple[Config, int, float | None]:
    """A config of one family that is supported, a number of steps, and the mu it needs if any."""
    config: Config = {"_class_name": CLASSES[family], **draw(_some(_optional_options(family)))}
    train = draw(st.sampled_from([1000, 1000, 1000, 400, 777]))
    if train != 1000 or draw(st.booleans()):
        config["num_train_timesteps"] = train
    steps = draw(st.integers(1, 40))
    ladder = draw(st.sampled_from([None, None, *_LADDERS.get(family, [])]))
    if ladder:
        config[ladder] = True
        # Else Heun's last step may be from one level to the same: refused here, and NaN in diffusers.
        if config.get("solver_type") == "heun" and config.get("final_sigmas_type") == "sigma_min":
            config["euler_at_final"] = True
    if family == "flow":
        assume(not config.get("shift_terminal") or steps > 1)  # 0/0 where the only sigma is 1
        return config, steps, draw(st.floats(0.3, 3.0)) if ladder == "use_dynamic_shifting" else None
    kinds = ["epsilon", "v_prediction"] if family == "pndm" else ["epsilon", "v_prediction", "sample"]
    if ladder == "use_flow_sigmas":
        kinds = ["epsilon", "sample", "flow_prediction"]
        config["rescale_betas_zero_snr"] = False
    elif config.get("rescale_betas_zero_snr") and family in ("ddim", "ddpm"):
        kinds = ["v_prediction", "sample"]
    config["prediction_type"] = draw(st.sampled_from(kinds))
    if family in ("ddim", "ddpm", "pndm") or draw(st.booleans()):
        config["clip_sample"] = False
    if draw(st.integers(0, 9)) == 0:
        betas = np.linspace(1e-4, draw(st.floats(0.01, 0.03)), train) ** draw(st.floats(0.9, 1.0))
        config["trained_betas"] = [float(beta) for beta in betas]
    # For a few numbers of steps diffusers ends in timestep -1: see the test of that.
    assume(len(np.arange(train, 0, -train / steps)) == steps)
    return config, steps, None
