"""Whether a service under load kept its promises: every request answered once, with its own picture."""

from __future__ import annotations

import hashlib
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import driffusion_trt as dt
from driffusion_trt._call import FACTS

MOST_GROWTH = 0.02
MOST_LATE_MS = 500.0
MOST_GAP_S = 10.0


def was_made(one: Mapping[str, Any]) -> bool:
    """Whether an answer is a picture, and no more than one answer came."""
    return one["status"] == 200 and "why" not in one


def out_of_time(one: Mapping[str, Any]) -> bool:
    """Whether an answer says that a deadline cannot be kept, to a request that had one."""
    late = one["status"] in (422, 504) and one.get("code") == "deadline_exceeded"
    return late and one.get("deadline_ms") is not None


def kept(
    seen: Sequence[dict[str, Any]], lines: Sequence[dict[str, Any]], counted: Mapping[str, float]
) -> dict[str, Any]:
    """Whether each request was answered, and once: by the client, by the log and by the metrics."""
    logged = Counter(line["id"] for line in lines)
    tickets = Counter(one["ticket"] for one in seen if was_made(one))
    made = sum(tickets.values())
    return {
        "sent": len(seen),
        "made": made,
        "refused": sum(one["status"] == 429 for one in seen),
        "out_of_time": sum(map(out_of_time, seen)),
        "lost": [_short(one) for one in seen if one["status"] == 0],
        "other_answers": [
            _short(one) for one in seen if one["status"] not in (0, 200, 429) and not out_of_time(one)
        ],
        "mixed_up": [one["asked"] for one in seen if one.get("id", one["asked"]) != one["asked"]],
        "more_than_one_answer": [_short(one) for one in seen if "why" in one and one["status"]],
        "not_once_in_the_log": [one["asked"] for one in seen if logged[one["asked"]] != 1],
        "tickets_twice": [ticket for ticket, count in tickets.items() if count > 1],
        "made_by_metrics": sum(
            value for name, value in counted.items() if name.startswith("driffusion_pictures_total")
        ),
    }


def _short(one: dict[str, Any]) -> str:
    return f"{one['asked']}: {one['status']} {one.get('code', one.get('why', ''))}"


def pictures(seen: Sequence[dict[str, Any]], model: str, devices: int) -> dict[str, Any]:
    """Whether each picture is its request's: by its seed, by being unlike the others, and made again."""
    made = [one for one in seen if was_made(one)]
    wrong = [one["asked"] for one in made if not one["wanted_seed"] == one["seed"] == one["settings"]["seed"]]
    alike = Counter(one["pixels"] for one in made)
    again = [one for one in made if "mode" in one["settings"]]
    with dt.Pipeline.load(model, devices=devices) as pipe:
        differ = [one["asked"] for one in again if pixels(pipe, one["settings"]) != one["pixels"]]
    return {
        "of_another_seed": wrong,
        "alike": sum(count - 1 for count in alike.values()),
        "made_again": len(again),
        "made_again_in_a_named_mode": sum(one["wanted_seed"] % 2 for one in again),
        "differ": differ,
    }


def pixels(pipe: dt.Pipeline, settings: dict[str, Any]) -> str:
    """The digest of the picture that these settings make."""
    asked = {name: value for name, value in settings.items() if name not in FACTS}
    image = pipe(asked.pop("prompt"), **asked).images[0]
    return hashlib.sha256(image.tobytes()).hexdigest()


def memory(rss: Sequence[tuple[float, int]], warm: int) -> dict[str, Any]:
    """Growth: the median of the last five seconds over that of the last three of the warm-up."""
    sizes = [size for _, size in rss]
    before, after = statistics.median(sizes[max(0, warm - 3) : warm]), statistics.median(sizes[-5:])
    return {
        "rss_bytes": [[round(at, 1), size] for at, size in rss],
        "warm_at_s": rss[warm - 1][0],
        "warm_bytes": before,
        "end_bytes": after,
        "most_bytes": max(sizes),
        "growth": after / before - 1,
    }


def faults(found: dict[str, Any]) -> list[str]:
    """What is not as it should be; nothing below capacity may be refused."""
    kept, pictures = found["kept"], found["pictures"]
    lists = (
        "lost",
        "other_answers",
        "mixed_up",
        "more_than_one_answer",
        "not_once_in_the_log",
        "tickets_twice",
    )
    said = [f"{name}: {kept[name][:5]}" for name in lists if kept[name]]
    said += [
        f"pictures {name}: {pictures[name]}"
        for name in ("of_another_seed", "alike", "differ")
        if pictures[name]
    ]
    if kept["made_by_metrics"] != kept["made"]:
        said.append(f"{kept['made']} pictures came, /metrics counted {kept['made_by_metrics']:g}")
    said += [
        f"{row['refused']} of {row['sent']} were refused at {row['percent']:g} % of the capacity"
        for row in found["rates"]
        if row["percent"] < 100 and row["refused"]
    ]
    said += [
        f"at {row['percent']:g} % requests were sent {row['late_p99_ms']:.0f} ms late: the machine had "
        "more to do, and latencies say nothing; measure again"
        for row in found["rates"]
        if (row["late_p99_ms"] or 0.0) > MOST_LATE_MS
    ]
    if found["longest_gap_s"] > MOST_GAP_S:
        said.append(
            f"nothing was seen for {found['longest_gap_s']:.0f} s: the machine stood still; measure again"
        )
    said += [f"the log: {line}" for line in found["complaints"]]
    if not any(found["flooded"]):
        said.append("the queue was not full in the warm-up")
    if found["memory"]["growth"] >= MOST_GROWTH:
        said.append(f"memory grew by {100 * found['memory']['growth']:.1f} %")
    if found["exit_status"] != 0:
        said.append(f"the service ended with status {found['exit_status']}")
    return said
