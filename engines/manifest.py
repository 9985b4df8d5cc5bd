"""Model folders: what a build wrote, found and checked before anything is loaded from it."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from importlib import resources
from pathlib import Path, PurePosixPath
from typing import Any

from .._errors import ModelError, did_you_mean
from .._manifest import MANIFEST, FileEntry, Manifest, read_manifest, sha256, write_manifest
from ..models import MODELS, ModelSpec, get_spec

__all__ = ["BUNDLED", "ModelFolder", "resolve_model", "write_manifest"]

BUNDLED = ("demo", "demo-xl", "demo-sd3")
_NAMES = ", ".join(map(repr, BUNDLED))


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """A model folder whose manifest has been read; make one with `ModelFolder.open`."""

    path: Path
    manifest: Manifest

    @classmethod
    def open(cls, path: str | os.PathLike[str], *, verify: bool = False) -> ModelFolder:
        """Read the manifest and check that every file is there with its size.

        Args:
            path: the folder, or the name of a bundled model ("demo", "demo-xl", "demo-sd3").
            verify: also hash every file (about a second per GB).

        Raises:
            ModelError: the folder is missing, incomplete, altered, or of another format.
        """
        folder = resolve_model(path)
        model = cls(folder, read_manifest(folder))
        if model.manifest.family not in MODELS:
            raise ModelError(
                f"{folder / MANIFEST} is of family {model.manifest.family!r}, which this version "
                f"does not know{did_you_mean(model.manifest.family, MODELS)}"
            )
        for name, entry in model.manifest.files.items():
            model._check_size(name, entry.size_bytes)
        if verify:
            model.verify()
        return model

    def _check_size(self, name: str, expected: int) -> None:
        try:
            found = (self.path / name).stat().st_size
        except OSError as error:
            raise ModelError(
                f"{self.path / name} is missing, though {MANIFEST} lists it; {self._remedy()}"
            ) from error
        if found != expected:
            raise ModelError(
                f"{self.path / name} has {found:,} bytes, {MANIFEST} says {expected:,}: "
                f"it is cut short or was altered; {self._remedy()}"
            )

    def verify(self, network: str | None = None) -> None:
        """Hash every file, or those of one network.

        Raises:
            ModelError: a file is missing or is not the one that was built.
        """
        for name, entry in (self.manifest.files if network is None else self.files_of(network)).items():
            self._check_size(name, entry.size_bytes)
            if sha256(self.path / name) != entry.sha256:
                raise ModelError(
                    f"{self.path / name} was altered: its SHA-256 is not the one in {MANIFEST}; "
                    f"{self._remedy()}"
                )

    def _remedy(self) -> str:
        if self.manifest.family in BUNDLED:
            return "reinstall driffusion-trt, or restore the folder"
        return "build the model again"

    @property
    def spec(self) -> ModelSpec:
        """The facts of the model's family."""
        return get_spec(self.manifest.family)

    @property
    def model_hash(self) -> str:
        """Which weights these are: the first digits of the denoiser's SHA-256, graph and weights together."""
        digests = [entry.sha256 for _, entry in sorted(self.files_of("denoiser").items())]
        if len(digests) == 1:
            return digests[0][:10]
        return hashlib.sha256("".join(digests).encode("ascii")).hexdigest()[:10]

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of the latent of one picture of the model's own size."""
        _, height, width = self.shape("picture")
        spec = self.spec
        return (spec.latent_channels, height // spec.downscale, width // spec.downscale)

    def shape(self, name: str) -> tuple[int, ...]:
        """One of the manifest's shapes: of a "picture" (3, H, W), or of "text" (L, C).

        Raises:
            ModelError: the manifest has none.
        """
        try:
            return tuple(self.manifest.shapes[name])
        except KeyError as error:
            raise ModelError(
                f"{self.path / MANIFEST} has no shape {name!r} under 'shapes'; {self._remedy()}"
            ) from error

    def _file(self, name: str) -> Path:
        if name not in self.manifest.files:
            raise ModelError(f"{self.path} has no {name}{did_you_mean(name, self.manifest.files)}")
        return self.path / name

    @property
    def networks(self) -> tuple[str, ...]:
        """Names of the ONNX files: "denoiser", "vae_decoder", and the text encoders."""
        files = map(PurePosixPath, self.manifest.files)
        return tuple(sorted(f.stem for f in files if f.parts[0] == "onnx" and f.suffix == ".onnx"))

    def files_of(self, network: str) -> dict[str, FileEntry]:
        """The ONNX file of a network and the files of weights beside it."""
        stem = f"onnx/{network}.onnx"
        files = self.manifest.files.items()
        return {name: entry for name, entry in files if name == stem or name.startswith(f"{stem}.")}

    def network(self, name: str) -> Path:
        """Path of onnx/<name>.onnx.

        Raises:
            ModelError: the folder has no such network.
        """
        if name not in self.networks:
            raise ModelError(f"{self.path} has no network {name!r}{did_you_mean(name, self.networks)}")
        return self._file(f"onnx/{name}.onnx")

    def tokenizer(self, text_encoder: str = "text_encoder") -> Path:
        """The tokenizer.json that belongs to a text encoder ("text_encoder_2": "tokenizer_2/...").

        Raises:
            ModelError: the folder has none.
        """
        return self._file(f"{text_encoder.replace('text_encoder', 'tokenizer')}/tokenizer.json")

    def scheduler_config(self) -> dict[str, Any]:
        """The content of scheduler/scheduler_config.json.

        Raises:
            ModelError: it is missing or is no JSON object.
        """
        path = self._file("scheduler/scheduler_config.json")
        try:
            config = json.loads(path.read_text("utf-8"))
        except (OSError, ValueError) as error:
            raise ModelError(f"{path} cannot be read ({error}); {self._remedy()}") from error
        if not isinstance(config, dict):
            raise ModelError(f"{path} is not a scheduler config: it holds no JSON object; {self._remedy()}")
        return config


def resolve_model(name_or_path: str | os.PathLike[str]) -> Path:
    """The folder of a bundled model, or the folder that the path names.

    A bundled name wins over a folder of that name in the working directory ("./demo" is the latter).

    Raises:
        ModelError: there is no such model and no such folder.
    """
    name = os.fspath(name_or_path)
    if name in BUNDLED:
        # By the package and not by this file, which lies outside of it in a source checkout.
        return Path(str(resources.files(__package__.partition(".")[0]))) / name
    path = Path(name)
    if path.is_dir():
        return path
    if path.exists():
        raise ModelError(f"{path} is a file; give the model folder that holds it, or one of {_NAMES}")
    if name in MODELS:
        raise ModelError(
            f"{name!r} is not bundled and there is no folder of that name; "
            f"give the folder of a built model, or one of {_NAMES}"
        )
    if os.sep in name or "/" in name:
        raise ModelError(f"there is no folder {path}; give the folder of a built model, or one of {_NAMES}")
    raise ModelError(
        f"unknown model {name!r}, and there is no folder of that name{did_you_mean(name, BUNDLED)}"
    )
