"""Files of weights: which of those in a folder to take, and what a safetensors file says of itself."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .._errors import ModelError

__all__ = ["STEMS", "WeightFiles", "count_parameters", "find_weights", "read_header", "read_json"]

_JSON_BYTES = 64 << 20  # the largest tokenizers have 10 MB; an index of weights less than 1
_HEADER_BYTES = 100_000_000  # the limit that safetensors itself sets
STEMS = ("diffusion_pytorch_model", "model", "pytorch_model")  # diffusers, transformers, and its pickles
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


@dataclass(frozen=True, slots=True)
class WeightFiles:
    """The files of one network's weights, and the index that lists them where there are several."""

    files: tuple[Path, ...]
    index: Path | None
    variant: str | None
    pickled: bool


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file that somebody else wrote.

    Raises:
        ModelError: it is missing, no regular file, too large, or holds no JSON object.
    """
    if not path.is_file():  # nor a pipe, which would never end
        raise ModelError(f"{path} is missing; take a complete checkpoint")
    if path.stat().st_size > _JSON_BYTES:
        raise ModelError(
            f"{path} has {path.stat().st_size:,} bytes, too many for JSON; do not use this folder"
        )
    try:
        data = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path} cannot be read as JSON ({error}); download the checkpoint again") from error
    if not isinstance(data, dict):
        raise ModelError(f"{path} holds no JSON object; download the checkpoint again")
    return data


def find_weights(folder: Path, allow_pickle: bool) -> WeightFiles:
    """The weights in a component's folder: safetensors where there are any, in full precision where there is.

    Raises:
        ModelError: there are none, there are only pickles and these are not allowed, or an index lists
            files that are missing or outside the folder.
    """
    names = {path.name for path in folder.iterdir()}
    incomplete = None
    for name, variant, pickled in _candidates(names):
        if pickled and not allow_pickle:
            continue
        try:
            return _resolve(folder / name, variant, pickled)
        except _Missing as error:  # an index may come without its files where another variant is whole
            incomplete = incomplete or error
    if incomplete is not None:
        raise incomplete
    pickles = sorted(name for name in names if name.endswith(_PICKLES))
    if pickles and not allow_pickle:
        raise ModelError(
            f"{folder} has its weights as pickles only ({pickles[0]}), which can run any code when they are "
            "opened; take the safetensors version of this checkpoint, or allow pickles if you trust its maker"
        )
    raise ModelError(
        f"{folder} has no weights: expected {STEMS[0]}.safetensors or {STEMS[1]}.safetensors, found "
        f"{', '.join(sorted(names)) or 'nothing'}; take a complete checkpoint"
    )


class _Missing(ModelError):
    """A file is not there."""


def _candidates(names: Collection[str]) -> Iterator[tuple[str, str | None, bool]]:
    """The files and indexes of weights among a folder's names: name, variant, whether it is pickled."""
    for suffix in (".safetensors", ".bin"):
        for variant in (None, "fp16", "bf16"):
            for stem in STEMS:
                dotted = f".{variant}" if variant else ""
                for name in (f"{stem}{dotted}{suffix}", f"{stem}{suffix}.index{dotted}.json"):
                    if name in names:
                        yield name, variant, suffix == ".bin"


def _resolve(path: Path, variant: str | None, pickled: bool) -> WeightFiles:
    if path.suffix == ".json":
        return WeightFiles(_shards(path, pickled), path, variant, pickled)
    return WeightFiles((_regular(path),), None, variant, pickled)


def _regular(path: Path) -> Path:
    if not path.is_file():
        raise _Missing(f"{path} is no file; download the checkpoint again")
    return path


def _shards(index: Path, pickled: bool) -> tuple[Path, ...]:
    """The files that an index lists. It may come from anybody, so it may only name files beside it."""
    mapping = read_json(index).get("weight_map")
    if not isinstance(mapping, dict) or not mapping:
        raise ModelError(f"{index} has no 'weight_map'; download the checkpoint again")
    suffix = ".bin" if pickled else ".safetensors"
    names = []
    for name in dict.fromkeys(map(str, mapping.values())):
        if "/" in name or "\\" in name or ":" in name or "\0" in name or not name.endswith(suffix):
            raise ModelError(
                f"{index} lists {name!r}, which is no {suffix} file beside it; do not use this checkpoint"
            )
        if not (index.parent / name).is_file():
            raise _Missing(
                f"{index.parent / name} is missing, though {index.name} lists it; download it again"
            )
        names.append(name)
    return tuple(index.parent / name for name in sorted(names))


def read_header(path: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors in a safetensors file; nothing but its header is read.

    Raises:
        ModelError: it is no safetensors file, or it is cut short.
    """
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        size = path.stat().st_size
        if not 2 <= length <= min(_HEADER_BYTES, size - 8):
            raise ModelError(f"{path} is no safetensors file, or is cut short; download it again")
        try:
            header = json.loads(file.read(length))
            tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
            end = max((int(entry["data_offsets"][1]) for entry in tensors.values()), default=0)
            shapes = {name: tuple(map(int, entry["shape"])) for name, entry in tensors.items()}
        except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
            raise ModelError(
                f"{path} has a header that is not that of safetensors; download it again"
            ) from error
    if size != 8 + length + end:
        raise ModelError(
            f"{path} has {size:,} bytes, its header says {8 + length + end:,}: it is cut short or altered; "
            "download it again"
        )
    return shapes


def count_parameters(path: Path, pickled: bool = False) -> tuple[int, int]:
    """How many tensors a file of weights has, and how many numbers they hold.

    A pickle is not opened: it counts as no tensors, of 2 bytes a number.

    Raises:
        ModelError: it is no safetensors file, or it is cut short.
    """
    if pickled:
        return 0, path.stat().st_size // 2
    shapes = read_header(path)
    return len(shapes), sum(map(math.prod, shapes.values()))
