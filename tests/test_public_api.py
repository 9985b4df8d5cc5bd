"""The public names: what is promised is there, and nothing else is."""

from __future__ import annotations

import ast
import importlib.metadata
import inspect
from pathlib import Path

import pytest

import driffusion_trt

# The documented names, by the module they come from.
DOCUMENTED = {
    "_errors": {
        "CancelledError",
        "ConfigError",
        "DeadlineError",
        "DeviceError",
        "DrainingError",
        "DriffusionError",
        "EngineError",
        "InputError",
        "LaneError",
        "MissingExtraError",
        "ModelError",
        "NoDeviceError",
        "NonFiniteError",
        "QueueFullError",
        "RefusedError",
    },
    "models": {"ModelSpec"},
    "pipeline": {"Pipeline"},
    "planning.candidates": {"Choice"},
    "planning.costs": {"Costs"},
    "sampling.plan": {"Plan", "make_plan"},
    "sampling.recording": {"Recorder"},
    "sampling.sample": {"sample"},
    "sampling.schedule": {"Schedule"},
    "server.engine": {"Engine"},
}
NAMES = sorted(set().union(*DOCUMENTED.values()))


def test_all_is_what_is_documented() -> None:
    assert sorted(driffusion_trt.__all__) == sorted([*NAMES, "__version__"])
    assert len(set(driffusion_trt.__all__)) == len(driffusion_trt.__all__)


@pytest.mark.parametrize("name", NAMES)
def test_every_name_resolves_and_says_what_it_is(name: str) -> None:
    value = getattr(driffusion_trt, name)
    assert value.__name__ == name
    assert inspect.getdoc(value)
    assert getattr(driffusion_trt, name) is value, "a second look-up must give the same object"


def test_names_come_from_the_module_they_are_documented_in() -> None:
    homes = {name: f"driffusion_trt.{home}" for home, names in DOCUMENTED.items() for name in names}
    assert {name: getattr(driffusion_trt, name).__module__ for name in NAMES} == homes


def test_type_checkers_see_the_same_names() -> None:
    """The imports under TYPE_CHECKING and the lazy table are two lists of the same things."""
    source = Path(driffusion_trt.__file__).read_text(encoding="utf-8")
    typed = {
        alias.name: "." + (node.module or "")
        for block in ast.parse(source).body
        if isinstance(block, ast.If)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert typed == {name: f".{home}" for home, names in DOCUMENTED.items() for name in names}


def test_star_import_gives_every_name() -> None:
    names: dict[str, object] = {}
    exec("from driffusion_trt import *", names)
    assert set(driffusion_trt.__all__) <= set(names)


def test_dir_is_complete() -> None:
    assert set(driffusion_trt.__all__) <= set(dir(driffusion_trt))
    assert dir(driffusion_trt) == sorted(dir(driffusion_trt))


@pytest.mark.parametrize("name", ["pipelines", "torch", "_private"])
def test_an_unknown_name_raises(name: str) -> None:
    with pytest.raises(AttributeError, match=f"module 'driffusion_trt' has no attribute '{name}'"):
        getattr(driffusion_trt, name)


def test_an_unknown_name_cannot_be_imported() -> None:
    with pytest.raises(ImportError, match="pipelines"):
        exec("from driffusion_trt import pipelines")


def test_errors_are_also_what_callers_already_catch() -> None:
    assert issubclass(driffusion_trt.InputError, ValueError)
    assert issubclass(driffusion_trt.ConfigError, driffusion_trt.InputError)
    assert issubclass(driffusion_trt.ModelError, RuntimeError)
    assert issubclass(driffusion_trt.EngineError, RuntimeError)
    assert issubclass(driffusion_trt.DeviceError, RuntimeError)
    assert issubclass(driffusion_trt.LaneError, RuntimeError)
    assert issubclass(driffusion_trt.RefusedError, RuntimeError)
    assert issubclass(driffusion_trt.MissingExtraError, ImportError)
    errors = [getattr(driffusion_trt, name) for name in DOCUMENTED["_errors"]]
    assert all(issubclass(error, driffusion_trt.DriffusionError) for error in errors)


def test_a_missing_extra_names_the_command_to_run() -> None:
    error = driffusion_trt.MissingExtraError("diffusers", "export")
    assert "pip install '.[export]'" in str(error)


def test_the_version_is_that_of_the_installed_package() -> None:
    try:
        installed = importlib.metadata.version("driffusion-trt")
    except importlib.metadata.PackageNotFoundError:
        installed = driffusion_trt.__version__  # run from the sources, with nothing installed
    assert driffusion_trt.__version__ == installed
