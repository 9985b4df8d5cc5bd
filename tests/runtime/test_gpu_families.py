"""The three families on simulated GPUs: the pictures of the CPU lanes, in every mode, with split guidance."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gpulanes
import numpy as np
import pytest

import driffusion_trt as dt
from driffusion_trt.engines.manifest import ModelFolder
from driffusion_trt.pipeline import Result
from driffusion_trt.sampling.plan import MODES

pytest_plugins = ("cudasim.fixtures",)

FAMILIES = ("sd21", "sdxl", "sd3")


@pytest.fixture(scope="module")
def planned(
    families: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """A reduced model of a family with plans of the stand-in for sm89."""
    root = tmp_path_factory.mktemp("planned")

    def make(family: str) -> Path:
        if not (root / family).exists():
            shutil.copytree(families(family) / "model", root / family)
            gpulanes.add_plans(ModelFolder.open(root / family))
        return root / family

    return make


def picture(pipe: dt.Pipeline, mode: str, **more: Any) -> Result:
    asked = {"steps": 6, "guidance_scale": 4.0, "seed": 3, "lanes": 2, "negative_prompt": "a dog", **more}
    return pipe(**{"prompt": "a red fox", **asked}, mode=mode)


def close(got: Result, wanted: Result) -> bool:
    distance = float(np.linalg.norm(got.latents - wanted.latents) / np.linalg.norm(wanted.latents))
    pixels = np.abs(np.asarray(got.images[0], np.int16) - np.asarray(wanted.images[0], np.int16))
    return distance < 1e-5 and int(pixels.max()) <= 1


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_pictures_of_the_cpu_lanes(
    planned: Callable[[str], Path], gpu_machine: Any, family: str, mode: str
) -> None:
    with dt.Pipeline.load(planned(family), devices=["cpu"] * 2) as pipe:
        wanted = picture(pipe, mode)
        plain = picture(pipe, mode, guidance_scale=1.0, prompt=["a red fox", "a dog"])
    with dt.Pipeline.load(planned(family), devices="cuda") as pipe:
        got, again = picture(pipe, mode), picture(pipe, mode)
        assert close(picture(pipe, mode, guidance_scale=1.0, prompt=["a red fox", "a dog"]), plain)
    assert close(got, wanted)
    np.testing.assert_array_equal(got.latents, again.latents)
    assert got.images[0].tobytes() == again.images[0].tobytes()
    assert np.asarray(got.images[0]).std() > 1 and not close(got, plain)
    assert {k: v for k, v in gpu_machine.live_objects().items() if v} == {}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("family", FAMILIES)
def test_guidance_split_over_two_devices(
    planned: Callable[[str], Path], gpu_machine: Any, family: str, mode: str
) -> None:
    import cudasim

    gpu_machine.configure([cudasim.Device()] * 4)
    with dt.Pipeline.load(planned(family), devices=["cpu"] * 2) as pipe:
        wanted = picture(pipe, mode)
    with dt.Pipeline.load(planned(family), devices="cuda") as pipe:
        got = picture(pipe, mode, split_guidance=True)
        assert close(picture(pipe, mode), wanted)
        again = picture(pipe, mode, split_guidance=True)
    assert close(got, wanted)
    np.testing.assert_array_equal(got.latents, again.latents)


@pytest.mark.parametrize("family", FAMILIES)
def test_sequential_has_the_same_bits_on_any_number_of_gpus(
    planned: Callable[[str], Path], gpu_machine: Any, family: str
) -> None:
    import cudasim

    gpu_machine.configure([cudasim.Device()] * 4)
    made = []
    for devices in (1, 2, 4):
        with dt.Pipeline.load(planned(family), devices=[f"cuda:{k}" for k in range(devices)]) as pipe:
            assert pipe.devices == devices
            made.append(picture(pipe, "sequential", lanes=devices))
    for other in made[1:]:
        np.testing.assert_array_equal(other.latents, made[0].latents)
        assert other.images[0].tobytes() == made[0].images[0].tobytes()
