"""The demo's text encoder and UNet, trained together by v-prediction on cached latents."""

from __future__ import annotations

import multiprocessing
import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import track

from ... import scenes
from ...scenes.labels import HEADS, IGNORED, labels
from .networks import LATENT, TEXT_WIDTH, make_scheduler, make_text_encoder, make_tokenizer, make_unet
from .vae import load_vae, pictures
from .workers import Loss, Recipe, train

CAPTIONS_DROPPED = 0.1  # what guidance needs: some steps with the empty caption
# Weight of reading the scene's labels off the text encoder. Without it the network learns what and
# which colour, but for a long time not which of two objects is on which side: 20 of 49 pairs were swapped.
READING = 0.02
PAD, END = 0, 2
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
        self, latents: torch.Tensor, timesteps: torch.Tensor, tokens: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The prediction, and the scene's labels as read from the tokens after the last word."""
        words = self.text_encoder(input_ids=tokens).last_hidden_state
        predicted: torch.Tensor = self.unet(latents, timesteps, encoder_hidden_states=words).sample
        after = ((tokens == PAD) | (tokens == END)).unsqueeze(-1)
        return predicted, self.reader((words * after).sum(1) / after.sum(1))


def tokens_of(captions: list[str]) -> torch.Tensor:
    """Token ids (len(captions), TEXT_LENGTH), int64."""
    return torch.tensor([encoding.ids for encoding in make_tokenizer().encode_batch(captions)])


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
class _Levels:
    a: torch.Tensor
    s: torch.Tensor

    @classmethod
    def of_scheduler(cls) -> _Levels:
        cumulative = make_scheduler().alphas_cumprod
        return cls(cumulative.sqrt(), (1 - cumulative).sqrt())


def _loss(folder: Path) -> Loss:
    latents = torch.from_numpy(np.load(folder / "latents.npy"))
    captions = tokens_of([scenes.caption(i) for i in range(len(latents))])
    empty, levels = tokens_of([""]), _Levels.of_scheduler()
    wanted = torch.tensor([labels(scene, scene.ground) for scene in map(_scene, range(len(latents)))])

    def loss(model: torch.nn.Module, generator: torch.Generator, step: int) -> torch.Tensor:
        chosen = torch.randint(len(latents), (_BATCH,), generator=generator)
        clean = latents[chosen].float()
        dropped = torch.rand(_BATCH, 1, generator=generator) < CAPTIONS_DROPPED
        tokens = torch.where(dropped, empty, captions[chosen])
        # One timestep from each of _BATCH parts: every level is seen in every batch, and those
        # where the caption decides more often than those where the picture is there already.
        part = (torch.arange(_BATCH) + torch.rand(_BATCH, generator=generator)) / _BATCH
        timesteps = (part**0.6 * len(levels.a)).long().clamp(max=len(levels.a) - 1)
        a, s = (level[timesteps].view(-1, 1, 1, 1) for level in (levels.a, levels.s))
        noise = torch.randn(_BATCH, *LATENT, generator=generator)
        predicted, read = model(a * clean + s * noise, timesteps, tokens)
        asked = wanted[chosen].masked_fill(dropped, IGNORED)
        velocity = torch.nn.functional.mse_loss(predicted.float(), a * noise - s * clean)
        return velocity + READING * read_loss(read.float(), asked)

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


def train_denoiser(folder: Path, samples: int, processes: int, bf16: bool) -> None:
    """Train both networks; the result is `<folder>/denoiser.pt`, averaged weights."""
    recipe = Recipe("denoiser", samples, _BATCH, 1e-3, 0.99, TextToLatents, _loss, bf16=bf16)
    train(recipe, folder, processes)


def load_denoiser(folder: Path, name: str = "denoiser.pt") -> TextToLatents:
    model = TextToLatents()
    state: dict[str, Any] = torch.load(folder / name, weights_only=True)
    model.load_state_dict(state.get("ema", state))
    return model.eval().requires_grad_(False)
