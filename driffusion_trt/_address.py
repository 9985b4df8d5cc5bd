"""Addresses: of storage, which everybody may read, so that no secret may stand in them; and of services."""

from __future__ import annotations

import re
from pathlib import PurePosixPath
from urllib.parse import urlsplit

from ._errors import InputError

__all__ = ["checked", "is_remote", "listening_at", "name_of", "without_secrets"]

_URL = re.compile(r"[a-z][a-z0-9+.-]+(::[a-z][a-z0-9+.-]+)*://", re.ASCII)
# Between the links of a chain, such as zip://sdxl::s3://bucket/models.zip.
_LINKS = re.compile(r"::(?=[a-z][a-z0-9+.-]*(?:://|::|$))", re.ASCII)
# Where a login or a container stands before the @, which is no secret; elsewhere it may be a token.
_NAMED = ("abfs", "abfss", "hdfs", "sftp", "smb", "ssh")


def is_remote(model: str) -> bool:
    """Whether this names storage, as `s3://bucket/sdxl` does, and not a folder or a bundled model."""
    return _URL.match(model) is not None


def checked(url: str) -> str:
    """The same address. It goes into messages, logs and lists of processes, so it must have no secrets.

    Raises InputError, which does not repeat it, where a user, a password or a signature is in it, or where
    it cannot be read.
    """
    asked = f"the address {url.partition('://')[0]}://..."
    if "?" in url or "#" in url:
        raise InputError(
            f"{asked} has a ? or # in it: a signed address is of one file, and a model folder has many; give "
            "the folder's own, and say who may read it in the storage's own way, by variables and files"
        )
    for link in _LINKS.split(url):
        scheme, _, rest = link.partition("://")
        before, at, _ = rest.rpartition("@")
        user = "@" in rest.partition("/")[0] and scheme not in _NAMED
        if user or (at and ":" in before):
            raise InputError(
                f"{asked} has a user or a password before an @, where others can read it; leave it out, and "
                "say who you are in the storage's own way, by variables and files"
            )
        try:
            _ = urlsplit(link).port
        except ValueError:
            raise InputError(
                f"{asked} is no address: what stands after its :// is neither a name nor HOST:PORT"
            ) from None
    return url


def name_of(url: str) -> str:
    """What the model is called where nobody gives it a name: the last part of its address."""
    paths = (link.partition("://")[2] for link in _LINKS.split(checked(url)))
    return next((name for path in paths if (name := PurePosixPath(path).name)), "model")


def without_secrets(text: str) -> str:
    """What a file system says, in which other addresses may stand: those that storage led on to."""
    text = re.sub(r"://[^\s/]*@", "://", text)
    return re.sub(r"\?\S+", "?***", text)


def listening_at(host: str, port: int) -> str:
    """The address of a service that listens there: `http://[::1]:8000/`."""
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/"
