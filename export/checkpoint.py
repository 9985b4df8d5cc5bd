"""Reading a diffusers folder: what is in it and whether it can be trusted; no tensor is loaded here.

A checkpoint comes from anywhere. Its names and numbers are checked before a library opens it: weights are
safetensors unless pickles are allowed, an index may name files beside it only, and no class is taken from it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .._errors import ModelError
from ..models import ModelSpec
from .parts import DENOISERS, Part, describe, parts_of
from .weights import count_parameters, find_weights, read_json

__all__ = ["Checkpoint", "Component", "read_checkpoint"]

_LAYERS = ("num_layers", "num_hidden_layers", "layers_per_block", "transformer_layers_per_block")


@dataclass(frozen=True, slots=True)
class Component:
    """One network's folder.

    `files` are all that the network is made from, `weights` those of them that hold tensors;
    `variant` is what diffusers calls "fp16" in diffusion_pytorch_model.fp16.safetensors;
    `parameters` is a number of elements.
    """

    part: Part
    folder: Path
    config: Mapping[str, Any]
    files: tuple[Path, ...]
    weights: tuple[Path, ...]
    variant: str | None
    pickled: bool
    parameters: int


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A diffusers folder that has been read; `components` by folder name, in the order of `parts_of`."""

    folder: Path
    spec: ModelSpec
    components: Mapping[str, Component]

    @property
    def text_encoders(self) -> tuple[str, ...]:
        """Names of the text encoders that are there."""
        return tuple(name for name in self.components if name.startswith("text_encoder"))

    def tokenizer(self, text_encoder: str) -> Path:
        """The folder of the tokenizer that belongs to a text encoder."""
        return self.folder / text_encoder.replace("text_encoder", "tokenizer")

    def precision_of(self, component: Component, precision: str) -> str:
        """The precision of one network: SDXL's autoencoder leaves fp16's range, and its config says so."""
        upcast = self.spec.architecture == "sdxl" and component.config.get("force_upcast", True)
        return "fp32" if precision == "fp16" and component.part.name == "vae" and upcast else precision

    @property
    def force_zeros_for_empty_prompt(self) -> bool:
        """Whether zeros stand for no negative prompt, as SDXL was trained; the default is diffusers'."""
        if self.spec.architecture != "sdxl":
            return False
        index = self.folder / "model_index.json"
        return bool(read_json(index).get("force_zeros_for_empty_prompt", True)) if index.exists() else True

    @property
    def clip_skip_most(self) -> int:
        """The largest `clip_skip` that every CLIP of the checkpoint has layers for."""
        return min(
            clip_skips(self.spec, self.components[name])
            for name in self.text_encoders
            if self.components[name].part.class_name.startswith("CLIP")
        )

    @property
    def scheduler(self) -> Path:
        return self.folder / "scheduler" / "scheduler_config.json"


def clip_skips(spec: ModelSpec, component: Component) -> int:
    """The layers of a CLIP before the one that its family reads, its embeddings as one of them.

    Raises:
        ModelError: its config does not say how many layers it has.
    """
    layers = component.config.get("num_hidden_layers")
    if isinstance(layers, bool) or not isinstance(layers, int) or layers < 2:
        raise ModelError(
            f"{component.folder / 'config.json'} has num_hidden_layers {layers!r}, expected 2 at least; "
            "download the checkpoint again"
        )
    return layers if spec.architecture == "sd21" else layers - 1  # the others never read the last


