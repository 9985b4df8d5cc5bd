"""Where the weights of the metrics are: a path that was given, the hub's cache, or the hub itself."""

from __future__ import annotations

import hashlib
import importlib.util
import os
from collections.abc import Sequence
from pathlib import Path
from urllib.error import URLError

from .._errors import InputError, MissingExtraError, ModelError
from .._manifest import sha256

__all__ = [
    "CLIP",
    "HPS",
    "PICKSCORE",
    "VIT_H",
    "clip_folder",
    "hps_files",
    "inception_file",
    "key_of",
    "need",
    "tokenizer_files",
]

CLIP = "openai/clip-vit-large-patch14"
PICKSCORE = "yuvalkirstain/PickScore_v1"
HPS, HPS_FILE = "xswu/HPSv2", "HPS_v2.1_compressed.pt"
VIT_H = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"  # what PickScore and HPSv2 were tuned from
INCEPTION_FILE = "pt_inception-2015-12-05-6726825d.pth"
INCEPTION_URL = f"https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/{INCEPTION_FILE}"
_INCEPTION_NAMES = (INCEPTION_FILE, INCEPTION_FILE.replace("pt_inception", "weights-inception"))

_TOKENIZER = (("tokenizer.json",), ("vocab.json", "merges.txt"))  # either will do
_PROCESSOR = "preprocessor_config.json"
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")
_WORDS = ("tokenizer*.json", "vocab.json", "merges.txt", "special_tokens_map.json", "added_tokens.json")
_PREPARING = ("preprocessor_config.json", "processor_config.json", *_WORDS)  # pictures and texts
_SMALL = ("config.json", *_PREPARING)


def need(*packages: str) -> None:
    """Raises MissingExtraError for a package that is not installed."""
    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise MissingExtraError(package, "eval")


def key_of(*files: Path) -> str:
    """Which weights these are: the SHA-256 of one file, or of the names and digests of several."""
    digests = [sha256(file) for file in files]
    if len(files) == 1:
        return digests[0]
    lines = [f"{file.name} {digest}" for file, digest in zip(files, digests, strict=True)]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def clip_folder(
    given: str | None, hub_id: str, option: str, beside: str | None = None
) -> tuple[Path, Path, list[Path]]:
    """The folder of a CLIP model, that of its processor and tokenizer, and all files that make a difference.

    given: a folder, or the id of another model on the hub; None for `hub_id`. beside: the model on the hub
    whose processor and tokenizer are taken where the folder has not both of its own.

    Raises:
        InputError: `given` is neither, or the folder lacks something.
        ModelError: the hub does not have it, or cannot be reached and it is not in the cache.
        MissingExtraError: the hub's package is not installed.
    """
    name = hub_id if given is None else given
    folder = Path(name).expanduser()
    if not folder.is_dir():
        if name.count("/") != 1 or name.startswith((".", "~", os.sep)) or folder.parent.is_dir():
            raise InputError(f"{option} {name!r}: there is no such folder; give one, or a hub id as {hub_id}")
        folder = _snapshot(name, option, [*_SMALL, _WEIGHTS[0]])
        if not _weights(folder):
            folder = _snapshot(name, option, [*_SMALL, "model-*.safetensors", *_WEIGHTS[1:]])
    weights = _weights(folder)
    lacking = [] if (folder / "config.json").exists() else ["config.json"]
    lacking += [] if weights else [_WEIGHTS[0]]
    preparing = folder
    if beside is not None and not lacking and _not_prepared(folder):
        preparing = _snapshot(beside, f"{option} (its processor and tokenizer)", _PREPARING)
    lacking += _not_prepared(preparing)
    if lacking:
        raise InputError(
            f"{option}: {preparing} has no {', '.join(lacking)}; it must be a CLIP model as transformers "
            f"saves it, with its processor, such as {hub_id} on the hub"
        )
    return folder, preparing, [*weights, folder / "config.json", *_matching(preparing, _PREPARING)]


