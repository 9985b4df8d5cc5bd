"""Schedules against diffusers, over drawn and shipped configs, and what is refused."""

from __future__ import annotations

import inspect
import json
import math
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import peers
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import driffusion_trt as dt
from driffusion_trt import ConfigError, InputError, Schedule
from driffusion_trt.sampling import levels
from driffusion_trt.sampling.options import CLASSES, DEFAULTS

SHAPE = (2, 3, 4)
LATENT = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "clip_sample": False}
DDIM = {"_class_name": "DDIMScheduler", **LATENT}
DDPM = {"_class_name": "DDPMScheduler", **LATENT}
EULER = {"_class_name": "EulerDiscreteScheduler", **LATENT}
DPM = {"_class_name": "DPMSolverMultistepScheduler", **LATENT}
FLOW = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}


def compare(schedule: Schedule, peer: Any, *, eta: float = 0.0) -> None:
    """Every number that diffusers shows, and every transition from random states and outputs."""
    wanted = peer.timesteps.numpy().astype(np.float64)
    np.testing.assert_allclose(schedule.timesteps, wanted, rtol=1e-5, atol=1e-4)
    if peer.timesteps.dtype == torch.int64:
        assert np.array_equal(schedule.timesteps, wanted)
    assert schedule.initial_sigma == pytest.approx(peers.initial_sigma(peer), rel=1e-6)
    rng = np.random.default_rng(0)
    before = None
    for i, t in enumerate(peer.timesteps):
        clean, noise, off = rng.standard_normal((3, *SHAPE))
        state = schedule.a[i] * clean + schedule.s[i] * noise
        guess = clean + schedule.s[i] * off if schedule.prediction_type == "sample" else off
        x, output = torch.from_numpy(state.astype(np.float32)), torch.from_numpy(guess.astype(np.float32))
        seen = peers.scaled(peer, x, t).numpy()
        np.testing.assert_allclose(x.numpy() * schedule.input_scale[i], seen, rtol=1e-6)
        theirs = peers.peer_step(peer, output, t, x, eta=eta, generator=torch.Generator().manual_seed(i))
        z = torch.randn(SHAPE, generator=torch.Generator().manual_seed(i)).double().numpy()
        ours, before = peers.one_step(schedule, i, x.double().numpy(), output.double().numpy(), before, z)
        # What diffusers subtracts it rounds to float32 at the size of the state, 1e4 with some sigmas.
        allowed = 1e-5 * np.linalg.norm(theirs) + 2e-7 * np.linalg.norm(x)
        assert np.linalg.norm(ours - theirs.numpy()) < allowed, f"step {i} of {schedule.steps}"


@pytest.mark.parametrize("family", peers.CLASSES)
@given(data=st.data(), eta=st.sampled_from([0.0, 0.0, 0.4, 0.95]))
@settings(max_examples=60)
def test_drawn_configs_step_as_diffusers_does(family: str, data: st.DataObject, eta: float) -> None:
    config, steps, mu = data.draw(peers.drawn(family))
    eta = eta if family in ("ddim", "pndm") else 0.0
    schedule = Schedule.from_config(config, steps, eta=eta or None, mu=mu)
    compare(schedule, peers.peer_of(config, steps, mu=mu), eta=eta)


@pytest.mark.parametrize("name", peers.shipped())
@pytest.mark.parametrize("steps", [1, 4, 28, 50])
def test_shipped_configs_step_as_diffusers_does(name: str, steps: int) -> None:
    config = peers.shipped()[name]
    compare(Schedule.from_config(config, steps), peers.peer_of(config, steps))


@pytest.mark.parametrize("name", ["sd21", "sd21-base"])
def test_eta_may_be_one(name: str) -> None:
    """Not with every config: near pure noise diffusers then takes the root of a rounding error, or NaN."""
    config = peers.shipped()[name]
    compare(Schedule.from_config(config, 50, eta=1.0), peers.peer_of(config, 50), eta=1.0)


@pytest.mark.parametrize("name", ["sd21", "sd21-base", "sdxl"])
@pytest.mark.parametrize("scheduler", ["ddpm", "ddim", "euler", "dpmsolver++"])
def test_a_switched_scheduler_is_diffusers_from_config(name: str, scheduler: str) -> None:
    config = peers.shipped()[name]
    schedule = Schedule.from_config(config, 20, scheduler=scheduler)
    assert schedule.solver == scheduler
    compare(schedule, peers.peer_of(config, 20, scheduler=scheduler))


