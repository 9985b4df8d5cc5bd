"""The race detector of the simulated CUDA driver: it finds all that is planted, and nothing else."""

from __future__ import annotations

import threading

import cudasim
import pytest
from cudasim.rig import BYTES, Gpu, captured, clean, driver, floats, ok, status

pytest_plugins = ("cudasim.fixtures",)


STEPS = ("record drafted", "wait drafted", "record done", "wait done")


class Exchange:
    """What lanes do in every round: a draft goes to the other device, a noise comes back."""

    def __init__(self, gpus: tuple[Gpu, Gpu], graph: bool = False) -> None:
        self.lead, self.lane = gpus
        self.slot = ok(driver.cuMemAlloc(BYTES))
        self.launchable = None
        if graph:
            self.lane.use()
            captured_work = captured(self.lane, lambda: self.lane.scale(self.lane.x, self.lane.y, b=1))
            self.launchable = ok(driver.cuGraphInstantiate(captured_work, 0))
            self.lead.use()

    def round(self, without: str = "") -> None:
        """Outbox lead.y, inbox lane.x, noise lane.y, slot; the state, lead.x, becomes twice itself plus 1."""
        lead, lane = self.lead, self.lane
        lead.scale(lead.x, lead.y, a=2)
        if without != "record drafted":
            ok(driver.cuEventRecord(lead.event, lead.stream))
        if without != "wait drafted":
            ok(driver.cuStreamWaitEvent(lane.stream, lead.event, 0))
        ok(driver.cuMemcpyPeerAsync(lane.x, lane.context, lead.y, lead.context, BYTES, lane.stream))
        if self.launchable:
            ok(driver.cuGraphLaunch(self.launchable, lane.stream))
        else:
            lane.scale(lane.x, lane.y, b=1)
        ok(driver.cuMemcpyPeerAsync(self.slot, lead.context, lane.y, lane.context, BYTES, lane.stream))
        if without != "record done":
            ok(driver.cuEventRecord(lane.event, lane.stream))
        if without != "wait done":
            ok(driver.cuStreamWaitEvent(lead.stream, lane.event, 0))
        lead.scale(self.slot, lead.x)


@pytest.mark.parametrize("graph", [False, True], ids=["plain", "graph"])
@pytest.mark.parametrize("without", STEPS)
def test_any_missing_wait_or_record_is_a_race(
    gpus: tuple[Gpu, Gpu], simulator: cudasim.Simulator, without: str, graph: bool
) -> None:
    exchange = Exchange(gpus, graph)
    gpus[0].fill(gpus[0].x, 0)
    exchange.round()
    assert simulator.races() == []
    exchange.round(without)
    gpus[0].wait()
    gpus[1].wait()
    races = simulator.races()
    assert races, f"nothing was found without {without}"
    assert "stream #1 (device 0)" in races[0] and "stream #2 (device 1)" in races[0]
    assert "allocation #" in races[0] and "is waited for before" in races[0]
    assert simulator.violations() == []


@pytest.mark.parametrize("graph", [False, True], ids=["plain", "graph"])
def test_two_thousand_correct_rounds_are_none(
    gpus: tuple[Gpu, Gpu], simulator: cudasim.Simulator, graph: bool
) -> None:
    simulator._option("delay_seed", 7)
    simulator._option("delay_us", 20)
    exchange = Exchange(gpus, graph)
    lead = gpus[0]
    lead.fill(lead.x, 0)
    for number in range(2000):
        exchange.round()
        if number % 20 == 19:
            lead.wait()
            assert (floats(lead.x) == 2**20 - 1).all()
            lead.fill(lead.x, 0)
    lead.wait()
    clean(simulator)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_delays_make_a_missing_wait_wrong_and_a_full_exchange_right(
    gpus: tuple[Gpu, Gpu], simulator: cudasim.Simulator, seed: int
) -> None:
    simulator._option("delay_seed", seed)
    exchange = Exchange(gpus)
    lead = gpus[0]
    results = []
    for without in ("", "wait drafted"):
        lead.fill(lead.x, 1)
        for _ in range(10):
            exchange.round(without)
        lead.wait()
        results.append(floats(lead.x)[0])
        gpus[1].wait()
    assert results[0] == 2**11 - 1
    assert results[1] != results[0]


def test_two_streams_may_read_but_not_write_together(gpu: Gpu, simulator: cudasim.Simulator) -> None:
    other, third = ok(driver.cuStreamCreate(1)), ok(driver.cuMemAlloc(BYTES))
    simulator.name_stream(other, "the side stream")
    gpu.fill(gpu.x, 1)
    gpu.wait()
    gpu.scale(gpu.x, gpu.y)
    gpu.scale(gpu.x, third, stream=other)
    assert simulator.races() == []
    gpu.scale(third, gpu.x, n=8)  # third was written, and x was read, on the other stream
    races = simulator.races()
    assert len(races) == 2 and all("the side stream (device 0)" in race for race in races)
    assert "read by kernel scale" in races[0] and "bytes 0 to 32" in races[0]
    assert "write by kernel scale" in races[1]


