"""Model folders of storage: fetched whole or not at all, once, and without telling secrets."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
import tiny
from fsspec.implementations.memory import MemoryFileSystem

from driffusion_trt import remote
from driffusion_trt._errors import InputError, MissingExtraError, ModelError
from driffusion_trt.engines.manifest import ModelFolder

URL = "memory://bucket/models/tiny"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder with a plan and its record, as `build` leaves it."""
    folder = tiny.make_model_folder(tmp_path_factory.mktemp("models") / "tiny")
    plans = folder / "plans" / "sm89"
    plans.mkdir(parents=True)
    (plans / "denoiser-1.plan").write_bytes(b"plan")
    (plans / "denoiser-1.json").write_text(json.dumps({"sha256": hashlib.sha256(b"plan").hexdigest()}))
    (plans / "denoiser-2.plan.partial").write_bytes(b"half")
    return folder


@pytest.fixture
def stored(built: Path) -> Iterator[MemoryFileSystem]:
    """The same in storage that is this process's memory."""
    files = fsspec.filesystem("memory")
    files.put(str(built), "/bucket/models/tiny", recursive=True)
    yield files
    files.rm("/bucket", recursive=True)


def content(folder: Path) -> dict[str, bytes]:
    paths = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that are fetched."""
    names: list[str] = []
    whole = MemoryFileSystem.get_file

    def get_file(self: Any, path: str, *args: Any, **how: Any) -> None:
        names.append(path.partition("/tiny/")[2])
        whole(self, path, *args, **how)

    monkeypatch.setattr(MemoryFileSystem, "get_file", get_file)
    return names


def test_the_folder_is_that_which_was_built(built: Path, stored: MemoryFileSystem, tmp_path: Path) -> None:
    told: list[tuple[int, int, str]] = []
    folder = remote.fetched(URL, lambda *how: told.append(how), tmp_path)
    expected = content(built)
    del expected["plans/sm89/denoiser-2.plan.partial"]
    assert content(folder) == expected
    ModelFolder.open(folder, verify=True)
    done, total, _ = told[-1]
    assert done == total == sum(len(data) for name, data in expected.items() if name != "manifest.json")
    assert [one[0] for one in told] == sorted(one[0] for one in told)


def test_a_file_address_works_like_any_other(built: Path, tmp_path: Path) -> None:
    folder = remote.fetched(f"file://{built}", into=tmp_path)
    assert (folder / "plans/sm89/denoiser-1.plan").read_bytes() == b"plan"
    ModelFolder.open(folder, verify=True)


def test_it_is_fetched_once(stored: MemoryFileSystem, tmp_path: Path, asked: list[str]) -> None:
    folder = remote.fetched(URL, into=tmp_path)
    assert len(asked) == len(set(asked)) > 5
    asked.clear()
    assert remote.fetched(URL, into=tmp_path) == folder
    assert asked == []


def test_another_content_is_another_folder(
    stored: MemoryFileSystem, tmp_path: Path, asked: list[str]
) -> None:
    """New plans, too: the manifest does not list them."""
    first = remote.fetched(URL, into=tmp_path)
    stored.pipe("/bucket/models/tiny/plans/sm89/denoiser-1.json", b"{}")
    second = remote.fetched(URL, into=tmp_path)
    assert second != first and (second / "plans/sm89/denoiser-1.json").read_bytes() == b"{}"
    assert first.is_dir()


def test_what_was_interrupted_goes_on_where_it_was(
    stored: MemoryFileSystem, tmp_path: Path, asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = MemoryFileSystem.get_file

    def cut(self: Any, path: str, to: str, **how: Any) -> None:
        if len(asked) == 3:
            Path(to).write_bytes(b"half")
            raise ConnectionResetError("the line is cut")
        whole(self, path, to, **how)

    with monkeypatch.context() as patch:
        patch.setattr(MemoryFileSystem, "get_file", cut)
        with pytest.raises(ModelError, match=r"cannot be read .ConnectionResetError: the line is cut"):
            remote.fetched(URL, into=tmp_path)
    (folder,) = tmp_path.iterdir()
    assert not (folder / "manifest.json").exists(), "or it would be taken for a model"
    assert not list(folder.rglob("*.partial"))
    before = set(asked)
    asked.clear()
    assert remote.fetched(URL, into=tmp_path) == folder
    assert len(before) == 3 and not before & set(asked)
    ModelFolder.open(folder, verify=True)


@pytest.mark.parametrize("lost", ["onnx/denoiser.onnx", "manifest.json"])
def test_a_folder_that_lost_a_file_is_mended(
    stored: MemoryFileSystem, tmp_path: Path, asked: list[str], lost: str
) -> None:
    folder = remote.fetched(URL, into=tmp_path)
    (folder / lost).unlink()
    asked.clear()
    assert remote.fetched(URL, into=tmp_path) == folder
    assert asked == ([lost] if lost != "manifest.json" else [])
    ModelFolder.open(folder, verify=True)


def test_an_altered_file_is_refused(stored: MemoryFileSystem, tmp_path: Path) -> None:
    data = stored.cat_file("/bucket/models/tiny/onnx/denoiser.onnx")
    stored.pipe("/bucket/models/tiny/onnx/denoiser.onnx", data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(ModelError, match=r"onnx/denoiser.onnx of memory://bucket.* is not the file"):
        remote.fetched(URL, into=tmp_path)
    (folder,) = tmp_path.iterdir()
    assert not (folder / "onnx/denoiser.onnx").exists() and not (folder / "manifest.json").exists()


def test_processes_that_come_together_fetch_once(
    stored: MemoryFileSystem, tmp_path: Path, asked: list[str]
) -> None:
    """Locks of files hold threads apart as well as processes, since each opens the file anew."""
    found: list[Path] = []
    threads = [
        threading.Thread(target=lambda: found.append(remote.fetched(URL, into=tmp_path))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(found) == 4 and len(set(found)) == 1
    assert len(asked) == len(set(asked))


def test_no_room_is_found_out_before_anything_is_fetched(
    stored: MemoryFileSystem, tmp_path: Path, asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=10)
    monkeypatch.setattr(remote.shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(ModelError, match="where 10 are free; make room"):
        remote.fetched(URL, into=tmp_path)
    assert asked == []


def test_a_manifest_reaches_no_file_outside(stored: MemoryFileSystem, tmp_path: Path) -> None:
    manifest = json.loads(stored.cat_file("/bucket/models/tiny/manifest.json"))
    manifest["files"]["../outside"] = {"sha256": "0", "size_bytes": 1}
    stored.pipe("/bucket/models/tiny/manifest.json", json.dumps(manifest).encode())
    with pytest.raises(ModelError, match="not inside the folder"):
        remote.fetched(URL, into=tmp_path)


@pytest.mark.parametrize(
    ("url", "kind", "said"),
    [
        ("memory://bucket/nothing", ModelError, "memory://bucket/nothing is not a model folder"),
        ("nonsense://x/y", InputError, "--model nonsense://x/y cannot be read: Protocol not known"),
        ("s3://bucket/sdxl", MissingExtraError, "pip install s3fs"),
    ],
)
def test_what_cannot_be_had_says_why(
    url: str, kind: type[Exception], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)  # None there makes an import fail
    with pytest.raises(kind, match=said):
        remote.fetched(url, into=tmp_path)


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("s3://key:secret@bucket/sdxl", "s3://bucket/sdxl"),
        ("https://host/sdxl?X-Amz-Signature=secret", "https://host/sdxl"),
        ("https://host/sdxl?a/b@secret#c", "https://host/sdxl"),
    ],
)
def test_addresses_are_shown_without_secrets(url: str, told: str) -> None:
    assert remote.shown(url) == told
    assert remote.name_of(url) == "sdxl"


def test_errors_of_storage_tell_no_secrets(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    url = "memory://key:secret@bucket/sdxl?signature=hidden"

    def refuse(self: Any, path: str, *_: Any, **__: Any) -> bytes:
        raise PermissionError(f"key with secret may not read {url}")

    monkeypatch.setattr(MemoryFileSystem, "cat_file", refuse)
    with pytest.raises(ModelError) as caught:
        remote.fetched(url, into=tmp_path)
    assert "secret" not in str(caught.value) and "hidden" not in str(caught.value)
    assert caught.value.__cause__ is None and "PermissionError" in str(caught.value)


@pytest.mark.parametrize("name", ["demo", "./s3", "/models/sdxl", "C:/models", "models:x", "C://x"])
def test_folders_are_no_addresses(name: str) -> None:
    assert not remote.is_remote(name)
