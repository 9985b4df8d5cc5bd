"""Models whose score is exact, with classes in place of prompts.

Gaussian mixtures, and the ideal denoiser of real handwritten digits: E[x0 | x] over a data set. A class is a
part of a mixture's centres (of the digits: those of one label). With its class, the network of a sample knows
the posterior mean over that part; without, over all of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
from sklearn.datasets import load_digits

import driffusion_trt as dt


@dataclass(frozen=True, slots=True, eq=False)
class Mixture:
    """Equal, round Gaussians.

    centres: (parts, dimensions). spread: their standard deviation. labels: their classes, from 0 (parts,).
    """

    centres: np.ndarray
    spread: float
    labels: np.ndarray

    def classes_of(self, samples: int) -> np.ndarray:
        """A class for each sample, in turn."""
        return np.arange(samples) % int(self.labels.max() + 1)

    def means(
        self, x: np.ndarray, a: float, s: float, classes: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """E[x0 | x] where x = a·x0 + s·ε (B, dimensions); given classes (B,) also E[x0 | x, class]."""
        variance = (a * self.spread) ** 2 + s**2
        scores = (a * x @ self.centres.T - 0.5 * a * a * (self.centres**2).sum(1)) / variance

        def mean(scores: np.ndarray) -> np.ndarray:
            weights = np.exp(scores - scores.max(1, keepdims=True))
            nearest = (weights / weights.sum(1, keepdims=True)) @ self.centres
            shrunk: np.ndarray = nearest + a * self.spread**2 / variance * (x - a * nearest)
            return shrunk

        if classes is None:
            return mean(scores), None
        return mean(scores), mean(np.where(self.labels == classes[:, None], scores, -np.inf))


def mixture(dimensions: int, parts: int, classes: int, spread: float, seed: int) -> Mixture:
    centres = np.random.default_rng(seed).normal(size=(parts, dimensions))
    return Mixture(centres / centres.std(), spread, np.arange(parts) % classes)


def digits(every: int, spread: float) -> Mixture:
    """8×8 handwritten digits: all of them, or one of `every`."""
    found = load_digits()
    pictures = found.data[::every] / 8 - 1
    return Mixture((pictures - pictures.mean()) / pictures.std(), spread, found.target[::every])


MODELS: dict[str, Callable[[], Mixture]] = {
    "mixture of 10 in 16 dimensions": cache(lambda: mixture(16, 10, 5, 0.3, 0)),
    "mixture of 40 in 64 dimensions": cache(lambda: mixture(64, 40, 10, 0.5, 1)),
    "digits, all 1797": cache(lambda: digits(1, 0.1)),
    "digits, 180 of them": cache(lambda: digits(10, 0.1)),
}


def denoiser(
    schedule: dt.Schedule, model: Mixture, guidance: float | None = None, classes: np.ndarray | None = None
) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """A network of the schedule's prediction type that is always right.

    guidance: g of u + g·(c − u), of its outputs c with the sample's class and u without; None for u alone.
    """
    levels = {
        float(np.float32(timestep)): level
        for timestep, *level in zip(
            schedule.timesteps, schedule.a, schedule.s, schedule.input_scale, strict=True
        )
    }

    def predict(latents: np.ndarray, timestep: np.ndarray) -> np.ndarray:
        a, s, scale = levels[float(timestep[0])]
        x = latents.astype(np.float64) / scale

        def output(x0: np.ndarray) -> np.ndarray:
            eps = (x - a * x0) / s
            kinds = {"epsilon": eps, "v_prediction": a * eps - s * x0, "flow_prediction": eps - x0}
            found: np.ndarray = kinds[schedule.prediction_type].astype(np.float32)
            return found

        without, given = model.means(x, a, s, None if guidance is None else classes)
        if given is None:
            return output(without)
        u, c = output(without), output(given)
        guided: np.ndarray = u + np.float32(guidance) * (c - u)
        return guided

    return predict