@given(data=st.data(), to=st.sampled_from(["ddpm", "ddim", "euler", "dpmsolver++"]))
@settings(max_examples=60)
def test_drawn_configs_switch_as_in_diffusers(data: st.DataObject, to: str) -> None:
    family = data.draw(st.sampled_from(["ddpm", "ddim", "euler", "dpmsolver++"]))
    config, steps, _ = data.draw(peers.drawn(family))
    config["clip_sample"] = False  # else a switch to DDIM or DDPM brings clipping
    config["beta_schedule"] = "scaled_linear"
    if config.pop("use_flow_sigmas", False) or config.pop("rescale_betas_zero_snr", False):
        config["prediction_type"] = "v_prediction"
    compare(Schedule.from_config(config, steps, scheduler=to), peers.peer_of(config, steps, scheduler=to))


def test_a_schedulers_own_config_is_read_with_its_marks() -> None:
    """diffusers' `.config` marks what nobody set, and a switch takes the other class's default for it."""
    config = diffusers.DDIMScheduler.from_config(DDIM).config
    assert config["timestep_spacing"] == "leading"  # DDIM's default; Euler's is linspace
    assert Schedule.from_config(config, 10).timesteps[0] == 900
    assert Schedule.from_config(config, 10, scheduler="euler").timesteps[0] == 999


@pytest.mark.parametrize("steps", [1, 250, 999])
def test_small_steps_of_ddpm_are_rounded_as_in_diffusers(steps: int) -> None:
    config = DDPM | {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02}
    compare(Schedule.from_config(config, steps), peers.peer_of(config, steps))


@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
@pytest.mark.parametrize("config", [DDIM, DDPM, EULER, DPM], ids=lambda config: config["_class_name"])
def test_any_number_of_steps(config: dict[str, Any], spacing: str) -> None:
    config = config | {"timestep_spacing": spacing, "num_train_timesteps": 60}
    for steps in range(1, 61):
        if spacing == "trailing" and len(np.arange(60, 0, -60 / steps)) != steps:
            continue
        if config["_class_name"] == DPM["_class_name"] and spacing != "trailing" and steps == 60:
            continue  # refused: two timesteps are one
        theirs = peers.peer_of(config, steps).timesteps.numpy()
        np.testing.assert_allclose(Schedule.from_config(config, steps).timesteps, theirs, rtol=1e-6)


def test_a_stray_timestep_is_left_out() -> None:
    """diffusers' trailing spacing ends in timestep -1, the noisiest level, for 61 steps of 1000."""
    for config in (DDIM, DDPM, EULER, DPM):
        config = config | {"timestep_spacing": "trailing"}
        theirs = peers.peer_of(config, 61).timesteps.numpy()
        assert len(theirs) == 62 and theirs[-1] == -1
        schedule = Schedule.from_config(config, 61)
        assert np.array_equal(schedule.timesteps, theirs[:-1])
        assert (np.diff(schedule.s / schedule.a) < 0).all()


def test_clipped_log_snr_may_shorten_a_run_and_says_so() -> None:
    config = DPM | {"timestep_spacing": "trailing", "lambda_min_clipped": -1.0}
    schedule = Schedule.from_config(config, 20)
    assert schedule.steps == len(peers.peer_of(config, 20).timesteps) < 20
    assert schedule.notices == (
        f"20 steps were asked; diffusers makes {schedule.steps} of them with this config",
    )
    compare(schedule, peers.peer_of(config, 20))


@pytest.mark.parametrize("solver", CLASSES)
def test_options_and_defaults_are_diffusers_own(solver: str) -> None:
    arguments = inspect.signature(getattr(diffusers, CLASSES[solver]).__init__).parameters
    theirs = {name: argument.default for name, argument in arguments.items() if name != "self"}
    ours = dict(DEFAULTS[solver])
    if solver in ("dpmsolver++", "flow"):  # read from the config by their Karras sigmas, though not arguments
        assert ours.pop("sigma_min") is ours.pop("sigma_max") is None
    assert ours == theirs


