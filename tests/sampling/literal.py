"""Draft-and-refine written step by step, as the paper and docs/method.md section 3 have it.

No tables and no forms: float64 arrays, one line a formula. It is what the plans and the
executor are held against, so it shares no code with them but the schedule's numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from driffusion_trt.sampling.schedule import Schedule

Array = np.ndarray
Denoiser = Callable[[Array, float], Array]


class Literal:
    """One run: `schedule`, a denoiser of (scaled latents, timestep), and the noise z_l of every step.

    `blend(i, x)` is done to every state i and to every draft of it, for inpainting.
    """

    def __init__(
        self,
        schedule: Schedule,
        denoiser: Denoiser,
        z: list[Array | None],
        blend: Callable[[int, Array], Array] = lambda i, x: x,
    ) -> None:
        self.schedule, self.denoiser, self.z, self.blend = schedule, denoiser, z, blend
        self.flow = schedule.prediction_type == "flow_prediction"
        self.calls = 0
        self.x0_of_pure_noise: Array | None = None

    def predict(self, i: int, seen: Array) -> Array:
        """What is carried: u for flow, ε for the others, from the network at the latents it saw."""
        sched, scale = self.schedule, self.schedule.input_scale[i]
        output = self.denoiser(scale * seen, sched.timesteps[i])
        a, s = sched.a[i], sched.s[i]
        if sched.prediction_type in ("epsilon", "flow_prediction"):
            return output
        if sched.prediction_type == "v_prediction":
            if a == 0:  # state 0 of a zero-SNR schedule: ε is x itself and says nothing of x̂0
                self.x0_of_pure_noise = -s * output
            return scale * a * output + scale * s * (scale * seen)
        assert sched.prediction_type == "sample"
        return (seen - a * output) / s

    def x0_eps(self, i: int, x: Array, carry: Array) -> tuple[Array, Array]:
        a, s = self.schedule.a[i], self.schedule.s[i]
        if self.flow:
            return x - s * carry, x + a * carry
        if a == 0:
            assert self.x0_of_pure_noise is not None
            return self.x0_of_pure_noise, carry
        return (x - s * carry) / a, carry

    def variance(self, i: int) -> float:
        sched = self.schedule
        if self.z[i] is None:
            return 0.0
        ratio = sched.a[i] * sched.s_next[i] / (sched.a_next[i] * sched.s[i])
        return float(sched.eta**2 * sched.s_next[i] ** 2 * (1 - ratio**2))

    def skip(self, i: int, j: int, x: Array, carry: Array) -> Array:
        """x_j = a_j·x̂0 + √(s_j² − v)·ε̂ + Σ w_l·z_l with v = Σ w_l²."""
        sched = self.schedule
        x0, eps = self.x0_eps(i, x, carry)
        w = {}
        for step in range(i, j):
            later = [
                math.sqrt(sched.s_next[m] ** 2 - self.variance(m)) / sched.s[m] for m in range(step + 1, j)
            ]
            w[step] = math.sqrt(self.variance(step)) * math.prod(later)
        v = sum(weight**2 for weight in w.values())
        out = sched.a_next[j - 1] * x0 + math.sqrt(max(sched.s_next[j - 1] ** 2 - v, 0.0)) * eps
        for step, weight in w.items():
            if weight:
                out = out + weight * self.z[step]
        return out

    def step(self, i: int, x: Array, carry: Array, before: Array | None) -> tuple[Array, Array]:
        """The solver's own step, and x̂0 for the next one; second order as DPM-Solver++ has it."""
        sched = self.schedule
        x0, _ = self.x0_eps(i, x, carry)
        if sched.orders[i] == 1:
            return self.blend(i + 1, self.skip(i, i + 1, x, carry)), x0
        assert before is not None

        def lam(a: float, s: float) -> float:
            return math.log(a) - math.log(s)

        a, s = sched.a_next[i], sched.s_next[i]
        here, then = lam(sched.a[i], sched.s[i]), lam(sched.a[i - 1], sched.s[i - 1])
        h = lam(a, s) - here
        d1 = (x0 - before) * h / (here - then)
        decay = math.exp(-h) - 1
        second = -0.5 * a * decay * d1 if sched.solver_type == "midpoint" else a * (decay / h + 1) * d1
        return self.blend(i + 1, s / sched.s[i] * x - a * decay * x0 + second), x0

    def drafts(self, p: int, last: int, x: Array, carry: Array, before: Array | None) -> dict[int, Array]:
        if all(order == 1 for order in self.schedule.orders[p:last]):
            return {j: self.blend(j, self.skip(p, j, x, carry)) for j in range(p + 1, last + 1)}
        out = {}
        for i in range(p, last):
            x, before = self.step(i, x, carry, before)
            out[i + 1] = x
        return out

    def sequential(self, x: Array) -> Array:
        before = None
        for i in range(self.schedule.steps):
            self.calls += 1
            x, before = self.step(i, x, self.predict(i, x), before)
        return x

    def aggressive(self, x: Array, n: int) -> Array:
        total, before = self.schedule.steps, None
        carry, p = {0: self.predict(0, x)}, 0
        self.calls += 1
        if total == 1:
            return self.step(0, x, carry[0], None)[0]
        while p < total - 1:
            last = min(p + n, total - 1)
            for j, draft in self.drafts(p, last, x, carry[p], before).items():
                carry[j] = self.predict(j, draft)
            self.calls += 1
            while p < last or (last == total - 1 and p < total):
                x, before = self.step(p, x, carry[p], before)
                p += 1
        return x

    def conservative(self, x: Array, n: int) -> Array:
        total, before, p = self.schedule.steps, None, 0
        while p < total:
            carry = {p: self.predict(p, x)}
            self.calls += 1
            last = min(p + n, total - 1)
            for j, draft in self.drafts(p, last, x, carry[p], before).items():
                carry[j] = self.predict(j, draft)
            self.calls += last > p
            while p <= last:
                x, before = self.step(p, x, carry[p], before)
                p += 1
        return x

    def paradigms(
        self, x: Array, n: int, *, tolerance: float = 0.0, strides: Sequence[int] | None = None
    ) -> Array:
        """Algorithm 1 of ParaDiGMS (2305.16317) with a buffer of the whole trajectory, as its authors do.

        x: (B, ...). With `strides` the window slides by these, else as far as changes are within `tolerance`.
        """
        total = self.schedule.steps
        buffer, x0s = [x] * (total + 1), {}
        begin, slides = 0, iter(strides or ())
        while begin < total:
            end = min(begin + n, total)
            new, running, before = [], buffer[begin], x0s.get(begin - 1)
            for i in range(begin, end):
                stepped, before = self.step(i, buffer[i], self.predict(i, buffer[i]), before)
                x0s[i] = before
                running = running + (stepped - buffer[i])
                new.append(running)
            self.calls += 1
            if strides is None:
                slide = self._slide(begin, buffer[begin + 1 : end + 1], new, tolerance)
            else:
                slide = next(slides)
            buffer[begin + 1 : end + 1] = new
            buffer[end + 1 :] = [new[-1]] * (total - end)
            begin += min(slide, end - begin)
        return buffer[total]

    def _slide(self, begin: int, old: list[Array], new: list[Array], tolerance: float) -> int:
        """One more than the leading states whose squared change, an element, is within τ² of the variance."""
        sched = self.schedule
        for k, (left, right) in enumerate(zip(old, new, strict=True)):
            j = begin + 1 + k
            if j == sched.steps:
                return k + 1
            ratio = sched.a[j] * sched.s_next[j] / (sched.a_next[j] * sched.s[j])
            variance = sched.s_next[j] ** 2 * (1 - ratio**2)
            changes = ((right - left) ** 2).reshape(len(left), -1).mean(1)
            if (changes > tolerance**2 * variance).any():
                return k + 1
        return len(new)
