"""The queue: fair between clients by the work of their requests, and it keeps nothing."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from driffusion_trt.server.fair import FairQueue


@dataclass(frozen=True, slots=True, eq=False)
class Item:
    client: str
    work: float = 1.0
    user: str = ""


def taken(queue: FairQueue[Item]) -> list[Item]:
    return [queue.take() for _ in range(len(queue))]


def test_one_client_is_served_in_order() -> None:
    queue, items = FairQueue[Item](), [Item("a") for _ in range(5)]
    for item in items:
        queue.add(item)
    assert taken(queue) == items
    with pytest.raises(IndexError):
        queue.take()


def test_clients_take_turns() -> None:
    queue: FairQueue[Item] = FairQueue()
    for client in "aaaabbc":
        queue.add(Item(client))
    assert "".join(item.client for item in taken(queue)) == "abcabaa"


def test_who_comes_later_is_not_behind_the_flood() -> None:
    queue: FairQueue[Item] = FairQueue()
    for _ in range(50):
        queue.add(Item("flood"))
    for _ in range(10):
        queue.take()
    queue.add(Item("quiet"))
    assert "quiet" in [queue.take().client for _ in range(2)]


def test_turns_are_counted_in_work() -> None:
    queue: FairQueue[Item] = FairQueue()
    for _ in range(30):
        queue.add(Item("large", 3.0))
        queue.add(Item("small", 1.0))
    first = [queue.take() for _ in range(24)]
    had = {name: sum(item.work for item in first if item.client == name) for name in ("large", "small")}
    assert abs(had["large"] - had["small"]) <= 3.0 + 1.0  # theorem 1 of the paper: the largest of each


def test_users_take_turns_within_their_client_and_not_against_others() -> None:
    queue: FairQueue[Item] = FairQueue()
    for number in range(8):
        queue.add(Item("many", user=f"user {number % 4}"))
        queue.add(Item("one"))
    first = [queue.take() for _ in range(8)]
    assert [item.client for item in first].count("one") == 4, "eight names are one client"
    assert len({item.user for item in first if item.client == "many"}) == 4
    queue = FairQueue()
    for user in "aaaab":
        queue.add(Item("key", user=user))
    assert "".join(item.user for item in taken(queue)) == "abaaa"


def test_one_that_goes_before_its_turn_is_counted() -> None:
    queue, items = FairQueue[Item](), [Item(client, 3.0 if client == "b" else 1.0) for client in "aaabb"]
    for item in items:
        queue.add(item)
    assert queue.take(items[4]) is items[4]
    assert "".join(item.client for item in taken(queue)) == "aaba"
    queue.add(items[0])
    for strange in (items[1], Item("nobody")):
        with pytest.raises(ValueError):
            queue.take(strange)
    assert len(queue) == 1


def test_places() -> None:
    queue: FairQueue[Item] = FairQueue()
    for client, user in ("ax", "ax", "ay", "bx"):
        queue.add(Item(client, user=user))
    assert queue.places("a", "x") == [(3, 1), (2, 1)]
    assert queue.places("a", "z") == [(3, 1), (0, 2)]
    assert queue.places("z", "x") == [(0, 2), (0, 0)]
    assert sorted(item.client + item.user for item in queue.items()) == ["ax", "ax", "ay", "bx"]


ARRIVALS = st.lists(
    st.tuples(st.sampled_from("abcd"), st.floats(0.1, 10), st.booleans(), st.sampled_from("xyz")), max_size=60
)


@given(ARRIVALS)
def test_it_says_before_what_it_does_then(arrivals: list[tuple[str, float, bool, str]]) -> None:
    queue: FairQueue[Item] = FairQueue()
    for client, work, also_take, user in arrivals:
        queue.add(Item(client, work, user))
        if also_take:
            foretold = next(iter(queue))
            assert queue.take() is foretold
    foretold_all = list(queue)
    assert taken(queue) == foretold_all


@given(ARRIVALS)
def test_clients_that_always_wait_get_equal_shares(arrivals: list[tuple[str, float, bool, str]]) -> None:
    """Two of them, whatever sizes their requests have: never further apart than a large request each."""
    queue: FairQueue[Item] = FairQueue()
    for _, work, _, user in arrivals:
        queue.add(Item("a", work, user))
        queue.add(Item("b", 11.0 - work))
    had = {"a": 0.0, "b": 0.0}
    while len({item.client for item in queue}) == 2:
        item = queue.take()
        had[item.client] += item.work
        assert abs(had["a"] - had["b"]) <= 22.0


def test_removal_counts_nothing_and_leaves_the_others() -> None:
    queue: FairQueue[Item] = FairQueue()
    items = [Item(client) for client in "aab"]
    for item in items:
        queue.add(item)
    assert queue.remove(items[0]) and not queue.remove(items[0])
    assert not queue.remove(Item("nobody"))
    assert taken(queue) == [items[1], items[2]]


def test_it_keeps_nothing_of_clients_that_left() -> None:
    """Not even where some always wait, which never lets it forget all at once."""
    queue: FairQueue[Item] = FairQueue()
    for number in range(2000):
        queue.add(Item(f"client {number}"))
        if number >= 5:
            queue.take()
    assert len(queue) == 5
    assert len(queue._waiting) == 5 and len(queue._had) <= 20
    taken(queue)
    assert not queue._waiting and not queue._had


def test_a_stream_of_new_clients_does_not_starve_an_old_one() -> None:
    queue: FairQueue[Item] = FairQueue()
    queue.add(Item("old", 5.0))
    queue.add(Item("old", 1.0))
    for number in range(4):
        queue.add(Item(f"first {number}"))
    seen = []
    for number in range(100):
        queue.add(Item(f"new {number}"))
        seen.append(queue.take().client)
    assert seen.count("old") == 2
