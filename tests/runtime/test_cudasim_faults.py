"""What a test can make go wrong on the simulated CUDA driver."""

from __future__ import annotations

import cudasim
import numpy as np
import pytest
from cudasim.rig import BYTES, Gpu, clean, driver, floats, ok, status

pytest_plugins = ("cudasim.fixtures",)
CUresult = driver.CUresult


def test_the_chosen_call_fails_and_only_that(gpus: tuple[Gpu, Gpu], simulator: cudasim.Simulator) -> None:
    simulator.fail("cuMemAlloc", CUresult.CUDA_ERROR_OUT_OF_MEMORY, call=2, device=1)
    lead, lane = gpus
    lane.use()
    ok(driver.cuMemAlloc(8))
    lead.use()
    ok(driver.cuMemAlloc(8))  # not of device 1
    lane.use()
    assert status(driver.cuMemAlloc(8)) == "OUT_OF_MEMORY"
    ok(driver.cuMemAlloc(8))
    simulator.fail("cuEventRecord", CUresult.CUDA_ERROR_UNKNOWN, times=0)
    assert [status(driver.cuEventRecord(lane.event, lane.stream)) for _ in range(3)] == ["UNKNOWN"] * 3
    simulator.fail("cuInit", CUresult.CUDA_ERROR_SYSTEM_DRIVER_MISMATCH)
    assert status(driver.cuInit(0)) == "SYSTEM_DRIVER_MISMATCH"


def test_work_that_fails_later_ruins_one_device(gpus: tuple[Gpu, Gpu], simulator: cudasim.Simulator) -> None:
    lead, lane = gpus
    simulator.fail("cuLaunchKernel", CUresult.CUDA_ERROR_LAUNCH_FAILED, device=1, asynchronous=True)
    simulator.hang(device=1)  # so that none of the calls comes late enough to tell of the failure
    lead.scale(lead.x, lead.y)
    lane.scale(lane.x, lane.y)
    ran: list[int] = []
    assert simulator.enqueue(lane.stream, lambda: ran.append(1)) == 0
    ok(driver.cuEventRecord(lane.event, lane.stream))
    ok(driver.cuStreamWaitEvent(lead.stream, lane.event, 0))
    simulator.let_go()
    lead.wait()  # does not hang
    assert ran == []
    lead.use()
    assert status(driver.cuEventQuery(lane.event)) == "LAUNCH_FAILED"
    assert status(driver.cuEventRecord(lane.event, lane.stream)) == "LAUNCH_FAILED"
    lane.use()
    assert status(driver.cuMemFree(lane.x)) == "LAUNCH_FAILED"
    ok(driver.cuDevicePrimaryCtxRelease(1))
    fresh = Gpu(1)  # a new context is whole again
    fresh.scale(fresh.x, fresh.y)
    fresh.wait()


def test_an_error_that_ruins_a_context_ruins_that_of_the_stream(
    gpus: tuple[Gpu, Gpu], simulator: cudasim.Simulator
) -> None:
    lead, lane = gpus
    simulator.fail("cuStreamSynchronize", CUresult.CUDA_ERROR_ECC_UNCORRECTABLE, device=1)
    lead.wait()
    assert status(driver.cuStreamSynchronize(lane.stream)) == "ECC_UNCORRECTABLE"
    lane.use()
    assert status(driver.cuMemAlloc(8)) == "ECC_UNCORRECTABLE"
    lead.use()
    ok(driver.cuMemAlloc(8))


def test_peer_access_can_be_lost(simulator: cudasim.Simulator) -> None:
    lead, lane = Gpu(0), Gpu(1)
    assert ok(driver.cuDeviceCanAccessPeer(0, 1))
    simulator.deny_peer(0, 1)
    assert not ok(driver.cuDeviceCanAccessPeer(0, 1)) and ok(driver.cuDeviceCanAccessPeer(1, 0))
    lead.use()
    assert status(driver.cuCtxEnablePeerAccess(lane.context, 0)) == "PEER_ACCESS_UNSUPPORTED"


@pytest.mark.parametrize("whole_device", [True, False])
def test_a_hang_lasts_until_it_is_let_go(
    gpus: tuple[Gpu, Gpu], simulator: cudasim.Simulator, whole_device: bool
) -> None:
    lead, lane = gpus
    simulator._option("hang_limit_ms", 50)
    simulator.hang(**({"device": 1} if whole_device else {"stream": lane.stream}))
    lane.scale(lane.x, lane.y)
    ok(driver.cuEventRecord(lane.event, lane.stream))
    lead.use()
    lead.fill(lead.x, 1)
    lead.wait()
    assert status(driver.cuEventQuery(lane.event)) == "NOT_READY"
    assert status(driver.cuEventSynchronize(lane.event)) == "LAUNCH_TIMEOUT"
    assert "would not have returned" in simulator.violations()[0]
    simulator.let_go()
    ok(driver.cuEventSynchronize(lane.event))


def test_what_hangs_is_taken_away_at_the_end(gpus: tuple[Gpu, Gpu], simulator: cudasim.Simulator) -> None:
    lead, lane = gpus
    simulator.hang(device=1)
    ok(driver.cuEventRecord(lane.event, lane.stream))
    ok(driver.cuStreamWaitEvent(lead.stream, lane.event, 0))
    lane.use()
    ok(driver.cuStreamDestroy(lane.stream))
    simulator.reset()
    assert set(simulator.live_objects().values()) == {0}


def test_a_context_with_hanging_work_can_be_released(
    gpus: tuple[Gpu, Gpu], simulator: cudasim.Simulator
) -> None:
    lead, lane = gpus
    simulator.hang(device=1)
    ok(driver.cuEventRecord(lane.event, lane.stream))
    ok(driver.cuStreamWaitEvent(lead.stream, lane.event, 0))
    ok(driver.cuDevicePrimaryCtxRelease(1))
    lead.wait()


def test_a_slow_device_is_slow_and_right(gpus: tuple[Gpu, Gpu], simulator: cudasim.Simulator) -> None:
    lane = gpus[1]
    lane.use()
    simulator.slow(1, 0.05)
    lane.scale(lane.x, lane.y)
    assert status(driver.cuStreamQuery(lane.stream)) == "NOT_READY"
    lane.wait()
    clean(simulator)


def test_a_corrupt_copy_says_nothing(gpus: tuple[Gpu, Gpu], simulator: cudasim.Simulator) -> None:
    lead, lane = gpus
    simulator.corrupt_copies(0, 1)
    lead.fill(lead.x, 1)
    ok(driver.cuMemcpyPeerAsync(lane.x, lane.context, lead.x, lead.context, BYTES, lead.stream))
    ok(driver.cuMemcpyPeerAsync(lead.y, lead.context, lane.x, lane.context, BYTES, lead.stream))
    lead.wait()
    wrong = floats(lane.x).view(np.uint8) != floats(lead.x).view(np.uint8)
    assert wrong.sum() == 1
    np.testing.assert_array_equal(floats(lead.y), floats(lane.x))  # the way back is sound
    clean(simulator)
