"""What the bundled models' denoisers are trained to say is what their schedulers step with."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler

from driffusion_trt.export.demo.denoiser import DEMOS
from driffusion_trt.export.demo.objective import Task

B = 16


def task_of(family: str) -> tuple[Task, torch.Tensor, torch.Tensor]:
    demo = DEMOS[family]
    generator = torch.Generator().manual_seed(0)
    clean, noise = (torch.randn(B, 4, 8, 8, generator=generator) for _ in range(2))
    part = (torch.arange(B) + torch.rand(B, generator=generator)) / B
    return demo.objective(demo.scheduler())(clean, noise, part), clean, noise


@pytest.mark.parametrize("family", ["demo", "demo-xl"])
def test_states_and_answers_are_those_of_diffusers(family: str) -> None:
    task, clean, noise = task_of(family)
    config = {**DEMOS[family].scheduler().config, "_class_name": "DDPMScheduler"}
    peer = DDPMScheduler.from_config(config)
    torch.testing.assert_close(task.noisy, peer.add_noise(clean, noise, task.timesteps))
    wanted = peer.get_velocity(clean, noise, task.timesteps) if family == "demo" else noise
    torch.testing.assert_close(task.wanted, wanted)
    assert len(task.timesteps.unique()) == B and (task.timesteps.diff() > 0).all()


def test_errors_in_epsilon_weigh_as_errors_in_v() -> None:
    """v = (epsilon - s x) / a for a state x, so that an error in it is 1/a times as large; with a bound."""
    task, _, _ = task_of("demo-xl")
    signal = DEMOS["demo-xl"].scheduler().alphas_cumprod[task.timesteps].sqrt()
    exact = 1 / signal**2
    weight = task.weight.flatten()
    assert (weight <= exact).all() and weight.max() < 34
    near = signal > 0.8
    assert near.any()
    torch.testing.assert_close(weight[near], exact[near], rtol=0.05, atol=0)


def test_a_flow_goes_from_pictures_to_noise() -> None:
    task, clean, noise = task_of("demo-sd3")
    peer = FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=1.0)
    peer.timesteps, peer.sigmas = task.timesteps, task.timesteps / 1000
    torch.testing.assert_close(task.noisy, peer.scale_noise(clean, task.timesteps, noise))
    # One step of the whole way with the answer leads from the state to the clean latents.
    sigma = (task.timesteps / 1000).view(-1, 1, 1, 1)
    torch.testing.assert_close(task.noisy - sigma * task.wanted, clean, rtol=1e-4, atol=1e-5)
    assert 0 < task.timesteps.min() < 200 and 900 < task.timesteps.max() < 1000
