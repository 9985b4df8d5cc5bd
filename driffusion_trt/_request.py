"""One call of the pipeline, checked before any work."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from . import __version__
from ._errors import InputError
from ._planner import flag, scale
from ._settings import Seed, Size, check_names, pair, seeds, texts, whole
from ._source import Source, check_count
from .models import ModelSpec
from .sampling.plan import Plan
from .sampling.sample import Stats

__all__ = ["Request", "Sizes", "Texts"]

Texts = tuple[str, ...]  # one for each text encoder of the family
_PROMPTS = ("prompt", "prompt_2", "prompt_3")
_SIZES = ("original_size", "crops_coords_top_left", "target_size")


@dataclass(frozen=True, slots=True)
class Sizes:
    """What SDXL is told of sizes (2307.01952, section 2.2), in pixels, height or top first."""

    original_size: Size
    crops_coords_top_left: Size
    target_size: Size

    def ids(self) -> tuple[int, ...]:
        """The numbers of its `time_ids`."""
        return (*self.original_size, *self.crops_coords_top_left, *self.target_size)


@dataclass(frozen=True, slots=True)
class Request:
    """A checked call with one prompt for each picture; make one with `Request.check`.

    prompts: for each picture a text for each text encoder.
    negative: the same for the negative prompts; None is the family's own rule for none.
    seed: an int is one random stream for the whole batch, a tuple has one for each picture.
    sizes, negative_sizes: for SDXL; None for the others.
    source: the picture to start from; None for noise.
    split_guidance: predict with and without the prompt on two devices; see `Pipeline.__call__`.
    devices: GPUs that are enough for it, while others work for somebody else; None for all there are.
    """

    prompts: tuple[Texts, ...]
    negative: tuple[Texts, ...] | None
    height: int
    width: int
    guidance_scale: float
    seed: Seed
    clip_skip: int = 0
    sizes: Sizes | None = None
    negative_sizes: Sizes | None = None
    vae_tiling: bool | int | None = None
    source: Source | None = None
    split_guidance: bool = False
    devices: int | None = None

    @classmethod
    def check(cls, spec: ModelSpec, own_size: Size, prompt: object, settings: Mapping[str, Any]) -> Self:
        """The request that these arguments of `Pipeline.__call__` make, after `_source.resolved`.

        own_size: height and width of the model's pictures where nobody asks for another.

        Raises InputError for the first of them that cannot be.
        """
        check_names(settings)
        prompts = _for_encoders(spec, settings, "prompt", texts("prompt", prompt))
        images = whole("num_images", settings.get("num_images", 1), 1)
        height, width = (
            own if settings.get(name) is None else whole(name, settings[name], 1)
            for name, own in zip(("height", "width"), own_size, strict=True)
        )
        spec.latent_size(height, width)
        sizes, negative_sizes = _sizes(spec, settings, (height, width))
        negative = _negative(spec, settings, len(prompts))
        wanted = settings.get("guidance_scale")
        return cls(
            _repeated(prompts, images),
            None if negative is None else _repeated(negative, images),
            height,
            width,
            scale(spec.guidance_scale if wanted is None else wanted),
            seeds(settings.get("seed", 0), images * len(prompts)),
            0 if settings.get("clip_skip") is None else whole("clip_skip", settings["clip_skip"], 0),
            sizes,
            negative_sizes,
            settings.get("vae_tiling"),
            Source.check(spec, settings, len(prompts), images, (height, width)),
            flag("split_guidance", settings.get("split_guidance", False)),
        )

    @property
    def guided(self) -> bool:
        """Whether there is an unconditional pass: at a scale of 1 or less there is nothing to guide."""
        return self.guidance_scale > 1

    def settings(
        self, plan: Plan, stats: Stats, scheduler: str, model: dict[str, Any]
    ) -> tuple[dict[str, Any], ...]:
        """For each picture the call that makes it again, as plain JSON values.

        `Result.call` picks out the arguments of `Pipeline.__call__`. In
        a batch, `picture` of `batch` says which one it was: the network may round
        differently in batches of another size. `batch_seed` stands for `seed` where one
        random stream made the whole batch.
        """
        count = len(self.prompts)
        shared: dict[str, Any] = {
            "height": self.height,
            "width": self.width,
            "steps": plan.steps,
            "guidance_scale": self.guidance_scale,
            "mode": plan.mode,
            "lanes": plan.lanes,
            **({"split_guidance": True} if self.split_guidance and self.guided else {}),
            "scheduler": scheduler,
            **plan.asked(),
            **({"eta": plan.schedule.eta} if plan.schedule.solver == "ddim" and plan.schedule.eta else {}),
            **({"clip_skip": self.clip_skip} if self.clip_skip else {}),
            **self._size_settings(),
            **({} if self.vae_tiling is None else {"vae_tiling": self.vae_tiling}),
            **({} if self.source is None else self.source.settings()),
            "sequential_calls": stats.rounds,
            **model,
            "version": __version__,
        }
        drifts = [{} if stats.drift is None else {"drift": float(stats.drift[k])} for k in range(count)]
        return tuple(
            {**self._texts(k), **self._origin(k, count), **shared, **drift} for k, drift in enumerate(drifts)
        )

    def _size_settings(self) -> dict[str, Any]:
        """Sizes that are not what they would be anyway."""
        picture = self.height, self.width
        told = (
            ("", self.sizes, Sizes(picture, (0, 0), picture)),
            ("negative_", self.negative_sizes, self.sizes),
        )
        return {
            prefix + name: list(getattr(sizes, name))
            for prefix, sizes, default in told
            if sizes is not None and sizes != default
            for name in _SIZES
        }

    def _texts(self, picture: int) -> dict[str, Any]:
        """The prompts; those of further encoders where they are others."""
        found: dict[str, Any] = {}
        for prefix, rows in (("", self.prompts), ("negative_", self.negative)):
            row = None if rows is None else rows[picture]
            found[f"{prefix}prompt"] = None if row is None else row[0]
            if row is not None:
                found |= {
                    f"{prefix}{name}": text
                    for name, text in zip(_PROMPTS[1:], row[1:], strict=False)
                    if text != row[0]
                }
        return found

    def _origin(self, picture: int, count: int) -> dict[str, Any]:
        place = {"picture": picture, "batch": count} if count > 1 else {}
        if isinstance(self.seed, tuple):
            return {"seed": self.seed[picture], **place}
        return {"seed" if count == 1 else "batch_seed": self.seed, **place}


def _repeated(rows: Sequence[Texts], images: int) -> tuple[Texts, ...]:
    return tuple(row for row in rows for _ in range(images))


def _for_encoders(
    spec: ModelSpec, settings: Mapping[str, Any], name: str, first: Sequence[str]
) -> list[Texts]:
    """For each picture the text of every encoder; an encoder without one of its own gets the first's."""
    columns = [first]
    encoders = [encoder.name for encoder in spec.text_encoders]
    for number, text_encoder in enumerate(("text_encoder_2", "text_encoder_3"), 2):
        setting = f"{name}_{number}"
        given = settings.get(setting)
        if text_encoder not in encoders:
            if given is not None:
                raise InputError(
                    f"{setting} was given, and {spec.family} has {len(encoders)} text encoder"
                    f"{'s' if len(encoders) > 1 else ''}; leave it out"
                )
            continue
        column = first if given is None else _as_many(setting, texts(setting, given), len(first))
        # As in diffusers: an empty one is none.
        columns.append([own or other for own, other in zip(column, first, strict=True)])
    return list(zip(*columns, strict=True))


