"""Leases: disjoint groups at once, in the order in which they were asked for."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from driffusion_trt.runtime.gpu_lease import Leases, group_of

THINGS = tuple("abcd")


def choose(leases: Leases[str], size: int) -> Callable[[], tuple[str, ...] | None]:
    return lambda: group_of(THINGS, leases.taken, size)


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(1e-3)


@pytest.mark.parametrize(
    ("taken", "size", "group"),
    [
        ("", 1, "d"),
        ("d", 1, "c"),
        ("", 2, "cd"),
        ("d", 2, "ab"),  # a block that is used again and again, before another pair
        ("bd", 2, "ac"),
        ("cd", 2, "ab"),
        ("", 3, "bcd"),
        ("c", 3, "abd"),
        ("", 4, "abcd"),
        ("a", 4, None),
        ("abc", 2, None),
    ],
)
def test_which_ones(taken: str, size: int, group: str | None) -> None:
    assert group_of(THINGS, set(taken), size) == (None if group is None else tuple(group))


def test_no_thing_is_in_two_groups() -> None:
    leases: Leases[str] = Leases()
    users = dict.fromkeys(THINGS, 0)
    most = [0]

    def work(seed: int) -> None:
        draw = random.Random(seed)
        for _ in range(30):
            with leases.lease(
                choose(leases, draw.randint(1, 4)), (lambda: None) if seed % 2 else None
            ) as group:
                assert leases.mine
                for thing in group:
                    users[thing] += 1
                    assert users[thing] == 1
                most[0] = max(most[0], len(leases.taken))
                time.sleep(1e-4 * draw.random())
                for thing in group:
                    users[thing] -= 1
            assert not leases.mine

    with ThreadPoolExecutor(6) as threads:
        for done in [threads.submit(work, seed) for seed in range(6)]:
            done.result(60)
    assert leases.taken == set() and most[0] == 4


def test_nobody_overtakes_who_waits_for_more() -> None:
    leases: Leases[str] = Leases()
    order: list[str] = []

    def get(name: str, size: int) -> None:
        with leases.lease(choose(leases, size)):
            order.append(name)

    with ThreadPoolExecutor(2) as threads:
        with leases.lease(choose(leases, 1)):
            whole = threads.submit(get, "whole", 4)
            until(lambda: len(leases._queue) == 1)
            single = threads.submit(get, "single", 1)
            until(lambda: len(leases._queue) == 2)
            time.sleep(0.05)
            assert order == []
        whole.result(10)
        single.result(10)
    assert order == ["whole", "single"]


def test_who_gives_up_holds_nobody_up() -> None:
    class Enough(Exception):
        pass

    def waiting() -> None:
        if give_up.is_set():
            raise Enough

    def refuse() -> tuple[str, ...]:
        raise Enough

    leases: Leases[str] = Leases()
    give_up = threading.Event()

    def get(size: int, waiting: Callable[[], None] | None) -> int:
        with leases.lease(choose(leases, size), waiting) as group:
            return len(group)

    with ThreadPoolExecutor(2) as threads, leases.lease(choose(leases, 1)):
        first = threads.submit(get, 4, waiting)
        until(lambda: len(leases._queue) == 1)
        second = threads.submit(get, 2, None)
        until(lambda: len(leases._queue) == 2)
        give_up.set()
        with pytest.raises(Enough):
            first.result(10)
        assert second.result(10) == 2
        with pytest.raises(Enough):
            threads.submit(lambda: leases._take(refuse, None)).result(10)
        assert not leases._queue and leases.taken == {"d"}


def test_all_back_waits_for_those_that_hold_something() -> None:
    leases: Leases[str] = Leases()
    closed = threading.Event()

    def close() -> None:
        with leases.all_back():
            closed.set()

    thread = threading.Thread(target=close)
    with leases.lease(choose(leases, 2)):
        thread.start()
        assert not closed.wait(0.05)
    thread.join(10)
    assert closed.is_set()


def expecting(leases: Leases[str], size: int, then: Callable[[], None] = lambda: None) -> tuple[str, str]:
    """What a thread expects, and what it gets after `then`."""
    with leases.expect(lambda: THINGS, size) as group:
        then()
        with leases.lease(lambda: leases.free(THINGS, size)) as got:
            return "".join(group), "".join(got)


def test_who_expects_a_group_gets_it_where_it_is_free() -> None:
    leases: Leases[str] = Leases()
    all_expect = threading.Barrier(3)
    with ThreadPoolExecutor(3) as threads:
        made = [
            threads.submit(expecting, leases, size, lambda: all_expect.wait(10) and None)
            for size in (1, 1, 2)
        ]
        found = [one.result(10) for one in made]
    assert all(group == got for group, got in found)
    assert sorted("".join(got for _, got in found)) == list(THINGS)
    assert leases._expected == {} and leases.taken == set()


def test_who_expects_a_group_keeps_to_it_though_another_is_free_by_then() -> None:
    leases: Leases[str] = Leases()
    released = threading.Event()
    with ThreadPoolExecutor(1) as threads:
        with leases.lease(lambda: leases.free(THINGS, 1)) as first:
            made = threads.submit(expecting, leases, 1, lambda: released.wait(10) and None)
            until(lambda: bool(leases._expected))
        released.set()
        assert first == ("d",) and made.result(10) == ("c", "c")


def test_what_others_expect_is_left_alone_where_there_is_more() -> None:
    leases: Leases[str] = Leases()

    def other(size: int) -> str:
        with leases.lease(lambda: leases.free(THINGS, size)) as got:
            return "".join(got)

    with ThreadPoolExecutor(1) as threads, leases.expect(lambda: THINGS, 2) as group:
        assert group == ("c", "d")
        assert [threads.submit(other, size).result(10) for size in (1, 2, 3)] == ["b", "ab", "bcd"]
        assert expecting_all(leases) == "abcd"


def expecting_all(leases: Leases[str]) -> str:
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(expecting, leases, 4).result(10)[0]


def test_where_all_are_taken_who_waits_expects_what_nobody_else_does() -> None:
    leases: Leases[str] = Leases()
    found: list[str] = []

    def wait(go_on: threading.Event) -> None:
        with leases.expect(lambda: THINGS, 1) as group:
            found.append("".join(group))
            assert go_on.wait(10)

    go_on = threading.Event()
    with ThreadPoolExecutor(5) as threads, leases.lease(choose(leases, 4)):
        for k in range(5):
            threads.submit(wait, go_on)
            until(lambda k=k: len(found) == k + 1)
        go_on.set()
    assert found == ["d", "c", "b", "a", "d"]


def test_an_expectation_ends_with_the_lease_and_with_what_fails() -> None:
    leases: Leases[str] = Leases()
    with leases.expect(lambda: THINGS, 1), leases.lease(lambda: leases.free(THINGS, 2)) as group:
        assert group == ("c", "d") and leases._expected == {}
    with pytest.raises(ZeroDivisionError), leases.expect(lambda: THINGS, 1):
        raise ZeroDivisionError
    assert leases._expected == {}
    with leases.expect(lambda: (), 1) as group:
        assert group == ()
    with leases.expect(lambda: THINGS, 1), leases.lease(lambda: leases.free("ab", 1)) as group:
        assert group == ("b",), "what it expected is not there any more"
