"""Inpainting: the part of a picture that is known, at every level of noise.

What is known is put back over each state, at the level of that state, as in RePaint (2201.09865,
eq. 8) and Blended Latent Diffusion (2206.02779, section 4.1); diffusers' pipelines do the same.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._errors import InputError
from .schedule import Schedule

Float32 = NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class Known:
    """A picture of which a part stays.

    latents: the clean picture, float32 (B, *shape).
    noise: unit normal of the same shape, the one that state 0 was made with.
    repaint: bool, True where the picture is made anew; it must broadcast to the latents.
    share: of each picture that is made anew, (B, 1, 1); one element at least, so that it divides.

    Raises InputError for arrays of another kind, or shapes that do not go together.
    """

    latents: Float32
    noise: Float32
    repaint: NDArray[np.bool_]
    share: NDArray[np.float64] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        for name, kind in (("latents", np.float32), ("noise", np.float32), ("repaint", np.bool_)):
            array: NDArray[Any] = getattr(self, name)
            if array.dtype != kind:
                raise InputError(f"{name} of what is known is {array.dtype}, expected {np.dtype(kind)}")
        if self.noise.shape != self.latents.shape:
            raise InputError(f"latents of shape {self.latents.shape} and noise of {self.noise.shape} differ")
        try:
            fits = np.broadcast_shapes(self.repaint.shape, self.latents.shape) == self.latents.shape
        except ValueError:
            fits = False
        if not fits:
            raise InputError(
                f"repaint of shape {self.repaint.shape} does not go with latents of {self.latents.shape}"
            )
        every = np.broadcast_to(self.repaint, self.latents.shape).reshape(len(self.latents), -1)
        share = np.maximum(every.mean(1), 1 / every.shape[1])[:, None, None]
        object.__setattr__(self, "share", share)

    def at(self, schedule: Schedule, state: int) -> Float32:
        """The known picture at the level of a state, a·x0 + s·ε; state T is the clean one."""
        if state == schedule.steps:
            return self.latents
        return noisy(schedule, state, self.latents, self.noise)

    def into(self, schedule: Schedule, state: int, latents: Float32) -> Float32:
        """`latents`, which are of this state, where they are made anew, and the known picture elsewhere.

        Everything between two predictions is done element by element, so a state or draft several
        steps on comes out as if all states before it had been treated so.
        """
        return np.where(self.repaint, latents, self.at(schedule, state))


def noisy(schedule: Schedule, state: int, latents: Float32, noise: Float32) -> Float32:
    """x_i = a_i·x0 + s_i·ε in float32: diffusers' `add_noise`, and `scale_noise` of a flow."""
    out: Float32 = np.float32(schedule.a[state]) * latents
    out += np.float32(schedule.s[state]) * noise
    return out
