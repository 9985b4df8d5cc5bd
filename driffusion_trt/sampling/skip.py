"""Solver steps and skip steps as linear forms (docs/method.md sections 1 and 2).

DDPM (2006.11239), DDIM (2010.02502), DPM-Solver++ 2M (2211.01095), the probability-flow
ODE in Karras' form (2206.00364) and rectified flow (2209.03003). Levels where a state is
read and where a step arrives are kept apart, since some spacings round them differently.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from .schedule import Schedule
from .tables import Column, Form, total


@dataclass(frozen=True, slots=True)
class Prediction:
    """What the network says of one state: x̂0 and ε̂, as forms."""

    x0: Form
    eps: Form


def predicted(schedule: Schedule, i: int, x: Form, output: Form) -> Prediction:
    """x̂0 and ε̂ of state i from the network's raw output and the latents that it saw, `x`."""
    a, s, scale = float(schedule.a[i]), float(schedule.s[i]), float(schedule.input_scale[i])
    match schedule.prediction_type:
        case "epsilon":
            return Prediction(total((1 / a, x), (-s / a, output)), output)
        case "v_prediction":  # the network sees scale·x, which is of unit variance
            x0 = total((a * scale * scale, x), (-s * scale, output))
            return Prediction(x0, total((s * scale * scale, x), (a * scale, output)))
        case "sample":
            return Prediction(output, total((1 / s, x), (-a / s, output)))
        case "flow_prediction":
            return Prediction(total((1.0, x), (-s, output)), total((1.0, x), (a, output)))
    raise AssertionError(schedule.prediction_type)


def carried(schedule: Schedule, i: int) -> Form:
    """What the paper carries from a draft to the refined state: the velocity for flow, else ε̂."""
    if schedule.prediction_type == "flow_prediction":
        return {Column("output", i): 1.0}
    return predicted(schedule, i, {Column("input", i): 1.0}, {Column("output", i): 1.0}).eps


def held(schedule: Schedule, i: int, x: Form, carry: Form) -> Prediction:
    """x̂0 and ε̂ at state `x` of number i when the carried quantity is taken as it was."""
    a, s = float(schedule.a[i]), float(schedule.s[i])
    if schedule.prediction_type == "flow_prediction":
        return Prediction(total((1.0, x), (-s, carry)), total((1.0, x), (a, carry)))
    return Prediction(total((1 / a, x), (-s / a, carry)), carry)


def draws_noise(schedule: Schedule, i: int) -> bool:
    """Whether diffusers draws a step noise for step i → i+1 (used or not, it moves the stream)."""
    if schedule.solver == "ddpm":
        return float(schedule.timesteps[i]) > 0
    return schedule.solver == "ddim" and schedule.eta > 0


def variance(schedule: Schedule, i: int) -> float:
    """v of the single step i → i+1: η²·s'²·[1 − (a·s' / (a'·s))²] (DDIM eq. 16)."""
    if schedule.eta == 0 or not draws_noise(schedule, i):
        return 0.0
    a, s, a_next, s_next = _levels(schedule, i)
    return schedule.eta**2 * s_next**2 * max(0.0, 1 - (a * s_next / (a_next * s)) ** 2)


def _levels(schedule: Schedule, i: int) -> tuple[float, float, float, float]:
    a, s, a_next, s_next = (schedule.a[i], schedule.s[i], schedule.a_next[i], schedule.s_next[i])
    return float(a), float(s), float(a_next), float(s_next)


def noise_weights(schedule: Schedule, i: int, j: int) -> dict[int, float]:
    """w_l of the step noises l = i..j−1 in a skip i → j, so that all skips share the chain's noises."""
    weights: dict[int, float] = {}
    if schedule.eta == 0:
        return weights
    shrink = 1.0
    for step in range(j - 1, i - 1, -1):
        v = variance(schedule, step)
        if v > 0:
            weights[step] = math.sqrt(v) * shrink
        shrink *= math.sqrt(max(float(schedule.s_next[step]) ** 2 - v, 0.0)) / float(schedule.s[step])
    return dict(sorted(weights.items()))


def solver_step(schedule: Schedule, i: int, x: Form, now: Prediction, before: Form | None) -> Form:
    """The scheduler's own step i → i+1; `before` is x̂0 of step i−1 for second-order steps."""
    if schedule.orders[i] == 1:
        return _first_order(schedule, i, i + 1, now)
    assert before is not None, f"step {i} is of second order and has no history"
    a, s, a_next, s_next = _levels(schedule, i)
    h = math.log(a_next / s_next) - math.log(a / s)
    h_before = math.log(a / s) - math.log(float(schedule.a[i - 1]) / float(schedule.s[i - 1]))
    gain = -a_next * math.expm1(-h)
    slope = gain / 2 if schedule.solver_type == "midpoint" else a_next * (math.expm1(-h) / h + 1)
    ratio = h / h_before
    return total(
        (s_next / s, x), (gain + slope * ratio, now.x0), (-slope * ratio, before)
    )  # DPM-Solver++ eq. (12): D1 = (x̂0_i − x̂0_{i−1})·h / h_before


def _first_order(schedule: Schedule, i: int, j: int, now: Prediction) -> Form:
    a, s = float(schedule.a_next[j - 1]), float(schedule.s_next[j - 1])
    weights = noise_weights(schedule, i, j)
    v = sum(w * w for w in weights.values())
    noises: Form = {Column("noise", step): w for step, w in weights.items()}
    return total((a, now.x0), (math.sqrt(max(s * s - v, 0.0)), now.eps), (1.0, noises))


def skip_steps(
    schedule: Schedule, i: int, j: int, x: Form, now: Prediction, carry: Form, before: Form | None
) -> list[Form]:
    """Drafts of states i+1..j from state i: one skip each, or chained steps of a multistep solver.

    `now` is the prediction at x; `carry` is the same in the carried quantity, which a
    chain holds fixed (for first-order solvers chain and skip are the same).
    """
    if all(order == 1 for order in schedule.orders[i:j]):
        return [_first_order(schedule, i, k, now) for k in range(i + 1, j + 1)]
    drafts: list[Form] = []
    for step in range(i, j):
        x = solver_step(schedule, step, x, now, before)
        drafts.append(x)
        before = now.x0
        if step + 1 < j:
            now = held(schedule, step + 1, x, carry)
    return drafts
