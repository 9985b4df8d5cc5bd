"""The one direction of imports, what an import costs, and the size of modules and functions."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "driffusion_trt"

# Which rooms of the package a room may import from, beside itself. A new module at the top of the
# package is a new room and needs a row here.
ROOMS: dict[str, set[str]] = {
    "_errors": set(),
    "_foreign": {"_errors"},
    "models": {"_errors"},
    "_manifest": {"_errors", "models"},  # the form of the files at which export and engines meet
    "_child": {"_errors"},
    "sampling": {"_errors"},
    "_cache": set(),
    "planning": {"_errors", "_foreign", "sampling"},
    "_widen": set(),
    "scenes": set(),
    "engines": (ENGINES := {"_errors", "models", "_manifest", "_child", "_widen"}) | {"_cache"},
    "export": {"_errors", "models", "_manifest", "_child", "_widen", "scenes"},
    "runtime": (RUNTIME := ENGINES | {"sampling", "engines", "_cache"}),
    "_machine": RUNTIME | {"runtime"},
    "pictures": {"_errors"},
    "_tiles": set(),
    "_tables": set(),
    "autoencoder": ENGINES | {"engines", "_tiles"},
    "previews": {"_errors", "models", "pictures"},
    "_call": {"_errors", "sampling"},
    "calibration": ENGINES | {"engines"},
    "_calibrate": ENGINES | {"engines", "sampling", "calibration"},
    "_planner": (PLANNER := ENGINES | {"engines", "sampling", "calibration"}),
    "_settings": PLANNER | {"_planner"},
    "_source": {"_errors", "models"},
    "_request": (REQUEST := PLANNER | {"_planner", "_settings", "_source"}),
    "prompts": ENGINES | {"engines"},
    "_starting": {"_source", "_tiles", "autoencoder", "sampling"},
    "conditioning": REQUEST | {"_request", "prompts"},
    "_stages": (
        STAGES := REQUEST
        | RUNTIME
        | {
            "runtime",
            "pictures",
            "_tiles",
            "_starting",
            "autoencoder",
            "conditioning",
            "_request",
            "_call",
            "_trial",
        }
    ),
    "_awaiting": STAGES,
    "_trial": {"sampling", "planning"},
    "_expected": {"calibration", "engines", "sampling"},
    "_kept_costs": RUNTIME | {"runtime", "_cache", "_machine", "planning"},
    "_measured_costs": (COSTS := STAGES | {"_stages", "_kept_costs", "planning"}),
    "_auto": COSTS | {"_measured_costs", "_expected"},
    "_precision": STAGES | {"_stages"},
    "pipeline": (
        PIPELINE := STAGES
        | {"_stages", "_awaiting", "_measured_costs", "_auto", "_precision", "planning", "previews"}
    ),
    "baselines": RUNTIME | {"runtime"},
    "_address": {"_errors"},
    "_storage": {"_errors", "_manifest", "_address"},
    "remote": ENGINES | {"engines", "_cache", "_address", "_storage"},
    "server": PIPELINE | {"pipeline", "_address", "remote"},
    "evaluation": PIPELINE | {"pipeline", "scenes", "_machine", "_tables"},
    "benchmark": PIPELINE | {"pipeline", "_machine", "_tables", "_foreign"},
    "commands": PIPELINE
    | {"pipeline", "_expected", "_kept_costs", "_calibrate", "server", "evaluation", "export", "remote"}
    | {"_address", "_machine", "benchmark"},
    "cli": {"_errors", "commands"},
    "__main__": {"cli"},
}

# What the base dependencies bring: free to use in every room but those named in BARE.
BASE = {"argcomplete", "numpy", "onnxruntime", "PIL", "rich", "tokenizers"}
BARE: dict[str, set[str]] = {"_errors": set(), "_manifest": set(), "models": set(), "sampling": {"numpy"}}
# Every other package has its place; a file is named by its dotted name within the package.
TORCH = {
    "accelerate",
    "diffusers",
    "huggingface_hub",
    "onnx",
    "onnx_ir",
    "onnxscript",
    "peft",
    "safetensors",
    "torch",
    "torchvision",
    "transformers",
}
PLACES: dict[str, set[str]] = {
    "export": TORCH,
    "evaluation": TORCH,
    "_widen": {"onnx_ir"},
    "baselines": {"onnx"},
    "benchmark.plot": {"matplotlib"},
    "benchmark.drift": {"skimage"},
    "engines": {"polygraphy", "tensorrt", "tensorrt_rtx"},
    "runtime._driver": {"cuda"},
    "server": {"prometheus_client", "python_multipart", "starlette", "uvicorn"},
    "remote": {"fsspec"},
    "_storage": {"aiohttp", "fsspec"},
    "server.ray_app": {"ray"},
    "server.ray_cluster": {"ray"},
    "server.ray_connection": {"ray"},
    "server.ray_scale": {"ray"},
}

MODULE_LINES = 300
FUNCTION_LINES = 60


@dataclass(frozen=True, slots=True)
class Import:
    """One imported name, absolute, with the relative level it was written with."""

    target: str
    level: int
    line: int


def modules_in(folder: Path) -> Iterator[Path]:
    """Every Python file below a folder; links to folders are followed, as the wheel does."""
    for here, folders, files in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if name != "__pycache__")
        yield from (Path(here) / name for name in sorted(files) if name.endswith(".py"))


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def dotted(path: Path) -> str:
    """`driffusion_trt/engines/__init__.py` -> `driffusion_trt.engines`."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(path: Path) -> list[Import]:
    """Every import of a file, also those inside functions and `if TYPE_CHECKING`.

    `from .plan import Plan` gives `….plan.Plan`: whether the last part is a module or a name in
    one does not matter to the rules below.
    """
    folder = dotted(path).split(".")
    if path.name != "__init__.py":
        folder = folder[:-1]
    found = []
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            found += [Import(alias.name, 0, node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = folder[: len(folder) - node.level + 1] if node.level else []
            stem = [*base, *(node.module or "").split(".")]
            found += [
                Import(".".join(filter(None, [*stem, alias.name])), node.level, node.lineno)
                for alias in node.names
            ]
    return found


PACKAGE_FILES = list(modules_in(ROOT / PACKAGE))
BENCH_FILES = list(modules_in(ROOT / "bench"))


def short(path: Path) -> str:
    return str(path.relative_to(ROOT))


def room_of(name: str) -> str:
    """`driffusion_trt.sampling.plan` -> `sampling`."""
    return name.split(".")[1] if "." in name else ""


def wrong_rooms(path: Path) -> list[str]:
    """Imports of a file that go against the direction."""
    room = room_of(dotted(path))
    if not room:  # the package's own __init__ names everything, lazily
        return []
    assert room in ROOMS, f"{short(path)}: a new room; give it a row in ROOMS, lowest rooms first"
    wrong = []
    for item in imports_of(path):
        parts = item.target.split(".")
        if parts[0] != PACKAGE:
            continue
        target = parts[1] if len(parts) > 1 else ""
        own = target in {"", "__file__", "__version__"}  # of the package itself
        if not own and target != room and target not in ROOMS[room]:
            wrong.append(f"{short(path)}:{item.line} imports {item.target}")
    return wrong


def wrong_packages(path: Path) -> list[str]:
    """Imports of packages that have no place in the file's room."""
    name = dotted(path).removeprefix(PACKAGE).lstrip(".")
    room = name.split(".")[0]
    allowed = BARE.get(room, BASE) | PLACES.get(room, set()) | PLACES.get(name, set())
    return [
        f"{short(path)}:{item.line} imports {item.target}"
        for item in imports_of(path)
        if item.target.split(".")[0] not in sys.stdlib_module_names | {PACKAGE} | allowed
    ]


def test_the_walk_sees_the_whole_package() -> None:
    names = {dotted(path) for path in PACKAGE_FILES}
    assert {PACKAGE, f"{PACKAGE}._errors", f"{PACKAGE}.engines", f"{PACKAGE}.export.demo.networks"} <= names


def test_rooms_have_no_cycle() -> None:
    order: list[str] = []
    rest = dict(ROOMS)
    while rest:
        ready = [room for room, below in rest.items() if below <= set(order)]
        assert ready, f"these rooms import each other: {sorted(rest)}"
        order += ready
        rest = {room: below for room, below in rest.items() if room not in ready}


@pytest.mark.parametrize("path", PACKAGE_FILES, ids=short)
def test_imports_run_one_way(path: Path) -> None:
    assert wrong_rooms(path) == []


@pytest.mark.parametrize("path", PACKAGE_FILES, ids=short)
def test_every_package_has_its_place(path: Path) -> None:
    assert wrong_packages(path) == []


@pytest.mark.parametrize("stage", ["export", "engines"])
def test_stages_import_relatively(stage: str) -> None:
    """The two folders are linked into the package: only relative imports name them the same everywhere."""
    absolute = [
        f"{short(path)}:{item.line} imports {item.target}"
        for path in modules_in(ROOT / PACKAGE / stage)
        for item in imports_of(path)
        if item.level == 0 and item.target.split(".")[0] in {PACKAGE, "export", "engines"}
    ]
    assert absolute == []


@pytest.mark.parametrize(
    ("name", "source", "found"),
    [
        ("sampling/plan.py", "from ..models import ModelSpec", "driffusion_trt.models.ModelSpec"),
        ("sampling/plan.py", "def f():\n    from .. import runtime", "driffusion_trt.runtime"),
        ("engines/onnx.py", "from ..sampling.plan import Plan", "driffusion_trt.sampling.plan.Plan"),
        ("runtime/__init__.py", "from ..pipeline import Pipeline", "driffusion_trt.pipeline.Pipeline"),
        ("models.py", "import driffusion_trt.cli", "driffusion_trt.cli"),
    ],
)
def test_a_wrong_direction_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, source: str, found: str
) -> None:
    path = written(tmp_path, monkeypatch, name, source)
    assert [line.split(" imports ")[1] for line in wrong_rooms(path)] == [found]


@pytest.mark.parametrize(
    ("name", "source", "found"),
    [
        ("pipeline.py", "import torch", "torch"),
        ("sampling/skip.py", "from PIL import Image", "PIL.Image"),
        ("runtime/cuda.py", "def f():\n    from cuda.bindings import driver", "cuda.bindings.driver"),
        ("export/sdxl.py", "import tensorrt", "tensorrt"),
    ],
)
def test_a_package_out_of_place_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, source: str, found: str
) -> None:
    path = written(tmp_path, monkeypatch, name, source)
    assert [line.split(" imports ")[1] for line in wrong_packages(path)] == [found]