def read_checkpoint(
    folder: Path, spec: ModelSpec, *, allow_pickle: bool = False, skip: Collection[str] = ()
) -> Checkpoint:
    """Find the networks of a family in a diffusers folder.

    Args:
        folder: what `save_pretrained` of a diffusers pipeline writes.
        spec: the family that it should be of.
        allow_pickle: take pytorch_model.bin and the like where there are no safetensors. They are
            still read by torch's restricted unpickler.
        skip: optional text encoders to do without.

    Raises:
        ModelError: the folder is no checkpoint, is of another family, lacks a component, has pickles
            for weights, or has files that cannot be trusted.
    """
    parts = [part for part in parts_of(spec) if part.name not in skip]
    index = _read_index(folder, spec)
    _check_family(folder, spec)
    components = {}
    for part in parts:
        named = index.get(part.name, [None, part.class_name])
        there = (folder / part.name).is_dir() and named != [None, None]
        if there:
            components[part.name] = _component(part, folder / part.name, named, allow_pickle)
        elif not part.optional:
            raise _missing(folder, spec, part.name)
    checkpoint = Checkpoint(folder, spec, components)
    for path in (*map(checkpoint.tokenizer, checkpoint.text_encoders), checkpoint.scheduler.parent):
        if not path.is_dir():
            raise _missing(folder, spec, path.name)
    read_json(checkpoint.scheduler)
    return checkpoint


def _missing(folder: Path, spec: ModelSpec, name: str) -> ModelError:
    found = ", ".join(sorted(path.name for path in folder.iterdir() if path.is_dir())) or "nothing"
    return ModelError(
        f"{folder} has no {name!r}, which {spec.family} needs (there is: {found}); take a complete checkpoint"
    )


def _read_index(folder: Path, spec: ModelSpec) -> dict[str, Any]:
    """model_index.json; the demo's training writes none, so its folders alone will do."""
    if folder.is_file():
        raise ModelError(
            f"{folder} is a single file, and a diffusers folder is needed; load it with from_single_file "
            "of its diffusers pipeline, and write the folder with save_pretrained"
        )
    if (folder / "model_index.json").exists():
        return read_json(folder / "model_index.json")
    if not any((folder / name / "config.json").exists() for name in DENOISERS):
        hint = "" if spec.hub_id is None else f", or a hub id such as {spec.hub_id!r}"
        raise ModelError(
            f"{folder} is not a diffusers folder: it has no model_index.json; "
            f"give the folder that holds it{hint}"
        )
    return {}


def _check_family(folder: Path, spec: ModelSpec) -> None:
    for name in DENOISERS:
        if not (folder / name / "config.json").exists():
            continue
        found, families = describe(read_json(folder / name / "config.json"))
        if spec.family not in families:
            remedy = f"build it as {families[0]!r}" if families else "this kind is not supported"
            raise ModelError(
                f"{folder} holds {found} checkpoint, not one of family {spec.family!r}; {remedy}"
            )


def _component(part: Part, folder: Path, named: object, allow_pickle: bool) -> Component:
    config = read_json(folder / "config.json")
    architectures = config.get("architectures") or [part.class_name]
    own = config.get("_class_name") or architectures[0]
    # model_index.json wins: encoders are sometimes cut out of larger models, and keep their class name.
    listed = named[1] if isinstance(named, list) and len(named) == 2 else own
    if listed != part.class_name and own != part.class_name:
        raise ModelError(
            f"{folder} holds a {listed}, where a {part.class_name} is expected; "
            "take a checkpoint of this family"
        )
    weights = find_weights(folder, allow_pickle)
    sizes = [count_parameters(path, weights.pickled) for path in weights.files]
    tensors = sum(count for count, _ in sizes)
    _check_layers(folder, config, tensors)
    files = [folder / "config.json", *([weights.index] if weights.index else []), *weights.files]
    return Component(
        part=part,
        folder=folder,
        config=config,
        files=tuple(files),
        weights=weights.files,
        variant=weights.variant,
        pickled=weights.pickled,
        parameters=sum(numbers for _, numbers in sizes),
    )


def _check_layers(folder: Path, config: Mapping[str, Any], tensors: int) -> None:
    """A config with a billion layers would keep us busy for ever; each of them has a tensor at least."""
    for key in _LAYERS:
        value = config.get(key, 1)
        counts = value if isinstance(value, list) else [value]
        flat = [one for count in counts for one in (count if isinstance(count, list) else [count])]
        wrong = [one for one in flat if not isinstance(one, int) or (tensors and not 0 <= one <= tensors)]
        if wrong:
            raise ModelError(
                f"{folder / 'config.json'} says {key} {wrong[0]!r}, but its weights are {tensors} tensors; "
                "do not use this checkpoint"
            )
