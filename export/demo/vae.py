"""The demo's autoencoder: 64x64 pictures to 4x16x16 latents and back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL

from ... import scenes
from .networks import make_vae
from .workers import Loss, Recipe, train

LATENT_NOISE = 0.05  # of the latents' own spread: keeps the decoder smooth without a KL term
_BATCH = 2  # many small steps: at 16 pictures a step the same number of them gave 7 dB less
_COLOUR_STEPS = 2000  # steps over which the first three latents are led by the picture's own colours


def pictures(first: int, count: int, seed: int = 0) -> torch.Tensor:
    """Pictures first..first+count of a data set, (count, 3, 64, 64) in [-1, 1]."""
    drawn = np.stack([scenes.example(i, seed)[0] for i in range(first, first + count)])
    return torch.from_numpy(drawn).permute(0, 3, 1, 2).float() / 127.5 - 1


def _loss(folder: Path) -> Loss:
    def loss(model: torch.nn.Module, generator: torch.Generator, step: int) -> torch.Tensor:
        assert isinstance(model, AutoencoderKL)
        first = int(torch.randint(1 << 40, (), generator=generator))
        wanted = pictures(first, _BATCH)
        latents = model.encode(wanted).latent_dist.mode()
        spread = latents.detach().float().std()
        noisy = latents + LATENT_NOISE * spread * torch.randn(latents.shape, generator=generator)
        got = model.decode(noisy).sample.float()
        error = got - wanted
        lead = 0.5 * max(0.0, 1 - step / _COLOUR_STEPS)
        colours = 1.5 * torch.nn.functional.avg_pool2d(wanted, scenes.SIZE // latents.shape[-1])
        led = (latents[:, :3].float() - colours).square().mean()
        total: torch.Tensor = error.abs().mean() + 2 * error.square().mean() + lead * led
        return total

    return loss


def train_vae(folder: Path, samples: int, processes: int, bf16: bool) -> None:
    """Train, then whiten the latents: their mean and covariance are folded into the two 1x1 convolutions."""
    train(Recipe("vae", samples, _BATCH, 2e-3, 0.98, make_vae, _loss, 0.6, bf16=bf16), folder, processes)
    white = folder / "vae_whitened.pt"
    if white.exists():
        return
    vae = make_vae()
    vae.load_state_dict(torch.load(folder / "vae.pt", weights_only=True))
    whiten(vae, pictures(0, 256, seed=1))
    torch.save(vae.state_dict(), white)
    print(f"vae: {psnr(vae, pictures(0, 128, seed=2)):.1f} dB on pictures it has not seen", flush=True)


def load_vae(folder: Path) -> AutoencoderKL:
    vae = make_vae()
    vae.load_state_dict(torch.load(folder / "vae_whitened.pt", weights_only=True))
    return vae.eval().requires_grad_(False)


@torch.no_grad()
def whiten(vae: AutoencoderKL, sample: torch.Tensor) -> None:
    """Make the latents of `sample` zero-mean, unit-variance and uncorrelated between channels."""
    latents = vae.encode(sample).latent_dist.mode().movedim(1, -1).reshape(-1, vae.config.latent_channels)
    mean = latents.mean(0).double()
    values, vectors = torch.linalg.eigh(torch.cov(latents.double().T))
    forward = vectors @ torch.diag(values.rsqrt()) @ vectors.T
    channels = len(mean)
    out, back = vae.quant_conv, vae.post_quant_conv
    weight = out.weight[:channels, :, 0, 0].double()
    out.weight[:channels, :, 0, 0] = (forward @ weight).float()
    out.bias[:channels] = (forward @ (out.bias[:channels].double() - mean)).float()
    decode = back.weight[:, :, 0, 0].double()
    back.bias += (decode @ mean).float()
    back.weight[:, :, 0, 0] = (decode @ torch.linalg.inv(forward)).float()


@torch.no_grad()
def psnr(vae: AutoencoderKL, sample: torch.Tensor) -> float:
    got = vae.decode(vae.encode(sample).latent_dist.mode()).sample.clamp(-1, 1)
    return float(10 * torch.log10(4 / (got - sample).square().mean()))
