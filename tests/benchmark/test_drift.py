"""Distances of pictures: of equal ones, of an error of known size, and how they are summed up."""

from __future__ import annotations

import importlib.util
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from driffusion_trt.benchmark import drift
from driffusion_trt.benchmark.drift import Drift, summary


def result(shift: float = 0.0, scale: float = 1.0, pictures: int = 2) -> Any:
    random = np.random.default_rng(0)
    latents = random.normal(size=(pictures, 4, 8, 8)).astype(np.float32)
    pixels = random.integers(50, 200, (pictures, 32, 32, 3)).astype(float) + shift
    images = tuple(Image.fromarray(one.astype(np.uint8)) for one in pixels)
    return SimpleNamespace(latents=latents * np.float32(scale), images=images)


def test_equal_pictures() -> None:
    found = Drift()(result(), result())
    assert [(one["relative_l2"], one["psnr_db"]) for one in found] == [(0.0, float("inf"))] * 2
    assert summary(found)["relative_l2"] == {"mean": 0.0, "worst": 0.0}
    assert summary(found)["psnr_db"] == {"mean": None, "worst": None}


def test_an_error_of_known_size() -> None:
    found = Drift()(result(shift=5, scale=1.25), result())
    for one in found:
        assert one["relative_l2"] == pytest.approx(0.25, rel=1e-6)
        assert one["psnr_db"] == pytest.approx(20 * np.log10(255 / 5))


def test_mean_and_worst() -> None:
    near, far = {"relative_l2": 0.1, "psnr_db": float("inf")}, {"relative_l2": 0.3, "psnr_db": 40.0}
    found = summary([near | {"ssim": 0.9, "lpips": 0.1}, far | {"ssim": 0.5, "lpips": 0.2}])
    assert found["relative_l2"] == {"mean": pytest.approx(0.2), "worst": 0.3}
    assert found["psnr_db"]["worst"] == 40.0
    assert found["psnr_db"]["mean"] == pytest.approx(40 + 10 * np.log10(2)), "of half the squared error"
    assert found["ssim"] == {"mean": pytest.approx(0.7), "worst": 0.5}
    assert found["lpips"] == {"mean": pytest.approx(0.15), "worst": 0.2}
    assert summary([]) == {}


def test_lpips_is_what_was_given() -> None:
    seen: list[tuple[Image.Image, Image.Image]] = []
    made, exact = result(3, pictures=1), result(pictures=1)
    (found,) = Drift(lambda one, other: seen.append((one, other)) or 0.5)(made, exact)  # type: ignore[func-returns-value]
    assert found["lpips"] == 0.5 and seen == [(made.images[0], exact.images[0])]


def test_ssim_is_there_where_its_package_is(monkeypatch: pytest.MonkeyPatch) -> None:
    there = importlib.util.find_spec("skimage") is not None
    (found,) = Drift()(result(pictures=1), result(pictures=1))
    assert ("ssim" in found) == Drift().has_ssim == there
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "ssim" not in Drift()(result(pictures=1), result(pictures=1))[0]


def test_ssim() -> None:
    pytest.importorskip("skimage", reason="scikit-image is not installed")
    same, shifted = result(pictures=1), result(pictures=1, shift=30)
    noise = Image.fromarray(np.random.default_rng(1).integers(0, 255, (32, 32, 3)).astype(np.uint8))
    assert drift._ssim(same.images[0], same.images[0]) == pytest.approx(1)
    assert drift._ssim(noise, same.images[0]) < 0.3 < drift._ssim(shifted.images[0], same.images[0]) < 1
    small = Image.new("RGB", (4, 6))
    assert drift._ssim(small, small) == pytest.approx(1), "with a smaller window"
