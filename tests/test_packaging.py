"""What a release holds: the wheel, built from the tree and by way of an sdist, and the metadata.

Built without isolation and without CMake, so that the suite needs no network; `make wheel-check`
does the whole of it, and runs what it installed.
"""

from __future__ import annotations

import email.message
import email.parser
import os
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

import driffusion_trt
from driffusion_trt.engines.manifest import BUNDLED

PACKAGE = "driffusion_trt"
DEMO = {
    "manifest.json",
    "onnx/denoiser.onnx",
    "onnx/text_encoder.onnx",
    "onnx/vae_decoder.onnx",
    "scheduler/scheduler_config.json",
    "tokenizer/tokenizer.json",
}
DEMOS_LIMIT_BYTES = 60_000_000


def build(source: Path, out: Path, hook: str) -> Path:
    """Call one hook of the build backend, as pip does, and return the file it wrote."""
    code = (
        f"from scikit_build_core.build import {hook} as hook; "
        f"print(hook({str(out)!r}, config_settings={{'wheel.cmake': 'false'}}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=source, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return out / done.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def wheel(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(root, tmp_path_factory.mktemp("wheel"), "build_wheel")


@pytest.fixture(scope="module")
def sdist(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(root, tmp_path_factory.mktemp("sdist"), "build_sdist")


@pytest.fixture(scope="module")
def metadata(wheel: Path) -> email.message.Message:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return email.parser.Parser().parsestr(archive.read(name).decode())


def contents(wheel: Path) -> dict[str, bytes]:
    """The package's files in a wheel, without its metadata."""
    with zipfile.ZipFile(wheel) as archive:
        return {
            name: archive.read(name)
            for name in archive.namelist()
            if ".dist-info/" not in name and not name.endswith("/")
        }


def sources(root: Path) -> dict[str, bytes]:
    """The package's files in the tree, with the linked folders followed."""
    return {
        (Path(here) / name).relative_to(root).as_posix(): (Path(here) / name).read_bytes()
        for here, _, files in os.walk(root / PACKAGE, followlinks=True)
        for name in files
        if not here.endswith("__pycache__")
    }


def test_the_suite_tests_the_sources_of_this_tree(root: Path, tmp_path: Path) -> None:
    """Here and in processes started elsewhere, whatever copy is installed."""
    expected = root / PACKAGE / "__init__.py"
    assert Path(driffusion_trt.__file__) == expected
    code = f"import {PACKAGE}; print({PACKAGE}.__file__)"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert Path(done.stdout.strip()) == expected


def test_the_wheel_fits_every_machine(wheel: Path) -> None:
    assert wheel.name == f"driffusion_trt-{driffusion_trt.__version__}-py3-none-any.whl"


def test_the_wheel_holds_the_whole_package_and_nothing_else(wheel: Path, root: Path) -> None:
    assert contents(wheel) == sources(root)


def test_a_wheel_built_by_way_of_the_sdist_is_the_same(wheel: Path, sdist: Path, tmp_path: Path) -> None:
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    (unpacked,) = tmp_path.iterdir()
    again = build(unpacked, tmp_path, "build_wheel")
    assert again.name == wheel.name
    assert contents(again) == contents(wheel)


def test_the_sdist_holds_the_stages_once_and_as_files(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        members = {member.name.split("/", 1)[1]: member for member in archive if "/" in member.name}
    assert not [name for name in members if name.startswith(("export/", "engines/", ".venv/", ".git/"))]
    assert not [name for name, member in members.items() if member.islnk() or member.issym()]
    assert {"pyproject.toml", "CMakeLists.txt", "LICENSE", "NOTICE", "README.md"} <= set(members)
    assert f"{PACKAGE}/engines/__init__.py" in members
    # What tests and links of the documents need.
    assert {"bench/results/quality.json", "docs/measured.md", "tests/test_readme.py"} <= set(members)


def test_the_build_says_nothing_that_is_to_be_done(root: Path, tmp_path: Path) -> None:
    """Such as that a setting of the build backend is going to be another one."""
    code = (
        "from scikit_build_core.build import build_sdist as hook; "
        f"hook({str(tmp_path)!r}, config_settings={{'wheel.cmake': 'false'}})"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0 and "deprecated" not in done.stdout + done.stderr


def test_the_wheel_holds_the_bundled_models_and_they_are_of_bearable_size(wheel: Path) -> None:
    held, total = contents(wheel), 0
    for model in BUNDLED:
        prefix = f"{PACKAGE}/{model}/"
        files = {name.removeprefix(prefix): data for name, data in held.items() if name.startswith(prefix)}
        pairs = {name.replace("text_encoder", "text_encoder_2").replace("zer/", "zer_2/") for name in DEMO}
        assert set(files) >= (DEMO if model == "demo" else DEMO | pairs | {"onnx/vae_encoder.onnx"})
        total += sum(map(len, files.values()))
    assert total < DEMOS_LIMIT_BYTES


def test_the_wheel_holds_the_web_page(wheel: Path) -> None:
    page = {name for name in contents(wheel) if name.startswith(f"{PACKAGE}/server/page/")}
    names = ("page.html", "page.css", "page.js", "stream.js", "chart.js")
    assert page == {f"{PACKAGE}/server/page/{name}" for name in names}


def test_the_wheel_holds_what_the_demo_recipe_draws_with(wheel: Path) -> None:
    held = contents(wheel)
    emoji = [name for name in held if re.fullmatch(rf"{PACKAGE}/scenes/emoji/\w+\.png", name)]
    assert len(emoji) == 12
    assert {f"{PACKAGE}/py.typed", f"{PACKAGE}/evaluation/checker.onnx"} <= set(held)


def test_the_wheel_brings_its_command_and_licences(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        files = {
            name.split(".dist-info/", 1)[1]: archive.read(name).decode()
            for name in archive.namelist()
            if ".dist-info/" in name and not name.endswith("/")
        }
    assert "driffusion-trt = driffusion_trt.cli:main" in files["entry_points.txt"]
    assert "Apache License" in files["licenses/LICENSE"]
    assert "Noto Emoji" in files["licenses/NOTICE"]


def requirements(metadata: email.message.Message, extra: str | None) -> set[str]:
    """Names of the packages that the base install, or one extra, asks for."""
    names = set()
    for line in metadata.get_all("Requires-Dist") or []:
        requirement, _, marker = line.partition(";")
        wanted = re.search(r"extra == ['\"]([\w-]+)['\"]", marker)
        if (wanted.group(1) if wanted else None) == extra:
            names.add(re.split(r"[\s<>=!\[(~]", requirement.strip())[0].lower())
    return names


def test_the_base_install_is_small(metadata: email.message.Message) -> None:
    expected = {"argcomplete", "numpy", "onnxruntime", "pillow", "rich", "tokenizers"}
    assert requirements(metadata, None) == expected


def test_the_extras_are_those_documented(metadata: email.message.Message) -> None:
    extras = set(metadata.get_all("Provides-Extra") or [])
    assert extras == {"bench", "export", "tensorrt", "tensorrt-rtx", "serve", "ray", "eval", "test", "dev"}
    assert all(requirements(metadata, extra) for extra in extras)
    assert metadata["License-Expression"] == "Apache-2.0"


def test_torch_has_a_lower_bound_only(metadata: email.message.Message) -> None:
    lines = [line for line in metadata.get_all("Requires-Dist") or [] if re.match(r"torch\b", line)]
    assert lines
    assert all(re.fullmatch(r"torch>=[\d.]+", line.partition(";")[0].strip()) for line in lines)


def test_every_direct_dependency_is_pinned_but_torch(root: Path) -> None:
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    extras = project["project"]["optional-dependencies"]
    wanted = [*project["build-system"]["requires"], *project["project"]["dependencies"]]
    wanted += [line for extra in ("bench", "export", "ray", "serve", "test", "dev") for line in extras[extra]]
    pins = [
        line
        for line in (root / "constraints.txt").read_text(encoding="utf-8").splitlines()
        if line[:1] != "#"
    ]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in pins)
    pinned = {plain(line.partition("==")[0]) for line in pins}
    names = {plain(re.split(r"[\[><=]", line)[0]) for line in wanted}
    assert names - pinned == {"torch", "driffusion-trt"}


def test_every_direct_dependency_is_listed_with_its_licence(root: Path) -> None:
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"].values()
    wanted = [*project["dependencies"], *(line for extra in extras for line in extra)]
    listed = (root / "docs" / "dependencies.md").read_text(encoding="utf-8")
    names = {plain(re.split(r"[\[><=;]", line)[0].strip()) for line in wanted} - {"driffusion-trt"}
    assert {name for name in names if f"`{name}`" not in listed} == set()


def test_the_list_of_licences_has_every_extra_s_packages_and_no_others(root: Path) -> None:
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = {"base": project["dependencies"], **project["optional-dependencies"]}
    listed: dict[str, set[str]] = {name: set() for name in wanted}
    for line in (root / "docs" / "dependencies.md").read_text(encoding="utf-8").splitlines():
        if row := re.match(r"\| (base|`[\w-]+`(?:, `[\w-]+`)*): ([^|]*)\|", line):
            for name in row[1].split(", "):
                listed[name.strip("`")] |= set(re.findall(r"`([\w-]+)`", row[2]))
    for name, lines in wanted.items():
        names = {plain(re.split(r"[\[><=;]", line)[0].strip()) for line in lines} - {"driffusion-trt"}
        assert listed[name] == names, name


def plain(name: str) -> str:
    """A package's name as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()
