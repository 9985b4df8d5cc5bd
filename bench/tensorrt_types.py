"""Checks our TensorRT calls against the real bindings, without their libraries, a driver or a GPU.

The wheels come without type stubs. This downloads the bindings of both flavours, imports them against
empty stand-ins for their libraries, has pybind11-stubgen write down every class and signature, and runs
mypy over `engines` with that. The code that is common to both is checked against each.

    python -m bench.tensorrt_types [--work build/tensorrt-types]

Needs gcc, nm and readelf. Exit status 0 means that every call exists and is called as it may be.
"""

from __future__ import annotations

import argparse
import ast
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# The versions that the calls were written for.
WHEELS = {
    "tensorrt": "tensorrt-cu13-bindings==11.4.0.106",
    "tensorrt_rtx": "tensorrt-rtx-cu13-bindings==1.7.1.116",
}
_SYSTEM = re.compile(r"lib(c|m|dl|rt|pthread|gcc_s|stdc\+\+)\.so|ld-linux")


def _run(command: Sequence[str | Path], **environment: str) -> str:
    done = subprocess.run(
        [str(word) for word in command], capture_output=True, text=True, env={**os.environ, **environment}
    )
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))} failed:\n{done.stdout}{done.stderr}")
    return done.stdout


def unpack(name: str, work: Path) -> Path:
    """The bindings' folder, from a wheel that is downloaded once."""
    folder = work / name
    if not folder.is_dir():
        wheels = work / "wheels" / name
        _run([sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", wheels, WHEELS[name]])
        (wheel,) = wheels.glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder)
    return folder


def stand_ins(library: Path, folder: Path) -> None:
    """Libraries that have every name that `library` asks of them, and do nothing."""
    folder.mkdir(exist_ok=True)
    needed = re.findall(r"NEEDED.*\[(.+)\]", _run(["readelf", "-d", library]))
    wanted = [line.split()[-1] for line in _run(["nm", "-D", "--undefined-only", library]).splitlines()]
    own = [name for name in wanted if "@" not in name and not re.match(r"_?Py|dl(open|sym|close)|__", name)]
    source = folder / "stand_in.c"
    source.write_text("".join(f"void *{name}(void) {{ return 0; }}\n" for name in own))
    for name in needed:
        if not _SYSTEM.match(name):
            _run(["gcc", "-shared", "-fPIC", f"-Wl,-soname,{name}", "-o", folder / name, source])


class _Plain(ast.NodeTransformer):
    """Signatures only, with Any where the generator found no type."""

    def _function(self, node: ast.FunctionDef) -> ast.FunctionDef:
        node.body = [ast.Expr(ast.Constant(...))]
        arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        for argument in arguments:
            argument.annotation = _typed(argument.annotation)
        node.returns = _typed(node.returns)
        return node

    visit_FunctionDef = _function

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AnnAssign:
        node.annotation = _typed(node.annotation) or node.annotation
        return node

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.ClassDef:
        self.generic_visit(node)
        kept = [item for item in node.body if not isinstance(item, ast.Expr)]
        node.body = kept or [ast.Expr(ast.Constant(...))]
        return node


def _typed(annotation: ast.expr | None) -> ast.expr | None:
    """The annotation, with Python's own bool: TensorRT has one of that name, which is a data type."""
    if annotation is None:
        return None
    parts = list(ast.walk(annotation))
    if any(isinstance(part, ast.Constant) and part.value is ... for part in parts):
        return ast.parse("typing.Any", mode="eval").body
    for part in parts:
        if isinstance(part, ast.Name) and part.id == "bool":
            part.id = "builtins.bool"
    return annotation


def readable(text: str) -> str:
    """The generator's text without the few definitions that are no Python (a parameter called `in`)."""
    lines = text.splitlines()
    while True:
        try:
            tree = ast.parse("\n".join(lines))
        except SyntaxError as error:
            assert error.lineno is not None
            at = error.lineno - 1
            while not lines[at].lstrip().startswith("def "):
                at -= 1
            indent = len(lines[at]) - len(lines[at].lstrip())
            end = at + 1
            while not lines[end].strip() or len(lines[end]) - len(lines[end].lstrip()) > indent:
                end += 1
            lines[at:end] = [" " * indent + "..."]
        else:
            # What the generator gets wrong inside the stubs is not ours to report.
            head = "# mypy: ignore-errors\nimport builtins\n"
            return head + ast.unparse(_Plain().visit(tree)) + "\n__version__: str\n"


def make_stubs(name: str, work: Path) -> Path:
    """work/stubs/<name>/<name>/__init__.pyi: what mypy is to see as the module `name`."""
    folder = unpack(name, work)
    (library,) = folder.glob("*/*.so")
    stand_ins(library, work / f"{name}-libraries")
    package = f"{library.parent.name}.{library.stem.partition('.')[0]}"
    _run(
        [sys.executable, "-m", "pybind11_stubgen", "--ignore-all-errors", "-o", work / "raw", package],
        LD_LIBRARY_PATH=str(work / f"{name}-libraries"),
        PYTHONPATH=str(folder),
    )
    target = work / "stubs" / name / name
    target.mkdir(parents=True, exist_ok=True)
    raw = (work / "raw" / package.replace(".", "/")).with_suffix(".pyi")
    (target / "__init__.pyi").write_text(readable(raw.read_text()))
    return target


def check(folder: Path, cache: Path) -> bool:
    """mypy over `engines`, with the stubs in `folder`."""
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--cache-dir", cache, "-p", "driffusion_trt.engines"],
        cwd=ROOT,
        env={**os.environ, "MYPYPATH": os.pathsep.join([str(ROOT), str(folder)])},
    )
    return done.returncode == 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "tensorrt-types")
    work = parser.parse_args().work.absolute()
    if importlib.util.find_spec("pybind11_stubgen") is None:
        sys.exit("pybind11-stubgen is needed here; run: pip install pybind11-stubgen")
    work.mkdir(parents=True, exist_ok=True)
    stubs = {name: make_stubs(name, work) for name in WHEELS}
    good = True
    for common, wheel in WHEELS.items():
        # `engines` says `tensorrt` where either flavour will do.
        folder = work / f"as-{common}"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(stubs[common], folder / "tensorrt")
        shutil.copytree(stubs["tensorrt_rtx"], folder / "tensorrt_rtx")
        print(f"{wheel}: ", end="", flush=True)
        good &= check(folder, work / f"mypy-{common}")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
