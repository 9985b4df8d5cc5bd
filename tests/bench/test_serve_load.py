"""What the measurements of the service count, draw and write: on answers that are made up."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from bench import fuzz, load_checks, load_client, report, serve_faults, serve_load, serve_parts
from bench.fault_rows import Row, counted, said


def answered(name: str, **more: Any) -> dict[str, Any]:
    return {"asked": name, "id": name, "status": 200, "ticket": f"t-{name}", **more}


GOOD = [answered("a"), answered("b"), {"asked": "c", "id": "c", "status": 429, "code": "queue_full"}]
LINES = [{"id": name} for name in "abc"]
COUNTED = {'driffusion_pictures_total{mode="x"}': 2.0}


LATE = {"status": 504, "code": "deadline_exceeded"}

# What the client makes of an answer that came twice.
TWICE = {
    "asked": "d",
    **load_client.facts(load_client.parsed(2 * b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"), False),
}


def test_what_was_kept_is_found_to_be() -> None:
    kept = load_checks.kept(GOOD, LINES, COUNTED)
    assert (kept["sent"], kept["made"], kept["refused"], kept["made_by_metrics"]) == (3, 2, 1, 2)
    assert not any(one for one in kept.values() if isinstance(one, list))


@pytest.mark.parametrize(
    ("seen", "lines", "name"),
    [
        ([*GOOD, {"asked": "d", "status": 0, "why": "TimeoutError"}], [*LINES, {"id": "d"}], "lost"),
        ([*GOOD, {"asked": "d", "id": "d", "status": 500}], [*LINES, {"id": "d"}], "other_answers"),
        (
            [*GOOD, {"asked": "d", "id": "d", **LATE, "deadline_ms": None}],
            [*LINES, {"id": "d"}],
            "other_answers",
        ),
        ([*GOOD, answered("d", id="a")], [*LINES, {"id": "d"}], "mixed_up"),
        ([*GOOD, TWICE], [*LINES, {"id": "d"}], "more_than_one_answer"),
        (GOOD, [*LINES, {"id": "a"}], "not_once_in_the_log"),
        (GOOD, LINES[1:], "not_once_in_the_log"),
        ([*GOOD, answered("d", ticket="t-a")], [*LINES, {"id": "d"}], "tickets_twice"),
    ],
)
def test_what_was_not_kept_is_told(
    seen: list[dict[str, Any]], lines: list[dict[str, Any]], name: str
) -> None:
    kept = load_checks.kept(seen, lines, COUNTED)
    assert [one for one, value in kept.items() if isinstance(value, list) and value] == [name]


def test_a_deadline_is_kept_or_missed_by_the_client_s_clock_or_refused() -> None:
    late = [{"asked": name, "id": name, **LATE, "deadline_ms": 50.0} for name in "de"]
    late[1]["status"] = 422
    kept = load_checks.kept([*GOOD, *late], [*LINES, {"id": "d"}, {"id": "e"}], COUNTED)
    assert kept["out_of_time"] == 2 and not any(one for one in kept.values() if isinstance(one, list))
    times = {"end_s": 2.0, "late_ms": 0.0, "lanes": 1}
    made = [answered(name, **times, ms=ms, deadline_ms=50.0) for name, ms in (("f", 50.0), ("g", 51.0))]
    seen = [*made, answered("h", **times, ms=99.0, deadline_ms=None), *({**one, **times} for one in late)]
    row = serve_load.figures({"seen": seen, "queued": 0, "cpu_s": 1.0, "wall_s": 4.0}, 4.0)
    names = ("deadlines", "deadlines_kept", "deadlines_missed", "deadlines_refused", "others")
    assert [row[name] for name in names] == [4, 1, 2, 1, 0]


def test_a_fourth_of_each_mode_has_a_deadline() -> None:
    modes: list[dict[str, Any]] = [{}, {"mode": "a"}, {}, {"mode": "b"}]
    load = serve_load.Load(None, modes, 10, deadline_ms=50.0)  # type: ignore[arg-type]
    fields = [one["fields"] for one in load.asked("x", [None] * 160)]
    hurried = [one for one in fields if "deadline_ms" in one]
    assert len(hurried) == 40 and {one.get("mode") for one in hurried} == {None, "a", "b"}
    assert sum("mode" in one for one in hurried) == 20


def test_growth_is_from_the_end_of_the_warm_up() -> None:
    found = load_checks.memory(
        [(t, 1000 * size) for t, size in enumerate([1, 5, 10, 10, 10, 11, 11, 11, 11, 11])], 5
    )
    assert found["growth"] == pytest.approx(0.1) and found["warm_at_s"] == 4


def result(**more: Any) -> dict[str, Any]:
    row = {
        "percent": 10.0,
        "sent": 20,
        "made": 20,
        "refused": 0,
        "p50_ms": 80.0,
        "p99_ms": 120.0,
        "goodput": 1.5,
    }
    row |= {"refused_p50_ms": None, "retry_after_ms": None, "queued": 0, "late_p99_ms": 2.0}
    row |= {"deadlines_kept": 4, "deadlines_missed": 1, "deadlines_refused": 0}
    late = {**row, "percent": 300.0, "made": 5, "refused": 15, "refused_p50_ms": 3.0, "retry_after_ms": 900.0}
    pictures: dict[str, Any] = {"of_another_seed": [], "alike": 0, "differ": []}
    pictures |= {"made_again": 2, "made_again_in_a_named_mode": 1}
    return {
        "rates": [row, late], "kept": load_checks.kept(GOOD, LINES, COUNTED), "pictures": pictures,
        "capacity": 10.0, "capacity_after": 9.0, "deadline_ms": 300.0,
        "memory": {"warm_bytes": 1e8, "end_bytes": 1.01e8, "growth": 0.01}, "flooded": [3], "exit_status": 0,
        "longest_gap_s": 1.2, "complaints": [],
        "model": "demo", "devices": 2, "steps": 10, "queue": 64, "minutes": 1.0, **more,
    }  # fmt: skip


def test_what_is_not_as_it_should_be() -> None:
    assert load_checks.faults(result()) == []
    early = result()
    early["rates"][0]["refused"] = 2
    (line,) = load_checks.faults(early)
    assert "2 of 20 were refused at 10 %" in line
    assert "for 30 s: the machine stood still" in load_checks.faults(result(longest_gap_s=30.0))[0]
    assert load_checks.faults(result(complaints=["x ERROR y"])) == ["the log: x ERROR y"]
    late = result()
    late["rates"][1]["late_p99_ms"] = 700.0
    assert "at 300 % requests were sent 700 ms late" in load_checks.faults(late)[0]
    assert "memory grew by 3.0 %" in load_checks.faults(result(memory={"growth": 0.03}))
    assert "the service ended with status None" in load_checks.faults(result(exit_status=None))
    assert "not full" in load_checks.faults(result(flooded=[0]))[0]
    pictures = {"of_another_seed": [], "alike": 0, "differ": ["a"]}
    assert load_checks.faults(result(pictures=pictures)) == ["pictures differ: ['a']"]


def test_results_become_parts_of_the_documents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    assert {make() for make in serve_parts.MAKERS.values()} == {"Not measured yet."}
    assert not serve_parts.draw(tmp_path / "load.svg")
    report.write(serve_parts.LOAD, result())
    assert "| 300 | 20 | 5 | 15 |" in serve_parts.load() and "| 4 | 1 | 0 |" in serve_parts.load()
    assert "+1.00 %" in serve_parts.load()
    assert serve_parts.draw(tmp_path / "load.svg")
    assert "answered 429" in (tmp_path / "load.svg").read_text("utf-8")
    row = Row("a | fault", "done", "200", "log", None, good=False)
    rows = serve_faults.measure(None, ["one"], lambda row: None, {"one": lambda _: iter([row])})  # type: ignore[arg-type]
    report.write(
        serve_parts.FAULTS, {"rows": [serve_faults.asdict(one) for one in rows], "model": "m", "devices": 1}
    )
    assert "| a \\| fault | done | 200 | log | - | **not so** |" in serve_parts.faults()


def test_a_case_that_cannot_be_done_is_a_row() -> None:
    def fails(_: Any) -> Any:
        raise TimeoutError("60 s went by")
        yield

    (row,) = serve_faults.measure(None, ["one"], lambda row: None, {"one": fails})  # type: ignore[arg-type]
    assert not row.good and "60 s went by" in row.service


def http(body: bytes, length: int) -> bytes:
    return b"HTTP/1.1 200 OK\r\nX-Request-ID: a\r\nContent-Length: %d\r\n\r\n%s" % (length, body)


def test_answers_are_read_to_their_end() -> None:
    assert load_client.parsed(http(b'{"a":1}', 7))["value"] == {"a": 1}
    assert load_client.parsed(http(b'{"a":1}', 9))["why"] == "7 bytes instead of 9"
    twice = http(b'{"a":1}', 7) * 2
    assert "instead of 7" in load_client.parsed(twice)["why"]
    assert load_client.parsed(b"")["status"] == load_client.parsed(b"\0\1\r\n")["status"] == 0


def test_bodies_are_the_same_again_and_of_all_kinds() -> None:
    def made(seed: int) -> list[tuple[str, bytes]]:
        chance = random.Random(seed)
        return [fuzz.body(chance) for _ in range(500)]

    bodies = made(1)
    assert bodies == made(1) != made(2)
    assert sum(kind.startswith("multipart") for kind, _ in bodies) > 100
    valid = 0
    for kind, data in bodies:
        try:
            valid += kind == "application/json" and isinstance(json.loads(data), dict)
        except (RecursionError, ValueError):
            continue
    assert 50 < valid < 400


def test_outcomes_are_told_without_what_differs_by_chance() -> None:
    error = {"error": {"code": "queue_full", "message": "in about 31.5 ms, id 0123456789abcdef"}}
    assert said(429, error) == '429 `queue_full`: "in about …, id …"'
    assert counted(["a", "b", "a"]) == "2 × a; 1 × b"