def test_pndm_is_ddim_with_a_notice() -> None:
    config = {key: value for key, value in peers.shipped()["sd21-base"].items() if key != "clip_sample"}
    schedule = Schedule.from_config(config, 20)
    assert schedule.solver == "ddim"
    assert schedule.notices == ("the config names PNDMScheduler; it is sampled by DDIM over the same levels",)
    assert Schedule.from_config(config, 20, scheduler="ddim").notices == ()


def test_another_number_of_steps_keeps_all_else() -> None:
    config = DDIM | {"timestep_spacing": "trailing", "prediction_type": "v_prediction"}
    first = Schedule.from_config(config, 50, eta=0.3)
    other = first.with_steps(7)
    wanted = Schedule.from_config(config, 7, eta=0.3)
    assert other.steps == 7 and other.eta == 0.3
    assert np.array_equal(other.timesteps, wanted.timesteps) and np.array_equal(other.s_next, wanted.s_next)
    switched = Schedule.from_config(config, 50, scheduler="dpmsolver++").with_steps(7)
    assert switched.solver == "dpmsolver++"
    shifted = Schedule.from_config(FLOW | {"use_dynamic_shifting": True}, 9, mu=0.8).with_steps(4)
    assert shifted.s[1] == Schedule.from_config(FLOW | {"use_dynamic_shifting": True}, 4, mu=0.8).s[1]


def test_ddim_arrives_where_diffusers_does_not_go_on() -> None:
    """999 − 33 is not the next timestep that linspace has, so levels of arrival are kept apart."""
    schedule = Schedule.from_config(DDIM | {"timestep_spacing": "linspace"}, 30)
    assert not np.array_equal(schedule.a_next[:-1], schedule.a[1:])
    whole = Schedule.from_config(DDIM, 50)
    assert np.array_equal(whole.a_next[:-1], whole.a[1:])


def test_arrays_cannot_be_written_to() -> None:
    schedule = Schedule.from_config(DDIM, 5)
    for name in ("timesteps", "a", "s", "a_next", "s_next", "input_scale"):
        array = getattr(schedule, name)
        assert array.dtype == np.float64 and len(array) == schedule.steps == 5
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1
    with pytest.raises(AttributeError):
        schedule.eta = 1.0  # type: ignore[misc]


def test_configs_come_from_files_and_folders(tmp_path: Path) -> None:
    path = tmp_path / "scheduler_config.json"
    path.write_text(json.dumps(DDIM))
    for config in (path, str(path), tmp_path, DDIM):
        assert Schedule.from_config(config, 5).solver == "ddim"
    path.write_text("{")
    with pytest.raises(ConfigError, match="is not a JSON file"):
        Schedule.from_config(path, 5)
    path.write_text("[1]")
    with pytest.raises(ConfigError, match="holds list, not an object"):
        Schedule.from_config(path, 5)
    with pytest.raises(InputError, match="cannot be read: No such file"):
        Schedule.from_config(tmp_path / "none.json", 5)
    with pytest.raises(InputError, match="must be a dict or the path"):
        Schedule.from_config(5, 5)  # type: ignore[arg-type]


def test_beta_quantiles_are_scipys() -> None:
    stats = pytest.importorskip("scipy.stats")
    p = np.concatenate([np.linspace(0, 1, 301), [1e-9, 1e-5, 1 - 1e-9]])
    np.testing.assert_allclose(
        levels.beta_quantile(p, 0.6), stats.beta.ppf(p, 0.6, 0.6), rtol=1e-10, atol=1e-14
    )


