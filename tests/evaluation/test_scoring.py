"""Scores are kept chunk by chunk, and the figures are those of what was kept."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import scorers
from PIL import Image

from driffusion_trt import InputError
from driffusion_trt.evaluation.frechet import Gaussian, frechet
from driffusion_trt.evaluation.intervals import share_difference_interval, share_interval
from driffusion_trt.evaluation.metrics import Metric, Scorer
from driffusion_trt.evaluation.reference import Reference
from driffusion_trt.evaluation.scoring import CHUNK, Figure, figures
from driffusion_trt.evaluation.work import RowFolder, Work

COUNT = 2 * CHUNK + 5


class Mean:
    """Features of a picture, or the first of them as its score; writes down which pictures it has seen."""

    def __init__(self, width: int | None = None, stop_after: int = 1 << 30) -> None:
        self.seen: list[int] = []
        self._width, self._stop = width, stop_after

    def __call__(self, images: Sequence[Image.Image], texts: Sequence[str], first: int) -> np.ndarray:
        if len(self.seen) >= self._stop:
            raise KeyboardInterrupt
        self.seen += range(first, first + len(images))
        pixels = np.stack([np.asarray(image, np.float32) for image in images])
        assert len(texts) == len(images)
        return pixels.reshape(len(images), -1)[:, : self._width] if self._width else pixels.mean((1, 2, 3))


def metric(
    scorer: Scorer, reference: Reference | None = None, scale: float = 1.0, key: str = "a" * 64
) -> Metric:
    return Metric("mean", "Mean", "higher", 2, key, lambda: scorer, reference, scale)


@pytest.fixture
def rows(tmp_path: Path) -> dict[str, RowFolder]:
    found = {}
    for seed, name in enumerate(("sequential", "other")):
        found[name] = RowFolder(tmp_path / name)
        found[name].folder.mkdir()
        for index, image in enumerate(scorers.pictures(COUNT, 8, 8, seed)):
            image.save(found[name].picture(index))
    return found


def run(one: Metric, folder: Path, rows: dict[str, RowFolder], count: int = COUNT) -> dict[str, Figure]:
    found = figures([one], Work(folder), rows, ["text"] * count, lambda done, text: None)
    return {name: figure["mean"] for name, figure in found.items()}


def brightness(row: RowFolder, count: int = COUNT) -> np.ndarray:
    pictures = [Image.open(row.picture(index)) for index in range(count)]
    return np.array([np.asarray(picture, np.float64).mean() for picture in pictures])


def test_means_and_paired_differences(tmp_path: Path, rows: dict[str, RowFolder]) -> None:
    found = run(metric(Mean(), scale=10), tmp_path, rows)
    base, other = brightness(rows["sequential"]), brightness(rows["other"])
    assert found["sequential"]["value"] == pytest.approx(10 * base.mean(), rel=1e-5)
    assert found["other"]["value"] == pytest.approx(10 * other.mean(), rel=1e-5)
    assert found["other"]["difference"]["value"] == pytest.approx(10 * (other - base).mean(), rel=1e-4)
    assert found["other"]["low"] < found["other"]["value"] < found["other"]["high"]
    assert found["sequential"]["difference"] == {"value": 0, "low": 0, "high": 0}


def test_distances_to_statistics_and_to_files(tmp_path: Path, rows: dict[str, RowFolder]) -> None:
    files = tuple(rows["other"].picture(index) for index in range(COUNT))
    features = [
        Mean(4)([Image.open(row.picture(k)) for k in range(COUNT)], [""] * COUNT, 0) for row in rows.values()
    ]
    wanted = frechet(features[0], features[1])
    known = Reference("known", known=lambda: Gaussian.of(features[1]))
    for reference in (known, Reference.of("files", files)):
        found = run(metric(Mean(4), reference), tmp_path, rows)
        assert found["sequential"]["value"] == pytest.approx(wanted)
        assert found["other"]["value"] == pytest.approx(0, abs=1e-6 * wanted)
        assert found["other"]["difference"]["value"] == pytest.approx(-wanted)
        assert found["sequential"]["low"] < wanted < found["sequential"]["high"]


def test_what_was_scored_is_not_scored_again(tmp_path: Path, rows: dict[str, RowFolder]) -> None:
    wanted = run(metric(Mean()), tmp_path / "fresh", rows)
    for row in rows.values():
        for path in row.folder.rglob("*.npy"):
            path.unlink()
    stopped = Mean(stop_after=CHUNK)
    with pytest.raises(KeyboardInterrupt):
        run(metric(stopped), tmp_path, rows)
    again = Mean()
    assert run(metric(again), tmp_path, rows) == wanted
    assert again.seen == [*range(CHUNK, COUNT), *range(COUNT)]
    third = Mean()
    assert run(metric(third), tmp_path, rows) == wanted
    assert third.seen == []


def test_other_weights_and_more_pictures_are_scored(tmp_path: Path, rows: dict[str, RowFolder]) -> None:
    run(metric(Mean()), tmp_path, rows, CHUNK + 1)
    other = Mean()
    run(metric(other, key="b" * 64), tmp_path, rows, CHUNK + 1)
    assert len(other.seen) == 2 * (CHUNK + 1)
    more = Mean()
    found = run(metric(more), tmp_path, rows)
    assert more.seen == [*range(CHUNK, COUNT)] * 2, "the chunk that was short, and what comes after"
    assert found["other"]["value"] == pytest.approx(brightness(rows["other"]).mean(), rel=1e-5)
    fewer = run(metric(Mean()), tmp_path, rows, 3)
    assert fewer["other"]["value"] == pytest.approx(brightness(rows["other"], 3).mean(), rel=1e-5)


def test_a_reference_that_changed_is_read_again(tmp_path: Path, rows: dict[str, RowFolder]) -> None:
    files = tuple(rows["other"].picture(index) for index in range(8))
    for file in files:
        file.with_suffix(".bmp").write_bytes(b"")
        Image.open(file).save(file.with_suffix(".bmp"))
    files = tuple(file.with_suffix(".bmp") for file in files)

    def distance(scorer: Mean) -> float:
        value: float = run(metric(scorer, Reference.of("files", files)), tmp_path, rows)["sequential"][
            "value"
        ]
        return value

    before = distance(Mean(4))
    again = Mean(4)
    assert distance(again) == before and again.seen == []
    size, stamp = files[0].stat().st_size, files[0].stat().st_mtime_ns
    Image.effect_noise((8, 8), 50).convert("RGB").save(files[0])
    os.utime(files[0], ns=(stamp - 10**9, stamp - 10**9))  # older, as a copy that keeps times may be
    assert files[0].stat().st_size == size, "a bitmap: the size says nothing"
    assert distance(Mean(4)) != before


def test_pictures_that_were_made_again_are_scored_again(tmp_path: Path, rows: dict[str, RowFolder]) -> None:
    run(metric(Mean()), tmp_path, rows)
    path = rows["other"].picture(CHUNK)
    Image.new("RGB", (8, 8), "white").save(path)
    kept = next((tmp_path / "other").rglob(f"{CHUNK:06}.npy"))
    os.utime(path, ns=(kept.stat().st_mtime_ns + 1,) * 2)
    again = Mean()
    found = run(metric(again), tmp_path, rows)
    assert again.seen == [*range(CHUNK, 2 * CHUNK)]
    assert found["other"]["value"] == pytest.approx(brightness(rows["other"]).mean(), rel=1e-5)


class Bright:
    """1 where a picture is brighter than most."""

    def __call__(self, images: Sequence[Image.Image], texts: Sequence[str], first: int) -> np.ndarray:
        return np.array([np.asarray(image, np.float32).mean() > 120 for image in images], np.float32)


def test_shares_have_the_intervals_of_shares(tmp_path: Path, rows: dict[str, RowFolder]) -> None:
    one = Metric("mean", "Bright", "higher", 1, "c" * 64, Bright, scale=100, share=True)
    found = run(one, tmp_path, rows)
    base, other = (brightness(row) > 120 for row in rows.values())
    wanted, apart = share_interval(other), share_difference_interval(other, base)
    assert wanted.low is not None and apart.low is not None
    assert found["other"]["low"] == pytest.approx(100 * wanted.low)
    assert found["other"]["difference"]["low"] == pytest.approx(100 * apart.low)
    assert found["sequential"]["difference"] == {"value": 0, "low": 0, "high": 0}


def test_a_broken_picture_is_named(tmp_path: Path, rows: dict[str, RowFolder]) -> None:
    rows["sequential"].picture(3).write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"00003\.png cannot be read as a picture"):
        run(metric(Mean()), tmp_path, rows)


def test_one_picture_has_no_distance(tmp_path: Path, rows: dict[str, RowFolder]) -> None:
    known = Reference("known", known=lambda: Gaussian(np.zeros(4), np.eye(4)))
    with pytest.raises(InputError, match="a distance needs two pictures at least"):
        run(metric(Mean(4), known), tmp_path, rows, 1)
