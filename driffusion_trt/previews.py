"""Small pictures of latents by one linear map of their channels: about what a decoder shows, for nothing.

The bundled models' maps are least squares of decoded pictures on latents: the demo's to 24 of its pictures,
of which they explain 96 % of the variance, those of the others, which share an autoencoder, to 600 drawn
ones. For other models there is no map: their latents are shown in grey, along what varies most in them.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ._errors import InputError
from .models import ModelSpec
from .pictures import to_images

__all__ = ["preview"]

# A row for each channel and then one that is added: red, green, blue in [-1, 1].
_DEMO = (
    (0.5813, 0.0472, -0.1099),
    (0.0520, 0.3114, -0.0911),
    (-0.1144, -0.0264, 0.5518),
    (0.3496, 0.4832, 0.3259),
    (0.2762, -0.0330, -0.1960),
)
_DEMO_PAIR = (
    (0.5473, 0.0222, -0.1468),
    (0.0317, 0.3536, -0.0565),
    (-0.1274, -0.0370, 0.5486),
    (0.3845, 0.4628, 0.3163),
    (0.2624, -0.0112, -0.1794),
)
_MAPS = {"demo": _DEMO, "demo-xl": _DEMO_PAIR, "demo-sd3": _DEMO_PAIR}


def preview(spec: ModelSpec, latents: NDArray[np.float32]) -> tuple[Image.Image, ...]:
    """Pictures of one pixel for each place of the latents (B, C, h, w), in the sampler's scale.

    In colour for bundled models, else in grey, where light and dark may be the wrong way round.

    Raises InputError where the latents are no array of floats, or not of this family.
    """
    if not isinstance(latents, np.ndarray) or latents.dtype.kind != "f":
        kind = latents.dtype if isinstance(latents, np.ndarray) else type(latents).__name__
        raise InputError(
            f"latents must be an array of floats, (B, C, h, w), such as Result.latents, not {kind}"
        )
    if latents.ndim != 4 or latents.shape[1] != spec.latent_channels:
        raise InputError(
            f"latents of shape {latents.shape} are none of {spec.family}; expected "
            f"(B, {spec.latent_channels}, h, w)"
        )
    latents = np.nan_to_num(latents.astype(np.float32), posinf=0, neginf=0)
    if spec.family in _MAPS:
        rows = np.array(_MAPS[spec.family], np.float32)
        shown = np.einsum("bchw,cr->brhw", latents, rows[:-1]) + rows[-1][:, None, None]
    else:
        shown = np.stack([_grey(one) for one in latents])
    return tuple(to_images(shown))


def _grey(latents: NDArray[np.float32]) -> NDArray[np.float32]:
    """(C, h, w) along their first principal component, (3, h, w); white is two standard deviations off."""
    centred = latents.reshape(len(latents), -1) - latents.mean((1, 2))[:, None]
    _, directions = np.linalg.eigh(centred @ centred.T)
    first = directions[:, -1]
    first = first if first.sum() >= 0 else -first  # of its two ends one, and the same one in every round
    along = first @ centred
    along = along / (2 * along.std() + np.float32(1e-6))
    grey: NDArray[np.float32] = np.broadcast_to(along.reshape(latents.shape[1:]), (3, *latents.shape[1:]))
    return grey
