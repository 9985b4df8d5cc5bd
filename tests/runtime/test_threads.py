"""The lanes' threads, and users' that work an idle lane themselves: one call a lane at a time."""

from __future__ import annotations

import gc
import random
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from functools import partial

import pytest

from driffusion_trt import LaneError
from driffusion_trt.runtime._threads import LaneThreads, _stop

WAIT_S = 30  # for what comes at once; a test that waits so long has failed


@pytest.fixture
def lanes() -> Iterator[LaneThreads]:
    lanes = LaneThreads(2, lambda: None)
    yield lanes
    lanes.close()


def begin(work: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=work)
    thread.start()
    return thread


def ident(lane: int) -> int:
    return threading.get_ident()


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


def test_whoever_asks_works_the_first_lane_that_is_idle(lanes: LaneThreads) -> None:
    here, threads = threading.get_ident(), [thread.ident for thread in lanes._threads]
    assert lanes.run([ident]) == [here]
    assert lanes.run([ident] * 5) == [here, threads[1], here, threads[1], here]
    assert lanes.run([]) == [] and lanes._state.waiting == [0, 0] and not lanes._state.callers


def test_a_lane_that_has_work_is_left_to_its_thread(lanes: LaneThreads) -> None:
    go, busy = threading.Event(), threading.Barrier(3)

    def hold(lane: int) -> None:
        busy.wait(WAIT_S)
        go.wait(WAIT_S)

    user = begin(partial(lanes.run, [hold, hold]))
    busy.wait(WAIT_S)
    got: list[list[int]] = []
    other = begin(lambda: got.append(lanes.run([ident])))
    until(lambda: lanes._state.waiting == [2, 1])
    go.set()
    user.join(WAIT_S)
    other.join(WAIT_S)
    assert got == [[lanes._threads[0].ident]]


def test_whoever_asks_does_not_overtake_what_waits(lanes: LaneThreads) -> None:
    """Between two calls of its queue a lane's thread lets go of the lane, which is not idle then."""
    lanes._state.waiting[:] = [1, 1]
    assert lanes.run([ident] * 2) == [thread.ident for thread in lanes._threads]
    lanes._state.waiting[:] = [0, 0]


@pytest.mark.parametrize("count", [1, 2, 3])
def test_no_lane_runs_two_calls_at_once_in_a_storm(count: int) -> None:
    """Users with more and fewer calls than lanes, that fail now and then; all get their own results."""
    lanes, users = LaneThreads(count, lambda: None), 6
    taken = [threading.Lock() for _ in range(count)]
    wrong: list[str] = []
    here: set[str] = set()

    def call(number: int, pause_s: float, lane: int) -> int:
        if not taken[lane].acquire(blocking=False):
            wrong.append(f"two calls on lane {lane}")
            return -1
        here.add(threading.current_thread().name.split("-")[0])
        time.sleep(pause_s)
        taken[lane].release()
        if number % 17 == 16:
            raise KeyError(number)
        return number

    def use(user: int) -> None:
        rng = random.Random(user)
        for turn in range(60):
            numbers = [1000 * user + 10 * turn + k for k in range(rng.randint(1, 4))]
            calls = [partial(call, number, rng.choice([0, 0, 1e-5, 3e-4])) for number in numbers]
            try:
                got = lanes.run(calls)
                fine = got == numbers and not any(number % 17 == 16 for number in numbers)
            except LaneError as error:
                fine = isinstance(error.__cause__, KeyError) and error.__cause__.args[0] in numbers
            if not fine:
                wrong.append(f"user {user}, turn {turn}")

    threads = [threading.Thread(target=use, args=(user,), name="user") for user in range(users)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT_S)
    assert wrong == [] and here == {"user", "driffusion"}, "both kinds of threads must have come to work"
    assert lanes._state.waiting == [0] * count and not lanes._state.callers
    lanes.close()


def test_calls_of_a_lane_run_in_the_order_in_which_they_were_asked_for() -> None:
    """On the thread of who asked, then on the lane's."""
    lanes, go, order = LaneThreads(1, lambda: None), threading.Event(), list[str]()

    def first(lane: int) -> None:
        go.wait(WAIT_S)
        order.append("first")

    def use() -> None:
        lanes.run([first, lambda lane: order.append("first again")])
        lanes.run([lambda lane: order.append("last")])

    users = [begin(use)]
    until(lambda: lanes._state.waiting == [2])
    for k, name in enumerate(("second", "third")):
        users.append(begin(partial(lanes.run, [lambda lane, name=name: order.append(name)])))
        until(lambda k=k: lanes._state.waiting == [3 + k])  # type: ignore[misc]
    go.set()
    for user in users:
        user.join(WAIT_S)
    lanes.close()
    assert order[:2] == ["first", "first again"] and len(order) == 5
    assert order.index("second") < order.index("third")


@pytest.mark.parametrize("by_hand", [True, False])
def test_the_end_waits_for_whoever_works_a_lane(by_hand: bool) -> None:
    """What calls use must not be closed under them: by `close`, nor at the interpreter's exit."""
    events: list[str] = []
    lanes, started, go = LaneThreads(2, lambda: events.append("end")), threading.Event(), threading.Event()

    def call(lane: int) -> None:
        started.set()
        go.wait(WAIT_S)
        time.sleep(0.02)
        events.append("call")

    user = begin(partial(lanes.run, [call]))
    assert started.wait(WAIT_S)
    at_exit = partial(_stop, lanes._queues, lanes._threads, lambda: events.append("end"))
    closer = begin(lanes.close if by_hand else at_exit)
    closer.join(0.05)
    assert closer.is_alive() and events == []
    go.set()
    user.join(WAIT_S)
    closer.join(WAIT_S)
    assert events == ["call", "end"]
    # Nobody comes to work on a lane whose thread has ended.
    assert not any(working.acquire(blocking=False) for working in lanes._state.working)
    if not by_hand:
        lanes._stop.detach()


