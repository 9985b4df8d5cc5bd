"""How far pictures are from the sequential ones of the same prompts and seeds."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from .._call import Result
from ..pictures import psnr, relative_l2

__all__ = ["NO_SSIM", "Drift", "summary"]

NO_SSIM = "SSIM is left out: run: pip install '.[bench]' in a clone of driffusion-trt"
_PEAK = 255.0**2
Perceptual = Callable[[Image.Image, Image.Image], float]


class Drift:
    """Compares two results of the same pictures.

    relative_l2: ‖latents − sequential‖ / ‖sequential‖, of the latents that the decoder got. psnr_db, ssim: of
    the 8-bit pictures, SSIM (Wang et al. 2004) with scikit-image's defaults, over the colours. lpips: where
    the weights were given.
    """

    def __init__(self, lpips: Perceptual | None = None) -> None:
        self._lpips = lpips
        self.has_ssim = importlib.util.find_spec("skimage") is not None

    def __call__(self, result: Result, sequential: Result) -> list[dict[str, float]]:
        """One entry for each picture; `psnr_db` is infinite where the 8-bit pictures are equal."""
        return [self._one(result, sequential, k) for k in range(len(result.images))]

    def _one(self, result: Result, sequential: Result, k: int) -> dict[str, float]:
        latents, wanted = result.latents[k], sequential.latents[k]
        image, exact = result.images[k], sequential.images[k]
        found = {
            "relative_l2": relative_l2(latents, wanted),
            "psnr_db": psnr(image, exact),
        }
        if self.has_ssim:
            found["ssim"] = _ssim(image, exact)
        if self._lpips is not None:
            found["lpips"] = self._lpips(image, exact)
        return found


def _ssim(one: Image.Image, other: Image.Image) -> float:
    from skimage import metrics

    compare: Any = metrics.structural_similarity  # untyped
    given: list[Any] = [np.asarray(image.convert("RGB")) for image in (one, other)]
    window = min(7, *given[0].shape[:2])
    return float(compare(*given, channel_axis=2, win_size=window - (window + 1) % 2))


def summary(found: Sequence[Mapping[str, float]]) -> dict[str, dict[str, float | None]]:
    """Mean and worst of every measure over all pictures.

    The mean PSNR is that of the mean squared error; an infinite one is None.
    """
    out: dict[str, dict[str, float | None]] = {}
    for name in found[0] if found else ():
        values = [one[name] for one in found]
        if name == "psnr_db":
            errors = [_PEAK / 10 ** (value / 10) for value in values]  # 0 of an infinite one
            mean = float(np.mean(errors))
            out[name] = {"mean": _finite(_db(mean)), "worst": _finite(min(values))}
        else:
            worst = min(values) if name == "ssim" else max(values)
            out[name] = {"mean": float(np.mean(values)), "worst": float(worst)}
    return out


def _db(mean_square: float) -> float:
    return float("inf") if mean_square == 0 else float(10 * np.log10(_PEAK / mean_square))


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None
