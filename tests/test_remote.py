"""Model folders of storage: fetched whole or not at all, once, and without telling secrets."""

from __future__ import annotations

import functools
import hashlib
import json
import shutil
import sys
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import fsspec
import pytest
import tiny
from fsspec.implementations.memory import MemoryFileSystem

from driffusion_trt import _address, _storage, remote
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
    "url",
    [
        "s3://key:secret@bucket/sdxl",
        "s3://secret@bucket/sdxl",
        "s3://key:se/cret@bucket/sdxl",
        "s3://key:1/secret@bucket/sdxl",
        "s3://key:se::cret@bucket/sdxl",
        "s3://secret:key/sdxl",
        "s3://u:secret@[bad",
        "s3://[secret",
        "sftp://user:secret@host/sdxl",
        "https://secret@host/sdxl",
        "https://host/sdxl?X-Amz-Signature=secret",
        "https://host/sdxl#secret",
        "zip://sdxl::s3://key:secret@bucket/x.zip",
        "simplecache::zip://sdxl::s3://key:se/cret@bucket/x.zip",
    ],
)
def test_addresses_with_secrets_are_refused_and_not_repeated(url: str, tmp_path: Path) -> None:
    for refused in (_address.checked, _address.name_of, lambda url: remote.fetched(url, into=tmp_path)):
        with pytest.raises(InputError, match=r"^the address \w+(::zip)?://\.\.\. ") as caught:
            refused(url)
        assert "cret" not in str(caught.value) and "bucket" not in str(caught.value)
        assert caught.value.__cause__ is None


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("s3://bucket/models/sdxl/", "sdxl"),
        ("s3://bucket/sdxl@v2", "sdxl@v2"),
        ("abfs://container@account.dfs.core.windows.net/sdxl", "sdxl"),
        ("sftp://user@host:22/models/sdxl", "sdxl"),
        ("https://host:8000/sdxl", "sdxl"),
        ("zip://models/sdxl::s3://bucket/x.zip", "sdxl"),
        ("zip://::s3://bucket/x.zip", "x.zip"),
        ("simplecache::s3://bucket/sdxl", "sdxl"),
        ("file:///C:/models/sdxl", "sdxl"),
        ("memory://", "model"),
    ],
)
def test_other_addresses_pass_and_name_the_model(url: str, name: str) -> None:
    assert _address.checked(url) == url and _address.name_of(url) == name


def test_a_folder_in_an_archive_works_like_any_other(built: Path, tmp_path: Path) -> None:
    archive = shutil.make_archive(str(tmp_path / "x"), "zip", built.parent, built.name)
    folder = remote.fetched(f"zip://{built.name}::file://{archive}", into=tmp_path / "kept")
    assert folder.name.startswith("tiny-")
    assert (folder / "plans/sm89/denoiser-1.plan").read_bytes() == b"plan"
    ModelFolder.open(folder, verify=True)


def test_errors_of_storage_tell_no_secrets(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(self: Any, path: str, *_: Any, **__: Any) -> bytes:
        raise PermissionError("not at https://key:hidden@host/x?sig=hidden%2Fb+c= nor 'x/y?t=hidden'")

    monkeypatch.setattr(MemoryFileSystem, "cat_file", refuse)
    with pytest.raises(ModelError) as caught:
        remote.fetched(URL, into=tmp_path)
    assert "hidden" not in str(caught.value) and f"{URL} cannot be read" in str(caught.value)
    assert caught.value.__cause__ is None and "PermissionError: not at https://host/x" in str(caught.value)


def test_a_content_that_was_settled_needs_no_storage_and_no_other_is_taken(
    stored: MemoryFileSystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As replicas of one service have it, that begin at different times on different machines."""
    folder = remote.fetched(URL, into=tmp_path / "one")
    digest = remote.digest_of(folder)
    assert remote.fetched(URL, into=tmp_path / "other", digest=digest).name == folder.name
    stored.pipe("/bucket/models/tiny/plans/sm89/denoiser-1.json", b"{}")
    with pytest.raises(ModelError, match="has another content than when the service began"):
        remote.fetched(URL, into=tmp_path / "third", digest=digest)
    assert not (tmp_path / "third").exists()

    def away(self: Any, path: str, *_: Any, **__: Any) -> bytes:
        raise ConnectionError("the storage is away")

    monkeypatch.setattr(MemoryFileSystem, "cat_file", away)
    assert remote.fetched(URL, into=tmp_path / "one", digest=digest) == folder
    with pytest.raises(ModelError, match="the storage is away"):
        remote.fetched(URL, into=tmp_path / "one")


class Web(SimpleHTTPRequestHandler):
    """A plain web server. /moved leads on to a signed address, as stores of files have them."""

    lists = True

    def do_GET(self) -> None:
        if self.path.startswith("/moved/"):
            self.send_response(302)
            self.send_header("Location", "/signed/x?sv=1&sig=SECRET%2Fabc%2Bd%3D%20e")
            self.end_headers()
        elif self.path.startswith("/signed/"):
            self.send_error(403)
        else:
            super().do_GET()

    def list_directory(self, path: Any) -> Any:
        if not self.lists:
            self.send_error(403)
            return None
        return super().list_directory(path)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""


@pytest.fixture
def web(built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(Web, "lists", True)
    shutil.copytree(built, tmp_path / "web" / "tiny")
    (tmp_path / "web" / "tiny" / "plans" / "sm89" / "a+b #%41?.plan").write_bytes(b"odd")
    handler = functools.partial(Web, directory=str(tmp_path / "web"))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_a_web_server_works_like_any_other(web: str, tmp_path: Path) -> None:
    """One that lists its folders."""
    folder = remote.fetched(f"{web}/tiny", into=tmp_path / "kept")
    expected = content(tmp_path / "web" / "tiny")
    del expected["plans/sm89/denoiser-2.plan.partial"]
    assert content(folder) == expected
    ModelFolder.open(folder, verify=True)
    (tmp_path / "web" / "tiny" / "calibration.json").write_text("{}")
    assert (remote.fetched(f"{web}/tiny", into=tmp_path / "kept") / "calibration.json").read_text() == "{}"


def test_without_a_listing_there_are_no_plans(
    web: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Web, "lists", False)
    folder = remote.fetched(f"{web}/tiny", into=tmp_path / "kept")
    assert not (folder / "plans").exists()
    ModelFolder.open(folder, verify=True)


def test_a_web_server_that_leads_on_to_a_signed_address_tells_no_signature(web: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=f"{web}/moved/tiny cannot be read .*403") as caught:
        remote.fetched(f"{web}/moved/tiny", into=tmp_path)
    assert not any(part in str(caught.value) for part in ("SECRET", "abc", "sig=", "%2"))


def test_large_files_of_web_servers_may_take_their_time() -> None:
    """aiohttp's own limit is five minutes for a whole file."""
    how = _storage._patient("zip://x::https://host/x.zip")
    assert list(how) == ["https"]
    limits = how["https"]["client_kwargs"]["timeout"]
    assert limits.total is None and limits.sock_read == 60.0
    assert _storage._patient("s3://bucket/x") == {}


@pytest.mark.parametrize("name", ["demo", "./s3", "/models/sdxl", "C:/models", "models:x", "C://x"])
def test_folders_are_no_addresses(name: str) -> None:
    assert not _address.is_remote(name)
