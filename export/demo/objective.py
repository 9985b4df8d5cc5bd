"""What a denoiser is trained to say: v (2202.00512), epsilon (2006.11239) or velocity (2403.03206)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch

__all__ = ["Objective", "Task", "diffusion", "flow"]


@dataclass(frozen=True, slots=True)
class Task:
    """Noisy latents (B, C, h, w), timesteps (B,), the answer, and the weight (B, 1, 1, 1) of its error."""

    noisy: torch.Tensor
    timesteps: torch.Tensor
    wanted: torch.Tensor
    weight: torch.Tensor


class Objective(Protocol):
    """Makes a task of clean latents, unit noise and numbers in [0, 1), one from each B-th part of it."""

    def __call__(self, clean: torch.Tensor, noise: torch.Tensor, part: torch.Tensor) -> Task: ...


def diffusion(scheduler: Any) -> Objective:
    """v or epsilon at the levels of a diffusers scheduler, as its `prediction_type` says.

    Errors in epsilon are weighted by 1/a², which makes them errors in v, with a bound: at the noisiest
    levels epsilon is the state itself, nearly, and without a weight what decides the ground's colour
    would count for nothing.
    """
    cumulative = scheduler.alphas_cumprod
    signal, spread = cumulative.sqrt(), (1 - cumulative).sqrt()
    velocity = scheduler.config.prediction_type == "v_prediction"

    def task(clean: torch.Tensor, noise: torch.Tensor, part: torch.Tensor) -> Task:
        # Levels where the caption decides are drawn more often than those where the picture is there already.
        timesteps = (part**0.6 * len(signal)).long().clamp(max=len(signal) - 1)
        a, s = (level[timesteps].view(-1, 1, 1, 1) for level in (signal, spread))
        noisy = a * clean + s * noise
        if velocity:
            return Task(noisy, timesteps, a * noise - s * clean, torch.ones_like(a))
        return Task(noisy, timesteps, noise, 1 / (a**2 + 0.03))

    return task


def flow(scheduler: Any) -> Objective:
    """noise - clean, at levels from a logit-normal distribution that leans towards noise."""
    scale = float(scheduler.config.num_train_timesteps)

    def task(clean: torch.Tensor, noise: torch.Tensor, part: torch.Tensor) -> Task:
        sigma = torch.sigmoid(0.5 + 1.1 * torch.special.ndtri(part.clamp(1e-4, 1 - 1e-4))).view(-1, 1, 1, 1)
        noisy = (1 - sigma) * clean + sigma * noise
        return Task(noisy, scale * sigma.flatten(), noise - clean, torch.ones_like(sigma))

    return task