@pytest.mark.parametrize("where", [0, 1])
def test_a_call_cannot_close_its_own_lanes(lanes: LaneThreads, where: int) -> None:
    """On the thread that asks, or on a lane's: it would wait for itself."""
    calls: list[Callable[[int], object]] = [lambda lane: None, lambda lane: None]
    calls[where] = lambda lane: lanes.close()
    with pytest.raises(
        LaneError, match=f"lane {where} of 2 failed: LaneError: a call that runs on the lanes"
    ):
        lanes.run(calls)
    assert lanes.run([lambda lane: lane] * 2) == [0, 1]


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_of_whoever_asks_is_no_failure_of_a_lane(
    lanes: LaneThreads, kind: type[BaseException]
) -> None:
    def interrupted(lane: int) -> None:
        raise kind

    with pytest.raises(kind):
        lanes.run([interrupted, ident])
    until(lambda: lanes._state.waiting == [0, 0])
    assert lanes.run([ident])[0] == threading.get_ident(), "the lane is free again"
    with pytest.raises(LaneError, match=f"lane 1 of 2 failed: {kind.__name__}"):
        lanes.run([ident, interrupted])


def test_a_failure_keeps_nothing_alive(lanes: LaneThreads) -> None:
    class Held:
        pass

    def fail(held: Held, lane: int) -> None:
        raise KeyError(lane)

    held = Held()
    gone = weakref.ref(held)
    gc.disable()
    try:
        try:
            lanes.run([partial(fail, held)])
        except LaneError as error:  # what pytest.raises returns is a circle itself
            assert error.__cause__ is not None and error.__cause__.__traceback__ is not None
        del held
        assert gone() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("others", [0, 1])
def test_calls_are_made_while_other_users_and_lanes_go_on(lanes: LaneThreads, others: int) -> None:
    """Filling buffers may take long, and so may making them; the lane is taken by then all the same."""
    making, go, order = threading.Event(), threading.Event(), list[str]()

    def make(k: int, lane: int) -> Callable[[int], None]:
        making.set()
        assert go.wait(WAIT_S)
        return lambda lane: order.append("made")

    def hold(lane: int) -> None:
        assert making.wait(WAIT_S)

    before = begin(partial(lanes.run, [hold] * others))  # ends while the calls are made
    until(lambda: sum(lanes._state.waiting) == others)
    user = threading.Thread(target=lanes.run_made, args=(1, make), daemon=True)
    user.start()
    assert making.wait(WAIT_S)
    before.join(WAIT_S)
    other = threading.Thread(target=lanes.run, args=([lambda lane: order.append("other")],), daemon=True)
    other.start()
    other.join(WAIT_S)
    found = order[:], sum(lanes._state.waiting)
    go.set()
    user.join(WAIT_S)
    assert found == (["other"], 1) and order == ["other", "made"]
    assert lanes._state.waiting == [0, 0] and not lanes._state.callers


@pytest.mark.parametrize("idle", [True, False])
def test_lanes_closed_while_calls_are_made(idle: bool) -> None:
    """As a signal's handler may do, in the middle of it: the calls are refused, and nobody waits."""
    lanes, said, ran = LaneThreads(2, lambda: None), list[str](), list[int]()

    def make(k: int, lane: int) -> Callable[[int], None]:
        try:
            lanes.close()
        except LaneError as error:
            said.append(str(error))
            raise
        return ran.append

    def use() -> None:
        try:
            lanes.run_made(1, make)
        except LaneError as error:
            said.append(str(error))

    lanes._state.waiting[:] = [0, 0] if idle else [1, 1]
    user = threading.Thread(target=use, daemon=True)
    user.start()
    user.join(WAIT_S)
    assert not user.is_alive(), "it waits for itself"
    refused = "a call that runs on the lanes cannot close them; close them after it"
    assert said == ([refused] * 2 if idle else ["the lanes are closed; make new ones"]) and ran == []
    assert lanes._state.waiting == ([0, 0] if idle else [1, 1]) and not lanes._state.callers
    lanes.close()


def test_calls_that_cannot_be_made_leave_the_lanes_free(lanes: LaneThreads) -> None:
    def make(k: int, lane: int) -> Callable[[int], int]:
        if k == 2:
            raise KeyError(k)
        return ident

    with pytest.raises(KeyError):
        lanes.run_made(3, make)
    assert lanes._state.waiting == [0, 0] and not lanes._state.callers
    assert lanes.run([ident]) == [threading.get_ident()]


def test_calls_made_of_what_is_closed_by_then_are_refused(lanes: LaneThreads) -> None:
    closing = threading.Event()

    def make(k: int, lane: int) -> Callable[[int], int]:
        closer.start()
        until(lambda: lanes._closed)
        raise KeyError("closed")

    closer = threading.Thread(target=lambda: (lanes.close(), closing.set()))
    with pytest.raises(LaneError, match="the lanes are closed"):
        lanes.run_made(1, make)
    assert closing.wait(WAIT_S), "closing waits for a lane that nobody works"
