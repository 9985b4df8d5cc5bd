"""What makes a plan the right one, and in words why another is not."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from .flavours import FLAVOURS
from .gpus import Gpu
from .manifest import ModelFolder
from .profiles import Profile

__all__ = ["PlanKey", "Platform", "onnx_hash"]

_RECIPE = 1  # raised when the same inputs are built to other plans than before


@dataclass(frozen=True, slots=True)
class Platform:
    """What plans are run or built with: a flavour of one version, for a GPU or a list of architectures.

    `gpu` is the name of the GPU that a plan of plain TensorRT was compiled on; plans of
    TensorRT-RTX have none and run on every GPU of their `targets`.
    """

    flavour: str
    version: str
    targets: tuple[str, ...]
    gpu: str = ""

    @property
    def folder(self) -> str:
        """The name of its folder of plans."""
        parts = [*([self.gpu] if self.gpu else []), *self.targets, self.flavour]
        return "-".join(re.sub(r"[^a-z0-9]+", "-", part.lower()).strip("-") for part in parts) + (
            f"-{self.version}"
        )

    def __str__(self) -> str:
        title = FLAVOURS[self.flavour].title if self.flavour in FLAVOURS else self.flavour
        where = ", ".join(self.targets) if not self.gpu else f"{self.gpu} ({', '.join(self.targets)})"
        return f"{title} {self.version} for {where}"

    def why_not(self, flavour: str, version: str, gpu: Gpu) -> str:
        """Why a plan of this platform cannot run there; empty where it can."""
        if self.flavour != flavour:
            return f"it is of {self}, and this is {FLAVOURS[flavour].title}"
        if self.version != version:
            return f"it is of {self}, and version {version} is installed"
        if gpu.target not in self.targets:
            return f"it is of {self}, and this GPU is {gpu}"
        if self.gpu and self.gpu != gpu.name:
            return f"it is of {self}, and this GPU is a {gpu.name}"
        return ""


@dataclass(frozen=True, slots=True)
class PlanKey:
    """All that can make a plan wrong: equal keys, equal plans."""

    network: str
    onnx_sha256: str
    precision: str
    profile: Profile
    platform: Platform
    options: dict[str, Any] = field(default_factory=dict)
    recipe: int = _RECIPE

    def to_json(self) -> dict[str, Any]:
        """Plain values, in a fixed order."""
        return {**asdict(self), "profile": self.profile.to_json()}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> PlanKey:
        """The inverse of `to_json`.

        Raises:
            KeyError, TypeError, ValueError: `data` is of another form.
        """
        given = dict(data)
        platform = dict(given.pop("platform"))
        platform["targets"] = tuple(platform["targets"])
        profile = Profile.from_json(given.pop("profile"))
        return cls(**given, platform=Platform(**platform), profile=profile)

    @property
    def digest(self) -> str:
        """Sixteen hexadecimal digits that stand for the whole key."""
        text = json.dumps(self.to_json(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def stem(self) -> str:
        """The plan's file name without its ending."""
        return f"{self.network}-{self.digest}"


def onnx_hash(folder: ModelFolder, network: str) -> str:
    """One hash for a network's ONNX file and the files of weights beside it, as the manifest has them.

    Raises:
        ModelError: there is no such network.
    """
    folder.network(network)
    parts = {name: entry.sha256 for name, entry in folder.files_of(network).items()}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
