"""Messages from the lead to a lane's devices, and predictions back: by peer copies, or through the host."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from .._errors import NonFiniteError
from ._driver import Device
from ._owner import Owners
from ._resources import DeviceMemory, PinnedMemory, Stream
from .gpu_request import Form, Request
from .gpu_worker import Worker

__all__ = ["Lane", "LaneLink", "WorkerLink", "check_finite", "requested"]

Lane = tuple[Worker, ...]  # one device with all branches, or one for each branch of guidance


def requested(lane: Lane, form: Form, drafts: int) -> Form:
    """What each worker of a lane is asked for.

    form: has the branches that are wanted in the end, wherever they are combined.
    """
    branches = form.branches if len(lane) == 1 else 1
    return replace(form, drafts=drafts, branches=branches, split=False)


class WorkerLink:
    """Between the lead and one worker. `how`: "same" device, "peer" copies, or "staged" in pinned memory.

    The lead's stream calls `post` and `receive`, the worker's `fetch` and `send_back`; events between
    them are the caller's.
    """

    def __init__(self, lead: Device, worker: Worker, form: Form, *, staged: bool) -> None:
        self.worker, self.lead = worker, lead
        self.how = "same" if worker.device is lead else "staged" if staged else "peer"
        self.request: Request = worker.request(form)
        self._owners = Owners()
        try:
            if self.how == "staged":
                self._out = self._pinned(self.request.message_bytes)
                self._back = self._pinned(self.request.result_bytes)
            self._flags = self._pinned(4 * self.request.count)
        except BaseException:
            self.close()
            raise

    def _pinned(self, size_bytes: int) -> PinnedMemory:
        return self._owners.own(PinnedMemory(self.lead, size_bytes))

    def post(self, stream: Stream, outbox: int) -> None:
        """On the lead's stream, before the worker may go on."""
        if self.how == "staged":
            stream.copy_to_host(self._out.address, outbox, self.request.message_bytes)

    def fetch(self, outbox: int) -> None:
        """On the worker's stream: the message into its inbox."""
        inbox, size_bytes = self.request.inbox.address, self.request.message_bytes
        if self.how == "staged":
            self.worker.stream.copy_to_device(inbox, self._out.address, size_bytes)
        elif inbox != outbox:
            self.worker.stream.copy_peer(inbox, self.worker.device, outbox, self.lead, size_bytes)

    def send_back(self, targets: Sequence[int]) -> None:
        """On the worker's stream: equal parts of its result, draft by draft, to addresses on the lead."""
        stream, size_bytes = self.worker.stream, self.request.result_bytes // len(targets)
        if self.how == "staged":
            stream.copy_to_host(self._back.address, self.request.result, self.request.result_bytes)
            return
        for k, target in enumerate(targets):
            source = self.request.result + k * size_bytes
            if self.how == "same":
                stream.copy(target, source, size_bytes)
            else:
                stream.copy_peer(target, self.lead, source, self.worker.device, size_bytes)

    def receive(self, stream: Stream, targets: Sequence[int]) -> None:
        """On the lead's stream, once the worker is done."""
        if self.how == "staged":
            size_bytes = self.request.result_bytes // len(targets)
            for k, target in enumerate(targets):
                stream.copy_to_device(target, self._back.address + k * size_bytes, size_bytes)

    def report(self) -> None:
        """On the worker's stream, after its last request: which predictions were not finite."""
        self.worker.stream.copy_to_host(
            self._flags.address, self.request.flags.address, self._flags.size_bytes
        )

    def not_finite(self) -> int:
        """After the report: the first round with a prediction that was not finite; 0 for none."""
        flags = self._flags.array(np.int32)
        return int(min((flag for flag in flags if flag), default=0))

    def close(self) -> None:
        """Give the pinned memory back."""
        self._owners.close()


class LaneLink:
    """Between the lead and a lane, for one form of request.

    outbox: where the lead's kernel writes the message: the inbox itself of a worker on the lead's device.
    received: with guidance split over two workers, where both branches arrive; they are combined on the
        lead. Empty where the worker gives guided predictions.
    """

    def __init__(self, lead: Device, lane: Lane, form: Form, staged: Sequence[bool]) -> None:
        self.form = form
        self._owners = Owners()
        self.links: list[WorkerLink] = []
        self.received: tuple[int, ...] = ()
        try:
            for worker, through_host in zip(lane, staged, strict=True):
                self.links.append(WorkerLink(lead, worker, form, staged=through_host))
            here = [link.request.inbox.address for link in self.links if link.how == "same"]
            size_bytes = self.links[0].request.message_bytes
            self.outbox = here[0] if here else self._memory(lead, size_bytes)
            if len(lane) == 2:
                size_bytes = self.links[0].request.result_bytes
                self.received = tuple(self._memory(lead, size_bytes) for _ in lane)
        except BaseException:
            self.close()
            raise

    def _memory(self, device: Device, size_bytes: int) -> int:
        return self._owners.own(DeviceMemory(device, size_bytes)).address

    def close(self) -> None:
        """Give back what lies between lead and lane; the requests are the workers'."""
        while self.links:
            self.links.pop().close()
        self._owners.close()


def check_finite(links: Mapping[tuple[int, int], LaneLink], rounds: int) -> None:
    """After the reports of a picture of so many rounds; links: by lane and number of drafts.

    Raises NonFiniteError for the first prediction that was not finite.
    """
    found = [
        (number, lane, one.worker.device.title)
        for (lane, _), link in links.items()
        for one in link.links
        if (number := one.not_finite()) != 0
    ]
    if found:
        number, lane, title = min(found)
        raise NonFiniteError(
            f"the network gave numbers that are not finite in round {number} of {rounds}, on "
            f"lane {lane} ({title}); lower the guidance scale, take more steps, or build the model in "
            "bf16 or fp32"
        )
