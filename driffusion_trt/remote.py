"""Model folders of shared and object storage: fetched once to this machine, through fsspec."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from ._cache import cache_folder
from ._errors import InputError, MissingExtraError, ModelError
from ._manifest import CALIBRATION, MANIFEST, Manifest, read_manifest, sha256
from .engines.lock import lock_folder
from .engines.manifest import ModelFolder

__all__ = ["fetched", "here", "is_remote", "name_of", "shown"]

Told = Callable[[int, int, str], None]  # bytes that are here, bytes in all, and of which file
_URL = re.compile(r"[a-z][a-z0-9+.-]+(::[a-z][a-z0-9+.-]+)*://", re.ASCII)
_RECORD_BYTES = 1 << 20  # of a manifest or a plan's record there are far fewer
_AGAIN_S = 0.5


def is_remote(model: str) -> bool:
    """Whether this names storage, as `s3://bucket/sdxl` does, and not a folder or a bundled model."""
    return _URL.match(model) is not None


def shown(url: str) -> str:
    """An address without what may be secret in it: users, passwords, and signatures after a `?`."""
    scheme, mark, rest = url.partition("://")
    authority, slash, path = rest.partition("/")
    return scheme + mark + authority.rpartition("@")[2] + slash + re.split("[?#]", path, maxsplit=1)[0]


def name_of(url: str) -> str:
    """What the model is called where nobody gives it a name: the last part of its address."""
    return PurePosixPath(shown(url).partition("://")[2]).name or "model"


def here(model: str, told: Told | None = None) -> str | Path:
    """What `Pipeline.load` takes: the folder that was `fetched` for an address, another model as it is."""
    return fetched(model, told) if is_remote(model) else model


def fetched(url: str, told: Told | None = None, into: Path | None = None) -> Path:
    """The folder on this machine that has the model of this address; it is fetched where it is not there.

    A folder is kept for each content of the manifest and of the plans, so a model that was built anew is
    fetched anew. One process fetches, others of the machine wait for it. A file appears under its name once
    its SHA-256 is right, and the manifest last; what was interrupted goes on where it was.

    Args:
        url: of a model folder, as fsspec knows it: `s3://`, `gs://`, `abfs://`, `https://`, `file://`, ...
        told: how far it is.
        into: the folder of such folders; by default in the user's cache.

    Raises:
        InputError: fsspec does not know this kind of address.
        MissingExtraError: fsspec, or its package for this kind, is not installed.
        ModelError: no model folder is there, it cannot be read, it is altered, or there is no room for it.
    """
    kept = into or cache_folder("models")
    if kept is None:
        raise ModelError("there is no home folder to keep the model in; set HOME, or XDG_CACHE_HOME")
    source = _Source.open(url)
    folder = kept / f"{name_of(url)[:60]}-{source.digest}"
    if _is_whole(folder):
        return folder
    try:
        with _locked(folder):
            if not _is_whole(folder):
                _fetch(source, folder, told or _nobody)
                ModelFolder.open(folder)
    except OSError as error:
        raise ModelError(
            f"{shown(url)} cannot be kept in {folder} ({error.strerror or error}); make room there, or set "
            "XDG_CACHE_HOME"
        ) from error
    return folder


def _nobody(done: int, total: int, name: str) -> None:
    """Told by nobody."""


def _is_whole(folder: Path) -> bool:
    try:
        ModelFolder.open(folder)
    except ModelError:
        return False
    return True


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the folder, after whoever holds it now."""
    with contextlib.ExitStack() as held:
        while True:
            try:
                held.enter_context(lock_folder(folder))
                break
            except ModelError:  # another process fetches the same
                time.sleep(_AGAIN_S)
        yield


@dataclass(frozen=True, slots=True)
class _Source:
    """A folder in a file system of fsspec's. plans: sizes, by name, of what its manifest does not list."""

    url: str
    files: Any
    root: str
    manifest: bytes
    plans: dict[str, int]
    digest: str

    @classmethod
    def open(cls, url: str) -> _Source:
        if find_spec("fsspec") is None:
            raise MissingExtraError("fsspec", "ray")
        import fsspec

        with _told_as_ours(url):
            files, root = fsspec.url_to_fs(url)
            root = root.rstrip("/")
            manifest = files.cat_file(f"{root}/{MANIFEST}", end=_RECORD_BYTES)
            plans = _plans(files, root)
            records = [(name, size) for name, size in sorted(plans.items())]
            texts = [
                files.cat_file(f"{root}/{name}", end=_RECORD_BYTES)
                for name, _ in records
                if name.endswith(".json")
            ]
        everything = b"\0".join([manifest, json.dumps(records).encode(), *texts])
        return cls(url, files, root, manifest, plans, hashlib.sha256(everything).hexdigest()[:16])

    def get(self, name: str, to: Path, callback: Any) -> None:
        with _told_as_ours(self.url):
            self.files.get_file(f"{self.root}/{name}", str(to), callback=callback)


