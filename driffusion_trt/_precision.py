"""Pictures made again in fp32 where the networks leave the range of their precision."""

from __future__ import annotations

import contextlib
import os
import threading
import warnings

from ._call import PrecisionWarning, Watch
from ._errors import InputError, LaneError, NonFiniteError, did_you_mean
from ._request import Request
from ._stages import Made, Stages
from .engines.manifest import ModelFolder
from .runtime.devices import Devices
from .runtime.networks import GpuOptions
from .sampling.plan import Plan

__all__ = ["NAN_POLICIES", "Precisions", "single_precision"]

NAN_POLICIES = ("error", "retry-fp32")


def single_precision(
    folder: ModelFolder, nan_policy: str, fp32_model: str | os.PathLike[str] | None
) -> ModelFolder | None:
    """The fp32 folder of the same model for `nan_policy` "retry-fp32"; None for "error".

    Raises:
        InputError: no such policy, or the folder is not this model in fp32.
        ModelError: there is no such folder.
    """
    if nan_policy not in NAN_POLICIES:
        raise InputError(f"there is no nan_policy {nan_policy!r}{did_you_mean(nan_policy, NAN_POLICIES)}")
    if nan_policy == "error":
        if fp32_model is not None:
            raise InputError("fp32_model was given; it goes with nan_policy 'retry-fp32'")
        return None
    other = ModelFolder.open(f"{folder.path}-fp32" if fp32_model is None else fp32_model)
    found = (other.manifest.family, other.latent_shape, other.manifest.precision[:4])
    if found != (folder.manifest.family, folder.latent_shape, "fp32"):
        raise InputError(
            f"{other.path} is a {found[0]} in {other.manifest.precision} for latents {found[1]}; to retry "
            f"{folder.path} in fp32, build the same checkpoint with --precision fp32"
        )
    return other


class Precisions:
    """A model's networks, and those of the same model in fp32, loaded where they are needed first."""

    def __init__(
        self, stages: Stages, single: ModelFolder | None, devices: Devices, options: GpuOptions
    ) -> None:
        """single: the folder in fp32; None where nothing is made again."""
        self._stages, self._single = stages, single
        self._devices, self._options = devices, options
        self._lock, self._resources = threading.Lock(), contextlib.ExitStack()
        self._in_single: Stages | None = None
        self._closed = False

    def run(self, request: Request, plan: Plan, watch: Watch) -> tuple[Made, ModelFolder]:
        """As `Stages.run`, and which folder the pictures are from."""
        try:
            return self._stages.run(request, plan, watch), self._stages.folder
        except NonFiniteError as error:
            if self._single is None:
                raise
            text = f"{error}; the pictures are made again with {self._single.path}"
            warnings.warn(text, PrecisionWarning, stacklevel=4)
        return self._loaded(self._single).run(request, plan, watch), self._single

    def _loaded(self, folder: ModelFolder) -> Stages:
        with self._lock:
            if self._closed:
                raise LaneError("the pipeline is closed; load it again")
            if self._in_single is None:
                self._in_single = Stages(folder, self._devices, self._options)
                self._resources.callback(self._in_single.close)
            return self._in_single

    def close(self) -> None:
        """Stop the lanes after what they are doing; a second call does nothing."""
        self._closed = True
        with self._lock:
            self._resources.close()
        self._stages.close()
