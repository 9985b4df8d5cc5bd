"""Small random networks for the metrics of `eval`, in the file formats of the published ones."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

from driffusion_trt import scenes
from driffusion_trt.evaluation.frechet import Gaussian
from driffusion_trt.evaluation.heldout import HELD_OUT
from driffusion_trt.evaluation.inception import Inception

START, END = "<|startoftext|>", "<|endoftext|>"
LETTERS = "abcdefghijklmnopqrstuvwxyz"
SIDE, LENGTH = 28, 16


def tokenizer() -> CLIPTokenizer:
    """CLIP's byte-pair tokenizer over letters."""
    names = [*LETTERS, *(f"{letter}</w>" for letter in LETTERS), "re", "red</w>", START, END]
    merges = [("r", "e"), ("re", "d</w>")]
    return CLIPTokenizer(vocab={name: i for i, name in enumerate(names)}, merges=merges, pad_token=END)


def save_clip(folder: Path, seed: int = 0) -> Path:
    """A CLIP model of two small towers with its processor, as `save_pretrained` writes it."""
    words = tokenizer()
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = CLIPConfig(
        projection_dim=16,
        text_config={
            **sizes,
            "vocab_size": len(words),
            "max_position_embeddings": LENGTH,
            "bos_token_id": words.bos_token_id,
            "eos_token_id": words.eos_token_id,
        },
        vision_config={**sizes, "image_size": SIDE, "patch_size": 14},
    )
    torch.manual_seed(seed)
    model = CLIPModel(config)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if name != "logit_scale":
                value.add_(0.05 * torch.randn_like(value))
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    side = {"height": SIDE, "width": SIDE}
    CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size=side).save_pretrained(folder)
    return folder


def hps_state() -> dict[str, torch.Tensor]:
    """The weights of a small open_clip CLIP in float16, by open_clip's names, with the heads of ViT-H/14."""
    words = len(tokenizer())
    shapes: dict[str, tuple[int, ...]] = {
        "logit_scale": (),
        "positional_embedding": (LENGTH, 128),
        "text_projection": (128, 24),
        "token_embedding.weight": (words, 128),
        "ln_final.weight": (128,),
        "ln_final.bias": (128,),
        "visual.class_embedding": (160,),
        "visual.positional_embedding": (5, 160),
        "visual.proj": (160, 24),
        "visual.conv1.weight": (160, 3, 14, 14),
    }
    for name in ("ln_pre", "ln_post"):
        shapes |= {f"visual.{name}.weight": (160,), f"visual.{name}.bias": (160,)}
    for prefix, width in (("transformer.", 128), ("visual.transformer.", 160)):
        for layer in ("resblocks.0.", "resblocks.1."):
            for name in ("ln_1", "ln_2"):
                shapes |= {f"{prefix}{layer}{name}.{kind}": (width,) for kind in ("weight", "bias")}
            sizes = {"attn.in_proj_": (3 * width, width), "attn.out_proj.": (width, width)}
            sizes |= {"mlp.c_fc.": (4 * width, width), "mlp.c_proj.": (width, 4 * width)}
            for name, size in sizes.items():
                shapes |= {f"{prefix}{layer}{name}weight": size, f"{prefix}{layer}{name}bias": size[:1]}
    rng = np.random.default_rng(7)
    state = {}
    for name in sorted(shapes):
        shape = shapes[name]
        drawn = rng.standard_normal(shape) * (0.03 if len(shape) > 1 else 0.1)
        if name.startswith(("ln_", "visual.ln_")) or ".ln_" in name:
            drawn += name.endswith("weight")
        state[name] = torch.tensor(drawn).half()
    return state


def save_hps(path: Path) -> Path:
    """A checkpoint in the form of HPS_v2.1_compressed.pt."""
    torch.save({"state_dict": hps_state()}, path)
    return path


def inception_state(like: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Random weights for FID's Inception, in the order of its own; features depend on the picture."""
    rng, state = np.random.default_rng(5), {}
    for name, value in like.items():
        if name.endswith("num_batches_tracked"):
            state[name] = torch.zeros_like(value)
            continue
        drawn = rng.standard_normal(tuple(value.shape))
        if name.endswith(("bn.weight", "running_var")):
            drawn = 1 + 0.1 * abs(drawn)
        else:
            drawn *= 1.4 / np.sqrt(np.prod(value.shape[1:])) if value.ndim > 1 else 0.02
        state[name] = torch.tensor(drawn, dtype=value.dtype)
    return state


def pictures(count: int, height: int, width: int, seed: int = 6) -> list[Image.Image]:
    """Pictures of large coloured patches with some noise."""
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        patches = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
        drawn = np.asarray(patches.resize((width, height), Image.Resampling.NEAREST)).astype(np.int16)
        noisy = (drawn + rng.integers(-9, 10, drawn.shape)).clip(0, 255)
        made.append(Image.fromarray(noisy.astype(np.uint8)))
    return made


def held_out_pictures(count: int) -> np.ndarray:
    """Drawn pictures of the bundled models' held-out prompts, uint8 (count, 64, 64, 3)."""
    return np.stack([scenes.example(index, HELD_OUT)[0] for index in range(count)])


def save_statistics(path: Path) -> None:
    """Statistics of Inception's features, in the form that `Gaussian.read` reads."""
    Gaussian(np.zeros(2048), np.eye(2048)).save(path)


def save_inception(path: Path) -> None:
    """Random weights of Inception, in their real form."""
    torch.save(inception_state(Inception().state_dict()), path)


def as_images(pixels: np.ndarray) -> list[Image.Image]:
    return [Image.fromarray(one) for one in pixels]
