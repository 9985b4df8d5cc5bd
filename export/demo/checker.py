"""A classifier that reads a picture back into the labels of its scene.

It checks prompts exactly (what, which colour, where, on which ground), and its features
carry the Fréchet distance. It is trained on drawn pictures, not on generated ones.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from ... import scenes
from ...scenes.labels import HEADS, IGNORED, labels
from .vae import load_vae
from .workers import Loss, Recipe, train

FEATURES = 128
_BATCH = 32


class Checker(torch.nn.Module):
    """Pictures (B, 3, 64, 64) in [-1, 1] to all logits (B, sum of HEADS) and features (B, FEATURES)."""

    def __init__(self) -> None:
        super().__init__()

        def stage(before: int, after: int) -> list[torch.nn.Module]:
            return [
                torch.nn.Conv2d(before, after, 3, 2, 1, bias=False),
                torch.nn.BatchNorm2d(after),
                torch.nn.SiLU(),
                torch.nn.Conv2d(after, after, 3, 1, 1, bias=False),
                torch.nn.BatchNorm2d(after),
                torch.nn.SiLU(),
            ]

        self.body = torch.nn.Sequential(*stage(3, 24), *stage(24, 48), *stage(48, 96), *stage(96, 128))
        self.squeeze = torch.nn.Sequential(torch.nn.Linear(128 * 16, FEATURES), torch.nn.SiLU())
        self.heads = torch.nn.Linear(FEATURES, sum(HEADS.values()))

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        features = self.squeeze(self.body(images).flatten(1))
        return self.heads(features), features


def _roughen(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Blur and noise of a random strength, since decoded pictures are never as crisp as drawn ones."""
    count = len(images)
    blurred = torch.nn.functional.avg_pool2d(images, 3, 1, 1, count_include_pad=False)
    share = torch.rand(count, 1, 1, 1, generator=generator)
    strength = 0.15 * torch.rand(count, 1, 1, 1, generator=generator)
    noise = torch.randn(images.shape, generator=generator)
    return torch.lerp(images, blurred, share) + strength * noise


def _loss(folder: Path) -> Loss:
    def loss(model: torch.nn.Module, generator: torch.Generator, step: int) -> torch.Tensor:
        first = int(torch.randint(1 << 40, (), generator=generator))
        drawn, wanted = [], []
        for index in range(first, first + _BATCH):
            rng = np.random.default_rng([0, index])
            scene, ground = scenes.draw_scene(rng)
            drawn.append(scenes.paint(scene, ground, rng))
            wanted.append(labels(scene, ground))
        images = torch.from_numpy(np.stack(drawn)).permute(0, 3, 1, 2).float() / 127.5 - 1
        logits, _ = model(_roughen(images, generator))
        target = torch.tensor(wanted)
        parts = zip(logits.split(list(HEADS.values()), 1), target.unbind(1), strict=True)
        return torch.stack(
            [torch.nn.functional.cross_entropy(said, want, ignore_index=IGNORED) for said, want in parts]
        ).sum()

    return loss


def train_checker(folder: Path, samples: int, processes: int, bf16: bool) -> None:
    """Train, then say how often all labels of decoded pictures it has not seen are read right."""
    known = (folder / "checker.pt").exists()
    recipe = Recipe("checker", samples, _BATCH, 2e-3, 0.9, Checker, _loss, 0.7, bf16=bf16)
    train(recipe, folder, processes)
    if not known:
        print(
            f"checker: {100 * accuracy(folder):.1f} % of decoded pictures read right on all labels",
            flush=True,
        )


def load_checker(folder: Path) -> Checker:
    checker = Checker()
    state: dict[str, Any] = torch.load(folder / "checker.pt", weights_only=True)
    checker.load_state_dict(state)
    return checker.eval().requires_grad_(False)


@torch.no_grad()
def accuracy(folder: Path, count: int = 512) -> float:
    """Share of encoded and decoded held-out pictures whose every label is read right."""
    checker, vae, right = load_checker(folder), load_vae(folder), 0
    for index in range(count):
        rng = np.random.default_rng([2, index])
        scene, ground = scenes.draw_scene(rng)
        image = torch.from_numpy(scenes.paint(scene, ground, rng)).permute(2, 0, 1)[None].float() / 127.5 - 1
        logits, _ = checker(vae.decode(vae.encode(image).latent_dist.mode()).sample)
        said = [int(part.argmax()) for part in logits.split(list(HEADS.values()), 1)]
        right += all(want in (IGNORED, got) for want, got in zip(labels(scene, ground), said, strict=True))
    return right / count
