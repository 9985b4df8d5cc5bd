"""Which workers there are: those that fail or have no room are set aside, and others go on meanwhile."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence

from .._errors import DeviceError, DriffusionError, LaneError
from ..sampling.plan import Plan
from ._driver import Device
from .gpu_aside import Asides
from .gpu_lease import Leases
from .gpu_links import Lane
from .gpu_picture import Picture, WorkerFailed
from .gpu_request import Form
from .gpu_team import Engine, Group, Team, lanes_of
from .gpu_worker import Worker

__all__ = ["Crew"]

_PICTURES_KEPT = _FORMS_KEPT = 8
_LEFT_OUT_S = 60.0  # for which a device without enough memory is not asked for the same again


class Crew:
    """The workers of some engines. What is done to a group is for the thread that leases it."""

    def __init__(self, engines: Sequence[Engine], team: Team, leases: Leases[Worker]) -> None:
        """`start` has them get ready."""
        self.engines = dict(enumerate(engines))  # those that can be used, by their places
        self.team, self._leases = team, leases
        self._devices = {engine.device for engine in engines}
        self._asides = Asides()
        self._left_out: tuple[Form, float] | None = None  # of what request, and until when

    def start(self) -> None:
        """Raises WorkerFailed; `end` gives back what there is."""
        for place, engine in self.engines.items():
            self.team.fill(place, engine)

    @property
    def workers(self) -> list[Worker]:
        return self.team.workers

    def lanes_for(self, form: Form, devices: int | None = None) -> list[Lane]:
        return lanes_of(self.workers[:devices], split=form.split)

    def picture(self, plan: Plan, form: Form, group: Group) -> Picture:
        """The plan compiled for this form and group; those used last are kept. Raises WorkerFailed."""
        found = self.team.find(plan, form, group)
        if found is not None:
            return found
        self._clear(group)
        self.team.trim(group, _PICTURES_KEPT - 1, _FORMS_KEPT)
        try:
            return self._compile(plan, form, group)
        except WorkerFailed as error:
            if any(device.lost for device in error.devices):
                raise
            self.make_room(group)  # it may be the memory that the others hold which is wanting
            return self._compile(plan, form, group)

    def _compile(self, plan: Plan, form: Form, group: Group) -> Picture:
        try:
            return self.team.compile(plan, form, group)
        except BaseException:
            if (made := self.team.remove(plan, form, group)) is not None:
                made.close()
            raise

    def make_room(self, group: Group) -> None:
        """Give back all memory that these workers keep for further pictures.

        Where a device is held up by one that hangs, it is for the next pictures there instead.
        """
        self._clear(group)
        self.team.clear(group)

    def _clear(self, group: Group) -> None:
        self._asides.clear({worker.device for worker in group})

    def failed(
        self, error: WorkerFailed, plan: Plan, form: Form, group: Group, devices: int | None = None
    ) -> DriffusionError:
        """Go on after a failure of this group's picture, without the devices if need be.

        Returns what to raise. Nothing of the group is used again, and the pictures of others go on.
        """
        if not error.short_of_memory:
            for device in error.devices:
                device.broken = True
            self._renew(group)
            text = str(error) if self.workers else f"{error}; no lane is left"
            return LaneError(text, lanes_left=len(self.lanes_for(form, devices)))
        text, room = str(error), True
        without: Collection[Device] = ()
        if self.team.kept_with(group) > 1:  # what is kept for others may be wanting
            text += "; what was kept for other requests is let go"
        elif plan.lanes <= len(lanes_of(group, split=form.split)):  # else fewer drafts at once may fit
            without = error.devices
            room = any(worker.device not in without for worker in self.workers)
            self._left_out = (form, time.monotonic() + _LEFT_OUT_S)
        self._renew(group, without)
        self._asides.wait()  # until then nothing of it is given back, and the next attempt wants its memory
        if not room:
            return DeviceError(f"no GPU has room for this request: {error}", "CUDA_ERROR_OUT_OF_MEMORY")
        return LaneError(text, lanes_left=len(self.lanes_for(form, devices)))

    def bring_back(self, form: Form) -> None:
        """Use the devices again that had no room for another form of request, or had none long ago."""
        if self._left_out is None:
            return
        other, until = self._left_out
        if form != other or time.monotonic() >= until:
            self._left_out = None
            self._fill(self.engines)

    def _renew(self, group: Group, without: Collection[Device] = ()) -> None:
        """Begin anew with a group's engines, but for those on some devices.

        What the workers were to do is given up with all that waits for it.
        """
        with self._leases.lock:
            places = [place for worker in group if (place := self.team.place_of(worker)) is not None]
            room_less = [one for one in self.workers if one.device in without and self._idle(one)]
            self._set_aside([*group, *room_less])
            self._fill([k for k in places if k in self.engines and self.engines[k].device not in without])

    def _fill(self, places: Collection[int]) -> None:
        """Have workers at these places; where one cannot be had, its device is not used again."""
        for place in places:
            try:
                if self.engines[place].device.usable:
                    self.team.fill(place, self.engines[place])
            except WorkerFailed as error:
                for device in error.devices:
                    device.broken = True
        self.without_broken()

    def without_broken(self) -> list[Device]:
        """Go on without the devices that were seen to fail; which of them are new. With the lock held."""
        failed = [engine.device for engine in self.engines.values() if not engine.device.usable]
        self.engines = {place: one for place, one in self.engines.items() if one.device.usable}
        self._set_aside([one for one in self.workers if not one.device.usable and self._idle(one)])
        if self.engines and not self.workers:  # those that are left had no room for something
            self._left_out = None
            self._fill(self.engines)
        return failed

    def _idle(self, worker: Worker) -> bool:
        """Whether nobody uses it; who does finds out what is wrong with it by himself."""
        return worker not in self._leases.taken

    def _set_aside(self, workers: Collection[Worker]) -> None:
        if workers:
            self._asides.add(self.team.set_aside(workers))

    def end(self) -> None:
        """Give everything back; what a device that hangs holds up stays."""
        self._set_aside(self.workers)
        self._asides.end()
        for device in self._devices:
            device.give_back()
