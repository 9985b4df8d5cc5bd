"""The README and docs/embedding.md do what they say: code and commands run, links lead somewhere.

Blocks are read from the README in order. Python blocks share one set of names and one folder,
so that a later block may go on from an earlier one; the folder is empty at first. In shell blocks
every `driffusion-trt …` line is run there, and every other line must be one of the few kinds that are
known. A block that cannot run here is marked, on the line before it, `<!-- not run: why -->`.
"""

from __future__ import annotations

import itertools
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from driffusion_trt._settings import Settings

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
DOCUMENTS = [
    README,
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "bench").rglob("*.md")),
]

NOT_RUN_BLOCKS = 0
SHELL = {"bash", "console", "sh"}
SHOWN = {"json", "text"}
COMMAND_TIMEOUT_S = 240


@dataclass(frozen=True, slots=True)
class Block:
    """One fenced block: its language, its text, where it starts, and why it is not run."""

    language: str
    text: str
    line: int
    not_run: str


def blocks_of(markdown: str) -> list[Block]:
    found: list[Block] = []
    fence, language, start, not_run = "", "", 0, ""
    body: list[str] = []
    for number, line in enumerate(markdown.splitlines(), 1):
        if fence:
            if line.strip() == fence:
                found.append(Block(language, "\n".join(body) + "\n", start, not_run))
                fence, not_run, body = "", "", []
            else:
                body.append(line)
        elif opened := re.fullmatch(r"(`{3,}|~{3,})\s*(\S*).*", line):
            fence, language, start = opened.group(1), opened.group(2), number
        elif marked := re.fullmatch(r"<!-- not run: (.+) -->", line.strip()):
            not_run = marked.group(1)
        elif line.strip():
            assert not not_run, f"line {number}: a 'not run' mark must stand right before its block"
    assert not fence, f"the block that starts at line {start} is not closed"
    return found


def commands_of(block: Block) -> list[str]:
    """The commands of a shell block, one each; in a console block those after `$ `."""
    joined = re.sub(r"\\\n\s*", "", block.text)
    lines = [line.strip() for line in joined.splitlines()]
    if block.language == "console":
        lines = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
    return [part for line in lines if line and line[0] != "#" for part in line.split(" && ")]


def readme_blocks() -> list[Block]:
    return blocks_of(README.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("readme")


@pytest.mark.parametrize("document", [README, ROOT / "docs" / "embedding.md"], ids=lambda path: path.name)
def test_python_blocks_run(folder: Path, monkeypatch: pytest.MonkeyPatch, document: Path) -> None:
    monkeypatch.chdir(folder)
    blocks = blocks_of(document.read_text(encoding="utf-8"))
    blocks = [block for block in blocks if block.language == "python" and not block.not_run]
    assert blocks, "it shows the Python interface"
    names: dict[str, Any] = {"__name__": "readme"}
    for block in blocks:
        # Line numbers of a traceback are then those of the document.
        exec(compile("\n" * block.line + block.text, str(document), "exec"), names)
    names["pipe"].close()


def test_every_setting_is_in_the_table() -> None:
    """Of docs/embedding.md, by its name and in no row that nothing takes."""
    text = (ROOT / "docs" / "embedding.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`.*?) \|", text, flags=re.MULTILINE)
    named = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    sizes = {f"negative_{name}" for name in ("original_size", "crops_coords_top_left", "target_size")}
    assert named - {"negative_"} == {*Settings.__annotations__, "prompt"} - sizes


def test_commands_run(folder: Path) -> None:
    commands = [
        line
        for block in readme_blocks()
        if block.language in SHELL and not block.not_run
        for line in commands_of(block)
        if line.startswith("driffusion-trt")
    ]
    assert any(line.startswith("driffusion-trt run ") for line in commands), "the README shows a first run"
    for line in commands:
        words = shlex.split(line, comments=True)
        assert not {"|", ">", "<", ";", "&"} & set(words), f"{line}: commands are run without a shell"
        done = subprocess.run(
            [sys.executable, "-m", "driffusion_trt", *words[1:]],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=COMMAND_TIMEOUT_S,
        )
        assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
        for option, value in itertools.pairwise(words):
            if option in ("-o", "--output"):
                assert (folder / value).exists(), f"{line}\nwrote no {value}"


def test_other_commands_are_of_a_known_kind() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, flags=re.MULTILINE))
    for block in readme_blocks():
        for line in commands_of(block) if block.language in SHELL and not block.not_run else []:
            word, *rest = shlex.split(line, comments=True)
            if word == "make":
                wanted = {item for item in rest if "=" not in item}
                assert wanted <= targets, f"{line}: the Makefile has {sorted(targets)}"
            else:
                known = word in {"driffusion-trt", "cd"} or [word, *rest][:2] in (
                    ["git", "clone"],
                    ["pip", "install"],
                )
                assert known, (
                    f"{line}: mark the block '<!-- not run: why -->', or teach this test the command"
                )


