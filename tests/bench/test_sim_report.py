"""What the report on the GPU lanes counts, on networks small enough to count in a moment."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from driffusion_trt._errors import NonFiniteError
from driffusion_trt.runtime._resources import Stream
from driffusion_trt.runtime.gpu_network import GpuNetwork

pytest.importorskip("cuda.bindings.driver", reason="cuda-bindings is not installed")

import gpulanes

from bench import sim_report
from bench.sim_groups import group_memory, group_runs
from bench.sim_host import host_times
from bench.sim_lanes import SD3, SDXL, SMALL, Bench

OTHER = replace(
    SD3,
    name="SD3's inputs",
    shape=(16, 4, 8),
    inputs={"encoder_hidden_states": (5, 32), "pooled_projections": (24,)},
)


@pytest.fixture
def bench(tmp_path: Path, kernels_library: Path) -> Bench:
    return Bench(tmp_path, kernels_library)


@pytest.mark.parametrize("peer_copies", [True, False])
def test_calls_of_a_round_are_fixed_whatever_the_model(bench: Bench, peer_copies: bool) -> None:
    """Seven for each lane with peer copies and nine with staged ones, and little more."""
    for lanes, expected in ((2, 17 if peer_copies else 19), (3, 24 if peer_copies else 28)):
        rows = [
            sim_report.counts(bench, model, lanes, peer_copies=peer_copies, seed=seed)
            for seed, model in enumerate((SMALL, OTHER), 1)
        ]
        assert [row["calls_per_round"] for row in rows] == [expected] * 2
        assert rows[0]["calls_per_round_by_name"] == rows[1]["calls_per_round_by_name"]
    assert bench.races == []


def test_calls_of_a_round_by_name(bench: Bench) -> None:
    row = sim_report.counts(bench, SMALL, 2, peer_copies=True)
    assert row["calls_per_round_by_name"] == {
        "cuCtxSetCurrent": 2,  # to the other lane's device and back
        "cuEventRecord": 3,  # the messages are ready, each lane is done
        "cuGraphLaunch": 2,
        "cuLaunchKernel": 3,  # draft, messages, refine
        "cuMemcpyDtoDAsync": 1,
        "cuMemcpyPeerAsync": 2,
        "cuStreamWaitEvent": 4,
    }


def test_bytes_of_a_round(bench: Bench) -> None:
    """A message has its header of 256 bytes; a prediction comes back without one."""
    latent = 4 * 4 * 8 * 8
    row = sim_report.counts(bench, SMALL, 2, peer_copies=True)
    assert row["bytes_per_round"] == {"DtoD": latent, "peer 0->1": latent + 256, "peer 1->0": latent}
    row = sim_report.counts(bench, SMALL, 2, peer_copies=False)
    assert row["bytes_per_round"] == {"DtoD": latent, "DtoH": 2 * latent + 256, "HtoD": 2 * latent + 256}


def test_memory_of_a_lane(bench: Bench) -> None:
    row = sim_report.counts(bench, SMALL, 2, peer_copies=True)
    latent, text = 4 * 4 * 8 * 8, 4 * 4 * 16
    # Inbox, flag, both branches' input, timesteps, embeddings and output, the guided prediction, and the
    # least that there can be between an engine's layers.
    assert row["lane_bytes"] == (256 + latent) + 4 + 2 * (latent + 4 + text + latent) + latent + 256


def test_the_hosts_time(bench: Bench) -> None:
    (row,) = host_times(bench, (2,), repeats=3)
    assert 0 < row["python_us"]["median"] < row["host_us"]["high"]
    assert row["simulator_us"]["median"] > 0 and bench.races == []


def test_a_race_is_counted(bench: Bench) -> None:
    unordered = mock.patch.object(Stream, "wait", lambda stream, event: None)
    with unordered, contextlib.suppress(NonFiniteError):  # what it then reads may be no numbers
        sim_report.counts(bench, SMALL, 2, peer_copies=True)
    assert any("race" in line for line in bench.races)


def test_more_runs_with_delays(bench: Bench) -> None:
    assert sim_report.race_runs(bench, (5,), (1, 2)) == 24
    assert bench.races == []


def test_groups_at_the_same_time(bench: Bench) -> None:
    assert group_runs(bench, (4,)) == 36
    assert bench.races == []


def test_networks_on_the_leads_of_groups_are_judged_too(bench: Bench) -> None:
    """They run on every lead; where the detector hears nothing of their locks, calls on one lead race."""
    ran: set[int] = set()
    run = GpuNetwork.run

    def noted(network: GpuNetwork, inputs: Any) -> Any:
        ran.add(network.device.ordinal)
        return run(network, inputs)

    untold = mock.patch.object(gpulanes, "networks_told", lambda simulator: contextlib.nullcontext())
    with untold, mock.patch.object(GpuNetwork, "run", noted):
        group_runs(bench, (4,))
    assert len(ran) > 1 and any("race" in line for line in bench.races)


def test_memory_of_a_further_group(bench: Bench) -> None:
    """Places for the states of its plan, and what goes to the other lane and comes back; all on the lead."""
    latent = 4 * 4 * 8 * 8
    one, two = (group_memory(bench, SMALL, devices) for devices in (1, 2))
    assert one["elsewhere_bytes"] == two["elsewhere_bytes"] == 0
    assert one["lead_bytes"] == 3 * latent and two["lead_bytes"] == 7 * latent + (256 + latent)
    assert (one["pinned_bytes"], two["pinned_bytes"]) == (latent + 4, latent + 8)  # the picture, and flags


def row(**changes: Any) -> dict[str, Any]:
    usual = {"model": SDXL.name, "lanes": 4, "peer_copies": True, "calls_per_round": 31}
    return {**usual, "lead_bytes": 6_500_000, "lane_bytes": 2_800_000, **changes}


@pytest.mark.parametrize(
    ("counts", "host_us", "words"),
    [
        ([row()], 149.0, []),
        ([row(lane_bytes=10_000_000)], 149.0, ["4 lanes at SDXL 1024x1024 take 10.0 MB on a device"]),
        ([row(model=SD3.name, lead_bytes=40_000_000)], 149.0, []),
        ([row()], 150.0, ["a round takes 150 us of the host with 4 lanes"]),
        ([row(), row(model=SD3.name, calls_per_round=32)], 1.0, ["calls a round differ by model: 31 and 32"]),
    ],
)
def test_goals(counts: list[dict[str, Any]], host_us: float, words: list[str]) -> None:
    result = {"counts": counts, "host": [{"lanes": 4, "host_us": {"median": host_us}}]}
    assert sim_report.missed(result) == words