def test_bytes_side_by_side_are_no_race(gpu: Gpu, simulator: cudasim.Simulator) -> None:
    other = ok(driver.cuStreamCreate(1))
    ok(driver.cuMemsetD8Async(gpu.x, 0, 100, gpu.stream))
    ok(driver.cuMemsetD8Async(int(gpu.x) + 100, 0, 156, other))
    assert simulator.races() == []
    ok(driver.cuMemsetD8Async(int(gpu.x) + 99, 0, 2, other))
    assert "bytes 99 to 100" in simulator.races()[0]


@pytest.mark.parametrize("wait", ["stream", "event", "context", "query", "nothing"])
def test_the_host_is_ordered_by_its_waits(gpu: Gpu, simulator: cudasim.Simulator, wait: str) -> None:
    pinned = ok(driver.cuMemHostAlloc(4, 0))
    gpu.fill(gpu.x, 1)
    ok(driver.cuMemcpyDtoHAsync(pinned, gpu.x, 4, gpu.stream))
    ok(driver.cuEventRecord(gpu.event, gpu.stream))
    if wait == "stream":
        gpu.wait()
    if wait == "event":
        ok(driver.cuEventSynchronize(gpu.event))
    if wait == "context":
        ok(driver.cuCtxSynchronize())
    while wait == "query" and status(driver.cuEventQuery(gpu.event)) == "NOT_READY":
        pass
    simulator.host_access(pinned, 4, write=False)
    races = simulator.races()
    assert bool(races) == (wait == "nothing")
    assert not races or "the host has not waited" in races[0]


def test_a_store_of_the_host_under_a_copy_is_a_race(gpu: Gpu, simulator: cudasim.Simulator) -> None:
    pinned = ok(driver.cuMemHostAlloc(4, 0))
    simulator.host_access(pinned, 4, write=True)
    ok(driver.cuMemcpyHtoDAsync(gpu.x, pinned, 4, gpu.stream))
    assert simulator.races() == []  # what is enqueued later sees it
    simulator.host_access(pinned, 4, write=True)
    assert "a store on the host" in simulator.races()[0]
    simulator.host_access(int(pinned) + 4, 4, write=True)
    assert "the host touches" in simulator.violations()[0]


def test_a_staged_copy_through_pinned_memory(simulator: cudasim.Simulator) -> None:
    """The way without peer access, and that its one wait counts."""
    lead, lane = Gpu(0), Gpu(1)
    pinned = ok(driver.cuMemHostAlloc(BYTES, 1))
    for number, wait in enumerate((True, False)):
        lead.use()
        lead.fill(lead.x, 9 + number)
        ok(driver.cuMemcpyDtoHAsync(pinned, lead.x, BYTES, lead.stream))
        ok(driver.cuEventRecord(lead.event, lead.stream))
        lane.use()
        if wait:
            ok(driver.cuStreamWaitEvent(lane.stream, lead.event, 0))
        ok(driver.cuMemcpyHtoDAsync(lane.x, pinned, BYTES, lane.stream))
        assert bool(simulator.races()) != wait
        lane.wait()
        lead.wait()
        if wait:
            assert (floats(lane.x) == 9).all()
    assert "pinned memory #" in simulator.races()[0]
    assert simulator.copied_bytes() == {"DtoH": 2 * BYTES, "HtoD": 2 * BYTES}


def test_launches_of_one_graph_follow_each_other(gpu: Gpu, simulator: cudasim.Simulator) -> None:
    other = ok(driver.cuStreamCreate(1))
    graph = captured(gpu, lambda: gpu.scale(gpu.x, gpu.y))
    launchable = ok(driver.cuGraphInstantiate(graph, 0))
    ok(driver.cuGraphLaunch(launchable, gpu.stream))
    ok(driver.cuGraphLaunch(launchable, other))
    assert simulator.races() == []


@pytest.mark.parametrize(
    ("apart", "handed", "taken"),
    [(False, None, None), (True, None, None), (True, 0, 0), (True, 5, 5), (True, 5, 6)],
)
def test_what_another_thread_has_waited_for(
    gpus: tuple[Gpu, Gpu], simulator: cudasim.Simulator, apart: bool, handed: int | None, taken: int | None
) -> None:
    """It orders nothing where threads count by themselves, but for what a lock hands over."""
    simulator._option("threads_apart", apart)
    one, other = gpus

    def first() -> None:
        one.use()
        one.fill(one.x, 1)
        one.wait()
        if handed is not None:
            simulator.hand_over(handed)

    thread = threading.Thread(target=first)
    thread.start()
    thread.join()
    if taken is not None:
        simulator.take_over(taken)
    other.use()
    ok(driver.cuMemcpyPeerAsync(other.x, other.context, one.x, one.context, BYTES, other.stream))
    other.wait()
    assert bool(simulator.races()) == (apart and (handed is None or handed != taken))
