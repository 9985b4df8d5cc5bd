"""The metrics by name: what each needs, found before any picture is made, and how it turns into figures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .._errors import DriffusionError, InputError, did_you_mean
from . import weights
from .captions import Prompts
from .frechet import Gaussian
from .heldout import CHECKER, REAL_PICTURES, Checker, draw_real, shown
from .reference import Reference, read_reference

__all__ = ["METRICS", "Metric", "Places", "Scorer", "prepared"]

DRIFT = "drift"
OWN = (DRIFT, "alignment", "frechet")  # of the bundled models
PAPER = (DRIFT, "fid", "clip", "pickscore", "hpsv2")
METRICS = (*dict.fromkeys((*OWN, *PAPER)),)
# Options, as `Places` has them, and the metrics that they are of.
_OPTIONS = {
    "reference": ("fid",),
    "inception": ("fid",),
    **{name: (name,) for name in ("clip", "pickscore", "hpsv2")},
    "device": ("fid", "clip", "pickscore", "hpsv2"),
}
_TORCH = ("torch",)
_CLIP = ("torch", "transformers", "safetensors")


class Scorer(Protocol):
    """Turns pictures into numbers; `first` is the number of the first of them."""

    def __call__(
        self, images: Sequence[Image.Image], texts: Sequence[str], first: int
    ) -> NDArray[np.float32]:
        """A score for each picture (B,), or its features (B, F)."""


@dataclass(frozen=True, slots=True)
class Metric:
    """One column of the table.

    better: "higher" or "lower". key: which weights, so that what they said of pictures can be kept. load:
    the scorer; called once something is to be scored. reference: for distances; without one the metric is
    a mean over pictures. share: scores are 1 or 0, and the mean is the share of pictures that are right.
    scale: what a score is shown times.
    """

    name: str
    title: str
    better: str
    digits: int
    key: str
    load: Callable[[], Scorer]
    reference: Reference | None = None
    scale: float = 1.0
    share: bool = False
    facts: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Places:
    """Where weights and reference pictures are, as they were given; None is the default of each.

    device: of the scoring networks, "cpu", "cuda" or "cuda:1".
    """

    reference: str | None = None
    inception: str | None = None
    clip: str | None = None
    pickscore: str | None = None
    hpsv2: str | None = None
    device: str | None = None


def prepared(names: Sequence[str], prompts: Prompts, places: Places) -> list[Metric]:
    """The metrics that were asked for, `drift` apart, with their weights found.

    Raises:
        InputError: there is no such metric, or an option was given whose metric was not asked for, or what
            some of them need cannot be had; the message has all that is missing.
    """
    for name in names:
        if name not in METRICS:
            raise InputError(f"--metrics {name!r}: there is no such metric{did_you_mean(name, METRICS)}")
    _check_used(names, places)
    metrics, lacking = [], []
    for name in names:
        if name == DRIFT:
            continue
        try:
            metrics.append(_MAKERS[name](prompts, places))
        except DriffusionError as error:
            lacking.append(f"{name}: {error}")
    if lacking:
        raise InputError(
            f"of the metrics that were asked for, {len(lacking)} cannot be had; name others by --metrics, or "
            f"get what is missing. {'. '.join(lacking)}"
        )
    return metrics


def _check_used(names: Sequence[str], places: Places) -> None:
    for option, metrics in _OPTIONS.items():
        if getattr(places, option) is not None and not set(metrics) & set(names):
            shown_as = "score-device" if option == "device" else option
            raise InputError(
                f"--{shown_as} was given, and goes with {' or '.join(metrics)}, which is not among the "
                f"metrics ({', '.join(names)}); ask for it by --metrics, or leave out --{shown_as}"
            )


class _Alignment:
    """1 where a picture shows all that its held-out prompt names, else 0."""

    def __init__(self) -> None:
        self._checker = Checker()

    def __call__(
        self, images: Sequence[Image.Image], texts: Sequence[str], first: int
    ) -> NDArray[np.float32]:
        read, _ = self._checker(_pixels(images))
        return shown(read, first).astype(np.float32)


class _CheckerFeatures:
    """The features of the bundled models' classifier, (B, F)."""

    def __init__(self) -> None:
        self._checker = Checker()

    def __call__(
        self, images: Sequence[Image.Image], texts: Sequence[str], first: int
    ) -> NDArray[np.float32]:
        return self._checker(_pixels(images))[1]


