"""Where a checkpoint is: a folder, or a model on the hub, of which only what is needed is fetched."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator
from pathlib import Path

from .._errors import InputError, MissingExtraError, ModelError
from ..models import ModelSpec
from .parts import parts_of
from .weights import STEMS, find_weights

__all__ = ["find_checkpoint"]

_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
_SMALL = ("*.json", "*/*.json", "*/*.txt", "*/*.model")  # settings, tokenizers and indexes of weights


def find_checkpoint(
    checkpoint: str | os.PathLike[str],
    spec: ModelSpec,
    *,
    precision: str = "fp16",
    allow_pickle: bool = False,
    skip: Collection[str] = (),
) -> Path:
    """The folder of a checkpoint; one on the hub is downloaded into the hub's own cache.

    For fp16 the weights that the hub has in fp16 are taken, which are half as large.

    Raises:
        InputError: there is no such folder, and it is no id of a model on the hub either.
        ModelError: the hub does not have it, or cannot be reached and it is not in the cache.
        MissingExtraError: the hub's package is not installed.
    """
    name = os.fspath(checkpoint)
    path = Path(name).expanduser()
    if path.exists():
        return path
    # "models/sdxl" is a folder that was mistyped where there is a folder "models".
    if not _HUB_ID.fullmatch(name) or path.parent.is_dir():
        hint = "" if spec.hub_id is None else f", or a hub id such as {spec.hub_id!r}"
        raise InputError(f"there is no folder {name!r}; give a diffusers folder{hint}")
    folder = _fetch(name, _SMALL)
    names = [part.name for part in parts_of(spec) if part.name not in skip and (folder / part.name).is_dir()]
    for patterns in _weights(precision, allow_pickle):
        lacking = [part for part in names if not _complete(folder / part, allow_pickle)]
        if lacking:
            folder = _fetch(name, [f"{part}/{pattern}" for part in lacking for pattern in patterns])
    return folder


def _weights(precision: str, allow_pickle: bool) -> Iterator[list[str]]:
    """Names of files of weights to look for, one kind after the other until there are some."""
    suffixes = (".safetensors", ".bin") if allow_pickle else (".safetensors",)
    variants = ("fp16", "") if precision == "fp16" else ("", "fp16")
    for suffix in suffixes:
        for variant in variants:
            dotted = f".{variant}" if variant else ""
            forms = dict.fromkeys((dotted, f"{dotted}-*-of-*", f"-*-of-*{dotted}"))
            yield [f"{stem}{form}{suffix}" for stem in STEMS for form in forms]


def _complete(folder: Path, allow_pickle: bool) -> bool:
    try:
        find_weights(folder, allow_pickle)
    except ModelError:
        return False
    return True


def _fetch(name: str, patterns: Collection[str]) -> Path:
    """Download files into the cache, or take them from there if the hub cannot be reached."""
    try:
        from huggingface_hub import errors, snapshot_download
    except ImportError as error:
        raise MissingExtraError("huggingface_hub", "export") from error
    try:
        return Path(snapshot_download(name, allow_patterns=list(patterns)))
    except errors.GatedRepoError as error:
        raise ModelError(
            f"{name} is on the hub, but its authors want you to accept their terms: do so on its page, then "
            "log in with `hf auth login`, or give a folder that has it"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise ModelError(f"the hub has no model {name!r}; check its name, or give a folder") from error
    except (errors.HfHubHTTPError, errors.EntryNotFoundError, errors.HFValidationError, OSError) as error:
        raise ModelError(
            f"{name!r} is no folder, and cannot be had from the hub ({error}); check the name and the "
            "network, or give a folder that has it"
        ) from error
