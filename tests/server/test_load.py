"""The service under load and in trouble: the short forms of bench.serve_load and bench.serve_faults."""

from __future__ import annotations

from dataclasses import replace

import pytest
import tiny

from bench import fault_cases, fault_clients, serve_load
from bench.fault_rows import Asked, Row

pytest.importorskip("psutil", reason="it is in the extra `test`")


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Asked:
    folder = tiny.make_model_folder(tmp_path_factory.mktemp("models") / "tiny", encoder=True)
    return Asked(str(folder), devices=2, bodies=300, seed=3)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_minute_of_load_loses_nothing() -> None:
    """From a tenth to three times the capacity. A busy machine may refuse some just below its capacity."""
    found = serve_load.measure(
        model="demo", devices=2, minutes=1.0, rates=(10, 30, 55, 100, 150, 300), steps=10, verified=60
    )
    said = serve_load.faults(found)
    wrong = [
        line
        for line in said
        if not any(word in line for word in ("refused at", "memory", "late", "stood still"))
    ]
    assert not wrong, wrong
    kept = found["kept"]
    assert kept["sent"] == kept["made"] + kept["refused"] + kept["out_of_time"] and kept["made"] > 50
    assert sum(row["deadlines_kept"] for row in found["rates"]) > 10
    early = [row for row in found["rates"] if row["percent"] < 60]
    assert early and not any(row["refused"] for row in early), early
    assert found["rates"][-1]["refused"] or found["rates"][-1]["queued"], "three times the capacity shows"
    assert found["pictures"]["made_again_in_a_named_mode"] > 5
    assert found["memory"]["growth"] < 0.1, found["memory"]["growth"]


def bad(rows: list[Row]) -> list[Row]:
    return [row for row in rows if not row.good]


def test_lanes_that_fail_in_a_process_that_serves(asked: Asked) -> None:
    once, always = fault_cases.lanes_fail(asked)
    assert once.client == "200, a picture" and "begins again" in once.service
    assert not bad([once, always]) and always.ready_again_s is not None
    assert always.client.startswith("6 × 5") and "told to fail" not in always.client


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_lane_that_hangs_in_a_process_that_serves(asked: Asked) -> None:
    short, long, end = fault_cases.lanes_hang(asked)
    assert not bad([short, long, end]), bad([short, long, end])
    assert short.client.startswith("4 × 200") and "503 `no_device`" in long.client
    assert "a lane hangs" in long.service and long.ready_again_s is not None


def test_clients_that_leave_a_process_that_serves(asked: Asked) -> None:
    rows = list(
        fault_clients.leave(replace(asked, model="demo"))
    )  # of a tiny one a picture is there too soon
    assert len(rows) == 3 and not bad(rows)
    assert all("status 499" in row.service and row.ready_again_s is not None for row in rows)


def test_malformed_bodies_over_kept_connections(asked: Asked) -> None:
    (row,) = fault_clients.malformed(asked)
    assert row.good, row
    assert "× 200" in row.client and "× 400" in row.client


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_slow_clients_full_disks_and_ends(asked: Asked) -> None:
    # Requests that are to be under way at the end are of a model whose pictures take a while.
    longer = replace(asked, model="demo")
    cases = {
        fault_clients.slow: asked,
        fault_cases.disk_is_full: asked,
        fault_cases.ends_under_load: longer,
        fault_cases.ends_at_once: longer,
    }
    rows = [row for case, of in cases.items() for row in case(of)]
    assert len(rows) >= 7 and not bad(rows), bad(rows)
