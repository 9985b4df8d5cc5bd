"""The measured parts of README.md and of docs, made from bench/results: `python -m bench.readme`.

A part stands between `<!-- bench.readme: NAME -->` and `<!-- end -->`; `--check` only says whether they are
what the results say. The plots docs/quality.svg and docs/serve-load.svg are made too (needs matplotlib).
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from driffusion_trt.engines.manifest import BUNDLED

from . import quality_table, report, serve_parts
from .performance import result_name

ROOT = Path(__file__).parent.parent
DOCUMENTS = ("README.md", "docs/faults.md", "docs/measured.md", "docs/performance.md", "docs/serving.md")
PLOT = ROOT / "docs" / "quality.svg"
_PART = re.compile(r"(<!-- bench\.readme: ([\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)
_RATIOS = {
    "sequential / loop": "as fast as sequential, 1 thread",
    "onnxruntime, 2 threads / loop": "as ONNX Runtime, 2 threads",
    "diffusers, 2 threads / loop": "as diffusers in torch, 2 threads",
    "loop_over_network": "loop / its slowest calls",
    "loop_over_ideal": "loop / ideal",
}


def speed() -> str:
    """Two lanes against rivals, for every model."""
    found = report.read("speed")
    rows = []
    for model, shown in found["models"].items():
        for mode, ratios in shown["modes"].items():
            rounds = f"{ratios['rounds']['median']:.0f} of {shown['steps']}"
            rows.append([model, mode, rounds, *(report.words(ratios[name]) for name in _RATIOS)])
    head = ["model", "2 lanes", "rounds", *_RATIOS.values()]
    about = f"median and quartiles of {found['repeats']} interleaved repeats"
    return f"{report.where(found)}: {about}.\n\n{report.table(head, rows)}"


def quality_short() -> str:
    """Four lanes: every method on every model, a table for each guidance scale."""
    found = report.read("quality")
    models: dict[str, Any] = found["models"]
    scales = list(next(iter(models.values())))
    tables = []
    for scale in scales:
        columns = {model: by_scale[scale] for model, by_scale in models.items()}
        lanes = max(row["lanes"] for row in next(iter(columns.values())))
        head = [f"guidance {scale}, n = {lanes}", *(f"{model}: calls, right, L2" for model in columns)]
        methods = [row["method"] for row in next(iter(columns.values())) if row["lanes"] in (1, lanes)]
        body = [[method, *(_cell(rows, method, lanes) for rows in columns.values())] for method in methods]
        tables.append(report.table(head, body))
    about = f"{found['pictures']} pictures a cell, {found['date'][:10]}, commit {found['commit']}."
    return f"{about}\n\n" + "\n\n".join(tables)


def _cell(rows: list[dict[str, Any]], method: str, lanes: int) -> str:
    (row,) = (one for one in rows if one["method"] == method and one["lanes"] in (1, lanes))
    words = f"{row['calls']:.3g}, {100 * row['right']['mean']:.1f} %"
    return words if method == "sequential" else f"{words}, {quality_table.l2(row)}"


def quality_full() -> str:
    """All cells of bench.quality."""
    found = report.read("quality")
    parts = []
    for model, by_scale in found["models"].items():
        for scale, rows in by_scale.items():
            parts.append(f"### {model}, guidance {scale}\n\n{quality_table.as_table(rows)}")
    drawn = (
        f"As many drawn pictures have a Fréchet distance of {found['frechet_of_drawn_pictures']:.1f} "
        f"from {found['drawn_pictures'] - found['pictures']} others."
    )
    return f"{drawn}\n\n" + "\n\n".join(parts)


def performance() -> str:
    """What the model foresees over what pictures took, loops alone and whole calls, for every model."""
    found = {name: report.read(result_name(name)) for name in BUNDLED}
    head = ["predicted / measured", *(f"{name}: picture, loop" for name in found)]
    by_cell = {name: {row["cell"]: row for row in one["rows"]} for name, one in found.items()}
    body = [
        [cell, *(_foreseen(rows[cell]) for rows in by_cell.values())] for cell in next(iter(by_cell.values()))
    ]
    about = "; ".join(
        f"{name}: {one['repeats']} repeats of {one['steps']} steps" for name, one in found.items()
    )
    where = report.where(next(iter(found.values())))
    return f"{where}: {about}; median and quartiles.\n\n{report.table(head, body)}"


def _foreseen(row: dict[str, Any]) -> str:
    return (
        f"{report.words(row['predicted_over_measured'])}, {report.words(row['predicted_over_measured_loop'])}"
    )


MAKERS: dict[str, Callable[[], str]] = {
    "speed": speed,
    "quality-short": quality_short,
    "quality-full": quality_full,
    "performance": performance,
    **serve_parts.MAKERS,
}


def renewed(text: str) -> str:
    """A document with its parts made anew."""
    return _PART.sub(lambda part: f"{part[1]}\n{MAKERS[part[2]]()}\n\n{part[3]}", text)


def renew(check: bool = False) -> list[str]:
    """Write the parts of all documents anew; those that were stale. check: write nothing."""
    stale = []
    for name in DOCUMENTS:
        text = (ROOT / name).read_text("utf-8")
        if (new := renewed(text)) != text:
            stale.append(name)
            if not check:
                (ROOT / name).write_text(new, "utf-8")
    return stale


def draw(path: Path) -> None:
    """Drift against the share of sequential calls that is saved, a panel for each model and guidance."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "driffusion-trt"  # the same bytes from the same figures
    import matplotlib.pyplot as plt

    models: dict[str, Any] = report.read("quality")["models"]
    scales = list(next(iter(models.values())))
    shape = (len(scales), len(models))
    figure, axes = plt.subplots(*shape, figsize=(12, 3.6 * len(scales)), sharey=True, squeeze=False)
    for column, (model, by_scale) in enumerate(models.items()):
        for line, scale in enumerate(scales):
            _panel(axes[line][column], by_scale[scale])
            axes[line][column].set_title(f"{model}, guidance {scale}")
    for axis in axes[-1]:
        axis.set_xlabel("steps / sequential calls")
    for line in axes:
        line[0].set_ylabel("relative L2 from sequential")
    handles, names = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, names, loc="lower center", ncols=len(names), frameon=False)
    figure.tight_layout(rect=(0, 0.06, 1, 1))
    partial = path.with_name(f".{path.stem}.partial.svg")
    figure.savefig(partial, metadata={"Date": None})
    partial.replace(path)
    plt.close(figure)


def _panel(axis: Any, rows: list[dict[str, Any]]) -> None:
    calls = next(row["calls"] for row in rows if row["method"] == "sequential")
    methods = list(dict.fromkeys(row["method"] for row in rows if row["method"] != "sequential"))
    for method, marker in zip(methods, "sD^ovP*", strict=False):
        some = [row for row in rows if row["method"] == method]
        gain = [calls / row["calls"] for row in some]
        drift = [row["relative_l2"]["mean"] for row in some]
        axis.plot(gain, drift, marker=marker, label=method, linewidth=1)
    axis.set_yscale("log")
    axis.grid(alpha=0.3)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.readme", description=__doc__.split("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing; 1 where a document is stale")
    options = parser.parse_args(arguments)
    stale = renew(options.check)
    if options.check:
        print(f"stale: {', '.join(stale)}" if stale else "up to date")
        return bool(stale)
    draw(PLOT)
    plots = [PLOT, serve_parts.PLOT] if serve_parts.draw() else [PLOT]
    print(f"written: {', '.join([*stale, *(str(plot.relative_to(ROOT)) for plot in plots)])}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