def _pixels(images: Sequence[Image.Image]) -> NDArray[np.uint8]:
    return np.stack([np.asarray(image.convert("RGB")) for image in images])


@cache
def _drawn(count: int) -> Gaussian:
    return Gaussian.of(Checker()(draw_real(count)[0])[1])


def _alignment(prompts: Prompts, places: Places) -> Metric:
    _check_own(prompts)
    key = weights.key_of(CHECKER)
    return Metric("alignment", "all right %", "higher", 1, key, _Alignment, scale=100, share=True)


def _frechet(prompts: Prompts, places: Places) -> Metric:
    _check_own(prompts)
    reference = Reference(f"{REAL_PICTURES} drawn pictures", known=partial(_drawn, REAL_PICTURES))
    key = weights.key_of(CHECKER)
    return Metric("frechet", "Fréchet", "lower", 2, key, _CheckerFeatures, reference)


def _check_own(prompts: Prompts) -> None:
    if not prompts.held_out:
        raise InputError(
            f"it is of the bundled models' own held-out prompts, and {prompts.source} was asked; leave out "
            "--captions and --prompts-file"
        )


def _fid(prompts: Prompts, places: Places) -> Metric:
    weights.need(*_TORCH)
    if places.reference is None:
        raise InputError(
            "it needs --reference: the folder of the real pictures (MS-COCO's val2017), or their statistics, "
            "an .npz with mu and sigma"
        )
    path = weights.inception_file(places.inception, "--inception")
    from .inception import WIDTH, InceptionFeatures, read_weights

    read_weights(path)
    reference = read_reference(Path(places.reference).expanduser(), WIDTH)
    load = partial(InceptionFeatures, path, _device(places))
    facts = {"weights": path.name, "preparation": "clean-fid's", "reference": reference.name}
    return Metric("fid", "FID", "lower", 2, weights.key_of(path), load, reference, facts=facts)


def _clip(prompts: Prompts, places: Places) -> Metric:
    return _by_clip("clip", "CLIP score", weights.CLIP, places.clip, places)


def _pickscore(prompts: Prompts, places: Places) -> Metric:
    return _by_clip("pickscore", "PickScore", weights.PICKSCORE, places.pickscore, places, weights.VIT_H)


def _by_clip(
    name: str, title: str, hub_id: str, given: str | None, places: Places, beside: str | None = None
) -> Metric:
    weights.need(*_CLIP)
    folder, preparing, files = weights.clip_folder(given, hub_id, f"--{name}", beside)
    from .clip import ClipScore

    load = partial(ClipScore, folder, preparing, _device(places), preference=name == "pickscore")
    facts = {"weights": hub_id if given is None else given}
    return Metric(name, title, "higher", 3, weights.key_of(*files), load, facts=facts)


def _hpsv2(prompts: Prompts, places: Places) -> Metric:
    weights.need(*_CLIP)
    path, tokenizer, files = weights.hps_files(places.hpsv2, "--hpsv2")
    from .hps import HpsScore, check

    check(path, tokenizer)
    load = partial(HpsScore, path, tokenizer, _device(places))
    return Metric("hpsv2", "HPSv2.1", "higher", 3, weights.key_of(*files), load, facts={"weights": path.name})


def _device(places: Places) -> str:
    """Raises InputError for a device that torch does not have here."""
    import torch

    if places.device is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=places.device).cpu()  # "meta" makes tensors, and there is nothing in them
    except (RuntimeError, AssertionError, ImportError, AttributeError) as error:
        raise InputError(
            f"--score-device {places.device!r} cannot be used by torch here ({str(error)[:200]})"
        ) from error
    return places.device


_MAKERS: dict[str, Callable[[Prompts, Places], Metric]] = {
    "alignment": _alignment,
    "frechet": _frechet,
    "fid": _fid,
    "clip": _clip,
    "pickscore": _pickscore,
    "hpsv2": _hpsv2,
}
