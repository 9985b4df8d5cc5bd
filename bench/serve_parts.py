"""What the measurements of the service look like in the documents, made from their results."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from . import report

LOAD, FAULTS, ELASTIC = "serve-load", "serve-faults", "elastic"
PLOT = report.RESULTS.parent.parent / "docs" / "serve-load.svg"
_NOT_YET = "Not measured yet."


def _read(name: str) -> Any:
    """None where it was never measured."""
    try:
        return report.read(name)
    except FileNotFoundError:
        return None


# Load


def load_table(rates: Sequence[Mapping[str, Any]]) -> str:
    """A row for each rate."""
    head = ["% of capacity", "sent", "pictures", "429", "p50 ms", "p99 ms", "pictures a second"]
    head += ["429s' p50 ms", "Retry-After, ms", "longest queue", "sent late, p99 ms"]
    head += ["deadlines kept", "missed", "refused"]
    first = ("percent", "sent", "made", "refused", "p50_ms", "p99_ms")
    last: tuple[str, ...] = ("refused_p50_ms", "retry_after_ms", "queued", "late_p99_ms")
    last += ("deadlines_kept", "deadlines_missed", "deadlines_refused")
    rows = [
        [
            *(_whole(row[name]) for name in first),
            f"{row['goodput']:.2f}",
            *(_whole(row[name]) for name in last),
        ]
        for row in rates
    ]
    return report.table(head, rows)


def _whole(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}"


def load_words(found: Mapping[str, Any]) -> str:
    """What was kept, in a paragraph."""
    kept, pictures, memory = found["kept"], found["pictures"], found["memory"]
    twice = sum(len(kept[name]) for name in ("more_than_one_answer", "not_once_in_the_log", "tickets_twice"))
    wrong = sum(len(pictures[name]) for name in ("of_another_seed", "differ")) + pictures["alike"]
    return (
        f"{kept['sent']} requests, warm-up included: {kept['made']} pictures, {kept['refused']} answers 429, "
        f"{kept['out_of_time']} that a deadline of {found['deadline_ms']:.0f} ms cannot be kept, "
        f"{len(kept['other_answers'])} others, {len(kept['lost'])} lost, {twice} twice. Wrong pictures: "
        f"{wrong}; {pictures['made_again']} of them were made again, "
        f"{pictures['made_again_in_a_named_mode']} of these in a mode that the request named. Capacity: "
        f"{found['capacity']:.2f} a second before, {found['capacity_after']:.2f} after. Memory: "
        f"{memory['warm_bytes'] / 1e6:.1f} MB after the warm-up, {memory['end_bytes'] / 1e6:.1f} MB at the "
        f"end, {100 * memory['growth']:+.2f} %."
    )


def load() -> str:
    """The result of bench.serve_load."""
    found = _read(LOAD)
    if found is None:
        return _NOT_YET
    about = (
        f"{report.where(found)}: `{found['model']}` on {found['devices']} CPU lanes, {found['steps']} steps, "
        f"a queue of {found['queue']}, {found['minutes']:g} minutes in all."
    )
    plot = "![latency against the rate of requests](serve-load.svg)"
    return f"{about}\n\n{plot}\n\n{load_table(found['rates'])}\n\n{load_words(found)}"


def draw(path: Path = PLOT) -> bool:
    """p50 and p99 of pictures against the rate, over the share of 429s; False where nothing was measured."""
    found = _read(LOAD)
    if found is None:
        return False
    import matplotlib

    matplotlib.use("agg")
    matplotlib.rcParams["svg.hashsalt"] = "driffusion-trt"  # the same bytes from the same figures
    import matplotlib.pyplot as plt

    rates = found["rates"]
    percents = [row["percent"] for row in rates]
    figure, (above, below) = plt.subplots(
        2, 1, figsize=(7.5, 5.4), sharex=True, height_ratios=(3, 1), layout="constrained"
    )
    for name, marker, colour in (("p50_ms", "o", "#1f77b4"), ("p99_ms", "s", "#d62728")):
        there = [(row["percent"], row[name] / 1e3) for row in rates if row[name] is not None]
        above.plot(*zip(*there, strict=True), marker=marker, color=colour, label=name[:3])
    above.set_yscale("log")
    above.yaxis.set_major_formatter(matplotlib.ticker.FormatStrFormatter("%g"))
    above.set_ylabel("from request to picture, s")
    above.legend(frameon=False, loc="best")
    title = (
        f"{found['model']}, {found['steps']} steps, {found['devices']} CPU lanes, queue of {found['queue']}"
    )
    above.set_title(f"{title}; capacity {found['capacity']:.1f} pictures a second", fontsize=10)
    refused = [100 * row["refused"] / max(1, row["sent"]) for row in rates]
    below.bar(percents, refused, width=5, color="#7f7f7f")
    below.set_ylim(0, 100)
    below.set_ylabel("answered 429, %")
    below.set_xlabel("requests that come, % of the capacity")
    for axis in (above, below):
        axis.axvline(100, color="black", linewidth=0.8, linestyle=":")
        axis.grid(alpha=0.3)
    partial = path.with_name(f".{path.stem}.partial{path.suffix}")
    figure.savefig(partial, metadata={"Date": None} if path.suffix == ".svg" else None)
    partial.replace(path)
    plt.close(figure)
    return True


# Faults


def faults_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """A row for each fault."""
    head = ["fault", "what was done", "the client saw", "log and metrics", "pictures again after", ""]
    names = ("fault", "done", "client", "service")
    return report.table(head, [[*(_cell(row[name]) for name in names), *_end(row)] for row in rows])


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _end(row: Mapping[str, Any]) -> tuple[str, str]:
    again = row["ready_again_s"]
    return "-" if again is None else f"{again:.1f} s", "as it should be" if row["good"] else "**not so**"


def faults() -> str:
    """The result of bench.serve_faults."""
    found = _read(FAULTS)
    if found is None:
        return _NOT_YET
    about = f"{report.where(found)}: `{found['model']}` on {found['devices']} CPU lanes."
    return f"{about}\n\n{faults_table(found['rows'])}"


# Elastic lanes


def elastic_table(loads: Mapping[str, Any]) -> str:
    """A row for each load and share of the lanes: medians of the repeats."""
    names = (
        ("p50_ms", ".0f"),
        ("p99_ms", ".0f"),
        ("throughput", ".2f"),
        ("lanes", ".1f"),
        ("refused", ".0f"),
    )
    rows = [
        [f"{100 * float(at):.0f} %", share, *(f"{figures[name]['median']:{form}}" for name, form in names)]
        for at, row in loads.items()
        for share, figures in row["figures"].items()
    ]
    head = ["load", "lanes each", "p50 ms", "p99 ms", "a second", "mean lanes", "refused"]
    return report.table(head, rows)


def elastic() -> str:
    """The result of bench.elastic: the two ratios that it is for, and all of it."""
    found = _read(ELASTIC)
    if found is None:
        return _NOT_YET
    loads = found["summary"]["loads"]
    low, high = min(loads, key=float), max(loads, key=float)
    steps = f", {found['call']['steps']} steps" if "steps" in found["call"] else ""
    about = (
        f"{report.where(found)}: `{found['model']}` on {found['devices']} CPU lanes{steps}, medians of "
        f"{len(found['repeats'])} repeats; ratios with quartiles, each of one repeat."
    )
    p50 = report.words(loads[low]["elastic"]["p50_ms over all"])
    made = report.words(loads[high]["elastic"]["throughput over one"])
    said = (
        f"At {100 * float(low):.0f} % of the capacity the p50 of elastic lanes is {p50} of that of all lanes "
        f"for each request; at {100 * float(high):.0f} % their throughput is {made} of that of one lane each."
    )
    return f"{about}\n\n{said}\n\n{elastic_table(loads)}"


MAKERS: dict[str, Callable[[], str]] = {"serve-load": load, "serve-faults": faults, "elastic": elastic}
