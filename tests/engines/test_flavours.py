"""Flavours of TensorRT: names, targets, what to install; the table against the real package."""

from __future__ import annotations

import importlib.metadata
import re
import sys

import pytest

from driffusion_trt import InputError, MissingExtraError
from driffusion_trt.engines import flavours
from driffusion_trt.engines.flavours import (
    FLAVOURS,
    check_target,
    choose_flavour,
    get_flavour,
    installed_version,
    load_tensorrt,
    parse_targets,
)
from driffusion_trt.engines.gpus import Gpu

RTX, PLAIN = FLAVOURS["tensorrt-rtx"], FLAVOURS["tensorrt"]
ADA = Gpu(0, "NVIDIA GeForce RTX 4090", (8, 9), 24 << 30)
HOPPER = Gpu(0, "NVIDIA H200", (9, 0), 141 << 30)


def test_names_with_hyphen_or_underscore() -> None:
    assert get_flavour("tensorrt_rtx") is get_flavour("tensorrt-rtx") is RTX
    with pytest.raises(InputError, match="unknown flavour 'tensort'; did you mean 'tensorrt'"):
        get_flavour("tensort")


@pytest.mark.parametrize("text", ["sm89,sm120", "sm120, sm89", "8.9,12.0", "SM_120,sm_89,sm89", "89,120"])
def test_targets_in_any_spelling_are_one_list(text: str) -> None:
    assert parse_targets(text, RTX) == ("sm89", "sm120")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("sm90", "no target sm90.*H100 is sm90.*--flavour tensorrt --target this"),
        ("sm89,sm100", "no target sm100"),
        ("thsi", "'thsi' is not a target; did you mean 'this'"),
        ("sm89,", "'' is not a target"),
    ],
)
def test_targets_that_cannot_be_are_refused(text: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        parse_targets(text, RTX)


def test_plain_tensorrt_takes_no_list() -> None:
    with pytest.raises(InputError, match="--flavour tensorrt-rtx for sm89"):
        parse_targets("sm89", PLAIN)


def test_a_gpu_that_rtx_does_not_know_is_refused_with_the_other_flavour() -> None:
    check_target(RTX, ADA)
    check_target(PLAIN, HOPPER)
    with pytest.raises(InputError, match=r"does not support NVIDIA H200 \(sm90\).*--flavour tensorrt"):
        check_target(RTX, HOPPER)


@pytest.mark.parametrize(
    ("installed", "gpu", "chosen"),
    [
        (set(), ADA, PLAIN),
        ({"tensorrt_cu13"}, ADA, PLAIN),
        ({"tensorrt_rtx_cu13"}, ADA, RTX),
        ({"tensorrt_rtx_cu12_bindings"}, ADA, RTX),
        ({"tensorrt_rtx_cu13"}, HOPPER, PLAIN),
        ({"tensorrt", "tensorrt_rtx_cu13"}, ADA, PLAIN),
    ],
)
def test_the_flavour_for_a_gpu(
    monkeypatch: pytest.MonkeyPatch, installed: set[str], gpu: Gpu, chosen: flavours.Flavour
) -> None:
    def version(name: str) -> str:
        if name in installed:
            return "1.0"
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    assert choose_flavour(gpu) is chosen


@pytest.mark.parametrize(
    ("cuda", "command"),
    [
        (None, "pip install '.[tensorrt-rtx]' in a clone of driffusion-trt"),
        ((13, 1), "pip install '.[tensorrt-rtx]'"),
        ((12, 8), "pip install tensorrt-rtx-cu12 'cuda-bindings<13'"),
    ],
)
def test_a_missing_flavour_names_the_command_for_this_driver(
    monkeypatch: pytest.MonkeyPatch, cuda: tuple[int, int] | None, command: str
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    with pytest.raises(
        MissingExtraError,
        match=re.escape(f"TensorRT-RTX is needed here and is not installed; run: {command}"),
    ):
        load_tensorrt(RTX, cuda)


def test_the_table_is_what_the_package_has() -> None:
    module = pytest.importorskip("tensorrt_rtx")
    known = {name.lower() for name in module.ComputeCapability.__members__}
    assert set(RTX.targets) == known - {"none", "current"}
    assert installed_version(RTX) == module.__version__
    assert load_tensorrt(RTX) is module
