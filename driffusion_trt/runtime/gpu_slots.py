"""Where the latents of one picture lie on the lead: a place for each column for as long as it is needed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator

from .._errors import DeviceError
from ..sampling.tables import Column
from ._driver import Device
from ._resources import DeviceMemory

__all__ = ["Slots"]


class Slots:
    """Memory for columns, each of `size_bytes`; a place is used again once nothing is there that is kept.

    Work that reads a place is always enqueued before it is given away, on streams that wait for one
    another, so that its next user comes later on the device too.
    """

    def __init__(self, lead: Device, size_bytes: int) -> None:
        self._lead, self._size_bytes = lead, size_bytes
        self._memory: list[DeviceMemory] = []
        self._free: list[int] = []
        self._users: Counter[int] = Counter()
        self._of: dict[Column, int] = {}

    def __len__(self) -> int:
        return len(self._memory)

    def __contains__(self, column: Column) -> bool:
        return column in self._of

    def __iter__(self) -> Iterator[Column]:
        """The columns that are held."""
        return iter(self._of)

    def __getitem__(self, column: Column) -> int:
        """The address of a column that is held."""
        return self._of[column]

    def fresh(self) -> int:
        """A place that holds nothing; `put` names what it will hold."""
        if not self._free:
            self._memory.append(DeviceMemory(self._lead, self._size_bytes))
            self._free.append(self._memory[-1].address)
        return self._free.pop()

    def put(self, column: Column, address: int) -> None:
        """From now on the column is at this place: a fresh one, or that of an equal column."""
        self._users[address] += 1
        self._drop(column)
        self._of[column] = address

    def keep(self, columns: Collection[Column]) -> None:
        """Let all others go."""
        for column in [column for column in self._of if column not in columns]:
            self._drop(column)

    def _drop(self, column: Column) -> None:
        address = self._of.pop(column, None)
        if address is not None:
            self._users[address] -= 1
            if not self._users[address]:
                self._free.append(address)

    def clear(self) -> None:
        """Nothing is held; all places are free, those too that were taken and never named."""
        self.keep(())
        free = set(self._free)
        never_named = [memory.address for memory in self._memory if memory.address not in free]
        self._free = never_named + self._free

    def close(self) -> None:
        """Give the memory back; a second call does nothing."""
        while self._memory:
            try:
                self._memory.pop().close()
            except DeviceError:  # a broken device takes nothing back
                continue