def test_a_package_in_its_place_is_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path, monkeypatch, "runtime/_driver.py", "from cuda.bindings import driver")
    assert wrong_packages(path) == []


def written(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, source: str) -> Path:
    """A file of a pretended package that the rules are then tried on."""
    monkeypatch.setitem(globals(), "ROOT", folder)
    path = folder / PACKAGE / name
    path.parent.mkdir(parents=True)
    path.write_text(source + "\n", encoding="utf-8")
    return path


def loaded_by(statement: str) -> set[str]:
    """Top-level names in `sys.modules` after a statement, in a fresh interpreter."""
    code = (
        f"import json, sys\n{statement}\nprint(json.dumps(sorted({{n.split('.')[0] for n in sys.modules}})))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


def third_party(names: set[str]) -> set[str]:
    """What a fresh interpreter, whose start-up hooks may load things, does not have by itself."""
    return names - loaded_by("pass") - set(sys.stdlib_module_names) - {PACKAGE}


def test_importing_the_package_loads_numpy_at_most() -> None:
    assert third_party(loaded_by(f"import {PACKAGE}")) <= {"numpy"}


def test_the_sampling_core_loads_numpy_at_most() -> None:
    names = [dotted(path) for path in PACKAGE_FILES if room_of(dotted(path)) == "sampling"]
    assert third_party(loaded_by("\n".join(f"import {name}" for name in names))) <= {"numpy"}


@pytest.mark.parametrize("argument", ["--version", "--help"])
def test_the_command_starts_without_heavy_imports(argument: str) -> None:
    loaded = loaded_by(
        f"from {PACKAGE}.cli import main\ntry:\n    main([{argument!r}])\nexcept SystemExit as done:\n"
        "    assert not done.code, done.code"
    )
    heavy = {"PIL", "cuda", "diffusers", "onnxruntime", "tensorrt", "tokenizers", "torch", "transformers"}
    assert loaded & heavy == set()


def test_the_runtime_imports_with_the_base_packages_alone() -> None:
    """No module outside the three optional rooms needs torch, a GPU library or a server at import."""
    blocked = set().union(*PLACES.values())
    names = [
        dotted(path)
        for path in PACKAGE_FILES
        if room_of(dotted(path)) not in {"export", "evaluation", "server", "__main__"}
    ]
    statements = [
        f"blocked = {sorted(blocked)!r}",
        "sys.modules.update(dict.fromkeys(blocked))",  # None there makes an import fail
        *(f"import {name}" for name in names),
    ]
    loaded_by("\n".join(statements))


@pytest.mark.parametrize("path", PACKAGE_FILES + BENCH_FILES, ids=short)
def test_no_module_grows_too_large(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MODULE_LINES


@pytest.mark.parametrize("path", PACKAGE_FILES + BENCH_FILES, ids=short)
def test_no_function_grows_too_large(path: Path) -> None:
    large = [
        f"{short(path)}:{node.lineno} {node.name}"
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (node.end_lineno or node.lineno) - node.lineno + 1 > FUNCTION_LINES
    ]
    assert large == []
