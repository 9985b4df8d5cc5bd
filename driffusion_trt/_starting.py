"""State 0 of a run that starts from a picture, its random numbers in the order of diffusers' pipelines."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ._source import Source
from ._tiles import Tile
from .autoencoder import Autoencoder
from .sampling.known import Known, noisy
from .sampling.noise import NoiseStreams
from .sampling.schedule import Schedule

__all__ = ["start"]

Float32 = NDArray[np.float32]


def start(
    source: Source, autoencoder: Autoencoder, tile: Tile | None, schedule: Schedule, streams: NoiseStreams
) -> tuple[Float32, Known | None]:
    """What `run_plan` starts with, (B, C, h, w), and what it keeps; `streams` then stands before step noises.

    A picture becomes latents that are drawn from the encoder's distribution, then noise is added at the
    level of state 0 (SDEdit, 2108.01073). A schedule that begins with noise has that alone, as diffusers
    has it for inpainting at strength 1.

    With one random stream every picture given is encoded once, and with a stream each once for every
    picture made: then each comes out as if it were made alone.

    Raises as `Autoencoder.encode` does.
    """
    moments = [autoencoder.encode(picture[None], tile) for picture in source.pictures]
    mean, std = (np.concatenate(parts) for parts in zip(*moments, strict=True))
    rows = list(source.rows)
    drawn = streams.draw(mean.shape[1:], len(mean))
    if len(drawn) == len(rows):
        latents = autoencoder.latents_of(mean[rows], std[rows], drawn)
    else:
        latents = autoencoder.latents_of(mean, std, drawn)[rows]
    noise = streams.draw(mean.shape[1:])
    known = None
    if source.repaint is not None:
        # diffusers also encodes the picture without what is made anew, for networks that are told of it.
        streams.draw(mean.shape[1:], len(mean))
        known = Known(latents, noise, source.repaint)
    return (noise if schedule.first is None else noisy(schedule, 0, latents, noise)), known
