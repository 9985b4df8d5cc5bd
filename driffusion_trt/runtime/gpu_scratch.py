"""Memory for what lies between the layers of an engine, shared by all that runs on one stream."""

from __future__ import annotations

from collections.abc import Callable

from ._driver import Device
from ._owner import Owner
from ._resources import DeviceMemory

__all__ = ["Loan", "Scratch"]


class Loan(Owner):
    """Memory that was lent: good until it is closed, whatever is lent later."""

    def __init__(self, memory: DeviceMemory) -> None:
        self.address = memory.address
        super().__init__(memory)


class Scratch:
    """Lends the same memory to all bindings of engines on one stream, which run one after another.

    A larger binding gets a larger piece, and what is in CUDA graphs by then keeps the one it had. A piece
    is given back with the last loan of it.
    """

    def __init__(self, device: Device) -> None:
        self._device = device
        self._memory: DeviceMemory | None = None

    def lend(self, size_bytes: int) -> Loan:
        """At least so many bytes. Raises DeviceError where there is no memory."""
        memory = self._memory
        if memory is None or not memory.in_use or memory.size_bytes < size_bytes:
            memory = self._memory = DeviceMemory(self._device, max(size_bytes, 256))
        loan = Loan(memory)
        memory.close()  # now it ends with its last loan
        return loan

    def lender(self, owners: list[Owner]) -> Callable[[int], int]:
        """What `TensorRTSession.bind` wants: it lends, puts the loan to the owners, and says where it is."""

        def lend(size_bytes: int) -> int:
            loan = self.lend(size_bytes)
            owners.append(loan)
            return loan.address

        return lend