WITHOUT_CLIP = {key: value for key, value in DDIM.items() if key != "clip_sample"}
REFUSED: list[tuple[dict[str, Any], str]] = [
    (
        WITHOUT_CLIP,
        "clip_sample=True of DDIMScheduler .so it is where the config does not say. is not supported",
    ),
    (WITHOUT_CLIP | {"_class_name": "DDPMScheduler"}, "clip_sample=True of DDPMScheduler"),
    (DDIM | {"clip_sample": True}, "write 'clip_sample': false"),
    (DDIM | {"clip_sample": 0}, "clip_sample=0"),
    (DDIM | {"thresholding": True}, "dynamic thresholding is not linear"),
    (
        DDPM | {"variance_type": "fixed_small_log"},
        "variance_type='fixed_small_log' .* must be one of 'fixed_small'",
    ),
    (DDPM | {"variance_type": "learned_range"}, "variance_type='learned_range'"),
    (DPM | {"variance_type": "learned"}, "variance_type='learned'"),
    (EULER | {"variance_type": "learned_range"}, "variance_type='learned_range' is not an option of Euler"),
    (DPM | {"algorithm_type": "sde-dpmsolver++"}, "only the deterministic DPM-Solver"),
    (DPM | {"algorithm_type": "dpmsolver"}, "set it to 'dpmsolver\\+\\+'"),
    (DPM | {"algorithm_type": None}, "algorithm_type=None"),
    (DPM | {"solver_order": 3}, "only orders 1 and 2"),
    (DPM | {"solver_order": True}, "solver_order=True"),
    (DPM | {"prediction_type": "flow_prediction"}, "needs use_flow_sigmas=true"),
    (DPM | {"prediction_type": "v_prediction", "use_flow_sigmas": True}, "is it 'flow_prediction'"),
    (
        DPM | {"use_karras_sigmas": True, "use_lu_lambdas": True},
        "only one of use_karras_sigmas, use_lu_lambdas",
    ),
    (FLOW | {"stochastic_sampling": True}, "only the deterministic flow"),
    (FLOW | {"shift": 0}, "shift=0 of .* must be a number above 0"),
    (FLOW | {"shift_terminal": 1.0}, "must be a number from 0 and below 1 or null"),
    (FLOW | {"beta_start": 0.1}, "FlowMatchEulerDiscreteScheduler has no option 'beta_start'"),
    (
        DDIM | {"timestep_spaceing": "trailing"},
        "no option 'timestep_spaceing'; did you mean 'timestep_spacing'",
    ),
    (DDIM | {"shift": 3.0}, "DDIMScheduler has no option 'shift'"),
    (DDIM | {"use_karras_sigmas": True}, "use_karras_sigmas=True is not an option of DDIMScheduler"),
    (EULER | {"clip_sample": True}, "clip_sample=True is not an option of EulerDiscreteScheduler"),
    (EULER | {"use_lu_lambdas": True}, "remove it from the config, or choose a scheduler that has it"),
    (EULER | {"sigma_min": 2.0, "sigma_max": 1.0}, "sigma_min=2.0 must be below sigma_max=1.0"),
    (EULER | {"sigma_min": -1.0}, "sigma_min=-1.0"),
    (DDIM | {"prediction_type": "flow_prediction"}, "must be one of 'epsilon', 'sample', 'v_prediction'"),
    (DDIM | {"beta_schedule": "sigmoid"}, "beta_schedule='sigmoid'"),
    (DDIM | {"beta_start": "0.1"}, "beta_start='0.1'"),
    (DDIM | {"beta_end": math.nan}, "beta_end=nan"),
    (DDIM | {"num_train_timesteps": 1000.0}, "num_train_timesteps=1000.0 .* a whole number, 2 or more"),
    (DDIM | {"set_alpha_to_one": None}, "set_alpha_to_one=None .* must be true or false"),
    (DDIM | {"steps_offset": -1}, "steps_offset=-1"),
    (DDIM | {"trained_betas": [0.1, 0.2]}, "trained_betas has 2 values; num_train_timesteps=1000"),
    (DDIM | {"trained_betas": [0.1, 2.0]}, "trained_betas=.* null or a list"),
    (DDIM | {"trained_betas": 0.1}, "trained_betas=0.1"),
    (
        DDIM | {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"},
        "rescale_betas_zero_snr makes the first state pure noise",
    ),
    (DDIM | {"steps_offset": 900}, "begin at timestep 1850, but the training ends at 999"),
    (DDIM | {"beta_start": 1e-9, "beta_schedule": "linear"}, "one begins without any noise"),
    (DDIM | {"trained_betas": [0.999] * 1000}, "pure noise|not finite"),
    ({"beta_start": 0.1}, "the config has no _class_name"),
    (
        {"_class_name": "DDIMSheduler"},
        "names 'DDIMSheduler', which is not supported; did you mean 'DDIMScheduler'",
    ),
    ({"_class_name": ["DDIMScheduler"]}, "is not supported"),
    ({"_class_name": "EulerAncestralDiscreteScheduler"}, "choose a scheduler: ddpm, ddim, euler"),
    (
        DPM | {"use_karras_sigmas": True, "solver_type": "heun", "final_sigmas_type": "sigma_min"},
        "set solver_order to 1, or euler_at_final",
    ),
]


@pytest.mark.parametrize(("config", "message"), REFUSED)
def test_what_is_not_supported_is_refused_by_name(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Schedule.from_config(config, 20)


@pytest.mark.parametrize(
    ("config", "options", "message"),
    [
        (DDIM, {"steps": 0}, "steps=0 was asked; it must be from 1 to 1000"),
        (DDIM, {"steps": 1001}, "steps=1001 was asked"),
        (DDIM, {"steps": 5.0}, "steps must be a whole number from 1 to 1000, not 5.0"),
        (DDIM, {"steps": True}, "steps must be a whole number"),
        (DDIM, {"eta": 1.5}, "eta must be a number from 0 to 1, not 1.5"),
        (DDIM, {"eta": math.nan}, "eta must be a number"),
        (DDPM, {"eta": 1.0}, "only ddim has it and this is ddpm"),
        (EULER, {"eta": 0.5}, "only ddim has it and this is euler"),
        (DDIM, {"scheduler": "eular"}, "there is no scheduler 'eular'; did you mean 'euler'"),
        (DDIM, {"scheduler": "flow"}, "'flow' does not go with a config of DDIMScheduler"),
        (FLOW, {"scheduler": "euler"}, "a flow-matching model takes 'flow'"),
        (FLOW, {"mu": 1.0}, "the config has no use_dynamic_shifting"),
        (DPM | {"use_dynamic_shifting": True}, {"mu": 1.0}, "no use_dynamic_shifting of a flow"),
        (FLOW | {"use_dynamic_shifting": True}, {}, "the shift `mu` of this picture size is needed"),
        (FLOW | {"use_dynamic_shifting": True}, {"mu": math.inf}, "mu must be a finite number"),
        (
            FLOW | {"use_dynamic_shifting": True, "time_shift_type": "linear"},
            {"mu": 0.0},
            "mu must be a positive",
        ),
    ],
)
def test_arguments_that_cannot_be_are_refused(
    config: dict[str, Any], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(dt.InputError, match=message):
        Schedule.from_config(config, **{"steps": 20, **options})


@pytest.mark.parametrize("steps", [1, 2, 14, 15])
@pytest.mark.parametrize("options", [{}, {"lower_order_final": False}, {"euler_at_final": True}], ids=str)
@pytest.mark.parametrize("final", ["zero", "sigma_min"])
def test_the_last_order_is_diffusers(steps: int, options: dict[str, Any], final: str) -> None:
    """It hangs on three options, and on whether there are fewer than 15 steps."""
    config = DPM | options | {"final_sigmas_type": final}
    schedule = Schedule.from_config(config, steps)
    held_back = final == "zero" or "euler_at_final" in options or (steps < 15 and not options)
    assert schedule.orders[-1] == (1 if held_back or steps == 1 else 2)
    compare(schedule, peers.peer_of(config, steps))


def test_a_flow_by_dpm_solver_takes_mu() -> None:
    config = DPM | {
        "use_flow_sigmas": True,
        "prediction_type": "flow_prediction",
        "use_dynamic_shifting": True,
    }
    compare(Schedule.from_config(config, 20, mu=1.1), peers.peer_of(config, 20, mu=1.1))


def test_what_a_switch_leaves_out_is_told() -> None:
    config = DPM | {"use_karras_sigmas": True, "use_lu_lambdas": False, "algorithm_type": "sde-dpmsolver++"}
    schedule = Schedule.from_config(config, 5, scheduler="ddim")
    assert schedule.notices == ("use_karras_sigmas=True is not an option of DDIMScheduler and is left out",)
    assert (
        Schedule.from_config({"_class_name": "UniPCMultistepScheduler", **LATENT}, 5, scheduler="ddim").solver
        == "ddim"
    )
