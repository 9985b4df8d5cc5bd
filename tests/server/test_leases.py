"""Who keeps how many lanes: the pace of calls, and requests that hang, on a clock of their own."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from queueing import profile

from driffusion_trt.server.leases import BEAT_S, Leases
from driffusion_trt.server.policy import Machine

ONE = profile(4, steps=10, step_ms=100.0)  # a second on one lane


class Books:
    """Leases of four lanes, and their clock."""

    def __init__(self) -> None:
        self.now = 100.0
        self.leases = Leases(4, Machine, lambda: self.now, ONE)

    def run(self, seconds: float, expected_s: float = 1.0, times_larger: float = 1.0) -> None:
        """A request that ends well."""
        ticket = self.begin(expected_s=expected_s, times_larger=times_larger)
        self.now += seconds
        assert self.leases.take_back(ticket, ended_well=True)

    def begin(self, lanes: int = 1, expected_s: float = 1.0, times_larger: float = 1.0) -> Any:
        ticket: Any = _Ticket(times_larger)
        self.leases.give(ticket, lanes, 1e3 * expected_s)
        return ticket


class _Ticket:
    def __init__(self, times_larger: float = 1.0) -> None:
        longer = max(1.0, times_larger)
        self.order = SimpleNamespace(profile=ONE, times_larger=times_larger, longer=longer)


def test_the_pace_follows_what_calls_take() -> None:
    books = Books()
    for _ in range(60):
        books.run(2.0)
    assert books.leases.pace == pytest.approx(2.0, rel=0.01), "steady work is learnt whole"
    for _ in range(60):
        books.run(0.5)
    assert books.leases.pace == pytest.approx(0.5, rel=0.02)
    for _ in range(60):
        books.run(100.0)
    assert books.leases.pace == pytest.approx(4.0, rel=0.05), "no further than that"


@pytest.mark.parametrize("times_larger", [4.0, 0.25])
def test_of_sizes_that_were_not_measured_the_pace_learns_nothing(times_larger: float) -> None:
    """What they take is guessed, and what is learnt is for all."""
    books = Books()
    for _ in range(60):
        books.run(3.0, times_larger=times_larger)
    assert books.leases.pace == 1.0


def test_what_may_take_longer_hangs_later() -> None:
    """Four times the area take up to sixteen times as long, where four are expected."""
    books = Books()
    measured, larger, smaller = (books.begin(times_larger=times) for times in (1.0, 4.0, 0.25))
    books.now += 21.0
    assert [ticket for ticket, _, _ in books.leases.hanging(5.0, 0.0)] == [measured, smaller]
    books.now += 60.0
    assert len(books.leases.hanging(5.0, 0.0)) == 3 and larger


def test_the_pace_is_forgotten_by_time_alone() -> None:
    """Else requests that are refused for it, which nothing is learnt from, would be for ever."""
    books = Books()
    for _ in range(60):
        books.run(3.0)
    learnt = books.leases.pace
    books.now += 9.0
    assert [books.leases.pace for _ in range(100)] == [learnt] * 100, "asking changes nothing"
    books.now += 11.0
    assert 1.3 < books.leases.pace < learnt - 0.5
    books.now += 60.0
    assert books.leases.pace == pytest.approx(1.0, abs=0.01)
    books.run(3.0)
    assert books.leases.pace == pytest.approx(1.2, abs=0.01), "and learnt anew from what is left of it"


def test_a_request_hangs_that_takes_far_longer_than_expected() -> None:
    books = Books()
    short, long = books.begin(lanes=2, expected_s=1.0), books.begin(expected_s=10.0)
    books.now += 29.9
    assert books.leases.hanging(30.0, 0.0) == []
    assert min(books.leases.until_hanging_ms(30.0, 0.0)) == pytest.approx(100.0)
    books.now += 0.2
    assert books.leases.hanging(30.0, 5.0) == []
    ((ticket, for_s, expected_s),) = books.leases.hanging(30.0, 0.0)
    assert ticket is short and (round(for_s, 1), expected_s) == (30.1, 1.0)
    books.now += 200.0
    assert {one for one, *_ in books.leases.hanging(30.0, 0.0)} == {short, long}


def test_lanes_of_what_hangs_are_lost_while_it_does() -> None:
    books = Books()
    hangs, other = books.begin(lanes=3), books.begin(lanes=1)
    books.leases.hang(hangs)
    leases = books.leases
    assert (leases.lanes, leases.failed, leases.in_use, len(leases), leases.hung) == (1, 3, 1, 1, 1)
    assert leases.under_way()[0].keeps == 1 and leases.tickets() == [other]
    assert not leases.take_back(hangs) and not leases.came_back(other)
    assert leases.came_back(hangs) and not leases.came_back(hangs)
    assert (leases.lanes, leases.failed, leases.hung) == (4, 0, 0)


def test_time_in_which_the_process_stood_still_is_nobodys() -> None:
    """It was stopped, or its machine: what it had under way does not hang."""
    books = Books()
    books.begin()
    for _ in range(25):
        books.now += BEAT_S
        books.leases.beat()
    assert not books.leases.hanging(30.0, 0.0), "25 s"
    books.now += 600.0
    books.leases.beat()
    assert not books.leases.hanging(30.0, 0.0), "and 10 minutes of standing still"
    for _ in range(5):
        books.now += BEAT_S
        books.leases.beat()
    assert [for_s for _, for_s, _ in books.leases.hanging(30.0, 0.0)] == [pytest.approx(31.0)]


def test_an_idle_engine_needs_no_beat() -> None:
    books = Books()
    books.now += 600.0
    books.begin()
    books.now += BEAT_S
    books.leases.beat()
    books.now += 30.0 - BEAT_S
    assert len(books.leases.hanging(30.0, 0.0)) == 1