def _not_prepared(folder: Path) -> list[str]:
    """What a folder lacks of a processor and a tokenizer."""
    lacking = [] if (folder / _PROCESSOR).exists() else [_PROCESSOR]
    return lacking + ([] if tokenizer_files(folder) else ["tokenizer.json (or vocab.json and merges.txt)"])


def _matching(folder: Path, patterns: Sequence[str]) -> list[Path]:
    """The files of a folder that a model is prepared by, in a fixed order."""
    return sorted({file for pattern in patterns for file in folder.glob(pattern)})


def hps_files(given: str | None, option: str) -> tuple[Path, Path, list[Path]]:
    """The checkpoint of HPSv2.1, a folder with CLIP's tokenizer (beside it, or from the hub), and all files.

    given: the checkpoint, or the folder that it is in. Raises as `clip_folder` does.
    """
    if given is None:
        path = _snapshot(HPS, option, [HPS_FILE]) / HPS_FILE
        if not path.exists():
            raise ModelError(f"{HPS} on the hub has no {HPS_FILE}; give the file by {option}")
    else:
        path = Path(given).expanduser()
        path = path / HPS_FILE if path.is_dir() else path
        if not path.is_file():
            raise InputError(f"{option}: there is no {path}; {HPS_FILE} is in {HPS} on the hub (1.97 GB)")
    folder = path.parent
    if not tokenizer_files(folder):
        folder = _snapshot(VIT_H, f"{option} (its tokenizer)", _WORDS)
    if not tokenizer_files(folder):
        raise ModelError(
            f"{option}: neither {path.parent} nor {VIT_H} on the hub has tokenizer.json; "
            "put that of any CLIP model beside the checkpoint"
        )
    return path, folder, [path, *_matching(folder, _WORDS)]


def inception_file(given: str | None, option: str) -> Path:
    """FID's Inception weights: a path, or torch's cache, into which they are fetched if need be.

    Raises:
        InputError: the path that was given is not there.
        ModelError: they are not in the cache, and cannot be fetched.
    """
    if given is not None:
        path = Path(given).expanduser()
        if not path.is_file():
            raise InputError(f"{option}: there is no file {path}; {INCEPTION_FILE} is at {INCEPTION_URL}")
        return path
    import torch

    cache = Path(torch.hub.get_dir()) / "checkpoints"
    for name in _INCEPTION_NAMES:
        if (cache / name).is_file():
            return cache / name
    target = cache / INCEPTION_FILE
    try:
        cache.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(INCEPTION_URL, str(target), hash_prefix="6726825d", progress=False)
    except (URLError, OSError, RuntimeError) as error:
        raise ModelError(
            f"{' or '.join(_INCEPTION_NAMES)} is not in {cache}, and cannot be had from {INCEPTION_URL} "
            f"({error}); fetch it elsewhere and give it by {option}"
        ) from error
    return target


def _weights(folder: Path) -> list[Path]:
    if (folder / _WEIGHTS[1]).exists():  # in parts
        return sorted(folder.glob("model-*-of-*.safetensors"))
    return [folder / one for one in (_WEIGHTS[0], _WEIGHTS[2]) if (folder / one).exists()][:1]


def tokenizer_files(folder: Path) -> list[Path]:
    """The files that make the tokenizer of a folder; none where they are not all there."""
    for names in _TOKENIZER:
        if all((folder / name).exists() for name in names):
            return [folder / name for name in names]
    return []


def _snapshot(name: str, option: str, patterns: Sequence[str]) -> Path:
    """Files of a model, from the hub's cache or by way of it."""
    need("huggingface_hub")
    from huggingface_hub import constants, errors, snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=list(patterns)))
    except errors.RepositoryNotFoundError as error:
        raise ModelError(
            f"the hub has no model {name!r}; check the name, or give a folder by {option}"
        ) from error
    except (errors.HfHubHTTPError, errors.EntryNotFoundError, errors.HFValidationError, OSError) as error:
        raise ModelError(
            f"{name} is not in the hub's cache ({constants.HF_HUB_CACHE}), and cannot be had from the hub "
            f"({str(error)[:200]}); fetch it elsewhere (`hf download {name}`) and give its path by {option}"
        ) from error
