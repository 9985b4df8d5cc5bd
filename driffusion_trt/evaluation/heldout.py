"""The bundled models' own test: held-out prompts, and a classifier that reads their pictures back.

Held out are the seeds: scenes, and the pictures drawn of them, are none of those that training drew. Their
captions need not be new. There are few with one object alone, and training on 32,000 pictures saw nearly all
of them: of prompts 0 to 199 63 % occur there word for word (99 % of those with one object, 22 % of those with
two), of prompts 2000 to 2199 52.5 % (100 % and 15 %).

The classifier was trained on drawn pictures (export/demo/checker.py). A prompt counts as right where every
label that it names is: what, which colour, where, on which ground. The Fréchet distance is taken in its
features, against drawn pictures.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime as ort  # type: ignore[import-untyped]
from numpy.typing import NDArray
from PIL import Image

from .. import scenes
from ..scenes.labels import HEADS, IGNORED, labels

__all__ = ["CHECKER", "REAL_PICTURES", "Checker", "draw_real", "prompt", "right", "shown"]

CHECKER = Path(__file__).with_name("checker.onnx")
HELD_OUT, REAL = 3, 4  # data-set seeds that training never drew from
REAL_PICTURES = 2000  # drawn ones, that a Fréchet distance of the bundled models is from
_AT_ONCE = 64

Pictures = NDArray[np.uint8]
Labels = NDArray[np.int64]


def prompt(index: int) -> tuple[str, list[int]]:
    """Caption of a held-out scene and its labels; a ground that the caption leaves out is not checked."""
    scene, _ = scenes.draw_scene(np.random.default_rng([HELD_OUT, index]))
    return scene.caption(), labels(scene, scene.ground)


def draw_real(count: int, first: int = 0) -> tuple[Pictures, Labels]:
    """Drawn pictures (count, 64, 64, 3) that nobody was trained on, from `first` on, and their labels."""
    pictures, wanted = [], []
    for index in range(first, first + count):
        rng = np.random.default_rng([REAL, index])
        scene, ground = scenes.draw_scene(rng)
        pictures.append(scenes.paint(scene, ground, rng))
        wanted.append(labels(scene, ground))
    return np.stack(pictures), np.array(wanted)


class Checker:
    """The classifier as ONNX, on one thread."""

    def __init__(self, path: Path = CHECKER) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        self._session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def __call__(self, pictures: Pictures) -> tuple[Labels, NDArray[np.float32]]:
        """Pictures (B, H, W, 3), resized to 64 × 64 if they are not, to labels (B, heads) and features."""
        parts = [self._few(pictures[at : at + _AT_ONCE]) for at in range(0, len(pictures), _AT_ONCE)]
        read, features = zip(*parts, strict=True)
        return np.concatenate(read), np.concatenate(features)

    def _few(self, pictures: Pictures) -> tuple[Labels, NDArray[np.float32]]:
        side = (scenes.SIZE, scenes.SIZE)
        if pictures.shape[1:3] != side:
            smaller = [Image.fromarray(one).resize(side, Image.Resampling.BOX) for one in pictures]
            pictures = np.stack([np.asarray(one) for one in smaller])
        images = pictures.transpose(0, 3, 1, 2).astype(np.float32) / 127.5 - 1
        logits, features = self._session.run(["logits", "features"], {"images": images})
        parts = np.split(logits, np.cumsum(list(HEADS.values()))[:-1], axis=1)
        return np.stack([part.argmax(1) for part in parts], 1), features


def right(read: Labels, wanted: Labels) -> NDArray[np.bool_]:
    """Whether each label (B, heads) is right, or is one that the prompt leaves open."""
    return np.asarray((read == wanted) | (wanted == IGNORED))


def shown(read: Labels, first: int) -> NDArray[np.bool_]:
    """Whether picture k (B,), read as labels (B, heads), shows all that prompt `first` + k names."""
    wanted = np.array([prompt(first + k)[1] for k in range(len(read))])
    return np.asarray(right(read, wanted).all(1))
