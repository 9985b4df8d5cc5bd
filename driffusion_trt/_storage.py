"""A model folder in object storage or on a web server, read through fsspec."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote, unquote

from ._address import checked, without_secrets
from ._errors import DriffusionError, InputError, MissingExtraError, ModelError
from ._manifest import CALIBRATION, MANIFEST

__all__ = ["StoredFolder"]

_RECORD_BYTES = 1 << 20  # of a manifest or a plan's record there are far fewer
_SILENT_S = 60.0  # of a web server, after which it is given up
_HTTP = ("http", "https")


@dataclass(frozen=True, slots=True)
class StoredFolder:
    """A folder in a file system of fsspec's.

    sizes: in bytes, by name, of what the manifest does not list: plans, their records, the calibration.
    digest: of the manifest and of these, so that another content has another one.
    """

    url: str
    files: Any
    root: str
    manifest: bytes
    sizes: dict[str, int]
    digest: str

    @classmethod
    def open(cls, url: str) -> StoredFolder:
        """Raises as `fetched` does."""
        if find_spec("fsspec") is None:
            raise MissingExtraError("fsspec", "ray")
        import fsspec

        with _told_as_ours(checked(url)):
            files, root = fsspec.url_to_fs(url, **_patient(url))
            root = root.rstrip("/")
            manifest = files.cat_file(_path(root, MANIFEST), end=_RECORD_BYTES)
            sizes = _unlisted(files, root)
            records = sorted(sizes.items())
            texts = [
                files.cat_file(_path(root, name), end=_RECORD_BYTES)
                for name, _ in records
                if name.endswith(".json")
            ]
        everything = b"\0".join([manifest, json.dumps(records).encode(), *texts])
        return cls(url, files, root, manifest, sizes, hashlib.sha256(everything).hexdigest()[:16])

    def get(self, name: str, to: Path, callback: Any) -> None:
        """Raises as `fetched` does."""
        with _told_as_ours(self.url):
            self.files.get_file(_path(self.root, name), str(to), callback=callback)


def _patient(url: str) -> dict[str, Any]:
    """Further arguments of its file systems: aiohttp ends what takes five minutes, as large files do."""
    used = [one for one in _HTTP if f"{one}://" in url]
    if not used or find_spec("aiohttp") is None:  # fsspec then says what to install
        return {}
    import aiohttp

    limits = aiohttp.ClientTimeout(total=None, sock_connect=_SILENT_S, sock_read=_SILENT_S)
    return {one: {"client_kwargs": {"timeout": limits}} for one in used}


def _path(root: str, name: str) -> str:
    return f"{root}/{quote(name) if _is_web(root) else name}"


def _is_web(root: str) -> bool:
    return root.partition("://")[0] in _HTTP


def _unlisted(files: Any, root: str) -> dict[str, int]:
    """Plans, their records and the calibration, which come after the manifest."""
    found: dict[str, int] = {}
    with contextlib.suppress(FileNotFoundError):
        found[CALIBRATION] = _size(files, _path(root, CALIBRATION))
    for path, facts in _listed(files, f"{root}/plans").items():
        rest = str(path).removeprefix(root).lstrip("/")
        name = unquote(rest) if _is_web(root) else rest
        parts = PurePosixPath(name).parts
        safe = parts[:1] == ("plans",) and len(parts) > 1 and ".." not in parts and "\\" not in name
        # A `?` is of the links by which a web server sorts its page.
        if safe and "?" not in rest and not name.endswith(".partial"):
            size = facts.get("size")
            found["/".join(parts)] = _size(files, path) if size is None else int(size)
    return found


def _listed(files: Any, folder: str) -> dict[str, Any]:
    """What lies below; nothing where there is no such folder, or a web server shows none."""
    try:
        return dict(files.find(folder, detail=True))
    except (FileNotFoundError, NotImplementedError):
        return {}
    except Exception as error:
        if _is_web(folder) and getattr(error, "status", None) in (403, 405):
            return {}
        raise


def _size(files: Any, path: str) -> int:
    size = files.info(path).get("size")
    if size is None:
        raise ModelError(
            f"the server does not say how large {without_secrets(path)} is (a header Content-Length); serve "
            "the folder's files as they are"
        )
    return int(size)


@contextlib.contextmanager
def _told_as_ours(url: str) -> Iterator[None]:
    """Errors of file systems, of which there are many kinds, as ours, and without secrets."""
    try:
        yield
    except DriffusionError:
        raise
    except FileNotFoundError as error:
        raise ModelError(
            f"{url} is not a model folder: {_said(error)} is not there; give the address of what a finished "
            "build wrote"
        ) from None
    except ImportError as error:  # fsspec names the package for this kind of address
        package = re.search(r"[Ii]nstall `?([\w-]+)", str(error))
        name = package[1] if package else f"fsspec's package for {url.partition(':')[0]}"
        raise MissingExtraError(name, "ray", command=f"pip install {name}") from None
    except ValueError as error:
        raise InputError(f"--model {url} cannot be read: {_said(error)}") from None
    except Exception as error:
        raise ModelError(
            f"{url} cannot be read ({type(error).__name__}: {_said(error)}); see whether the address is "
            "right, and what the storage's own variables and files say of who may read it"
        ) from None


def _said(error: Exception) -> str:
    return without_secrets(str(error))[:300]
