"""The autoencoder, whole and in tiles, against diffusers' AutoencoderKL of the same checkpoint."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from parity import Both

from driffusion_trt import InputError, ModelError, NonFiniteError
from driffusion_trt._tiles import Tile
from driffusion_trt.autoencoder import Autoencoder
from driffusion_trt.engines.onnx_session import OnnxSession
from driffusion_trt.engines.profiles import Profile, Range

TILE = 64  # the reduced autoencoders' `sample_size`
# Latents; tiles are of 8 and begin every 6. Of the third the last tiles are narrower than the overlap.
SIZES = [(16, 16), (14, 20), (17, 25), (8, 19), (9, 7)]


@pytest.fixture(scope="module", params=["sd21", "sd3"])
def pair(request: pytest.FixtureRequest, both: Both) -> Iterator[tuple[Autoencoder, Any]]:
    """Ours over the built networks, and diffusers'."""
    made = both(request.param)
    folder = made.ours.folder
    manifest, spec = folder.manifest, folder.spec
    with (
        OnnxSession(folder.network("vae_decoder")) as decoder,
        OnnxSession(folder.network("vae_encoder")) as encoder,
    ):
        ours = Autoencoder(
            decoder,
            lambda: encoder,
            channels=spec.latent_channels,
            downscale=spec.downscale,
            scaling_factor=manifest.scaling_factor,
            shift_factor=manifest.shift_factor,
            tile=TILE,
        )
        yield ours, made.theirs.vae


def picture(height: int, width: int) -> NDArray[np.float32]:
    return np.random.default_rng(1).uniform(-1, 1, (1, 3, height, width)).astype(np.float32)


def latents(channels: int, height: int, width: int) -> NDArray[np.float32]:
    return np.random.default_rng(2).standard_normal((1, channels, height, width)).astype(np.float32)


def theirs_decoded(vae: Any, given: NDArray[np.float32], *, tiling: bool) -> NDArray[np.float32]:
    scaled = torch.from_numpy(given) / vae.config.scaling_factor + (vae.config.shift_factor or 0)
    vae.use_tiling = tiling
    try:
        with torch.no_grad():
            decoded: NDArray[np.float32] = vae.decode(scaled).sample.numpy()
        return decoded
    finally:
        vae.use_tiling = False


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("tiling", [False, True])
def test_decoding_is_that_of_diffusers(
    pair: tuple[Autoencoder, Any], size: tuple[int, int], tiling: bool
) -> None:
    ours, vae = pair
    given = latents(vae.config.latent_channels, *size)
    tile = ours.tile_for(8 * size[0], 8 * size[1], tiling)
    assert (tile is not None) == tiling
    wanted = theirs_decoded(vae, given, tiling=tiling)
    np.testing.assert_allclose(ours.decode(given, tile), wanted, atol=2e-5)
    if tiling:
        assert np.abs(ours.decode(given) - wanted).max() > 1e-2, "tiles make no difference here"


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("tiling", [False, True])
def test_encoding_is_that_of_diffusers(
    pair: tuple[Autoencoder, Any], size: tuple[int, int], tiling: bool
) -> None:
    ours, vae = pair
    given = picture(8 * size[0], 8 * size[1])
    vae.use_tiling = tiling
    try:
        with torch.no_grad():
            wanted = vae.encode(torch.from_numpy(given)).latent_dist
    finally:
        vae.use_tiling = False
    tile = ours.tile_for(*given.shape[2:], tiling)
    mean, std = ours.encode(given, tile)
    np.testing.assert_allclose(mean, wanted.mean.numpy(), atol=2e-5)
    np.testing.assert_allclose(std, wanted.std.numpy(), rtol=1e-4)
    if tiling:
        assert np.abs(ours.encode(given)[0] - mean).max() > 1e-3, "tiles make no difference here"


def test_latents_are_sampled_shifted_and_scaled(pair: tuple[Autoencoder, Any]) -> None:
    ours, vae = pair
    mean, std = ours.encode(picture(64, 64))
    noise = np.random.default_rng(3).standard_normal((2, *mean.shape[1:])).astype(np.float32)
    shift = vae.config.shift_factor or 0
    wanted = (mean + std * noise - shift) * vae.config.scaling_factor
    np.testing.assert_allclose(ours.latents_of(mean, std, noise), wanted, rtol=1e-5, atol=1e-5)


class Enlarge:
    """A network without context: every latent becomes 8 x 8 pixels of its value."""

    inputs: Mapping[str, Any] = {}

    def __init__(self) -> None:
        self.shapes: list[tuple[int, ...]] = []

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        given = inputs["latents"]
        self.shapes.append(given.shape[2:])
        return {"pictures": given[:, :3].repeat(8, 2).repeat(8, 3)}


