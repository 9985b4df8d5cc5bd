"""Latents to pictures and back, whole or in tiles; the tiles are those of diffusers' `enable_tiling`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ._errors import InputError, ModelError, NonFiniteError
from ._tiles import LEAST_TILE, Tile, in_tiles
from .engines.profiles import Profile
from .engines.session import Network

__all__ = ["Autoencoder"]

Array = NDArray[np.float32]

# Up to so many pixels a picture is coded whole. The autoencoder's attention has a token for each latent;
# its scores, where they are kept, take 4 GiB at this size in float32, and grow with the square.
_WHOLE_PIXELS = 2 * 1024 * 1024
_LEAST_STD = np.float32(np.exp(-15.0))  # diffusers cuts the logarithm of the variance off at -30


class Autoencoder:
    """The two halves of an autoencoder; safe from several threads where its networks are."""

    def __init__(
        self,
        decoder: Network,
        encoder: Callable[[], Network] | None = None,
        *,
        channels: int,
        downscale: int,
        scaling_factor: float,
        shift_factor: float = 0.0,
        tile: int = 1024,
        profile: Profile | None = None,
    ) -> None:
        """Take the networks; they are not closed here.

        Args:
            decoder: `latents` (1, C, h, w) to `pictures` (1, 3, H, W).
            encoder: called at every `encode`, so that it can be loaded at the first; its network takes
                `pictures` to `mean` and `std`, each (1, C, h, w). None where the model has no encoder.
            channels: C.
            downscale: H / h.
            scaling_factor, shift_factor: latents of the sampler are (x - shift) * scale.
            tile: side in pixels of the tiles where nobody asks for another.
            profile: the sizes that the networks' plans were built for; None where they take any.

        Raises:
            InputError: `tile` is too small for tiles to overlap.
        """
        self._decoder, self._encoder = decoder, encoder
        self._channels, self._downscale = channels, downscale
        self._scale, self._shift = np.float32(scaling_factor), np.float32(shift_factor)
        self._profile = profile
        self._tile = tile // downscale
        self._sides(Tile(tile, tile))

    def check_encodes(self) -> None:
        """Raises ModelError where there is no encoder; it is not loaded here."""
        self._have_encoder()

    def _have_encoder(self) -> Callable[[], Network]:
        if self._encoder is None:
            raise ModelError(
                "this model has no encoder for pictures (vae_encoder), so it can start from noise only; "
                "take 'demo-xl' or 'demo-sd3' in place of 'demo', or build one from a checkpoint with the "
                "whole autoencoder"
            )
        return self._encoder

    def tile_for(self, height: int, width: int, vae_tiling: bool | int | None = None) -> Tile | None:
        """How a picture of `height` x `width` pixels is coded: in tiles of this size, or None for whole.

        Args:
            vae_tiling: True, or the side of a tile in pixels, for tiles; False for none; None for tiles where
                the plans do not take the picture whole, or it has more than two million pixels.

        Raises:
            InputError: `vae_tiling` is none of these, or no tile of the plans' sizes fits into the picture.
        """
        if vae_tiling is False:
            self._check_fits(Tile(height, width), height, width)
            return None
        side = self._tile * self._downscale
        if vae_tiling is not None and vae_tiling is not True:
            side = _whole_number(vae_tiling)
        elif vae_tiling is None and height * width <= _WHOLE_PIXELS and self._takes(height, width):
            return None
        tile = self._within_plans(Tile(side, side))
        self._sides(tile)
        if height <= tile.height and width <= tile.width and self._takes(height, width):
            return None
        self._check_fits(tile, height, width)
        return tile

    def _takes(self, height: int, width: int) -> bool:
        if self._profile is None:
            return True
        rows, columns = height // self._downscale, width // self._downscale
        return rows in self._profile.height and columns in self._profile.width

    def _within_plans(self, tile: Tile) -> Tile:
        if self._profile is None:
            return tile
        ranges = self._profile.height.times(self._downscale), self._profile.width.times(self._downscale)
        sides = zip((tile.height, tile.width), ranges, strict=True)
        return Tile(*(min(max(side, range_.min), range_.max) for side, range_ in sides))

    def _check_fits(self, tile: Tile, height: int, width: int) -> None:
        """Plans have no tile for a picture that is smaller than their least size."""
        if self._profile is not None and not self._takes(min(height, tile.height), min(width, tile.width)):
            raise InputError(
                f"a picture of {height} x {width} pixels does not fit the plans of the autoencoder, which "
                f"take latents of {self._profile.height} x {self._profile.width}; build plans for it: "
                "driffusion-trt build with --height and --width, or with --build-dynamic-shape"
            )

    def _sides(self, tile: Tile) -> tuple[int, int]:
        """Height and width of a tile in latents."""
        rows, columns = tile.height // self._downscale, tile.width // self._downscale
        if min(rows, columns) < LEAST_TILE:
            raise InputError(
                f"tiles of {tile.height} x {tile.width} pixels are too small for this model: "
                f"each side must be at least {LEAST_TILE * self._downscale}"
            )
        return rows, columns

    def decode(self, latents: Array, tile: Tile | None = None) -> Array:
        """A picture (1, 3, H, W) float32 in about [-1, 1] from latents (1, C, h, w) float32 of the sampler.

        Beside the picture, tiles need memory for one of them and for the last quarters of a row of them.

        Args:
            tile: what `tile_for` gave; None decodes the whole at once.

        Raises:
            InputError: the latents are of another shape, or of a size that the network does not take.
            NonFiniteError: the decoder gave numbers that are not finite.
        """
        _check_shape("latents", latents, self._channels, 1)
        with np.errstate(over="ignore"):  # the decoder's output tells
            scaled = latents / self._scale + self._shift

        def decode(part: Array) -> Array:
            return _finite(self._decoder.run({"latents": part})["pictures"], "decoder")

        if tile is None:
            return decode(scaled)
        return self._tiled(decode, scaled, tile, grow=self._downscale)

    def encode(self, picture: Array, tile: Tile | None = None) -> tuple[Array, Array]:
        """Mean and standard deviation, each (1, C, h, w) float32, of the latents of a picture (1, 3, H, W).

        They are those of the autoencoder's own latents; `latents_of` makes the sampler's from them.

        Args:
            tile: what `tile_for` gave; None encodes the whole at once.

        Raises:
            InputError: the picture is of another shape, or of a size that the network does not take.
            ModelError: the model has no encoder, or it cannot be loaded.
            NonFiniteError: the encoder gave numbers that are not finite.
        """
        _check_shape("picture", picture, 3, self._downscale)
        encoder = self._have_encoder()()

        def encode(part: Array) -> tuple[Array, Array]:
            out = encoder.run({"pictures": np.ascontiguousarray(part)})
            return _finite(out["mean"], "encoder"), _finite(out["std"], "encoder")

        if tile is None:
            return encode(picture)

        def moments(part: Array) -> Array:  # what diffusers blends
            mean, std = encode(part)
            return np.concatenate([mean, 2 * np.log(np.maximum(std, _LEAST_STD))], axis=1)

        whole = self._tiled(moments, picture, tile, shrink=self._downscale)
        mean, log_variance = np.split(whole, 2, axis=1)
        return mean, np.exp(np.float32(0.5) * log_variance)

    def _tiled(
        self, run: Callable[[Array], Array], source: Array, tile: Tile, *, grow: int = 1, shrink: int = 1
    ) -> Array:
        # A plan may take one size only, and each costs a context of its own.
        even = self._profile is not None
        return in_tiles(run, source, self._sides(tile), grow=grow, shrink=shrink, even=even)

    def latents_of(self, mean: Array, std: Array, noise: Array) -> Array:
        """The sampler's latents of an encoded picture: diffusers' `retrieve_latents`, shifted and scaled.

        Args:
            mean, std: what `encode` gave, (B or 1, C, h, w).
            noise: unit normal, (B, C, h, w).
        """
        return (mean + std * noise - self._shift) * self._scale


def _check_shape(name: str, value: Array, channels: int, multiple: int) -> None:
    shape = value.shape
    fits = len(shape) == 4 and shape[:2] == (1, channels) and value.dtype == np.float32
    if not fits or any(size < multiple or size % multiple for size in shape[2:]):
        sides = "height, width" if multiple == 1 else f"multiples of {multiple}"
        raise InputError(
            f"{name} of shape {shape} and dtype {value.dtype} was given, "
            f"expected float32 (1, {channels}, {sides})"
        )


def _finite(values: NDArray[Any], what: str) -> Array:
    if not np.isfinite(values).all():  # it would be a black picture
        raise NonFiniteError(f"the {what} gave numbers that are not finite; build the model in bf16 or fp32")
    return values


def _whole_number(side: object) -> int:
    if isinstance(side, bool) or not isinstance(side, int) or side < 1:
        raise InputError(
            f"vae_tiling must be True, False, None or the side of a tile in pixels, not {side!r}"
        )
    return side
