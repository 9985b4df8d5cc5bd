"""The demos' text encoders and denoisers, trained together on cached latents."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import track

from ... import scenes
from ...scenes.labels import HEADS, IGNORED, labels
from ..families import SD2Denoiser, SD3Denoiser, SDXLDenoiser
from .networks import (
    END,
    LATENT,
    TEXT_WIDTH,
    after_words,
    make_scheduler,
    make_text_encoder,
    make_tokenizer,
    make_unet,
)
from .objective import Objective, diffusion, flow
from .pairs import DemoSD3, DemoXL, make_euler_scheduler, make_flow_scheduler
from .vae import load_vae, pictures
from .workers import Loss, Recipe, train

CAPTIONS_DROPPED = 0.1  # what guidance needs: some steps with the empty caption
# Weight of reading the scene's labels off the text encoder. Without it the network learns what and
# which colour, but for a long time not which of two objects is on which side: 20 of 49 pairs were swapped.
READING = 0.02
_BATCH = 16
_CHUNK = 250


class TextToLatents(torch.nn.Module):
    """Both networks as one, so that one optimiser and one average serve them."""

    def __init__(self) -> None:
        super().__init__()
        self.text_encoder = make_text_encoder(make_tokenizer().get_vocab_size())
        self.unet = make_unet()
        self.reader = torch.nn.Linear(TEXT_WIDTH, sum(HEADS.values()))

    def forward(
        self, latents: torch.Tensor, timesteps: torch.Tensor, tokens: torch.Tensor, dropped: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The prediction, and the scene's labels as read from the tokens after the last word."""
        words = self.text_encoder(input_ids=tokens).last_hidden_state
        predicted: torch.Tensor = self.unet(latents, timesteps, encoder_hidden_states=words).sample
        return predicted, self.reader(after_words(words, tokens, END))


def tokens_of(captions: list[str], end_last: bool = False) -> torch.Tensor:
    """Token ids (len(captions), TEXT_LENGTH), int64."""
    return torch.tensor([encoding.ids for encoding in make_tokenizer(end_last).encode_batch(captions)])


def _encode_chunk(chunk: int, folder: Path) -> np.ndarray:
    torch.set_num_threads(1)
    vae = load_vae(folder)
    with torch.no_grad():
        latents: torch.Tensor = vae.encode(pictures(chunk * _CHUNK, _CHUNK)).latent_dist.mode()
    return latents.numpy().astype(np.float16)


def cache_latents(folder: Path, count: int, processes: int) -> None:
    """Encode the first `count` pictures once: training then never runs the encoder."""
    done = folder / "latents.npy"
    if done.exists() and len(np.load(done, mmap_mode="r")) >= count:
        return
    chunks = range(-(-count // _CHUNK))
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        encoded = pool.imap(partial(_encode_chunk, folder=folder), chunks)
        latents = np.concatenate(list(track(encoded, "Encoding pictures", len(chunks))))
    temporary = folder / "latents.partial.npy"
    np.save(temporary, latents)
    os.replace(temporary, done)


@dataclass(frozen=True, slots=True)
class Demo:
    """How one of the bundled models is made: its networks as one, its scheduler, what it predicts."""

    make: Callable[[], torch.nn.Module]
    scheduler: Callable[[], Any]
    objective: Callable[[Any], Objective]
    end_last: bool
    learning_rate: float


DEMOS = {
    "demo": Demo(TextToLatents, make_scheduler, diffusion, False, 1e-3),
    "demo-xl": Demo(DemoXL, make_euler_scheduler, diffusion, True, 1e-3),
    "demo-sd3": Demo(DemoSD3, make_flow_scheduler, flow, True, 8e-4),
}


def denoiser_of(model: Any) -> torch.nn.Module:
    """The denoiser among a model's networks, called with the inputs of its family by their names."""
    if isinstance(model, DemoXL):
        return SDXLDenoiser(model.unet, torch.float32)
    if isinstance(model, DemoSD3):
        return SD3Denoiser(model.transformer, torch.float32)
    return SD2Denoiser(model.unet, torch.float32)


def _loss(folder: Path, family: str) -> Loss:
    latents = torch.from_numpy(np.load(folder / "latents.npy"))
    demo = DEMOS[family]
    captions = tokens_of([scenes.caption(i) for i in range(len(latents))], demo.end_last)
    empty, task_of = tokens_of([""], demo.end_last), demo.objective(demo.scheduler())
    wanted = torch.tensor([labels(scene, scene.ground) for scene in map(_scene, range(len(latents)))])

    def loss(model: torch.nn.Module, generator: torch.Generator, step: int) -> torch.Tensor:
        chosen = torch.randint(len(latents), (_BATCH,), generator=generator)
        dropped = torch.rand(_BATCH, 1, generator=generator) < CAPTIONS_DROPPED
        tokens = torch.where(dropped, empty, captions[chosen])
        # One timestep from each of _BATCH parts: every level is seen in every batch.
        part = (torch.arange(_BATCH) + torch.rand(_BATCH, generator=generator)) / _BATCH
        task = task_of(latents[chosen].float(), torch.randn(_BATCH, *LATENT, generator=generator), part)
        predicted, read = model(task.noisy, task.timesteps, tokens, dropped.flatten())
        asked = wanted[chosen].masked_fill(dropped, IGNORED)
        error = (task.weight * (predicted.float() - task.wanted).square()).mean()
        total: torch.Tensor = error + READING * read_loss(read.float(), asked)
        return total

    return loss


def read_loss(read: torch.Tensor, asked: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of labels read from captions, summed over the heads."""
    parts = zip(torch.split(read, list(HEADS.values()), 1), asked.unbind(1), strict=True)
    losses = [
        torch.nn.functional.cross_entropy(said, want, ignore_index=IGNORED, reduction="sum")
        for said, want in parts
    ]
    return torch.stack(losses).sum() / len(asked)


def _scene(index: int) -> scenes.Scene:
    return scenes.draw_scene(np.random.default_rng([0, index]))[0]


def train_denoiser(folder: Path, samples: int, processes: int, bf16: bool, family: str = "demo") -> None:
    """Train the networks of one model; the result is its averaged weights, `<folder>/denoiser[-...].pt`."""
    demo, loss = DEMOS[family], partial(_loss, family=family)
    recipe = Recipe(
        weights_name(family), samples, _BATCH, demo.learning_rate, 0.99, demo.make, loss, bf16=bf16
    )
    train(recipe, folder, processes)


def weights_name(family: str) -> str:
    """Stem of the file of weights: "denoiser", "denoiser-xl" or "denoiser-sd3"."""
    return family.replace("demo", "denoiser")


def load_denoiser(folder: Path, family: str = "demo", name: str | None = None) -> Any:
    """The trained networks of a model; `name` takes another file, such as that of a training under way."""
    model = DEMOS[family].make()
    state: dict[str, Any] = torch.load(folder / (name or f"{weights_name(family)}.pt"), weights_only=True)
    model.load_state_dict(state.get("ema", state))
    return model.eval().requires_grad_(False)