def enlarging(profile: Profile | None = None, tile: int = 64) -> tuple[Autoencoder, Enlarge]:
    network = Enlarge()
    return (
        Autoencoder(network, channels=4, downscale=8, scaling_factor=1.0, tile=tile, profile=profile),
        network,
    )


@pytest.mark.parametrize("size", [*SIZES, (30, 8), (6, 40)])
def test_tiles_of_a_network_without_context_make_no_difference(size: tuple[int, int]) -> None:
    """Also where every tile is of full size, as plans for one size want it."""
    given = latents(4, *size)
    for profile in (None, Profile(Range(1, 1, 2), Range(6, 6, 6), Range(6, 6, 6))):
        ours, network = enlarging(profile)
        tile = ours.tile_for(8 * size[0], 8 * size[1], True)
        np.testing.assert_allclose(
            ours.decode(given, tile), given[:, :3].repeat(8, 2).repeat(8, 3), atol=1e-6
        )
        if profile is not None:
            assert set(network.shapes) == {(6, 6)}


@pytest.mark.parametrize(
    ("size", "asked", "tile"),
    [
        ((1024, 1024), None, None),
        ((2048, 1024), None, None),
        ((2048, 1032), None, Tile(64, 64)),
        ((2048, 1032), False, None),
        ((128, 128), True, Tile(64, 64)),
        ((128, 128), 96, Tile(96, 96)),
        ((64, 64), True, None),
        ((64, 72), True, Tile(64, 64)),
    ],
)
def test_tiling_is_chosen_by_size_or_by_asking(
    size: tuple[int, int], asked: bool | int | None, tile: Tile | None
) -> None:
    assert enlarging()[0].tile_for(*size, asked) == tile


@pytest.mark.parametrize(
    ("size", "asked", "tile"),
    [
        ((512, 512), None, None),
        ((512, 640), None, Tile(512, 512)),
        ((1024, 768), None, Tile(512, 512)),
        ((512, 512), 128, None),  # the plan has one size only
        ((512, 512), False, None),
    ],
)
def test_plans_of_one_size_decode_larger_pictures_in_tiles(
    size: tuple[int, int], asked: bool | int | None, tile: Tile | None
) -> None:
    profile = Profile(Range(1, 2, 2), Range(64, 64, 64), Range(64, 64, 64))
    assert enlarging(profile, tile=512)[0].tile_for(*size, asked) == tile


def test_a_picture_below_the_plans_is_refused() -> None:
    profile = Profile(Range(1, 2, 2), Range(64, 64, 64), Range(64, 64, 64))
    with pytest.raises(InputError, match=r"256 x 1024 pixels does not fit the plans.*64 x 64.*build plans"):
        enlarging(profile, tile=512)[0].tile_for(256, 1024)


@pytest.mark.parametrize("asked", ["yes", 0, -64, 1.5, 24])
def test_a_wrong_tiling_is_refused(asked: Any) -> None:
    with pytest.raises(InputError, match=r"vae_tiling must be True|tiles of 24 x 24 pixels are too small"):
        enlarging()[0].tile_for(128, 128, asked)


def test_wrong_arrays_are_refused() -> None:
    ours, network = enlarging()
    for wrong in (
        np.zeros((1, 3, 8, 8), np.float32),
        np.zeros((2, 4, 8, 8), np.float32),
        np.zeros((1, 4, 8, 8)),
    ):
        with pytest.raises(InputError, match=r"latents of shape .* expected float32 \(1, 4, height, width\)"):
            ours.decode(wrong)
    with pytest.raises(InputError, match=r"picture of shape \(1, 3, 65, 64\).*multiples of 8"):
        ours.encode(np.zeros((1, 3, 65, 64), np.float32))
    assert not network.shapes


def test_a_model_without_encoder_says_so() -> None:
    ours, _ = enlarging()
    with pytest.raises(ModelError, match="no encoder for pictures"):
        ours.check_encodes()
    with pytest.raises(ModelError, match="no encoder for pictures"):
        ours.encode(picture(64, 64))


def test_a_decoder_that_leaves_the_range_of_numbers_is_told_of() -> None:
    ours, _ = enlarging()
    given = latents(4, 16, 16)
    given[0, 0, 12, 12] = np.inf
    for tile in (None, Tile(64, 64)):
        with pytest.raises(NonFiniteError, match="the decoder gave numbers that are not finite"):
            ours.decode(given, tile)
