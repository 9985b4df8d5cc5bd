"""Copies between GPUs, tried out on the simulated driver: what is found, said, and left behind."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from itertools import permutations
from typing import Any

import cudasim
import numpy as np
import pytest

pytest.importorskip("cuda.bindings.driver", reason="cuda-bindings is not installed")

from driffusion_trt.runtime import _peer_trial
from driffusion_trt.runtime._driver import Device
from driffusion_trt.runtime._resources import Stream
from driffusion_trt.runtime.peers import PeerLink, can_use, check_peers

ILLEGAL_ADDRESS, OUT_OF_MEMORY, TOO_MANY_PEERS = 700, 2, 711


@pytest.fixture
def simulator() -> Iterator[cudasim.Simulator]:
    with cudasim.Simulator(devices=2, hang_limit_ms=2000) as machine:
        yield machine


@contextmanager
def opened(count: int) -> Iterator[list[Device]]:
    with ExitStack() as stack:
        yield [stack.enter_context(Device(ordinal)) for ordinal in range(count)]


def clean(simulator: cudasim.Simulator) -> None:
    assert simulator.races() == []
    assert simulator.violations() == []
    assert simulator.unknown_calls() == {}
    assert {kind: count for kind, count in simulator.live_objects().items() if count} == {}


@pytest.mark.parametrize("count", [1, 2, 3, 8])
@pytest.mark.parametrize("delays", [None, 5], ids=["at once", "with delays"])
def test_every_ordered_pair_is_tried_and_nothing_is_left(
    simulator: cudasim.Simulator, count: int, delays: int | None
) -> None:
    simulator.configure(count, delays=delays)
    with opened(count) as devices:
        links = check_peers(devices)
    assert set(links) == set(permutations(range(count), 2))
    for (source, target), link in links.items():
        assert link == PeerLink(source, target, access=True, verified=True) and can_use(link)
        # Whole and cut, pushed and pulled; the parts are those of both pieces.
        assert simulator.copied_bytes()[f"peer {source}->{target}"] == 2 * ((1 << 20) + 1_000_003)
    clean(simulator)


def test_ordinals_name_the_links_whatever_the_order(simulator: cudasim.Simulator) -> None:
    simulator.configure(3)
    with opened(3) as devices:
        links = check_peers([devices[2], devices[0], devices[2]])
    assert set(links) == {(2, 0), (0, 2)}
    assert all(link.verified and (link.source, link.target) == pair for pair, link in links.items())
    clean(simulator)


def test_access_is_asked_for_in_both_directions(simulator: cudasim.Simulator) -> None:
    simulator.configure(3)
    simulator.deny_peer(2, 0)
    with opened(3) as devices:
        links = check_peers(devices)
        for pair in ((0, 2), (2, 0)):
            assert links[pair].verified and not links[pair].access and not can_use(links[pair])
            assert "GPU 2 (Simulated GPU) has no direct access to the memory of GPU 0" in links[pair].problem
        assert {pair for pair, link in links.items() if can_use(link)} == {(0, 1), (1, 0), (1, 2), (2, 1)}
        copied = simulator.copied_bytes()
        assert "staged 0->2" in copied and "peer 0->2" not in copied and "staged 0->1" not in copied
    clean(simulator)


def test_a_corrupting_pair_is_found_and_named(simulator: cudasim.Simulator) -> None:
    simulator.configure(3)
    simulator.corrupt_copies(1, 2)
    with opened(3) as devices:
        links = check_peers(devices, measure=True)
    bad = links.pop((1, 2))
    assert bad.access and not bad.verified and not can_use(bad)
    assert bad.bandwidth_gb_s is None and bad.latency_us is None
    # The simulator changes one byte of every copy.
    assert bad.problem.startswith("4 of 4,210,688 bytes were wrong after copies from GPU 1 (Simulated GPU)")
    assert "to GPU 2 (Simulated GPU)" in bad.problem and "turn off PCIe ACS" in bad.problem
    assert all(can_use(link) and not link.problem for link in links.values())
    clean(simulator)


def test_a_corrupting_detour_is_another_problem(simulator: cudasim.Simulator) -> None:
    simulator.deny_peer(0, 1)
    simulator.corrupt_copies(0, 1)
    with opened(2) as devices:
        link = check_peers(devices)[0, 1]
    assert not link.access and not link.verified
    assert "though they went through the host; test its memory" in link.problem
    clean(simulator)


@pytest.mark.parametrize(
    "damage", ["lost", "moved", "shortened", "lengthened", "another pair's"], ids=lambda word: word
)
def test_damage_of_every_kind_is_seen(
    simulator: cudasim.Simulator, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    """The copies themselves go wrong, as no real driver would tell of."""
    copy = Stream.copy_peer

    def wrong(stream: Any, target: int, to: Device, source: int, of: Device, size_bytes: int) -> None:
        if damage == "lost":
            return
        if damage == "moved":
            source += 4
        if damage == "another pair's":
            stream.fill(target, 0x5A, size_bytes)
            return
        extra = {"shortened": -1, "lengthened": 1}.get(damage, 0)
        copy(stream, target, to, source, of, size_bytes + extra)

    monkeypatch.setattr(Stream, "copy_peer", wrong)
    with opened(2) as devices:
        links = check_peers(devices)
    assert not any(link.verified for link in links.values())
    assert all("bytes were wrong" in link.problem for link in links.values())


def test_a_bit_that_is_stuck_is_seen_though_the_pattern_has_it_so(
    simulator: cudasim.Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    (_, _, _), (at, to, _) = _peer_trial._CUTS
    pattern = _peer_trial._pattern(0, 1)
    # Set wherever a piece of the pattern puts that byte, so that only its complement shows it.
    place = next(i for i in range(to, 2 * to) if pattern[i] & pattern[i - to + at] & 1)
    copy = Stream.copy_peer

    def stuck(
        stream: Stream, target: int, to_device: Device, source: int, of: Device, size_bytes: int
    ) -> None:
        copy(stream, target, to_device, source, of, size_bytes)
        if (of.ordinal, to_device.ordinal) == (0, 1):
            byte = ctypes.c_uint8.from_address(target + place - (0 if size_bytes == 1 << 20 else to))

            def set_bit() -> None:
                byte.value |= 1

            simulator.enqueue(stream.handle, set_bit)

    monkeypatch.setattr(Stream, "copy_peer", stuck)
    with opened(2) as devices:
        links = check_peers(devices)
    assert links[0, 1].problem.startswith("2 of ") and can_use(links[1, 0])


def test_patterns_tell_pairs_places_and_bits_apart() -> None:
    patterns = {pair: _peer_trial._pattern(*pair) for pair in permutations((0, 1, 2, 7, 31), 2)}
    words = {pair: pattern.view(np.uint32) for pair, pattern in patterns.items()}
    assert all(len(np.unique(word)) == word.size for word in words.values())
    for one, other in permutations(words, 2):
        assert np.count_nonzero(words[one] == words[other]) == 0
    assert all(set(np.unique(pattern)) == set(range(256)) for pattern in patterns.values())


def test_figures_come_with_measure(simulator: cudasim.Simulator) -> None:
    with opened(2) as devices:
        links = check_peers(devices, measure=True)
    for link in links.values():
        assert link.bandwidth_gb_s is not None and 0.01 < link.bandwidth_gb_s < 10_000
        assert link.latency_us is not None and 0.001 < link.latency_us < 100_000
        assert can_use(replace(link, bandwidth_gb_s=None))
    clean(simulator)


def test_slow_copies_show_in_the_figures(simulator: cudasim.Simulator) -> None:
    with opened(2) as devices:
        simulator.slow(1, 0.002)
        links = check_peers(devices, measure=True)
        simulator.slow(1, 0)
    assert links[1, 0].latency_us is not None and links[1, 0].latency_us > 2000
    assert links[0, 1].latency_us is not None and links[0, 1].latency_us < 2000
    # 16 MiB in at least 2 ms.
    assert links[1, 0].bandwidth_gb_s is not None and links[1, 0].bandwidth_gb_s < 8.4
    clean(simulator)


@pytest.mark.parametrize(
    ("entry", "code", "asynchronous"),
    [
        ("cuMemAlloc", OUT_OF_MEMORY, False),
        ("cuMemHostAlloc", OUT_OF_MEMORY, False),
        ("cuStreamCreate", OUT_OF_MEMORY, False),
        ("cuEventCreate", OUT_OF_MEMORY, False),
        ("cuMemcpyPeerAsync", 999, False),
        ("cuMemcpyDtoHAsync", 999, False),
        ("cuEventRecord", 999, False),
    ],
)
def test_a_failing_pair_does_not_stop_the_others(
    simulator: cudasim.Simulator, entry: str, code: int, asynchronous: bool
) -> None:
    simulator.configure(3)
    with opened(3) as devices:
        simulator.fail(entry, code, asynchronous=asynchronous)
        links = check_peers(devices)
    first = links.pop((0, 1))
    assert not first.verified and entry in first.problem
    assert first.problem.startswith("copies from GPU 0 (Simulated GPU) to GPU 1 (Simulated GPU) cannot be tr")
    assert all(can_use(link) for link in links.values())
    clean(simulator)


def test_a_ruined_device_is_named_by_what_went_wrong_first(simulator: cudasim.Simulator) -> None:
    simulator.configure(3)
    with opened(3) as devices:
        simulator.fail("cuMemcpyPeerAsync", ILLEGAL_ADDRESS, asynchronous=True, device=1)
        links = check_peers(devices)
    # Whichever call is the next to hear of it, but not one that gives things back.
    assert re.search(r": cuEvent(Query|Record) on GPU 1 .*CUDA_ERROR_ILLEGAL_ADDRESS", links[0, 1].problem)
    assert all(not links[pair].verified and links[pair].problem for pair in links if 1 in pair)
    assert can_use(links[0, 2]) and can_use(links[2, 0])


def test_access_that_the_driver_refuses_is_told(simulator: cudasim.Simulator) -> None:
    with opened(2) as devices:
        simulator.fail("cuCtxEnablePeerAccess", TOO_MANY_PEERS)
        link = check_peers(devices)[0, 1]
    assert not link.access and link.verified and "CUDA_ERROR_TOO_MANY_PEERS" in link.problem
    clean(simulator)


@pytest.mark.parametrize("hung", [0, 1, 2])
def test_a_hanging_device_costs_one_deadline_and_the_others_go_on(
    simulator: cudasim.Simulator, hung: int
) -> None:
    simulator.configure(3)
    with opened(3) as devices:
        simulator.hang(device=hung)
        links = check_peers(devices, timeout_s=0.8)
        assert [device.lost for device in devices] == [ordinal == hung for ordinal in range(3)]
        for pair, link in links.items():
            assert can_use(link) == (hung not in pair)
            if hung in pair:
                assert f"on GPU {hung} (Simulated GPU) did not end in time" in link.problem
        # Only those of the pair that met it first are given up.
        assert simulator.live_objects()["streams"] == 1
        assert simulator.violations() == [] and simulator.races() == []
        simulator.let_go()


@pytest.mark.parametrize("measure", [False, True])
def test_a_copy_that_hangs_takes_both_devices(
    simulator: cudasim.Simulator, monkeypatch: pytest.MonkeyPatch, measure: bool
) -> None:
    simulator.configure(3)
    copy, calls = Stream.copy_peer, 0

    def hanging(stream: Any, *arguments: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == (5 if measure else 1):  # the fifth is the first that is measured
            simulator.hang(stream=stream.pointer)
        copy(stream, *arguments)

    monkeypatch.setattr(Stream, "copy_peer", hanging)
    with opened(3) as devices:
        links = check_peers(devices, measure=measure, timeout_s=0.8)
        assert [device.lost for device in devices] == [True, True, False]
        assert not any(link.verified for link in links.values())
        assert "a copy on GPU 0 (Simulated GPU) and GPU 1 (Simulated GPU)" in links[0, 1].problem
        assert "GPU 2" not in links[0, 2].problem
        simulator.let_go()
