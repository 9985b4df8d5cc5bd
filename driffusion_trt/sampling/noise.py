"""Seeded noise: the numbers of torch's CPU generator, without torch.

`torch.randn` on the CPU draws from MT19937 (Matsumoto and Nishimura 1998), seeded as
numpy's RandomState is, and turns the draws into normals by Box and Muller (1958): in
blocks of 16 and in single precision where there are 16 values or more, in pairs and in
double precision where there are fewer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._errors import InputError

Float32 = NDArray[np.float32]
_BLOCK = 16


class TorchGenerator:
    """`torch.Generator().manual_seed(seed)` as far as `torch.randn` of float32 goes.

    seed: a whole number from 0 to 2**64 − 1; like torch's engine it uses the low 32 bits.

    Raises InputError for any other seed.
    """

    def __init__(self, seed: int) -> None:
        self._random = np.random.RandomState(_checked_seed(seed) & 0xFFFFFFFF)
        self._second: float | None = None

    def randn(self, shape: Sequence[int]) -> Float32:
        """Standard normals, float32 of `shape`; a further call goes on in the same stream.

        Within 1e-6 of torch: the last bits depend on torch's own vector code.
        """
        size = math.prod(shape)
        flat = self._blocks(size) if size >= _BLOCK else self._singles(size)
        return flat.reshape(shape)

    def _draw(self, count: int) -> NDArray[np.uint32]:
        return np.frombuffer(self._random.bytes(4 * count), "<u4")

    def _blocks(self, size: int) -> Float32:
        """Whole blocks of 16; where some values are left over, the last 16 are drawn anew."""
        whole = size - size % _BLOCK
        if whole == size:
            return _normal_blocks(self._draw(size))
        draws = self._draw(size + _BLOCK)
        out = np.empty(size, np.float32)
        out[:whole] = _normal_blocks(draws[:whole])
        out[-_BLOCK:] = _normal_blocks(draws[size:])
        return out

    def _singles(self, size: int) -> Float32:
        """Pairs in double precision; the second of a pair waits for the next value that is asked so."""
        out = np.empty(size, np.float32)
        for i in range(size):
            if self._second is not None:
                out[i], self._second = self._second, None
                continue
            high, low, high2, low2 = (int(word) for word in self._draw(4))
            angle = 2 * math.pi * _unit(high, low)
            radius = math.sqrt(-2 * math.log1p(-_unit(high2, low2)))
            out[i], self._second = radius * math.cos(angle), radius * math.sin(angle)
        return out


def _unit(high: int, low: int) -> float:
    """A double in [0, 1) from the low 53 of 64 bits."""
    return ((high << 32 | low) & (1 << 53) - 1) * 2.0**-53


def _normal_blocks(draws: NDArray[np.uint32]) -> Float32:
    """Box-Muller in blocks of 16: the first eight uniforms are radii, the last eight angles."""
    uniform = (draws & np.uint32(0xFFFFFF)).astype(np.float32)
    uniform *= np.float32(2.0**-24)
    pairs = uniform.reshape(-1, 2, _BLOCK // 2)
    radius = np.sqrt(np.float32(-2) * np.log(np.float32(1) - pairs[:, 0]))
    angle = np.float32(2 * math.pi) * pairs[:, 1]
    out: Float32 = np.stack([radius * np.cos(angle), radius * np.sin(angle)], 1)
    return out.reshape(-1)


class NoiseStreams:
    """Random streams of a batch: one for all its pictures, or one for each."""

    def __init__(self, generators: Sequence[TorchGenerator], batch: int) -> None:
        self._generators, self._batch = tuple(generators), batch

    def draw(self, shape: Sequence[int], pictures: int | None = None) -> Float32:
        """The next noises, float32 (batch, *shape).

        pictures: where one stream serves all, draw (pictures, *shape) from it instead.
        """
        if len(self._generators) == 1:
            return self._generators[0].randn((self._batch if pictures is None else pictures, *shape))
        return np.concatenate([generator.randn((1, *shape)) for generator in self._generators])


def noise_streams(seed: int | Sequence[int] | NDArray[Any], batch: int) -> NoiseStreams:
    """Streams for `batch` pictures, as diffusers draws with a generator or a list of them.

    seed: a whole number is one generator for the whole batch, so that a picture depends on
        its place in it; a sequence of them is one generator for each picture.

    Raises InputError for seeds that are not whole numbers from 0 to 2**64 − 1, or a
    sequence that is not as long as the batch.
    """
    if isinstance(batch, bool) or not isinstance(batch, int) or batch < 1:
        raise InputError(f"batch must be a whole number, 1 or more, not {batch!r}")
    if isinstance(seed, np.ndarray) and seed.ndim == 1:
        seed = seed.tolist()
    if isinstance(seed, Sequence) and not isinstance(seed, (str, bytes)):
        if len(seed) != batch:
            raise InputError(
                f"{len(seed)} seeds were given for {batch} pictures; give one for each, or one number"
            )
        return NoiseStreams([TorchGenerator(one) for one in seed], batch)
    return NoiseStreams([TorchGenerator(_checked_seed(seed))], batch)


def _checked_seed(seed: object) -> int:
    if (
        isinstance(seed, (bool, np.bool_))
        or not isinstance(seed, (int, np.integer))
        or not 0 <= int(seed) < 2**64
    ):
        raise InputError(f"a seed must be a whole number from 0 to 2**64 - 1, not {seed!r}")
    return int(seed)
