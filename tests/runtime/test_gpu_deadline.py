"""The time that devices have: what they do in it gives them more, what the host does is not counted."""

from __future__ import annotations

import pytest

from driffusion_trt.runtime import gpu_deadline
from driffusion_trt.runtime.gpu_deadline import Deadline


class Clock:
    """Time that passes only while somebody waits, or is said to."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


class Slow:
    """An event that comes at a moment."""

    def __init__(self, clock: Clock, at: float) -> None:
        self._clock, self._at = clock, at

    def wait(self, seconds: float) -> bool:
        self._clock.now = min(self._at, self._clock.now + seconds) if seconds else self._clock.now
        return self._clock.now >= self._at


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(gpu_deadline, "time", made)
    return made


def test_an_event_in_time_and_one_that_is_late(clock: Clock) -> None:
    assert Deadline(10, lambda: 0).wait(Slow(clock, 109.9))
    clock.now = 100.0
    assert not Deadline(10, lambda: 0).wait(Slow(clock, 110.1))
    assert clock.now == 110.0


def test_what_gets_done_gives_as_much_time_again(clock: Clock) -> None:
    passed = iter([1, 2, 2])
    assert not Deadline(10, lambda: next(passed)).wait(Slow(clock, 1000.0))
    assert clock.now == 130.0


def test_a_pause_does_not_count_but_for_waiting_within_it(clock: Clock) -> None:
    deadline = Deadline(10, lambda: 0)
    clock.now += 4
    with deadline.paused():
        clock.now += 50
        with deadline.going():
            clock.now += 3
        clock.now += 50
    assert not deadline.wait(Slow(clock, 1000.0))
    assert clock.now == 100 + 10 + 50 + 50


def test_a_pause_that_fails_does_not_count_either(clock: Clock) -> None:
    deadline = Deadline(10, lambda: 0)
    with pytest.raises(KeyboardInterrupt), deadline.paused():
        clock.now += 50
        raise KeyboardInterrupt
    assert deadline.wait(Slow(clock, 159.0))
