"""Many pictures of a bundled model at once, each with a plan of its own, their predictions in common batches.

Plans that adapt decide for one picture, as a service runs them; one after another would take hours. A batch
changes the last bits of a prediction and nothing else.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import onnxruntime as ort  # type: ignore[import-untyped]

import driffusion_trt as dt
from driffusion_trt._request import Request
from driffusion_trt.conditioning import Conditioner, Conditioning
from driffusion_trt.engines.manifest import ModelFolder
from driffusion_trt.engines.onnx_session import OnnxSession
from driffusion_trt.evaluation.heldout import prompt
from driffusion_trt.sampling.noise import noise_streams
from driffusion_trt.sampling.sample import Stats, run_plan

_ROWS = 16  # of one call of the network
Latents = np.ndarray


@dataclass(frozen=True, slots=True)
class Made:
    """One picture: latents (C, H, W) and what they took."""

    latents: Latents
    stats: Stats


class Demo:
    """A bundled model's networks, for bench programs; one thread for each core."""

    def __init__(self, prompts: Sequence[int], model: str = "demo", threads: int = 2) -> None:
        """prompts: numbers of `heldout.prompt` that will be asked for."""
        folder = ModelFolder.open(model)
        self.folder, self.shape = folder, folder.latent_shape
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        self._session = ort.InferenceSession(
            folder.network("denoiser"), options, providers=["CPUExecutionProvider"]
        )
        self._pool = ThreadPoolExecutor(threads)
        self._known: dict[int, tuple[Conditioning, Conditioning]] = {}
        self.learn(prompts)

    def learn(self, prompts: Sequence[int]) -> None:
        """Encode more prompts, for later calls."""
        if new := [index for index in prompts if index not in self._known]:
            self._known |= _conditions(self.folder, new)

    @property
    def prompts(self) -> tuple[int, ...]:
        """Those that it knows."""
        return tuple(self._known)

    def schedule(self, steps: int | None = None) -> dt.Schedule:
        """Of the model's own number of steps, or another."""
        return dt.Schedule.from_config(self.folder.scheduler_config(), steps or self.folder.spec.steps)

    def noise(self, seed: int) -> Latents:
        return noise_streams([seed], 1).draw(self.shape)

    def embeddings(self, prompts: Sequence[int]) -> tuple[Conditioning, Conditioning]:
        """Inputs of the denoiser by name for these prompts and, as often, for none; the batch first."""
        pairs = [self._known[index] for index in prompts]
        with_prompt, without = ([pair[k] for pair in pairs] for k in (0, 1))
        return _stacked(with_prompt), _stacked(without)

    def predict(self, rows: Sequence[tuple[Latents, float, int]], scale: float) -> list[Latents]:
        """Guided predictions of (latents (1, C, H, W), timestep, prompt's index), all in parallel."""
        chunks = [rows[k : k + _ROWS] for k in range(0, len(rows), _ROWS)]
        return [one for chunk in self._pool.map(lambda c: self._chunk(c, scale), chunks) for one in chunk]

    def _chunk(self, rows: Sequence[tuple[Latents, float, int]], scale: float) -> list[Latents]:
        sample = np.concatenate([latents for latents, _, _ in rows])
        timestep = np.array([t for _, t, _ in rows], np.float32)
        given, without = self.embeddings([index for _, _, index in rows])
        if scale != 1:
            sample, timestep = np.concatenate([sample] * 2), np.concatenate([timestep] * 2)
            given = both(without, given)
        names = self.folder.spec.denoiser_inputs
        (out,) = self._session.run(None, {names[0]: sample, names[1]: timestep, **given})
        if scale != 1:
            empty, full = out[: len(rows)], out[len(rows) :]
            out = (full - empty) * np.float32(scale) + empty
        return [out[k : k + 1] for k in range(len(rows))]


def _conditions(folder: ModelFolder, prompts: Sequence[int]) -> dict[int, tuple[Conditioning, Conditioning]]:
    """What the denoiser is told of each prompt, and without it."""
    spec, found = folder.spec, {}
    with contextlib.ExitStack() as stack:
        rows = [row.name for row in spec.text_encoders]
        networks = {name: stack.enter_context(OnnxSession(folder.network(name))) for name in rows}
        conditioner = Conditioner(folder, networks)
        for index in prompts:
            request = Request.check(spec, (spec.height, spec.width), prompt(index)[0], {})
            given, without = conditioner(request)
            assert without is not None
            found[index] = (given, without)
    return found


def both(without: Conditioning, given: Conditioning) -> Conditioning:
    """What guidance needs in one batch: without the prompts, then with them."""
    return {name: np.concatenate([without[name], value]) for name, value in given.items()}


def _stacked(conditions: Sequence[Conditioning]) -> Conditioning:
    return {name: np.concatenate([one[name] for one in conditions]) for name in conditions[0]}


def make_pictures(
    demo: Demo,
    plan: dt.Plan | Sequence[dt.Plan],
    indices: Sequence[int],
    scale: float,
    told: Callable[[], None] = lambda: None,
) -> list[Made]:
    """Pictures of these prompts and seeds in step with one another; a plan for all, or one each."""
    plans = [plan] * len(indices) if isinstance(plan, dt.Plan) else plan
    return _Crowd(demo, plans, indices, scale, told).run()


class _Crowd:
    """A thread for each picture; the last of them to ask runs the network for all."""

    def __init__(
        self,
        demo: Demo,
        plans: Sequence[dt.Plan],
        indices: Sequence[int],
        scale: float,
        told: Callable[[], None],
    ) -> None:
        self._demo, self._plans, self._indices, self._scale, self._told = demo, plans, indices, scale, told
        self._lock = threading.Condition()
        self._at_work = len(indices)
        self._asked: list[tuple[int, list[tuple[Latents, float, int]]]] = []
        self._answers: dict[int, list[Latents]] = {}
        self._failure: Exception | None = None

    def run(self) -> list[Made]:
        with ThreadPoolExecutor(len(self._indices)) as pool:
            return list(pool.map(self._picture, self._plans, self._indices))

    def _picture(self, plan: dt.Plan, index: int) -> Made:
        def predict(requests: Sequence[tuple[Latents, float]]) -> list[Latents]:
            with self._lock:
                self._asked.append((index, [(latents, t, index) for latents, t in requests]))
                self._answer()
                self._lock.wait_for(lambda: index in self._answers or self._failure)
                if self._failure:
                    raise self._failure
                return self._answers.pop(index)

        try:
            made = run_plan(plan, predict, self._demo.noise(index), noise_streams([index], 1))
            return Made(made.latents[0], made.stats)
        finally:
            with self._lock:
                self._at_work -= 1
                self._answer()
                self._told()

    def _answer(self) -> None:
        if self._failure or not self._asked or len(self._asked) < self._at_work:
            return
        rows = [row for _, some in self._asked for row in some]
        try:
            made = iter(self._demo.predict(rows, self._scale))
        except Exception as error:  # the others wait for an answer
            self._failure = error
            self._lock.notify_all()
            return
        for index, some in self._asked:
            self._answers[index] = [next(made) for _ in some]
        self._asked = []
        self._lock.notify_all()
