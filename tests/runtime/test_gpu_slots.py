"""Places of latents on the lead: none is given away while something lies there, and few are needed."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import cudasim
import gpulanes
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from driffusion_trt.runtime._driver import Device
from driffusion_trt.runtime.gpu_slots import Slots
from driffusion_trt.sampling.tables import Column, Kind

KINDS: tuple[Kind, ...] = ("state", "input", "output", "x0", "noise")
COLUMNS = [Column(kind, number) for kind in KINDS for number in range(3)]


@pytest.fixture
def simulator() -> Iterator[cudasim.Simulator]:
    with gpulanes.machine(1) as simulator:
        yield simulator


@pytest.fixture
def device(simulator: cudasim.Simulator) -> Iterator[Device]:
    with Device(0) as device:
        yield device


def column(kind: Kind, number: int = 0) -> Column:
    return Column(kind, number)


def test_a_place_is_used_again_once_nothing_kept_lies_there(device: Device) -> None:
    slots = Slots(device, 1024)
    first = slots.fresh()
    slots.put(column("state"), first)
    slots.put(column("input"), slots[column("state")])
    slots.keep({column("input")})
    assert column("state") not in slots and slots[column("input")] == first
    assert slots.fresh() != first  # the input still lies there
    slots.clear()
    assert slots.fresh() == first and len(slots) == 2
    slots.close()


def test_a_place_that_was_never_named_is_free_after_a_clear(device: Device) -> None:
    """As where a plan that adapts failed while it was compiled."""
    slots = Slots(device, 1024)
    slots.fresh()
    slots.put(column("state"), slots.fresh())
    slots.clear()
    assert {slots.fresh(), slots.fresh()} and len(slots) == 2
    slots.close()


def test_a_column_that_is_put_anew_leaves_its_place(device: Device) -> None:
    slots = Slots(device, 1024)
    old, new = slots.fresh(), slots.fresh()
    slots.put(column("state"), old)
    slots.put(column("state"), new)
    assert slots[column("state")] == new and slots.fresh() == old
    slots.close()


def test_a_column_put_where_it_is_stays(device: Device) -> None:
    slots = Slots(device, 1024)
    place = slots.fresh()
    slots.put(column("state"), place)
    slots.put(column("state"), place)
    slots.keep({column("state")})
    assert slots[column("state")] == place and slots.fresh() != place
    slots.close()


def test_places_are_whole_and_given_back(device: Device, simulator: cudasim.Simulator) -> None:
    slots = Slots(device, 1000)
    places = sorted(slots.fresh() for _ in range(5))
    assert all(place % 256 == 0 for place in places)
    assert all(one + 1000 <= other for one, other in pairwise(places))
    for _ in range(2):
        slots.close()
    device.close()
    gpulanes.clean(simulator)


class SlotsMachine(RuleBasedStateMachine):
    """Any order of calls, against a plain dictionary."""

    device: Device
    fresh = Bundle("fresh")

    @initialize()
    def start(self) -> None:
        self.slots, self.model, self.taken = Slots(self.device, 256), dict[Column, int](), set[int]()
        self.most = 0

    @rule(target=fresh)
    def take(self) -> int:
        place = self.slots.fresh()
        assert place not in self.taken and place not in self.model.values()
        self.taken.add(place)
        self.most = max(self.most, len(self.taken | set(self.model.values())))
        return place

    @rule(place=consumes(fresh), column=st.sampled_from(COLUMNS))
    def put(self, place: int, column: Column) -> None:
        self.slots.put(column, place)
        self.taken.discard(place)
        self.model[column] = place

    @rule(column=st.sampled_from(COLUMNS), source=st.sampled_from(COLUMNS))
    def alias(self, column: Column, source: Column) -> None:
        if source in self.model:
            self.slots.put(column, self.slots[source])
            self.model[column] = self.model[source]

    @rule(columns=st.sets(st.sampled_from(COLUMNS)))
    def keep(self, columns: set[Column]) -> None:
        self.slots.keep(columns)
        self.model = {column: place for column, place in self.model.items() if column in columns}

    @invariant()
    def the_same(self) -> None:
        if not hasattr(self, "slots"):
            return
        for column in COLUMNS:
            assert (column in self.slots) == (column in self.model)
            assert column not in self.model or self.slots[column] == self.model[column]
        assert len(self.slots) == self.most  # no more places than were in use at once

    def teardown(self) -> None:
        if hasattr(self, "slots"):
            self.slots.close()


def test_any_order_of_calls(device: Device) -> None:
    class OnDevice(SlotsMachine):
        pass

    OnDevice.device = device
    run_state_machine_as_test(OnDevice, settings=settings(max_examples=60, stateful_step_count=40))