def _as_many(name: str, given: Sequence[str], prompts: int) -> Sequence[str]:
    check_count(name, len(given), prompts)
    return given if len(given) == prompts else [*given] * prompts


def _negative(spec: ModelSpec, settings: Mapping[str, Any], prompts: int) -> list[Texts] | None:
    given = settings.get("negative_prompt")
    others = [name for name in ("negative_prompt_2", "negative_prompt_3") if settings.get(name) is not None]
    if given is None and not others:
        return None
    first = _as_many("negative_prompt", texts("negative_prompt", "" if given is None else given), prompts)
    return _for_encoders(spec, settings, "negative_prompt", first)


def _sizes(spec: ModelSpec, settings: Mapping[str, Any], picture: Size) -> tuple[Sizes | None, Sizes | None]:
    """As diffusers has them: those of the negative prompt count where both of its sizes are given."""
    asked = [f"{prefix}{name}" for prefix in ("", "negative_") for name in _SIZES]
    given = [name for name in asked if settings.get(name) is not None]
    if spec.architecture != "sdxl":
        if given:
            raise InputError(f"{given[0]} was given, and {spec.family} is not told of sizes; leave it out")
        return None, None
    own = _size("", settings, picture)
    halves = [settings.get(f"negative_{name}") is not None for name in (_SIZES[0], _SIZES[2])]
    if any(halves) != all(halves):
        raise InputError("negative_original_size and negative_target_size go together; give both, or neither")
    return own, _size("negative_", settings, picture) if all(halves) else own


def _size(prefix: str, settings: Mapping[str, Any], picture: Size) -> Sizes:
    defaults = (picture, (0, 0), picture)
    values = [
        default
        if settings.get(prefix + name) is None
        else pair(prefix + name, settings[prefix + name], least)
        for name, default, least in zip(_SIZES, defaults, (1, 0, 1), strict=True)
    ]
    return Sizes(*values)