def _plans(files: Any, root: str) -> dict[str, int]:
    """Plans, their records and the calibration, which come after the manifest."""
    found: dict[str, int] = {}
    for name in ("plans", CALIBRATION):
        try:
            listed = files.find(f"{root}/{name}", detail=True)
        except (FileNotFoundError, NotImplementedError):  # a plain web server lists nothing
            continue
        for path, facts in listed.items():
            parts = PurePosixPath(str(path).removeprefix(root).lstrip("/")).parts
            safe = parts[:1] == (name,) and ".." not in parts and "\\" not in path
            if safe and not path.endswith(".partial"):
                found["/".join(parts)] = int(facts["size"])
    return found


def _fetch(source: _Source, folder: Path, told: Told) -> None:
    staged = folder / ".fetching"
    staged.mkdir(exist_ok=True)
    (staged / MANIFEST).write_bytes(source.manifest)
    manifest = _checked(staged, source.url)
    sizes = {name: entry.size_bytes for name, entry in manifest.files.items()} | source.plans
    digests = {name: entry.sha256 for name, entry in manifest.files.items()}
    total, done = sum(sizes.values()), 0
    missing = {name: size for name, size in sizes.items() if not _is_there(folder / name, size)}
    room = shutil.disk_usage(folder).free
    if sum(missing.values()) > room:
        raise ModelError(
            f"{shown(source.url)} needs {sum(missing.values()):,} bytes in {folder}, where {room:,} are "
            "free; make room there, or set XDG_CACHE_HOME"
        )
    for name, size in sizes.items():
        if name in missing:
            callback = _told_of(told, done, total, name)
            _fetch_file(source, name, folder / name, size, digests.get(name), callback)
        done += size
        told(done, total, name)
    os.replace(staged / MANIFEST, folder / MANIFEST)
    staged.rmdir()


def _is_there(path: Path, size: int) -> bool:
    """Its name says that it was checked; its size, that nobody cut it since."""
    try:
        return path.stat().st_size == size
    except OSError:
        return False


def _checked(staged: Path, url: str) -> Manifest:
    """The manifest, which must not reach outside of its folder."""
    try:
        return read_manifest(staged)
    except ModelError as error:
        raise ModelError(f"{shown(url)} is no model folder of this version: {error}") from None


def _fetch_file(source: _Source, name: str, path: Path, size: int, digest: str | None, callback: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    try:
        source.get(name, partial, callback)
        found = partial.stat().st_size
        if found != size or (digest is not None and sha256(partial) != digest):
            raise ModelError(
                f"{name} of {shown(source.url)} is not the file that was built ({found:,} bytes, {size:,} "
                "expected, or another SHA-256); copy the model folder there again, manifest.json last"
            )
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _told_of(told: Told, before: int, total: int, name: str) -> Any:
    """A callback for fsspec that tells of the bytes of one file as a part of all."""
    from fsspec.callbacks import Callback

    class Bytes(Callback):  # type: ignore[misc]
        def call(self, *_: Any, **__: Any) -> None:
            told(min(before + self.value, total), total, name)

    return Bytes()


@contextlib.contextmanager
def _told_as_ours(url: str) -> Iterator[None]:
    """Errors of file systems, of which there are many kinds, as ours, and without secrets of the address."""
    try:
        yield
    except FileNotFoundError as error:
        raise ModelError(
            f"{shown(url)} is not a model folder: {_safe(error, url)} is not there; give the address of "
            "what a finished build wrote"
        ) from None
    except ImportError as error:  # fsspec names the package for this kind of address
        package = re.search(r"[Ii]nstall `?([\w-]+)", str(error))
        name = package[1] if package else f"fsspec's package for {url.partition(':')[0]}"
        raise MissingExtraError(name, "ray", command=f"pip install {name}") from None
    except ValueError as error:
        raise InputError(f"--model {shown(url)} cannot be read: {_safe(error, url)}") from None
    except Exception as error:
        raise ModelError(
            f"{shown(url)} cannot be read ({type(error).__name__}: {_safe(error, url)}); see whether the "
            "address is right, and what the storage's own variables and files say of who may read it"
        ) from None


def _safe(error: Exception, url: str) -> str:
    """Its message, where the address stands in it as it is shown."""
    parts = urlsplit(url)
    text = str(error).replace(url, shown(url))
    for secret in (parts.query, parts.username, parts.password, parts.netloc.rpartition("@")[0]):
        if secret:
            text = text.replace(secret, "***")
    return text[:300]
