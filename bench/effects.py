"""What an error of one draft becomes in the picture, by the state that it is made at, on the bundled models.

    python -m bench.effects [--models demo demo-xl demo-sd3] [--guidance 3 7.5] [--pictures 16]

On the exact trajectory the state before is left with an x̂0 that is extrapolated from the two before it, as
drafts are. The network predicts at that draft; the prediction is carried to the exact state, in turn with the
same x̂0, the same velocity G, and an x̂0 with the slope that a tolerance takes (`sampling.carry.detail_slope`);
all later steps are exact. The effect is the relative L2 of the final latents over the draft's own distance,
that of `sampling.window.effects`: medians, and the largest of all pictures. The slope is that of x̂0 along the
draft's error, which is what the network does. This is what the default of mode `tolerance` was found by.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from rich.progress import track

from driffusion_trt.engines.manifest import BUNDLED
from driffusion_trt.sampling import skip
from driffusion_trt.sampling.carry import detail_slope
from driffusion_trt.sampling.tables import Column, Float64, Form, total
from driffusion_trt.sampling.window import effects, norms

from . import report
from .crowd import Demo
from .drift import errors_of

FIRST = 3000  # prompts and seeds from here on, which bench.quality does not ask for
SHARE = 0.8  # of the last difference, in the extrapolated x̂0
CARRIES = ("x0", "G", "moved")


class Network:
    """Exact steps and single predictions of a few pictures at once, in float64 but for the network."""

    def __init__(self, model: str, guidance: float, pictures: int) -> None:
        self.pictures = range(FIRST, FIRST + pictures)
        self._demo, self._guidance = Demo(self.pictures, model), guidance
        self.schedule = self._demo.schedule()
        assert set(self.schedule.orders) == {1}, "the bundled models have solvers of first order"
        noise = np.concatenate([self._demo.noise(index) for index in self.pictures])
        self.start: Float64 = noise.astype(np.float64) * self.schedule.initial_sigma

    def x0(self, i: int, x: Float64) -> Float64:
        """x̂0 that the network predicts at the state x of number i."""
        seen = (x * self.schedule.input_scale[i]).astype(np.float32)
        timestep = float(self.schedule.timesteps[i])
        rows = [(seen[k : k + 1], timestep, index) for k, index in enumerate(self.pictures)]
        output = np.concatenate(self._demo.predict(rows, self._guidance)).astype(np.float64)
        told, made = Column("input", i), Column("output", i)
        form = skip.predicted(self.schedule, i, {told: 1.0}, {made: 1.0}).x0
        return _value(form, {told: x, made: output})

    def step(self, i: int, x: Float64, x0: Float64) -> Float64:
        """The solver's step from the state x of number i with this x̂0."""
        a, s = float(self.schedule.a[i]), float(self.schedule.s[i])
        here, clean = Column("state", i), Column("x0", i)
        eps = total((1 / s, {here: 1.0}), (-a / s, {clean: 1.0}))
        form = skip.solver_step(self.schedule, i, {here: 1.0}, skip.Prediction({clean: 1.0}, eps), None)
        return _value(form, {here: x, clean: x0})

    def to_end(self, i: int, x: Float64) -> Float64:
        """The final latents by exact steps from state i."""
        for at in range(i, self.schedule.steps):
            x = self.step(at, x, self.x0(at, x))
        return x


def _value(form: Form, columns: Mapping[Column, Float64]) -> Float64:
    found: Float64 = np.sum([weight * columns[column] for column, weight in form.items()], axis=0)
    return found


def _rms(values: Float64) -> Float64:
    found: Float64 = np.sqrt((values.reshape(len(values), -1) ** 2).mean(1))
    return found


def measured(network: Network) -> Iterator[dict[str, Any]]:
    """For every state that a draft can be of, what its error becomes."""
    schedule, x = network.schedule, network.start
    states, clean = [x], list[Float64]()
    for i in range(schedule.steps):
        clean.append(network.x0(i, x))
        states.append(x := network.step(i, x, clean[i]))
    assert np.isfinite(x).all()
    for i in range(2, schedule.steps):
        held = clean[i - 2] + (SHARE * (clean[i - 2] - clean[i - 3]) if i > 2 else 0.0)
        draft = network.step(i - 1, states[i - 1], held)
        off, found = states[i] - draft, network.x0(i, draft)
        a, s = float(schedule.a[i]), float(schedule.s[i])
        slopes = dict(zip(CARRIES, (0.0, 1 / (a + s), detail_slope(a, s)), strict=True))
        distance = _rms(off) / norms(schedule, [i])[0]
        row: dict[str, Any] = {
            "state": i,
            "share": float(a / np.hypot(a, s)),
            "distance": float(np.median(distance)),
            "counts_for": float(effects(schedule, [i])[0]),
            "slope": float(np.median((off * (clean[i] - found)).sum((1, 2, 3)) / (off**2).sum((1, 2, 3)))),
        }
        for name, slope in slopes.items():
            end = network.to_end(i + 1, network.step(i, states[i], found + slope * off))
            ratio = errors_of(end, x) / distance
            row[name] = {"median": float(np.median(ratio)), "largest": float(ratio.max())}
        yield row


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a table of every model and guidance, and write bench/results/effects.json."""
    parser = argparse.ArgumentParser(prog="python -m bench.effects", description=__doc__.split("\n")[0])
    parser.add_argument("--models", nargs="+", choices=list(BUNDLED), default=list(BUNDLED))
    parser.add_argument("--guidance", type=float, nargs="+", default=[3.0, 7.5])
    parser.add_argument("--pictures", type=int, default=16)
    parser.add_argument("--no-write", action="store_true", help="print only, leave bench/results alone")
    options = parser.parse_args(arguments)
    found: dict[str, dict[str, Any]] = {}
    for model in options.models:
        for guidance in options.guidance:
            network = Network(model, guidance, options.pictures)
            title, states = f"{model}, guidance {guidance:g}", network.schedule.steps - 2
            rows = list(track(measured(network), title, total=states))
            found.setdefault(model, {})[f"{guidance:g}"] = rows
            print(f"\n{title}: effect on the picture, median (largest), by what is carried\n")
            print(table(rows))
    if not options.no_write:
        print(f"written to {report.write('effects', {'pictures': options.pictures, 'models': found})}")


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    head = ("state", "share", "distance", "slope", *CARRIES, "counts for")
    return report.table(
        head,
        [
            [
                str(row["state"]),
                f"{row['share']:.3f}",
                f"{row['distance']:.4f}",
                f"{row['slope']:.2f}",
                *(f"{row[name]['median']:.3f} ({row[name]['largest']:.2f})" for name in CARRIES),
                f"{row['counts_for']:.2f}",
            ]
            for row in rows
        ],
    )


if __name__ == "__main__":
    main()
