"""One call of the pipeline: what it asks for, checked before any work, and what it gives back."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ._errors import CancelledError, InputError
from .sampling.plan import Plan
from .sampling.recording import Recorder
from .sampling.sample import RoundDone, Stats

# Facts beside the arguments of `Pipeline.__call__` in a picture's settings.
FACTS = (
    *("batch_seed", "picture", "batch", "sequential_calls", "model", "model_hash", "version"),
    *("drift", "image_hash", "mask_hash"),
)


class PromptWarning(UserWarning):
    """A prompt has words that the model cannot read."""


class LaneWarning(UserWarning):
    """A device failed, and the pictures were made without it."""


class PrecisionWarning(UserWarning):
    """The networks left the range of their precision, and the pictures were made in fp32."""


@dataclass(frozen=True, slots=True)
class Watch:
    """Who is told of the rounds of a call, who may end it, and who takes down what happens when."""

    callback: Callable[[RoundDone], None] | None = None
    cancel: threading.Event | None = None
    recorder: Recorder | None = None

    @classmethod
    def check(cls, settings: Mapping[str, Any]) -> Self:
        """Those of a call's settings. Raises InputError for what they cannot be."""
        callback, cancel = settings.get("callback_on_round_end"), settings.get("cancel")
        if callback is not None and not callable(callback):
            raise InputError(f"callback_on_round_end must be a function of one argument, not {callback!r}")
        if cancel is not None and not isinstance(cancel, threading.Event):
            raise InputError(f"cancel must be a threading.Event, not {cancel!r}")
        recorder = settings.get("recorder")
        if recorder is not None and not isinstance(recorder, Recorder):
            raise InputError(f"recorder must be a driffusion_trt.Recorder, not {recorder!r}")
        return cls(callback, cancel, recorder)

    def __bool__(self) -> bool:
        """Whether anybody has to hear of rounds while they are made."""
        return self.callback is not None or self.cancel is not None

    def __call__(self, done: RoundDone) -> None:
        """Tell of a round. Raises CancelledError, and whatever the callback raises."""
        if self.callback is not None:
            self.callback(done)
        self.check_going(f"after round {done.round} of {done.rounds}")

    @property
    def waiting(self) -> Callable[[], None] | None:
        """To be called until it is the call's turn."""
        return None if self.cancel is None else partial(self.check_going, "before its first round")

    def before(self, done: int, of: int) -> None:
        """After each of so many pieces of work that come before the first round."""
        self.check_going("before its first round")

    def check_going(self, when: str) -> None:
        """Raises CancelledError once the event is set."""
        if self.cancel is not None and self.cancel.is_set():
            raise CancelledError(f"cancel was set: the call ended {when}, and there is no picture of it")


@dataclass(frozen=True, slots=True)
class Timings:
    """Wall-clock times of one call in milliseconds.

    `rounds_ms` has one entry a round; none on GPUs where nobody asked to be told of rounds.
    """

    encode_ms: float
    denoise_ms: float
    decode_ms: float
    rounds_ms: tuple[float, ...]

    @property
    def total_ms(self) -> float:
        return self.encode_ms + self.denoise_ms + self.decode_ms


@dataclass(frozen=True, slots=True)
class Result:
    """Pictures, and how they came about.

    images: PIL images, prompt by prompt, `num_images` of each.
    latents: what the decoder got, float32 (B, C, h, w), in the sampler's scale.
    settings: for each picture everything needed to make it again, as plain JSON values;
        see `Request.settings`.
    stats: rounds and predictions that were run, and with a tolerance the drift of each picture.
    """

    images: tuple[Image.Image, ...]
    latents: NDArray[np.float32]
    timings: Timings
    plan: Plan
    settings: tuple[dict[str, Any], ...]
    stats: Stats

    def call(self, picture: int = 0) -> dict[str, Any]:
        """The arguments of `Pipeline.__call__` that make one of the pictures again, alone.

        With a tolerance a picture of a batch took the rounds of the hardest one; alone it may take fewer.

        What it was started from, `image` and `mask_image`, is not kept: give it beside them.

        Raises InputError where the whole batch came from one random stream (an int seed).
        """
        settings = self.settings[picture]
        if "batch_seed" in settings:
            raise InputError(
                f"picture {picture} is one of {settings['batch']} from one seed, {settings['batch_seed']}; "
                "give a list of seeds to make pictures that can be made again alone"
            )
        return {name: value for name, value in settings.items() if name not in FACTS}