def test_every_block_has_a_known_language() -> None:
    strange = [
        f"line {block.line}: {block.language!r}"
        for block in readme_blocks()
        if block.language not in {"python"} | SHELL | SHOWN
    ]
    assert strange == []


def test_blocks_that_are_not_run_are_few_and_known() -> None:
    assert len([block for block in readme_blocks() if block.not_run]) == NOT_RUN_BLOCKS


def test_nothing_is_installed_by_a_name_that_the_package_index_does_not_have() -> None:
    """Until a release, which somebody else could make first: `pip install .` in a clone is what works."""
    texts = [*DOCUMENTS, *ROOT.glob("examples/**/*.py"), *(ROOT / "driffusion_trt").rglob("*.py")]
    by_name = re.compile(r"pip install [^\n`]*driffusion-trt\b(?!/)")
    named = {
        path.name: found
        for path in texts
        if (found := [one for one in by_name.findall(path.read_text("utf-8")) if "clone of" not in one])
    }
    assert named == {}


def without_code(markdown: str) -> str:
    markdown = re.sub(r"^(`{3,}|~{3,}).*?^\1\s*$", "", markdown, flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"`[^`\n]*`", "", markdown)


def slugs_of(markdown: str) -> set[str]:
    """The anchors that headings get on a hosted page."""
    headings = re.findall(r"^#+\s+(.*?)\s*$", markdown, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken_links(document: Path) -> list[str]:
    """Links of a document to files of the tree, or to headings, that are not there."""
    text = document.read_text(encoding="utf-8")
    links = re.findall(r"\]\(\s*<?([^)\s>]+)", without_code(text))
    links += re.findall(r"(?:src|href)=\"([^\"]+)\"", without_code(text))
    links += re.findall(r"^\[[^\]]+\]:\s+(\S+)", without_code(text), flags=re.MULTILINE)
    broken = []
    for link in links:
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = document.parent / path if path else document
        there = target.exists()
        if not there or (anchor and anchor not in slugs_of(target.read_text(encoding="utf-8"))):
            broken.append(link)
    return broken


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_to_files_and_headings_lead_somewhere(document: Path) -> None:
    assert broken_links(document) == []


def test_a_broken_link_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# One heading\n[a](#one-heading) [b](page.md) [c](https://example.org) `[no](link)`\n"
        '[d](missing.md) ![e](missing.png) <img src="gone.png"> [f](#no-heading)\n[g]: gone.md\n',
        encoding="utf-8",
    )
    assert broken_links(page) == ["missing.md", "missing.png", "#no-heading", "gone.png", "gone.md"]


def test_the_reader_of_blocks() -> None:
    marked, shell = blocks_of(
        "text\n<!-- not run: needs a GPU -->\n```python\nx = 1\n```\n\n"
        "```console\n$ cd here && make \\\n    run\nout\n```\n"
    )
    assert marked == Block("python", "x = 1\n", 3, "needs a GPU")
    assert shell.not_run == ""
    assert commands_of(shell) == ["cd here", "make run"]
    with pytest.raises(AssertionError, match="not closed"):
        blocks_of("```python\n")
    with pytest.raises(AssertionError, match="right before"):
        blocks_of("<!-- not run: why -->\nwords\n```python\n```\n")
