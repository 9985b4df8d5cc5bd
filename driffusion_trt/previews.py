"""Small pictures of latents by one linear map of their channels: what a decoder would show, for nothing.

The maps are least squares of decoded pictures on latents. Those of SD2.1, SDXL and SD3 are the figures that
ComfyUI published (comfy/latent_formats.py; SD2.1 shares the latents of SD1.5); the demo's were fitted to 24
of its pictures, of which they explain 96 % of the variance, those of the other bundled models, which share
an autoencoder, to 600 drawn ones.
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
_SD2 = (
    (0.3512, 0.2297, 0.3227),
    (0.3250, 0.4974, 0.2350),
    (-0.2829, 0.1762, 0.2721),
    (-0.2120, -0.2616, -0.7177),
    (0.0, 0.0, 0.0),
)
_SDXL = (
    (0.3651, 0.4232, 0.4341),
    (-0.2533, -0.0042, 0.1068),
    (0.1076, 0.1111, -0.0362),
    (-0.3165, -0.2492, -0.2188),
    (0.1084, -0.0175, -0.0011),
)
_SD3 = (
    (-0.0922, -0.0175, 0.0749),
    (0.0311, 0.0633, 0.0954),
    (0.1994, 0.0927, 0.0458),
    (0.0856, 0.0339, 0.0902),
    (0.0587, 0.0272, -0.0496),
    (-0.0006, 0.1104, 0.0309),
    (0.0978, 0.0306, 0.0427),
    (-0.0042, 0.1038, 0.1358),
    (-0.0194, 0.0020, 0.0669),
    (-0.0488, 0.0130, -0.0268),
    (0.0922, 0.0988, 0.0951),
    (-0.0278, 0.0524, -0.0542),
    (0.0332, 0.0456, 0.0895),
    (-0.0069, -0.0030, -0.0810),
    (-0.0596, -0.0465, -0.0293),
    (-0.1448, -0.1463, -0.1189),
    (0.2394, 0.2135, 0.1925),
)
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
_MAPS = {"sd21": _SD2, "sdxl": _SDXL, "sd3": _SD3}  # by architecture
_BUNDLED = {"demo": _DEMO, "demo-xl": _DEMO_PAIR, "demo-sd3": _DEMO_PAIR}


def preview(spec: ModelSpec, latents: NDArray[np.float32]) -> tuple[Image.Image, ...]:
    """Pictures of one pixel for each place of the latents (B, C, h, w), in the sampler's scale.

    Raises InputError where the latents are no array of floats, or not of this family.
    """
    if not isinstance(latents, np.ndarray) or latents.dtype.kind != "f":
        kind = latents.dtype if isinstance(latents, np.ndarray) else type(latents).__name__
        raise InputError(
            f"latents must be an array of floats, (B, C, h, w), such as Result.latents, not {kind}"
        )
    rows = np.array(_BUNDLED.get(spec.family) or _MAPS[spec.architecture], np.float32)
    if latents.ndim != 4 or latents.shape[1] != len(rows) - 1:
        raise InputError(
            f"latents of shape {latents.shape} are none of {spec.family}; expected (B, {len(rows) - 1}, h, w)"
        )
    colours = np.einsum("bchw,cr->brhw", latents, rows[:-1]) + rows[-1][:, None, None]
    return tuple(to_images(np.nan_to_num(colours)))
