"""Model folders of shared and object storage: fetched once to this machine, through fsspec."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ._address import is_remote, name_of
from ._cache import cache_folder
from ._errors import ModelError
from ._manifest import MANIFEST, Manifest, read_manifest, sha256
from ._storage import StoredFolder
from .engines.lock import lock_folder
from .engines.manifest import ModelFolder

__all__ = ["digest_of", "fetched", "here"]

Told = Callable[[int, int, str], None]  # bytes that are here, bytes in all, and of which file
_AGAIN_S = 0.5


def here(model: str, told: Told | None = None, digest: str | None = None) -> str | Path:
    """What `Pipeline.load` takes: the folder that was `fetched` for an address, another model as it is."""
    return fetched(model, told, digest=digest) if is_remote(model) else model


def digest_of(folder: Path) -> str:
    """Of the content of a folder that was `fetched`."""
    return folder.name.rpartition("-")[2]


def fetched(url: str, told: Told | None = None, into: Path | None = None, digest: str | None = None) -> Path:
    """The folder on this machine that has the model of this address; it is fetched where it is not there.

    A folder is kept for each content of the manifest and of the plans, so a model that was built anew is
    fetched anew. One process fetches, others of the machine wait for it. A file appears under its name once
    its SHA-256 is right, and the manifest last; an interruption costs the file that was under way.

    Args:
        url: of a model folder, as fsspec knows it: `s3://`, `gs://`, `abfs://`, `https://`, `file://`, ...
        told: how far it is.
        into: the folder of such folders; by default in the user's cache.
        digest: of the content that it has to be, as `digest_of` has it. Where that is here, the storage is
            not asked.

    Raises:
        InputError: fsspec does not know this kind of address, or there may be a secret in it.
        MissingExtraError: fsspec, or its package for this kind, is not installed.
        ModelError: no model folder is there, it cannot be read, it is altered or another one than that of
            `digest`, or there is no room for it.
    """
    kept = into or cache_folder("models")
    if kept is None:
        raise ModelError("there is no home folder to keep the model in; set HOME, or XDG_CACHE_HOME")
    before = f"{name_of(url)[:60]}-"
    if digest is not None and _is_whole(kept / f"{before}{digest}"):
        return kept / f"{before}{digest}"
    source = StoredFolder.open(url)
    if digest not in (None, source.digest):
        raise ModelError(
            f"{url} has another content than when the service began ({source.digest}, and it was {digest}); "
            "copy the model back there, or end the service and begin it anew"
        )
    folder = kept / f"{before}{source.digest}"
    if _is_whole(folder):
        return folder
    try:
        with _locked(folder):
            if not _is_whole(folder):
                _fetch(source, folder, told or _nobody)
                ModelFolder.open(folder)
    except OSError as error:
        raise ModelError(
            f"{url} cannot be kept in {folder} ({error.strerror or error}); make room there, or set "
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


def _fetch(source: StoredFolder, folder: Path, told: Told) -> None:
    staged = folder / ".fetching"
    staged.mkdir(exist_ok=True)
    (staged / MANIFEST).write_bytes(source.manifest)
    manifest = _checked(staged, source.url)
    sizes = {name: entry.size_bytes for name, entry in manifest.files.items()} | source.sizes
    digests = {name: entry.sha256 for name, entry in manifest.files.items()}
    total, done = sum(sizes.values()), 0
    missing = {name: size for name, size in sizes.items() if not _is_there(folder / name, size)}
    room = shutil.disk_usage(folder).free
    if sum(missing.values()) > room:
        raise ModelError(
            f"{source.url} needs {sum(missing.values()):,} bytes in {folder}, where {room:,} are "
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
        raise ModelError(f"{url} is no model folder of this version: {error}") from None


def _fetch_file(
    source: StoredFolder, name: str, path: Path, size: int, digest: str | None, callback: Any
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    try:
        source.get(name, partial, callback)
        found = partial.stat().st_size
        if found != size or (digest is not None and sha256(partial) != digest):
            raise ModelError(
                f"{name} of {source.url} is not the file that was built ({found:,} bytes, {size:,} "
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
