"""Inpainting on the GPU lanes: what is known of a picture, on the lead, and the launches that put it back."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..sampling.known import Known
from ..sampling.schedule import Schedule
from ._arguments import MAX_ROWS
from ._driver import Device
from ._owner import Owner
from ._resources import DeviceMemory, PinnedMemory, Stream
from .kernels import Kernels, Launch

__all__ = ["Kept", "Places"]

_PACKED_MOST = 256  # a plan that adapts has others in every picture
Places = tuple[tuple[int, int], ...]  # numbers of states, and where they or their drafts are


class Kept:
    """The clean latents, their noise and the mask of one plan's pictures. `own` gets what it allocates."""

    def __init__(
        self,
        lead: Device,
        kernels: Kernels,
        schedule: Schedule,
        size_bytes: int,
        own: Callable[[Owner], object],
    ) -> None:
        self._kernels, self._size_bytes = kernels, size_bytes
        ends = [(1.0, 0.0)]  # state T is clean
        self._levels = [*zip(schedule.a.tolist(), schedule.s.tolist(), strict=True), *ends]
        self._pinned: list[PinnedMemory] = []
        self._memory: list[DeviceMemory] = []
        for _ in range(3):
            self._pinned.append(PinnedMemory(lead, size_bytes))
            own(self._pinned[-1])
            self._memory.append(DeviceMemory(lead, size_bytes))
            own(self._memory[-1])
        self._launches: dict[Places, tuple[Launch, ...]] = {}

    def upload(self, known: Known, stream: Stream) -> None:
        """Enqueue the copies to the lead, which is current; the last picture's must be done."""
        for values, pinned, memory in zip(
            (known.latents, known.noise, known.repaint), self._pinned, self._memory, strict=True
        ):
            pinned.array(np.float32, known.latents.shape)[...] = values
            stream.copy_to_device(memory.address, pinned.address, self._size_bytes)

    def launches(self, places: Places) -> tuple[Launch, ...]:
        """What puts the known part over the states at these places; those used last are kept packed."""
        while len(self._launches) > _PACKED_MOST:
            self._launches.pop(next(iter(self._launches)))
        if places not in self._launches:
            latents, noise, repaint = (memory.address for memory in self._memory)
            self._launches[places] = tuple(
                self._kernels.keep(
                    [place for _, place in places[first : first + MAX_ROWS]],
                    [self._levels[state] for state, _ in places[first : first + MAX_ROWS]],
                    latents=latents,
                    noise=noise,
                    repaint=repaint,
                    elements=self._size_bytes // 4,
                )
                for first in range(0, len(places), MAX_ROWS)
            )
        return self._launches[places]
