"""Noise levels and timesteps as diffusers computes them.

diffusers works in float32 here, and near the clean end the rounding is what is left of
1 − ᾱ, so the same quantities are rounded at the same places. Sources: DDPM (2006.11239),
zero terminal SNR (2305.08891, algorithm 1), Karras' sigmas (2206.00364, eq. 5), beta
sigmas (2407.12173).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Values = Mapping[str, Any]


def alphas_cumprod(values: Values) -> Float32:
    """ᾱ of every training timestep."""
    betas = _betas(values)
    if values["rescale_betas_zero_snr"]:
        betas = _zero_terminal_snr(betas)
    return _cumprod(np.float32(1) - betas)


def _cumprod(alphas: Float32) -> Float32:
    return np.cumprod(alphas, dtype=np.float64).astype(np.float32)  # torch, too, carries a double


def linspace32(start: float, end: float, count: int) -> Float32:
    """torch.linspace in float32: from both ends to the middle, with fused multiply-adds."""
    first, last = np.float32(start), np.float32(end)
    step = float((last - first) / np.float32(max(count - 1, 1)))
    index = np.arange(count)
    up = float(first) + step * index
    down = float(last) - step * (count - 1 - index)
    return np.where(index < count // 2, up, down).astype(np.float32)


def _betas(values: Values) -> Float32:
    train = values["num_train_timesteps"]
    start, end = float(values["beta_start"]), float(values["beta_end"])
    if values["trained_betas"] is not None:
        return np.array(values["trained_betas"], np.float32)
    match values["beta_schedule"]:
        case "linear":
            return linspace32(start, end, train)
        case "scaled_linear":
            roots = linspace32(start**0.5, end**0.5, train)
            return roots * roots
        case "sigmoid":
            rising = 1 / (1 + np.exp(-linspace32(-6, 6, train)))
            return np.asarray(rising * np.float32(end - start) + np.float32(start), np.float32)
    alpha_bar = {"squaredcos_cap_v2": _cosine, "laplace": _laplace}[values["beta_schedule"]]
    betas = [min(1 - alpha_bar((i + 1) / train) / alpha_bar(i / train), 0.999) for i in range(train)]
    return np.array(betas, np.float32)


def _cosine(t: float) -> float:
    """ᾱ(t) of improved DDPM (2102.09672, eq. 17)."""
    return math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2


def _laplace(t: float) -> float:
    log_snr = -0.5 * math.copysign(1, 0.5 - t) * math.log(1 - 2 * abs(0.5 - t) + 1e-6)
    snr = math.exp(log_snr)
    return math.sqrt(snr / (1 + snr))


def _zero_terminal_snr(betas: Float32) -> Float32:
    """Shift and stretch √ᾱ so that it ends at 0 and begins where it did."""
    roots = np.sqrt(_cumprod(np.float32(1) - betas))
    first, last = roots[0], roots[-1]
    roots = (roots - last) * (first / (first - last))
    products = roots * roots
    alphas = np.concatenate([products[:1], products[1:] / products[:-1]])
    return np.float32(1) - alphas


def finite_alphas_cumprod(values: Values) -> Float32:
    """ᾱ for solvers that count in sigmas: an end at zero SNR becomes 2⁻²⁴, which is a sigma of 4096."""
    products = alphas_cumprod(values)
    if values["rescale_betas_zero_snr"]:
        products[-1] = 2.0**-24
    return products


def sigmas_of(products: Float32) -> Float32:
    """σ = √((1 − ᾱ)/ᾱ) of every training timestep."""
    sigmas: Float32 = np.sqrt((np.float32(1) - products) / products)
    return sigmas


def vp_levels(products: Float32) -> tuple[Float64, Float64]:
    """a = √ᾱ and s = √(1 − ᾱ)."""
    wide = products.astype(np.float64)
    return np.sqrt(wide), np.sqrt(1 - wide)


def spaced_timesteps(values: Values, steps: int) -> NDArray[np.int64]:
    """Whole timesteps of DDPM and DDIM, falling.

    For some numbers of steps `trailing` has one entry too many, −1, by a rounding error.
    """
    train = values["num_train_timesteps"]
    match values["timestep_spacing"]:
        case "linspace":
            spaced = np.linspace(0, train - 1, steps).round()[::-1]
        case "leading":
            spaced = np.arange(steps)[::-1] * (train // steps) + values["steps_offset"]
        case _:
            spaced = np.arange(train, 0, -train / steps).round() - 1
    return spaced.astype(np.int64)


def dpm_timesteps(values: Values, steps: int, products: Float32) -> NDArray[np.int64]:
    """Whole timesteps of DPM-Solver++: one interval more, and none noisier than lambda_min_clipped."""
    log_snr = np.log(np.sqrt(products)) - np.log(np.sqrt(np.float32(1) - products))
    clipped = int(np.searchsorted(log_snr[::-1], np.float32(values["lambda_min_clipped"])))
    train = values["num_train_timesteps"]
    end = train - clipped
    match values["timestep_spacing"]:
        case "linspace":
            spaced = np.linspace(0, end - 1, steps + 1).round()[::-1][:-1]
        case "leading":
            spaced = np.arange(steps + 1)[::-1][:-1] * (end // (steps + 1)) + values["steps_offset"]
        case _:
            spaced = np.arange(end, 0, -train / steps).round() - 1
    return spaced.astype(np.int64)


def timesteps_of(sigmas: Float64, log_sigmas: Float32) -> Float64:
    """Fractional timesteps of any sigmas, by interpolation in log σ over the training timesteps."""
    wanted = np.log(np.maximum(sigmas, 1e-10))
    below = wanted - log_sigmas[:, np.newaxis] >= 0
    last = len(log_sigmas) - 1 - np.argmax(below[::-1], axis=0)
    low = np.minimum(np.where(below.any(axis=0), last, 0), len(log_sigmas) - 2)
    share = (log_sigmas[low] - wanted) / (log_sigmas[low] - log_sigmas[low + 1])
    share = np.clip(share, 0, 1)
    return np.asarray((1 - share) * low + share * (low + 1), np.float64)


def ladder(values: Values, highest: float, lowest: float, steps: int) -> Float64 | None:
    """Karras', exponential or beta sigmas between two of them, or those of the config; None if not asked."""
    low = lowest if values["sigma_min"] is None else values["sigma_min"]
    high = highest if values["sigma_max"] is None else values["sigma_max"]
    ramp = np.linspace(0, 1, steps)
    if values["use_karras_sigmas"]:
        rho = 7.0
        return np.asarray((high ** (1 / rho) + ramp * (low ** (1 / rho) - high ** (1 / rho))) ** rho)
    if values["use_exponential_sigmas"]:
        return np.asarray(np.exp(np.linspace(math.log(high), math.log(low), steps)))
    if values["use_beta_sigmas"]:
        return low + beta_quantile(1 - ramp, 0.6) * (high - low)
    return None


def beta_quantile(p: Float64, shape: float) -> Float64:
    """The quantile function of the symmetric beta distribution B(shape, shape), to about 1e-13.

    Newton's method on the power series of the incomplete beta function, in u = x^shape,
    where it is nearly a straight line; the upper half by symmetry.
    """
    half = np.minimum(p, 1 - p)
    total = math.gamma(shape) ** 2 / math.gamma(2 * shape)
    u = half * shape * total
    for _ in range(12):
        x = np.minimum(u ** (1 / shape), 0.5)
        term, series = np.ones_like(x), np.zeros_like(x)
        for k in range(60):
            series += term / (shape + k)
            term *= x * (1 - shape + k) / (k + 1)
        error = x**shape * series / total - half
        u = np.maximum(x**shape - error * shape * total * (1 - x) ** (1 - shape), 0.0)
    x = np.minimum(u ** (1 / shape), 0.5)
    return np.where(p <= 0.5, x, 1 - x)
