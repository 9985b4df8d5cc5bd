"""`driffusion-trt inspect`: what a model folder holds, and whether it is still what was built."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ._console import Console
from ._options import models

if TYPE_CHECKING:
    from ..engines.gpus import Gpu
    from ..engines.manifest import ModelFolder
    from ..engines.store import Plan

DESCRIPTION = (
    "Show what a model folder holds, for which GPUs it has plans, and whether each file is as built."
)
EPILOG = """\
Every file is hashed: about a second for each gigabyte. Exit status 1 if one is not what it was.

example:
  driffusion-trt inspect models/sdxl
  driffusion-trt inspect demo --json"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    folder = parser.add_argument("folder", metavar="FOLDER", help="a model folder, or a bundled model")
    folder.completer = models  # type: ignore[attr-defined]
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object and nothing else to stdout"
    )
    parser.add_argument("-q", "--quiet", action="store_true", help="no progress")
    parser.add_argument("-v", "--verbose", action="store_true", help="print tracebacks of errors")


@dataclass(frozen=True, slots=True)
class _File:
    path: str
    size_bytes: int
    problem: str


def run(args: argparse.Namespace, console: Console) -> None:
    from .._errors import ModelError
    from .._manifest import read_manifest
    from ..engines.gpus import find_gpus
    from ..engines.manifest import ModelFolder, resolve_model
    from ..engines.store import PlanStore

    # Not ModelFolder.open, which stops at the first file that is wrong.
    path = resolve_model(args.folder)
    folder = ModelFolder(path, read_manifest(path))
    store = PlanStore(path)
    plans = list(store.plans())
    total = sum(entry.size_bytes for entry in folder.manifest.files.values())
    total += sum(plan.size_bytes for plan in plans)
    files: list[_File] = []
    checked: list[tuple[Plan, str]] = []
    with console.progress(max(total, 1)) as tick:
        done = 0
        for name, entry in folder.manifest.files.items():
            tick(done, name)
            files.append(_File(name, entry.size_bytes, _problem(folder, name)))
            done += entry.size_bytes
        for plan in plans:
            tick(done, plan.path.name)
            checked.append((plan, store.verify(plan)))
            done += plan.size_bytes
    gpus = find_gpus().kinds
    if args.json:
        console.out_json(_facts(folder, files, checked, gpus))
    else:
        console.out("\n".join([*_head(folder), "", *_table(folder, files), *_plans(checked, gpus)]))
    bad = [file.path for file in files if file.problem]
    bad += [plan.path.relative_to(path).as_posix() for plan, problem in checked if problem]
    if bad:
        raise ModelError(
            f"{len(bad)} of {len(files) + len(checked)} files are not what was built ({', '.join(bad)}); "
            f"build {path} again"
        )


def _problem(folder: ModelFolder, name: str) -> str:
    from .._manifest import sha256

    entry = folder.manifest.files[name]
    try:
        found = (folder.path / name).stat().st_size
        if found != entry.size_bytes:
            return f"cut short or altered: {found:,} bytes, not {entry.size_bytes:,}"
        return "" if sha256(folder.path / name) == entry.sha256 else "altered: another SHA-256"
    except FileNotFoundError:
        return "missing"
    except OSError as error:
        return f"cannot be read ({error.strerror})"


def _head(folder: ModelFolder) -> list[str]:
    manifest = folder.manifest
    shapes = ", ".join(f"{name} {'x'.join(map(str, shape))}" for name, shape in manifest.shapes.items())
    versions = ", ".join(f"{name} {version}" for name, version in manifest.versions.items())
    return [
        f"{folder.path}: {manifest.family}, {manifest.precision}",
        f"shapes    {shapes}",
        f"built by  {versions}",
    ]


def _table(folder: ModelFolder, files: list[_File]) -> list[str]:
    from ._building_output import size

    width = max(len(file.path) for file in files) if files else 4
    lines = [f"{'file':<{width}}  {'size':>9}  {'parity':>8}  state"]
    for file in files:
        network = file.path.removeprefix("onnx/").removesuffix(".onnx")
        figure = folder.manifest.parity.get(network)
        parity = "" if not file.path.endswith(".onnx") else "none" if figure is None else f"{figure:.1e}"
        lines.append(
            f"{file.path:<{width}}  {size(file.size_bytes):>9}  {parity:>8}  {file.problem or 'as built'}"
        )
    return lines


def _plans(plans: list[tuple[Plan, str]], gpus: tuple[Gpu, ...]) -> list[str]:
    from ._building_output import size

    if not plans:
        return ["", "no plans: this folder runs on CPU lanes"]
    lines = []
    before = ""
    for plan, problem in plans:
        title = str(plan.key.platform) if plan.key else plan.path.parent.name
        if title != before:
            here = "".join(f"; {gpu}: {_fits(plan, gpu)}" for gpu in gpus)
            lines += ["", f"plans of {title}{here}"]
            before = title
        name = plan.key.network if plan.key else plan.path.name
        sizes = ""
        if plan.key:
            profile = plan.key.profile
            sizes = f"batch {profile.batch}, latents {profile.height} x {profile.width}"
        lines.append(f"  {name:<16}  {size(plan.size_bytes):>9}  {sizes:<32}  {problem or 'as built'}")
    return lines


def _fits(plan: Plan, gpu: Gpu) -> str:
    """Whether this GPU can run the plan with what is installed; or why not."""
    from ..engines.flavours import get_flavour, installed_version

    if plan.key is None:
        return "unknown"
    platform = plan.key.platform
    version = installed_version(get_flavour(platform.flavour))
    if version is None:
        return f"{platform.flavour} is not installed"
    return platform.why_not(platform.flavour, version, gpu) or "runs here"


def _facts(
    folder: ModelFolder, files: list[_File], plans: list[tuple[Plan, str]], gpus: tuple[Gpu, ...]
) -> dict[str, Any]:
    manifest = folder.manifest
    return {
        "folder": str(folder.path),
        "family": manifest.family,
        "precision": manifest.precision,
        "shapes": manifest.shapes,
        "versions": manifest.versions,
        "parity": manifest.parity,
        "files": [
            {"path": file.path, "size_bytes": file.size_bytes, "problem": file.problem or None}
            for file in files
        ],
        "plans": [
            {
                "path": plan.path.relative_to(folder.path).as_posix(),
                "size_bytes": plan.size_bytes,
                "problem": problem or None,
                "key": plan.key.to_json() if plan.key else None,
                "facts": plan.facts,
                "here": {str(gpu): _fits(plan, gpu) for gpu in gpus},
            }
            for plan, problem in plans
        ],
        "gpus": [str(gpu) for gpu in gpus],
    }
