"""Which devices predict: a number of CPU lanes, or GPUs of this machine, chosen before anything is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .._errors import DriffusionError, InputError
from ..engines.flavours import FLAVOURS, Flavour, installed_version
from ..engines.gpus import Gpu, Gpus, find_gpus
from ..engines.key import onnx_hash
from ..engines.manifest import ModelFolder
from ..engines.store import Plan, PlanStore
from .host import auto_lanes

__all__ = ["Asked", "Devices", "choose_devices", "choose_plan"]

Asked = int | str | Sequence[str]
MOST_LANES = 256  # more CPU lanes than this are a slip of the hand


@dataclass(frozen=True, slots=True)
class Devices:
    """`count` devices: the GPUs of these numbers, or CPU lanes where there are none."""

    count: int
    gpus: tuple[Gpu, ...] = ()

    def __str__(self) -> str:
        if not self.gpus:
            return f"{self.count} CPU threads"
        return ", ".join(f"GPU {gpu.index} ({gpu.name})" for gpu in self.gpus)


def choose_devices(asked: Asked, folder: ModelFolder) -> Devices:
    """The devices that predict.

    Args:
        asked: a number; "auto" for all that there are; "cuda" for all GPUs; or a list such as
            ["cuda:0", "cuda:1"] (one may be there twice) or ["cpu", "cpu"]. A number and "auto" mean
            GPUs where the model has plans for those of this machine, else CPU lanes.

    Raises:
        InputError: they cannot be had.
    """
    words = _words(asked)
    if words is not None and any(word == "cuda" or word.startswith("cuda:") for word in words):
        return _named(words)
    if words is not None and words != ["auto"]:
        if not 1 <= len(words) <= MOST_LANES or any(word != "cpu" for word in words):
            raise _refused(asked)
        return Devices(len(words))
    if isinstance(asked, int) and not 1 <= asked <= MOST_LANES:
        raise _refused(asked)
    usable = _usable(folder)
    if isinstance(asked, int):
        if usable and asked > len(usable):
            raise InputError(
                f"devices={asked} was asked, and the model has plans for {len(usable)} GPUs of this machine; "
                "ask for fewer, or for CPU lanes: ['cpu', 'cpu']"
            )
        return Devices(asked, usable[:asked])
    return Devices(len(usable), usable) if usable else Devices(min(auto_lanes(), MOST_LANES))


def _words(asked: object) -> list[str] | None:
    """The names that were asked for; None for a number."""
    if isinstance(asked, int) and not isinstance(asked, bool):
        return None
    if isinstance(asked, str):
        return [asked]
    if isinstance(asked, Sequence) and all(isinstance(word, str) for word in asked):
        return list(asked)
    raise _refused(asked)


def _refused(asked: object) -> InputError:
    return InputError(
        f"devices={asked!r} was asked; give a number from 1 to {MOST_LANES}, 'auto', 'cuda', or a list "
        "of 'cuda:0', 'cuda:1' or of 'cpu'"
    )


def _named(words: Sequence[str]) -> Devices:
    gpus = find_gpus()
    if not gpus.found:
        raise InputError(f"devices={list(words)!r} was asked, and no GPU was found ({gpus.why_none})")
    if list(words) == ["cuda"]:
        return Devices(len(gpus.found), gpus.found)
    chosen = tuple(_numbered(word, words, gpus) for word in words)
    return Devices(len(chosen), chosen)


def _numbered(word: str, words: Sequence[str], gpus: Gpus) -> Gpu:
    kind, _, number = word.partition(":")
    if kind != "cuda" or not number.isdecimal():
        raise _refused(list(words))
    if int(number) >= len(gpus.found):
        raise InputError(
            f"devices={list(words)!r} was asked, and this machine has {len(gpus.found)} GPUs, cuda:0 to "
            f"cuda:{len(gpus.found) - 1}"
        )
    return gpus.found[int(number)]


def _usable(folder: ModelFolder) -> tuple[Gpu, ...]:
    """GPUs for which the folder has a plan of its denoiser."""
    if not (folder.path / "plans").is_dir():
        return ()
    usable = []
    for gpu in find_gpus().found:
        try:
            choose_plan(folder, "denoiser", gpu)
        except DriffusionError:
            continue
        usable.append(gpu)
    return tuple(usable)


def choose_plan(folder: ModelFolder, network: str, gpu: Gpu) -> tuple[Plan, Flavour]:
    """The plan of a network for a GPU, of a flavour that is installed; `tensorrt` first.

    Raises:
        ModelError: the folder has none that can run there; the message says why each will not do.
        MissingExtraError: no TensorRT is installed.
    """
    digest = onnx_hash(folder, network)
    refusal: DriffusionError | None = None
    for flavour in FLAVOURS.values():
        version = installed_version(flavour)
        if version is None or (flavour.targets and gpu.target not in flavour.targets):
            continue
        try:
            plan = PlanStore(folder.path).choose(
                network, digest, flavour=flavour.name, version=version, gpu=gpu
            )
        except DriffusionError as error:
            refusal = refusal or error
        else:
            return plan, flavour
    if refusal is not None:
        raise refusal
    from ..engines.flavours import choose_flavour, missing

    raise missing(choose_flavour(gpu))
